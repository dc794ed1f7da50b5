"""What REST records become: definitions of markets, events and series, each once; books to compare ours with are passed on."""

from typing import Any

import orjson

from kalshibook_core.wire.events import AUDIT, EVENT, SERIES, Lifecycle, RawFrame, RawKind
from services.deduplicator.partition import Partition


def rest(gatherer: str, channel: str, ticker: str, body: dict[str, Any]) -> RawFrame:
    return RawFrame(
        RawKind.REST, gatherer, -1, 0, channel, -1, -1, False, ticker, 7, 9, "/trade-api/v2/…", orjson.dumps(body)
    )  # fmt: skip


def test_events_and_series_are_told_once_whoever_reads_them() -> None:
    """Also where an event, its only market and its series have one ticker."""
    partition = Partition()
    market, event, series = {"ticker": "KXONE"}, {"event_ticker": "KXONE", "status": "settled"}, {"ticker": "KXONE", "tags": []}
    made = []
    for gatherer in ("g1", "g2", "g3"):
        for channel, body in (("", market), (EVENT, event), (SERIES, series)):
            made += partition.receive(rest(gatherer, channel, "KXONE", body), len(made))
    assert [(e.event_type, orjson.loads(e.body)) for e in made if isinstance(e, Lifecycle)] == [
        ("market", market), ("event", event), ("series", series),
    ]  # fmt: skip
    assert len(made) == 3 and not partition.market("KXONE").book.ended
    assert partition.receive(rest("g1", EVENT, "KXONE", {**event, "title": "New"}), 9)


def test_books_by_rest_are_passed_on_and_what_is_not_ours_makes_nothing() -> None:
    partition = Partition()
    book = rest("g1", AUDIT, "KXONE", {"ticker": "KXONE", "orderbook_fp": {}})
    assert partition.receive(book, 0) == [book]
    assert not partition.tally["unparsable_rest"]
    assert not partition.receive(rest("g1", EVENT, "KXONE", {"event_ticker": "KXTWO"}), 1)
    assert not partition.receive(rest("g1", "weather", "KXONE", {"ticker": "KXONE"}), 2)
    assert partition.tally["unparsable_rest"] == 2
