"""What REST records become: definitions of markets, events and series, each once; books to compare ours with are passed on."""

from typing import Any

import orjson

from kalshibook_core.wire.events import (
    AUDIT,
    EVENT,
    FILLED,
    READ_OVER,
    SERIES,
    TRADES,
    Gap,
    Lifecycle,
    RawFrame,
    RawKind,
    Trade,
    origin,
)
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
    assert len(made) == 3 and not partition.market("KXONE").book.ended_us
    assert partition.receive(rest("g1", EVENT, "KXONE", {**event, "title": "New"}), 9)


def test_books_by_rest_are_passed_on_and_what_is_not_ours_makes_nothing() -> None:
    partition = Partition()
    book = rest("g1", AUDIT, "KXONE", {"ticker": "KXONE", "orderbook_fp": {}})
    assert partition.receive(book, 0) == [book]
    assert not partition.tally["unparsable_rest"]
    assert not partition.receive(rest("g1", EVENT, "KXONE", {"event_ticker": "KXTWO"}), 1)
    assert not partition.receive(rest("g1", "weather", "KXONE", {"ticker": "KXONE"}), 2)
    assert partition.tally["unparsable_rest"] == 2


def test_trades_by_rest_are_passed_on_each_time_and_are_no_part_of_the_window() -> None:
    """The window is for streams: what REST tells may be years old, and pushes nothing out of it."""
    partition = Partition(trade_window=1)
    told = {
        "trade_id": "t1", "ticker": "KXONE", "created_time": "2026-06-15T15:48:42.609997Z", "count_fp": "7.77",
        "yes_price_dollars": "0.0300", "no_price_dollars": "0.9700", "taker_side": "yes", "is_block_trade": False,
    }  # fmt: skip
    made = [trade for offset in (1, 2) for trade in partition.receive(rest("backfill", TRADES, "KXONE", told), offset)]
    expected = Trade("KXONE", "t1", 1_781_538_522_609_997, 7, 300, 9700, 777, 0, False, "backfill", -1, 0, -1, -1, 1)
    assert made == [expected, expected._replace(raw_offset=2)] and origin(expected) == "rest"
    assert "t1" not in partition.window
    partition.restore([], made)
    assert "t1" not in partition.window
    assert not partition.receive(rest("backfill", TRADES, "KXTWO", told), 3)
    assert not partition.receive(rest("backfill", TRADES, "KXONE", {**told, "count_fp": "many"}), 4)
    assert partition.tally["unparsable_rest"] == 2


def test_a_gap_that_rest_was_read_over_is_told_behind_its_trades() -> None:
    partition = Partition()
    mark = rest("backfill", FILLED, "KXONE", {"start_us": 5, "end_us": 9, "cause": "disconnect"})
    assert partition.receive(mark, 3) == [Gap("KXONE", 0, 9, TRADES, 5, 9, "disconnect", 7, 0, "backfill", READ_OVER, 0, 3)]
    assert not partition.receive(rest("backfill", FILLED, "KXONE", {"start_us": 5}), 4)
