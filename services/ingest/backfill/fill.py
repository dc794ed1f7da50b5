"""Fills what was missed from the exchange's own history: gaps of trades, spans of them, and markets that ended unseen.

What REST says goes into kalshi.raw.v1 as it came, under the name `backfill`; the deduplicator passes trades on, and the persister
compares them with what was captured, by `trade_id`. Behind the last trade of a gap of trades, under the market's key, comes a
record which says that all of the gap was read (`FILLED`).

Any run may be repeated: what is known already changes nothing. Killed, it left a gap that is not marked as filled, which the next
run reads again; of a span that was asked for, `Progress` remembers up to where it was read and safe at the broker.

The command (`kb backfill`) and the service (`serve`) do the same; only that the service leaves what is so old that the exchange
must be asked for all that ever was.
"""

import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import orjson

from kalshibook_core.kalshi import messages
from kalshibook_core.runtime import clock
from kalshibook_core.wire import codec
from kalshibook_core.wire.events import EVENT, FILLED, TRADES, RawFrame, RawKind
from services.ingest.backfill.history import History, Unread
from services.ingest.backfill.missing import Hole, Unresolved
from services.ingest.outbox import Outbox
from services.ingest.registry import packed
from services.ingest.rest import Answer, Rest
from services.ingest.settings import Settings

NAME: Final = "backfill"
"""The gatherer's name in the provenance of what it writes."""

SECOND_US: Final = 1_000_000
SLICE_US: Final = 900 * SECOND_US
"""So much of a span is read, and then safe, at a time."""

PAUSE_MARKS: Final = 1000
"""So many gaps are looked through in one go: all markets may have one."""

LOOKUP: Final = 50
"""Markets asked for by name in one request; with the longest tickers its address stays under 4 kB."""

MARKET_COSTS_US: Final = 10 * SECOND_US
"""Reading one market's span costs about what reading so much of all markets does: a page of 1,000 trades."""

Known = Callable[[list[str]], Awaitable[Sequence[str]]]


class Span(NamedTuple):
    """What is to be read: [from_us, to_us) of a market, or of all ("" as its ticker), and the holes it fills."""

    ticker: str
    from_us: int
    to_us: int
    holes: tuple[Hole, ...] = ()


def absences(holes: Iterable[Hole]) -> list[Span]:
    """Return the spans in which some market had a hole, each with its holes: they touch no other's."""
    together: list[list[Hole]] = []
    end_us = -1
    for hole in sorted(holes, key=lambda hole: hole.start_us):
        if together and hole.start_us <= end_us:
            together[-1].append(hole)
        else:
            together.append([hole])
        end_us = max(end_us, hole.end_us)
    return [_span("", each) for each in together]


def spans(holes: Iterable[Hole]) -> list[Span]:
    """Return what to read so that all holes are filled: those of a time at once where that costs less than market by market."""
    found: list[Span] = []
    for whole in absences(holes):
        by_market: dict[str, list[Hole]] = {}
        for hole in whole.holes:
            by_market.setdefault(hole.ticker, []).append(hole)
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
    counts: Counter[str] = field(default_factory=Counter)  # what `Rest` counts


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
                    for number, hole in enumerate(left):
                        if hole.end_us <= end_us:
                            self._mark(hole)
                        if not number % PAUSE_MARKS:
                            await self._outbox.room()
                    left = [hole for hole in left if hole.end_us > end_us]
                    await self._outbox.safe()
                    if progress is not None:
                        progress.reach(end_us)
                    self.told.advance((end_us - at_us) // SECOND_US)
                    at_us = end_us
            except Unread as error:
                self.told.failed.append(str(error))
        if progress is not None and not self.told.failed:
            progress.end()

    async def absence(self, absent: Span, known: Known) -> None:
        """Fill the holes of a time in which something was missed, and meet the markets that closed in it, perhaps unseen.

        1. Those markets go to the outbox, and the broker has them. No hole is marked: the next look begins anew.
        2. `trades`, which marks the holes.
        """
        if await self.markets(absent.from_us, absent.to_us, "", known, recent=True):
            await self.trades(spans(absent.holes))

    async def markets(self, from_us: int, to_us: int, series: str, known: Known, *, recent: bool = False) -> bool:
        """Read the markets that closed in [from_us, to_us), their results among it, and the events that nobody knows.

        `known(tickers)` returns those events that somebody does. `recent`: only of the live list. Return whether all was read.
        """
        events: set[str] = set()
        try:
            async for answer, found in self._history.markets(from_us, to_us, series, recent=recent):
                for body in found:
                    try:
                        closes = from_us <= messages.time_us(body["close_time"]) < to_us
                    except (KeyError, TypeError, ValueError, AttributeError):
                        self.told.unreadable += 1
                        continue
                    if closes:
                        self._market(answer, body, events)
                await self._outbox.room()
            await self._events(events, known)
        except Unread as error:
            self.told.failed.append(str(error))
            return False
        await self._outbox.safe()
        return True

    async def look_up(self, wanted: Sequence[Unresolved], known: Known) -> None:
        """Read these markets, and the events that nobody knows; pass on what defines one, or tells an outcome that is new."""
        events: set[str] = set()
        try:
            for start in range(0, len(wanted), LOOKUP):
                asked = {each.ticker: each.status for each in wanted[start : start + LOOKUP]}
                async for answer, found in self._history.named(list(asked)):
                    for body in found:
                        ticker = body.get("ticker") if type(body) is dict else None
                        if ticker in asked and (
                            asked[ticker] is None or (body.get("result") and body.get("status") != asked[ticker])
                        ):
                            self._market(answer, body, events)
                    await self._outbox.room()
            await self._events(events, known)
        except Unread as error:
            self.told.failed.append(str(error))
        await self._outbox.safe()

    def _market(self, answer: Answer, body: Any, events: set[str]) -> None:
        if self._add(answer, "", "ticker", body):
            self.told.markets += 1
            events.add(str(body.get("event_ticker") or ""))

    async def _events(self, named: set[str], known: Known) -> None:
        for ticker in sorted(named - {""} - set(await known(sorted(named)))):
            answer = await self._history.event(ticker)
            body = answer.body.get("event") if isinstance(answer.body, dict) else None
            self.told.events += self._add(answer, EVENT, "event_ticker", body)

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
        if not messages.is_word(ticker):
            self.told.unreadable += 1
            return False
        try:
            payload = packed(body)
        except messages.UnparsableFrame:
            self.told.unreadable += 1
            return False
        at_us = answer.at_us
        self._put(channel, ticker, at_us, at_us + (answer.skew_us or 0), answer.path, payload)
        return True

    def _put(self, channel: str, ticker: str, recv_us: int, clock_us: int, detail: str, payload: bytes) -> None:
        record = RawFrame(RawKind.REST, NAME, -1, 0, channel, -1, -1, False, ticker, recv_us, clock_us, detail, payload)
        self._outbox.add(ticker.encode(), codec.encode(record), recv_us // 1000)


@asynccontextmanager
async def opened(settings: Settings, told: Told) -> AsyncIterator[Backfill]:
    """Yield a backfill that writes to the broker and asks the exchange of `settings`, at their rate."""
    async with (
        Outbox(settings.cluster, None, NAME, settings.buffer_bytes) as outbox,
        Rest(settings.rest_url, settings.credentials, settings.requests_per_second, random.Random(), told.counts) as rest,
    ):
        yield Backfill(rest, outbox, told)
