"""Fills what was missed from the exchange's own history: gaps of trades, spans of them, and markets that ended unseen.

What REST says goes into kalshi.raw.v1 as it came, under the name `backfill`; the deduplicator passes trades on, and the persister
compares them with what was captured, by `trade_id`. Behind the last trade of a gap of trades, under the market's key, comes a
record which says that all of the gap was read (`FILLED`).

Any run may be repeated: what is known already changes nothing. Killed, it left a gap that is not marked as filled, which the next
run reads again; of a span that was asked for, `Progress` remembers up to where it was read and safe at the broker.
"""

import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import orjson

from kalshibook_core.kalshi import messages
from kalshibook_core.postgres import pool
from kalshibook_core.runtime import clock
from kalshibook_core.wire import codec
from kalshibook_core.wire.events import EVENT, FILLED, TRADES, RawFrame, RawKind
from services.ingest.history import History, Unread
from services.ingest.outbox import Outbox
from services.ingest.rest import Answer, Rest
from services.ingest.settings import Settings

NAME: Final = "backfill"
"""The gatherer's name in the provenance of what it writes."""

SECOND_US: Final = 1_000_000
SLICE_US: Final = 900 * SECOND_US
"""So much of a span is read, and then safe, at a time."""

MARKET_COSTS_US: Final = 10 * SECOND_US
"""Reading one market's span costs about what reading so much of all markets does: a page of 1,000 trades."""

_GAPS: Final = """
SELECT m.ticker, g.start_us, g.end_us, g.cause FROM gaps g JOIN markets m ON m.id = g.market_id
WHERE g.channel = 'trade' AND g.end_us <= $1 AND g.filled_us IS NULL ORDER BY g.start_us, m.ticker"""

_EVENTS: Final = "SELECT ticker FROM events WHERE ticker = ANY($1::text[])"


Known = Callable[[list[str]], Awaitable[list[str]]]


class Hole(NamedTuple):
    """A gap of trades that has ended."""

    ticker: str
    start_us: int
    end_us: int
    cause: str


class Span(NamedTuple):
    """What is to be read: [from_us, to_us) of a market, or of all ("" as its ticker), and the holes it fills."""

    ticker: str
    from_us: int
    to_us: int
    holes: tuple[Hole, ...] = ()


def spans(holes: Iterable[Hole]) -> list[Span]:
    """Return what to read so that all holes are filled: those of a time at once where that costs less than market by market."""
    together: list[list[Hole]] = []
    end_us = -1
    for hole in sorted(holes, key=lambda hole: hole.start_us):
        if together and hole.start_us <= end_us:
            together[-1].append(hole)
        else:
            together.append([hole])
        end_us = max(end_us, hole.end_us)
    found: list[Span] = []
    for each in together:
        by_market: dict[str, list[Hole]] = {}
        for hole in each:
            by_market.setdefault(hole.ticker, []).append(hole)
        whole = _span("", each)
        if len(by_market) * MARKET_COSTS_US > whole.to_us - whole.from_us:
            found.append(whole)
        else:
            found += (_span(ticker, own) for ticker, own in by_market.items())
    return found


def _span(ticker: str, holes: list[Hole]) -> Span:
    return Span(ticker, min(hole.start_us for hole in holes), max(hole.end_us for hole in holes), tuple(holes))


class Progress:
    """Up to where a span that was asked for has been read, in a file, for the run after one that was killed."""

    def __init__(self, path: Path, span: Span) -> None:
        """`path` is of one span at a time: another one begins anew."""
        self._path = path
        self._asked = {"market": span.ticker, "from_us": span.from_us, "to_us": span.to_us}
        try:
            known = orjson.loads(path.read_bytes())
            self.reached_us = known["reached_us"] if known["asked"] == self._asked else span.from_us
        except (OSError, ValueError, KeyError, TypeError):
            self.reached_us = span.from_us

    def reach(self, us: int) -> None:
        """Remember that all before `us` is safe."""
        self.reached_us = us
        fresh = self._path.with_name(self._path.name + ".new")
        fresh.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_bytes(orjson.dumps({"asked": self._asked, "reached_us": us}))
        fresh.replace(self._path)

    def end(self) -> None:
        """Forget: all of it was read, and who asks for it again wants it again."""
        self._path.unlink(missing_ok=True)


@dataclass(slots=True)
class Told:
    """What a run did; `advance` is called with the seconds that were read of all spans."""

    advance: Callable[[int], None] = lambda _: None
    trades: int = 0
    gaps: int = 0
    markets: int = 0
    events: int = 0
    unreadable: int = 0
    failed: list[str] = field(default_factory=list)


class Backfill:
    """See the module."""

    def __init__(self, rest: Rest, outbox: Outbox, told: Told) -> None:
        """Ask `rest`, write to `outbox`, count in `told`."""
        self._rest, self._outbox, self.told = rest, outbox, told
        self._history = History(rest)

    async def now_us(self) -> int:
        """Return the exchange's clock, to the second that its answers name."""
        await self._rest.get("/exchange/status")
        return clock.now_us() + (self._rest.skew_us or 0)

    async def trades(self, wanted: Iterable[Span], progress: Progress | None = None) -> None:
        """Read the trades of these spans; a span that cannot be read is told, and its holes stay as they are.

        A slice of a span, step by step, and what a kill leaves behind:

        1. Its trades go to the outbox. Some are in the topic; the next run reads the slice again.
        2. So do the marks of the holes that end in it, behind them. As before, or it was marked and all its trades are there.
        3. The broker has it all. As before.
        4. `progress` reaches its end. The next run goes on behind it.
        """
        for span in wanted:
            at_us, left = span.from_us, list(span.holes)
            try:
                while at_us < span.to_us or left:
                    end_us = max(at_us, min(span.to_us, at_us + SLICE_US))
                    await self._slice(span.ticker, at_us, end_us)
                    for hole in [hole for hole in left if hole.end_us <= end_us]:
                        left.remove(hole)
                        self._mark(hole)
                    await self._outbox.safe()
                    if progress is not None:
                        progress.reach(end_us)
                    self.told.advance((end_us - at_us) // SECOND_US)
                    at_us = end_us
            except Unread as error:
                self.told.failed.append(str(error))
        if progress is not None and not self.told.failed:
            progress.end()

    async def markets(self, from_us: int, to_us: int, series: str, known: Known) -> None:
        """Read the markets that closed in [from_us, to_us), their results among it, and the events that nobody knows.

        `known(tickers)` returns those events that somebody does.
        """
        events: set[str] = set()
        try:
            async for answer, found in self._history.markets(from_us, to_us, series):
                for body in found:
                    try:
                        closes = from_us <= messages.time_us(body["close_time"]) < to_us
                    except (KeyError, TypeError, ValueError, AttributeError):
                        self.told.unreadable += 1
                        continue
                    if closes and self._add(answer, "", "ticker", body):
                        self.told.markets += 1
                        events.add(str(body.get("event_ticker") or ""))
                await self._outbox.room()
            for ticker in sorted(events - {""} - set(await known(sorted(events)))):
                answer = await self._history.event(ticker)
                body = answer.body.get("event") if isinstance(answer.body, dict) else None
                self.told.events += self._add(answer, EVENT, "event_ticker", body)
        except Unread as error:
            self.told.failed.append(str(error))
        await self._outbox.safe()

    async def _slice(self, market: str, from_us: int, to_us: int) -> None:
        bad = 0
        async for answer, found in self._history.trades(from_us, to_us, market):
            for body in found:
                try:
                    messages.parse_rest_trade(body)
                except (messages.UnparsableFrame, TypeError):
                    bad += 1
                self.told.trades += self._add(answer, TRADES, "ticker", body)
            await self._outbox.room()
        if bad:
            self.told.unreadable += bad
            raise Unread(f"{bad} trades between {from_us} and {to_us} µs cannot be read; they are kept as they came")

    def _mark(self, hole: Hole) -> None:
        now_us = clock.now_us()
        body = {"start_us": hole.start_us, "end_us": hole.end_us, "cause": hole.cause}
        self._put(FILLED, hole.ticker, now_us, now_us + (self._rest.skew_us or 0), "", orjson.dumps(body))
        self.told.gaps += 1

    def _add(self, answer: Answer, channel: str, key: str, body: Any) -> bool:
        ticker = body.get(key) if type(body) is dict else None
        if type(ticker) is not str or not 0 < len(ticker) <= messages.LONGEST_TICKER:
            self.told.unreadable += 1
            return False
        at_us = answer.at_us
        self._put(channel, ticker, at_us, at_us + (answer.skew_us or 0), answer.path, orjson.dumps(body))
        return True

    def _put(self, channel: str, ticker: str, recv_us: int, clock_us: int, detail: str, payload: bytes) -> None:
        record = RawFrame(RawKind.REST, NAME, -1, 0, channel, -1, -1, False, ticker, recv_us, clock_us, detail, payload)
        self._outbox.add(ticker.encode(), codec.encode(record), recv_us // 1000)


@asynccontextmanager
async def opened(settings: Settings, told: Told) -> AsyncIterator[Backfill]:
    """Yield a backfill that writes to the broker and asks the exchange of `settings`, at their rate."""
    counts: Counter[str] = Counter()
    async with (
        Outbox(settings.cluster, None, NAME, settings.buffer_bytes) as outbox,
        Rest(settings.rest_url, settings.credentials, settings.requests_per_second, random.Random(), counts) as rest,
    ):
        yield Backfill(rest, outbox, told)


async def holes(dsn: str, until_us: int) -> list[Hole]:
    """Return the gaps of trades that ended up to `until_us` and that nothing has filled. Raises DatabaseUnreachable."""
    connection = await pool.connect(dsn)
    try:
        return [Hole(*row) for row in await connection.fetch(_GAPS, until_us)]
    finally:
        await connection.close()


async def known_events(dsn: str, tickers: list[str]) -> list[str]:
    """Return those of these events that have a definition. Raises DatabaseUnreachable."""
    connection = await pool.connect(dsn)
    try:
        return [row[0] for row in await connection.fetch(_EVENTS, tickers)]
    finally:
        await connection.close()
