"""The gatherer against the simulator's real websocket and a real broker: what was sent stands in kalshi.raw.v1, verbatim."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from kalshibook_core.kafka import admin, topics
from kalshibook_core.kafka.cluster import Cluster
from kalshibook_core.kafka.consumer import Consumer
from kalshibook_core.kalshi import messages, signing
from kalshibook_core.wire import codec
from kalshibook_core.wire.events import RawFrame
from kalshibook_tools import simulator
from services.ingest.serve import serve
from services.ingest.settings import Settings

pytestmark = pytest.mark.stack

BOOK, TRADE = "orderbook_delta", "trade"
ALWAYS = 10_000 * 86_400.0
"""A window, in seconds, that is all but never over: no market comes or goes in the midst of a test."""


@dataclass
class Capture:
    """What has been read back of the raw topic so far; records of one market are in their order."""

    exchange: simulator.Running
    settings: Settings
    stop: asyncio.Event
    records: list[RawFrame] = field(default_factory=list)

    async def until(self, seen: Callable[[], Any], what: str) -> None:
        """Wait for a condition on what was read."""
        try:
            async with asyncio.timeout(60):
                while not seen():  # noqa: ASYNC110  (what is waited for is what a broker has)
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"never came: {what}; have {Counter((r.kind, r.channel) for r in self.records)}") from None

    def of(self, kind: str, channel: str = BOOK) -> list[RawFrame]:
        """Records of one kind; not the BREAK that says of a market heard of late that nobody saw it before."""
        return [r for r in self.records if r.kind == kind and r.channel == channel and r.generation > 0]

    def frames(self, ticker: str, channel: str = BOOK) -> list[dict[str, Any]]:
        return [orjson.loads(r.payload) for r in self.of("FRAME", channel) if r.market_ticker == ticker]

    @property
    def tickers(self) -> set[str]:
        """Markets whose book was received."""
        return {r.market_ticker for r in self.of("FRAME") if b"orderbook_snapshot" in r.payload}

    @property
    def held(self) -> int:
        """How many markets the exchange offers to whoever lists them now."""
        return sum(market.body["status"] in ("active", "initialized") for market in self.exchange.exchange.markets.values())

    async def begun(self) -> None:
        await self.until(lambda: len(self.tickers) >= self.held > 0 and len(self.of("FRAME")) > 200, "the books of all markets")


@asynccontextmanager
async def capturing(
    cluster: Cluster, key_dir: Path, change: Callable[[Settings], Settings] = lambda settings: settings, **config: Any
) -> AsyncIterator[Capture]:
    """Run the simulator, a gatherer, and a reader of the raw topic; at the end, drain the gatherer and read the rest."""
    await admin.ensure_topics(cluster)
    chosen = {"markets": 6, "rate": 400.0, "seed": 5, "window": ALWAYS, **config}
    async with simulator.serve(simulator.Config(key_dir=key_dir, **chosen)) as exchange:
        credentials = signing.Credentials(exchange.key_id, signing.load_private_key(exchange.private_key_path.read_bytes()))
        settings = change(Settings(cluster, credentials, exchange.ws_url, exchange.rest_url, requests_per_second=100))
        capture = Capture(exchange, settings, asyncio.Event())
        async with Consumer(cluster, [topics.RAW]) as consumer, asyncio.TaskGroup() as tasks:
            reading = tasks.create_task(_follow(consumer, capture))
            serving = tasks.create_task(serve(settings, capture.stop))
            yield capture
            capture.stop.set()
            await serving
            await _read_up(consumer, reading, capture)


async def _follow(consumer: Consumer, capture: Capture) -> None:
    while True:
        await _take(consumer, capture)


async def _take(consumer: Consumer, capture: Capture) -> None:
    for records in (await consumer.poll(5000, 200)).values():
        capture.records += [codec.decode(record.value) for record in records if record.value is not None]


async def _read_up(consumer: Consumer, reading: "asyncio.Task[None]", capture: Capture) -> None:
    """Read all that the topic has; that a poll brought nothing says only that the broker was slow."""
    reading.cancel()
    await asyncio.wait([reading])
    await _take(consumer, capture)
    for partition, end in (await consumer.end_offsets(consumer.assignment())).items():
        while await consumer.position(partition) < end:
            await _take(consumer, capture)


def broken(capture: Capture, cause: str, channel: str = BOOK) -> set[str]:
    # While the exchange has its weekly pause, what would be a fault at any other time is maintenance.
    causes = {cause} | ({"exchange_maintenance"} if cause in ("disconnect", "silent_socket") else set())
    return {r.market_ticker for r in capture.of("BREAK", channel) if r.detail in causes}


def assert_contiguous(capture: Capture) -> None:
    """Every sid's seq runs without a hole, but for those that a BREAK of all its markets announces."""
    for channel in (BOOK, TRADE):
        runs: dict[tuple[int, int], list[int]] = {}
        for r in capture.records:
            if r.kind == "FRAME" and r.channel == channel and r.seq >= 0:
                runs.setdefault((r.generation, r.sid), []).append(r.seq)
        for seqs in runs.values():
            assert len(seqs) == len(set(seqs))


async def test_what_was_sent_is_in_the_topic(cluster: Cluster, tmp_path: Path) -> None:
    """Every event the exchange sent while it was subscribed stands there once, in order, with right provenance."""
    async with capturing(cluster, tmp_path) as capture:
        await capture.begun()
        await capture.until(lambda: len(capture.of("FRAME")) > 1500 and len(capture.of("FRAME", TRADE)) > 20, "traffic")
        capture.exchange.pause()
        tickers = capture.tickers
        truths = {ticker: capture.exchange.truth(ticker) for ticker in tickers}
        sent = Counter(event["type"] for truth in truths.values() for event in truth if event["sent"])

        def received() -> bool:
            mine = [r for r in capture.of("FRAME") + capture.of("FRAME", TRADE) if r.market_ticker in tickers]
            got = Counter("trade" if r.channel == TRADE else "delta" for r in mine if b"snapshot" not in r.payload)
            return all(got[kind] >= sent[kind] for kind in ("delta", "trade"))

        await capture.until(received, "everything sent")  # else the drain, which breaks the markets, leaves some in the socket
    assert_contiguous(capture)
    for ticker, truth in truths.items():
        sent = [event for event in truth if event["sent"]]
        deltas = [(e["side"], e["price"], e["delta"], e["ts_us"]) for e in sent if e["type"] == "delta"]
        got = [
            messages.envelope(r.payload)
            for r in capture.of("FRAME")
            if r.market_ticker == ticker and b"price_dollars" in r.payload
        ]
        read = [messages.parse_book(message, False) for message in got]
        assert [(("yes", "no")[d.side], d.price, d.delta, d.exchange_us) for d in read if isinstance(d, messages.Delta)] == deltas
        ids = [e["trade_id"] for e in sent if e["type"] == "trade"]
        assert [frame["msg"]["trade_id"] for frame in capture.frames(ticker, TRADE)] == ids
    # The drain breaks every market held, on both channels, after its last frame.
    assert broken(capture, "disconnect") == broken(capture, "disconnect", TRADE) >= tickers
    for ticker in tickers:
        assert [r.kind for r in capture.records if r.market_ticker == ticker and r.channel == BOOK][-1] == "BREAK"
    one = capture.of("FRAME")[0]
    assert (one.gatherer, one.connection, one.yes_price, one.detail) == ("g1", 0, False, "")
    assert all(r.clock_us >= messages.envelope(r.payload).exchange_us for r in capture.of("FRAME"))
    # What was trading when it was heard of says before its first book since when nobody had seen it; what was not says nothing.
    rest = [r for r in capture.records if r.kind == "REST" and not r.channel]
    for ticker in tickers:
        mine = [r for r in capture.records if r.market_ticker == ticker and r.channel == BOOK]
        heard = orjson.loads(next(r.payload for r in rest if r.market_ticker == ticker))
        late = [r for r in mine if r.generation == 0]
        assert late == (mine[:1] if heard["status"] == "active" else [])
        for each in late:
            assert (each.kind, each.detail, each.payload) == ("BREAK", "not_yet_subscribed", b"")
            assert each.clock_us == messages.time_us(heard["open_time"])
    assert {orjson.loads(r.payload)["ticker"] for r in rest} >= tickers and all("/markets?" in r.detail for r in rest)


@pytest.mark.parametrize("fault", ["drop", "reorder"])
async def test_a_hole_breaks_the_books_and_heals(cluster: Cluster, tmp_path: Path, fault: str) -> None:
    async with capturing(cluster, tmp_path) as capture:
        await capture.begun()
        markets = set(capture.tickers)
        capture.exchange.inject(kind=fault)
        await capture.until(lambda: broken(capture, "upstream_sequence_gap") >= markets, "a break of every market")
        after = {r.market_ticker: capture.records.index(r) for r in capture.of("BREAK")}
        await capture.until(
            lambda: all(
                any(r.market_ticker == t and b'"id"' in r.payload for r in capture.records[at:]) for t, at in after.items()
            ),
            "a solicited snapshot of every market",
        )
        assert not capture.of("BREAK", TRADE)
        assert len(capture.of("STALE")) == (fault == "reorder")
        assert len({r.generation for r in capture.of("FRAME")}) == 1


async def test_a_duplicate_is_kept_and_breaks_nothing(cluster: Cluster, tmp_path: Path) -> None:
    async with capturing(cluster, tmp_path) as capture:
        await capture.begun()
        capture.exchange.inject(kind="duplicate", count=3)
        await capture.until(lambda: len(capture.of("STALE")) == 3, "the duplicates")
        assert not capture.of("BREAK") and not capture.of("BREAK", TRADE)


async def test_a_lost_trade_opens_and_closes_at_once(cluster: Cluster, tmp_path: Path) -> None:
    async with capturing(cluster, tmp_path) as capture:
        await capture.begun()
        markets = set(capture.tickers)
        capture.exchange.inject(kind="drop", channel=TRADE)
        await capture.until(
            lambda: broken(capture, "upstream_sequence_gap", TRADE) >= markets, "a break of every market's trades"
        )
        assert not capture.of("BREAK")

        def told(ticker: str) -> list[str]:
            mine = [r for r in capture.records if r.market_ticker == ticker and r.channel == TRADE]
            return [r.kind for r in mine if r.kind != "FRAME"]

        await capture.until(lambda: all(len(told(ticker)) > 2 for ticker in markets), "that trades can be vouched for again")
        assert [told(ticker) for ticker in markets] == [["RESUME", "BREAK", "RESUME"]] * len(markets)


@pytest.mark.parametrize(("fault", "cause"), [("reset", "disconnect"), ("close", "disconnect"), ("silence", "silent_socket")])
async def test_a_lost_connection_breaks_everything_and_comes_back(
    cluster: Cluster, tmp_path: Path, fault: str, cause: str
) -> None:
    """With a 502 in the way of the first attempt to come back."""
    soon = {"silence_seconds": 2.0} if fault == "silence" else {}
    async with capturing(cluster, tmp_path, lambda settings: replace(settings, **soon)) as capture:
        await capture.begun()
        markets = set(capture.tickers)
        capture.exchange.inject(kind="http_502")
        capture.exchange.inject(kind=fault, **({"seconds": 60} if fault == "silence" else {}))
        await capture.until(lambda: broken(capture, cause) >= markets, "a break of every book")
        await capture.until(lambda: broken(capture, cause, TRADE) >= markets, "a break of every market's trades")
        await capture.until(lambda: len({r.generation for r in capture.of("FRAME")}) == 2, "a new generation")
        new = max(r.generation for r in capture.of("FRAME"))
        await capture.until(
            lambda: (
                {r.market_ticker for r in capture.of("FRAME") if r.generation == new and b"_snapshot" in r.payload} >= markets
            ),
            "every book anew",
        )
        assert {r.market_ticker for r in capture.of("RESUME", TRADE) if r.generation == new} >= markets


async def test_a_terminal_error_breaks_its_own_channel_and_renews_it(cluster: Cluster, tmp_path: Path) -> None:
    async with capturing(cluster, tmp_path) as capture:
        await capture.begun()
        markets = set(capture.tickers)
        capture.exchange.inject(kind="error_25")
        await capture.until(lambda: broken(capture, "terminal_subscription_error") >= markets, "a break of every book")
        at = capture.records.index(capture.of("BREAK")[0])
        await capture.until(
            lambda: {r.market_ticker for r in capture.records[at:] if b"_snapshot" in r.payload} >= markets, "every book anew"
        )
        assert not capture.of("BREAK", TRADE)


@pytest.mark.parametrize("kind", ["malformed", "unknown_type", "big_frame", "negative_level", "unparsable", "off_grid"])
async def test_bad_input_is_kept_and_survived(cluster: Cluster, tmp_path: Path, kind: str) -> None:
    """Kept byte for byte, and nothing around it is lost; a book that can no longer be trusted is asked for anew."""
    marks = {
        "malformed": b'"seq":\n', "unknown_type": b"quantum_update", "big_frame": b"x" * 1_000_000,
        "negative_level": b"-10000000000.00", "unparsable": b'"many"', "off_grid": b'"price_dollars":"0.0055"',
    }  # fmt: skip
    async with capturing(cluster, tmp_path) as capture:
        await capture.begun()
        victim = min(capture.tickers)
        capture.exchange.inject(kind=kind, **({"market_ticker": victim} if kind == "off_grid" else {}))
        at = len(capture.records)
        await capture.until(lambda: any(marks[kind] in r.payload for r in capture.records[at:]), "the bad frame")
        bad = next(r for r in capture.records[at:] if marks[kind] in r.payload)
        assert bad.kind == "FRAME"
        if kind in ("negative_level", "unparsable"):
            await capture.until(
                lambda: any(r.market_ticker == bad.market_ticker and b'"id"' in r.payload for r in capture.records[at:]),
                "a snapshot",
            )
        await capture.until(lambda: len(capture.records) > at + 300, "what comes after")
        assert not capture.of("BREAK")


async def test_long_and_dotted_tickers_are_captured(cluster: Cluster, tmp_path: Path) -> None:
    async with capturing(cluster, tmp_path, markets=60) as capture:
        await capture.until(lambda: len(capture.tickers) >= capture.held > 0, "the books of all markets")
        assert any("." in ticker for ticker in capture.tickers)
        assert any(len(ticker) == 57 for ticker in capture.tickers)


async def test_markets_that_come_and_go(cluster: Cluster, tmp_path: Path) -> None:
    """A market is captured from its creation on, whatever REST says of it then, and its end is no break."""
    async with capturing(cluster, tmp_path, window=8.0, rate=300.0) as capture:
        await capture.begun()
        first = set(capture.exchange.exchange.markets)
        await capture.until(lambda: set(capture.exchange.exchange.markets) - first, "a new market")
        new = min(set(capture.exchange.exchange.markets) - first)
        await capture.until(lambda: new in capture.tickers, "the new market's book")
        await capture.until(
            lambda: any(b'"settled"' in r.payload for r in capture.of("FRAME", "market_lifecycle_v2")), "a settlement"
        )
        settled = next(r.market_ticker for r in capture.of("FRAME", "market_lifecycle_v2") if b'"settled"' in r.payload)
        await capture.until(
            lambda: any(r.market_ticker == settled and b'"finalized"' in r.payload for r in capture.records if r.kind == "REST"),
            "its final definition by REST",
        )
        assert not capture.of("BREAK")
