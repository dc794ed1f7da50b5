"""Planned changes of the gatherer's connections make no gap: what takes over has the books before what is given up lets go."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import orjson
import pytest

from kalshibook_core.kafka.cluster import Cluster, partition_of
from kalshibook_core.kalshi import messages
from kalshibook_core.kalshi.channels import LIFECYCLE
from kalshibook_core.wire.events import BookDelta, Event, Gap, Lifecycle, RawFrame, RawKind
from kalshibook_tools.simulator.market import Notice, lifecycle_frame
from services.deduplicator import market_log, trade_log
from services.deduplicator.partition import Partition
from services.ingest import gatherer, registry
from tests.integration.test_ingest_capture import BOOK, TRADE, Capture, broken, capturing

pytestmark = pytest.mark.stack


def life(record: RawFrame) -> tuple[int, int]:
    return record.connection, record.generation


def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have everybody believe that a stream lags by a tenth of a second at most, so that a move needs no ten."""
    monkeypatch.setattr(gatherer, "OVERLAP_US", 2_000_000)
    for module in (market_log, trade_log):
        monkeypatch.setattr(module, "LAG_US", 100_000)


def assert_handed_over(capture: Capture, ticker: str, channel: str) -> None:
    """In one market's records: every life but the last ends in a BREAK that another life's beginning came before."""
    mine = [r for r in capture.records if r.market_ticker == ticker and r.channel == channel and r.generation > 0]
    begins = "RESUME" if channel == TRADE else "FRAME"
    *left, last = list(dict.fromkeys(life(r) for r in mine if r.kind == begins))
    assert left, "nothing was moved"
    for old, new in pairwise([*left, last]):
        assert new[1] > old[1], "the deduplicator takes a later generation for the later subscription"
        end = next(n for n, r in enumerate(mine) if life(r) == old and r.kind == "BREAK")
        begin = next(n for n, r in enumerate(mine) if life(r) == new and r.kind == begins)
        assert mine[end].detail == "moved" and begin < end
        assert channel == TRADE or b"orderbook_snapshot" in mine[begin].payload
        assert not any(life(r) == old for r in mine[end + 1 :])


def merged(cluster: Cluster, records: list[RawFrame]) -> list[Event]:
    partitions = [Partition() for _ in range(cluster.partitions)]
    return [
        event
        for offset, record in enumerate(records)
        for event in partitions[partition_of(record.market_ticker.encode(), cluster.partitions)].receive(record, offset)
    ]


async def test_a_connection_is_renewed_without_a_gap(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While deltas flow, one gatherer alone, several times: each event is there, and each sid's seq has no hole."""
    monkeypatch.setattr(gatherer, "REPLAN_SECONDS", 0.2)
    hurried(monkeypatch)
    async with capturing(cluster, tmp_path, lambda settings: replace(settings, renew_seconds=1.0)) as capture:
        await capture.begun()
        markets = set(capture.tickers)
        changes = list[str]()

        def renewed(times: int) -> bool:
            moved = [r for r in capture.of("BREAK", TRADE) if r.detail == "moved"]
            return all(len({life(r) for r in moved if r.market_ticker == ticker}) >= times for ticker in markets)

        def once() -> bool:
            for ticker in sorted(markets)[:2]:  # definitions change while two connections tell of them
                changes.append(f"{ticker} {len(changes)}")
                frame = lifecycle_frame(ticker, "metadata_updated", title=changes[-1])
                capture.exchange.exchange.publish(Notice(ticker, frame, {}))
            return renewed(1)

        await capture.until(once, "a renewal")
        await capture.until(lambda: renewed(2), "two renewals")
        asked = list[gatherer.Gatherer]()  # from now on no further renewal: the drain shall not meet one
        monkeypatch.setattr(gatherer.Gatherer, "_renew", lambda self: asked.append(self))  # noqa: PLW0108  (a method)
        await capture.until(lambda: bool(asked) and not asked[0]._successors, "the end of the last renewal")
        capture.exchange.pause()
        truths = {ticker: capture.exchange.truth(ticker) for ticker in markets}

        def received(ticker: str) -> bool:
            sent = [event["ts_us"] or 0 for event in truths[ticker] if event["sent"] and event["type"] == "delta"]
            trades = {event["trade_id"] for event in truths[ticker] if event["sent"] and event["type"] == "trade"}
            mine = (r for r in reversed(capture.of("FRAME")) if r.market_ticker == ticker and b"price_dollars" in r.payload)
            seen_us = next((messages.envelope(r.payload).exchange_us for r in mine), 0)
            titles = {frame["msg"].get("title") for frame in capture.frames(ticker, LIFECYCLE)}
            if not titles >= {each for each in changes if each.startswith(ticker)}:
                return False
            return (
                seen_us >= max(sent, default=0)
                and {frame["msg"]["trade_id"] for frame in capture.frames(ticker, TRADE)} >= trades
            )

        await capture.until(lambda: all(map(received, markets)), "everything sent")  # else the drain leaves some in the socket
    assert not broken(capture, "upstream_sequence_gap") and not capture.of("STALE") and not capture.of("STALE", TRADE)
    for ticker, truth in truths.items():
        assert_handed_over(capture, ticker, BOOK)
        assert_handed_over(capture, ticker, TRADE)
        # Each life has a run of the truth without a hole, and together they have all of it.
        true = [(e["side"], e["price"], e["delta"], e["ts_us"]) for e in truth if e["sent"] and e["type"] == "delta"]
        runs: dict[tuple[int, int], list[tuple[str, int, int, int]]] = {}
        for r in capture.of("FRAME"):
            if r.market_ticker == ticker and b"price_dollars" in r.payload:
                d = messages.parse_book(messages.envelope(r.payload), False)
                assert isinstance(d, messages.Delta)
                runs.setdefault(life(r), []).append((("yes", "no")[d.side], d.price, d.delta, d.exchange_us))
        reached = 0
        for run in runs.values():
            at = next(n for n in range(len(true)) if true[n : n + len(run)] == run)
            assert at <= reached, "a delta that no life has"
            reached = max(reached, at + len(run))
        assert reached == len(true)
        trades = {e["trade_id"] for e in truth if e["sent"] and e["type"] == "trade"}
        assert {frame["msg"]["trade_id"] for frame in capture.frames(ticker, TRADE)} == trades
    # The stream made of it: no gap but that of the drain, and each delta once.
    made = merged(cluster, capture.records)
    gaps = Counter((e.market_ticker, e.channel, e.cause) for e in made if isinstance(e, Gap) and e.end_us is None)
    assert gaps == Counter((ticker, channel, "disconnect") for ticker in markets for channel in (BOOK, TRADE))
    for ticker, truth in truths.items():
        happened = [(e["side"], e["price"], e["delta"]) for e in truth if e["sent"] and e["type"] == "delta"]
        deltas = [e for e in made if isinstance(e, BookDelta) and e.market_ticker == ticker]
        assert [(("yes", "no")[e.side], e.price, e.delta) for e in deltas] == happened
    assert len({r.connection for r in capture.of("FRAME", LIFECYCLE)}) > 1, "the lifecycle channel moved as well"
    came = Counter(frame["msg"].get("title") for ticker in markets for frame in capture.frames(ticker, LIFECYCLE))
    assert max(came.values()) == 2, "no definition changed while there were two connections"
    told = [orjson.loads(e.body)["title"] for e in made if isinstance(e, Lifecycle) and e.event_type == "metadata_updated"]
    assert sorted(told) == sorted(changes), "told by two connections, or by none"
    for ticker in markets:
        assert [each for each in told if each.startswith(ticker)] == [each for each in changes if each.startswith(ticker)]


async def test_a_connection_that_overflows_is_relieved_of_half_its_markets(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gatherer, "LEAST_RELIEVED", 2)
    hurried(monkeypatch)
    async with capturing(cluster, tmp_path) as capture:
        await capture.begun()
        capture.exchange.inject(kind="error_25", channel=BOOK)
        await capture.until(lambda: broken(capture, "moved", TRADE), "markets on another connection")
        await capture.until(lambda: len(broken(capture, "moved", TRADE)) >= len(capture.tickers) // 2, "half of them")
        moved = broken(capture, "moved", TRADE)
        new = max(r.generation for r in capture.of("FRAME"))
        await capture.until(
            lambda: moved <= {r.market_ticker for r in capture.of("FRAME") if r.generation == new and b'"side"' in r.payload},
            "what happens in them",
        )
    for ticker in moved:
        assert_handed_over(capture, ticker, TRADE)
    assert capture.tickers - moved and not broken(capture, "disconnect") - capture.tickers


async def test_a_market_that_ended_is_not_subscribed_again(cluster: Cluster, tmp_path: Path) -> None:
    """It lingers for late frames, but not past its connection."""
    async with capturing(cluster, tmp_path, window=8.0, rate=300.0) as capture:
        await capture.begun()
        heard = "market_lifecycle_v2"
        await capture.until(lambda: any(b'"determined"' in r.payload for r in capture.of("FRAME", heard)), "an end")
        ended = {r.market_ticker for r in capture.of("FRAME", heard) if b'"determined"' in r.payload}
        first = {r.generation for r in capture.of("FRAME")}
        capture.exchange.inject(kind="reset")
        await capture.until(lambda: {r.generation for r in capture.of("FRAME")} - first, "a new generation")
        new = max(r.generation for r in capture.of("FRAME"))
        living = {ticker for ticker, m in capture.exchange.exchange.markets.items() if m.body["status"] == "active"}
        await capture.until(
            lambda: living <= {r.market_ticker for r in capture.of("FRAME") if r.generation == new}, "the others' books"
        )
    assert not ended & {r.market_ticker for r in capture.of("FRAME") if r.generation == new}


async def test_a_market_that_ended_is_let_go_and_has_no_gap(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where its only gatherer is killed soon after, and begins anew."""
    monkeypatch.setattr(registry, "LINGER_US", 1_000_000)
    hurried(monkeypatch)
    async with capturing(cluster, tmp_path, window=5.0, rate=300.0) as capture:
        await capture.until(
            lambda: (
                any(r.detail == "market_closed" for r in capture.of("BREAK"))
                and any(r.detail == "market_closed" for r in capture.of("BREAK", TRADE))
            ),
            "an ended market let go",
        )
    let_go = {r.market_ticker for r in capture.of("BREAK") if r.detail == "market_closed"}
    ended = {r.market_ticker for r in capture.of("FRAME", LIFECYCLE) if b'"determined"' in r.payload}
    assert let_go and let_go <= ended
    start = next(r for r in capture.records if r.kind == RawKind.START)
    first = next(n for n, r in enumerate(capture.records) if r.detail == "market_closed" and r.channel == TRADE)
    keys = {partition_of(r.market_ticker.encode(), cluster.partitions): r.market_ticker for r in capture.records}
    again = [start._replace(market_ticker=key, recv_us=start.recv_us + 10**9) for key in keys.values()]
    gaps = {e.market_ticker for e in merged(cluster, [*capture.records[: first + 1], *again]) if isinstance(e, Gap)}
    assert capture.records[first].market_ticker not in gaps and gaps  # those who live on have one
