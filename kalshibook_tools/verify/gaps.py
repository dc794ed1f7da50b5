"""Gaps against the table of that name: what the events of a fold tell of them, row by row. A class of difference of its own.

Of the book a gap is what its event and the snapshot that ends it say, known by market, start and version. Of trades it is told
open, then closed, and once more when REST was read over it; gaps of one start are told apart by nothing, so they are compared
as often as they are there.

No difference is what the table can not have yet, or has already. It has not: what the last events say, as many as the archive is
ahead of it. It has: of a book what a version after the last one folded says; of trades whatever is not folded, if it is ahead.
Where a fold begins at a savepoint, gaps that began and ended before are not looked at; what of it is open there is told by the
savepoint. Where it ends before the last raw row (`--to`), a gap in trades that no event tells of may be told by a later one: it
is counted as not judged.

The gaps of a partition are in memory while it is folded.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from kalshibook_core.wire.events import BOOK, READ_OVER, TRADES, BookDelta, BookSnapshot, Gap, Trade
from kalshibook_tools.verify.archive import END_US, Result, Wanted
from services.deduplicator.partition import Market

_AT_ONCE: Final = 1_000

_STORED: Final = """
SELECT ticker, channel, start_us, end_us, cause, opened_version, filled_us FROM gaps JOIN markets ON markets.id = market_id
WHERE ticker = ANY ($1::text[])"""
_CHANNELS: Final = {BookDelta: BOOK, BookSnapshot: BOOK, Trade: TRADES}
_MARKETS: Final = "SELECT DISTINCT ticker FROM gaps JOIN markets ON markets.id = market_id"


class Stored(NamedTuple):
    """A row of the table."""

    start_us: int
    end_us: int | None
    cause: str
    version: int  # opened_version
    filled_us: int | None


@dataclass(slots=True)
class Told:
    """What the events say of a gap. `opened`, `changed` and `read`: the number of the event that said so, for the last time."""

    start_us: int
    end_us: int | None
    cause: str
    version: int  # of a book's gap; of one in trades 0
    opened: int
    changed: int
    filled: list[int] = field(default_factory=list)  # when REST was read over it
    read: int = 0

    def __str__(self) -> str:
        """Say it in few words."""
        return f"from {self.start_us} to {'no end' if self.end_us is None else self.end_us}, {self.cause}"


class Wrong(NamedTuple):
    """A row that has to be replaced: `stored` by `told`, either may be None."""

    ticker: str
    channel: str
    stored: Stored | None
    told: Told | None


class Reach(NamedTuple):
    """How far table and fold are apart at the end of a partition: `late` events the table may lack; `ahead`, it may have more."""

    late: int
    ahead: bool


class Gaps:
    """The gaps of a partition, as a fold of it meets them."""

    def __init__(self, wanted: Wanted, given: Mapping[str, Market]) -> None:
        """Begin with the markets of which something is given; none where the fold begins at nothing."""
        markets = {ticker: market for ticker, market in given.items() if wanted.ticker in (None, ticker)}
        self._wanted, self._given = wanted, {ticker: market.book.version for ticker, market in markets.items()}
        self._versions = self._given.copy()
        self._told: dict[str, dict[str, list[Told]]] = {BOOK: defaultdict(list), TRADES: defaultdict(list)}
        for ticker, trades in ((ticker, market.trades) for ticker, market in markets.items()):
            if trades.gap_start_us is not None:
                self._told[TRADES][ticker].append(Told(trades.gap_start_us, None, trades.gap_cause or "", 0, 0, 0))
        self._events = Counter[str]()

    @property
    def met(self) -> set[str]:
        """The markets of which anything is told."""
        return self._versions.keys() | self._told[TRADES].keys()

    def take(self, event: Any) -> None:
        """Take the next event, of whatever kind."""
        if self._wanted.ticker not in (None, event.market_ticker):
            return
        channel = event.channel if isinstance(event, Gap) else _CHANNELS.get(type(event))
        if channel is None:
            return
        self._events[channel] += 1
        number = self._events[channel]
        if channel == BOOK:
            self._versions[event.market_ticker] = event.version
        if channel == TRADES and not isinstance(event, Gap):
            return
        if event.effective_us >= self._wanted.to_us:
            number = END_US  # what is told after all that is wanted may or may not be stored
        if isinstance(event, Gap):
            self._gap(event, number)
        elif isinstance(event, BookSnapshot) and event.gap_start_us is not None:
            gaps, cause = self._told[BOOK][event.market_ticker], event.gap_cause or ""
            if not gaps or (gaps[-1].start_us, gaps[-1].version) != (event.gap_start_us, event.version - 1):
                gaps.append(Told(event.gap_start_us, None, cause, event.version - 1, number, number))
            gaps[-1].end_us, gaps[-1].cause, gaps[-1].changed = event.effective_us, cause, number

    def _gap(self, event: Gap, number: int) -> None:
        gaps = self._told[event.channel][event.market_ticker]
        if event.connection == READ_OVER:
            for gap in gaps:
                if (gap.start_us, gap.end_us) == (event.start_us, event.end_us):
                    gap.filled.append(event.recv_us)
                    gap.read = number
            return
        last = gaps[-1] if gaps else None
        if last is None or event.end_us is None or last.end_us is not None or last.start_us != event.start_us:
            gaps.append(Told(event.start_us, event.end_us, event.cause, event.version, number, number))
        else:
            last.end_us, last.cause, last.changed = event.end_us, event.cause, number

    async def compare(self, pool: Any, reach: Mapping[str, Reach], result: Result) -> None:
        """Compare all of them with the table; `reach` is of each channel. What differs is noted in `result`."""
        markets = sorted(self.met)
        for first in range(0, len(markets), _AT_ONCE):
            some = markets[first : first + _AT_ONCE]
            stored: dict[tuple[str, str], list[Stored]] = defaultdict(list)
            for ticker, channel, *row in await pool.fetch(_STORED, some):
                stored[ticker, channel].append(Stored(*row))
            for ticker in some:
                for channel, told in self._told.items():
                    self._judge(ticker, channel, told.get(ticker, ()), stored[ticker, channel], reach[channel], result)

    def _judge(
        self, ticker: str, channel: str, told: Sequence[Told], rows: Sequence[Stored], reach: Reach, result: Result
    ) -> None:
        of_book, last, given = channel == BOOK, self._versions.get(ticker, 0), self._given.get(ticker, 0)
        sure = self._events[channel] - reach.late
        keys = {_key(gap) for gap in told}
        # Of a book's gaps that the savepoint took as given, only what has been told more of since. One in trades closes at its
        # end, so if it is wanted and closed, an event since has told of it.
        left = [row for row in rows if self._has(row) and (not of_book or _key(row) in keys or row.version > given or not given)]
        pending, differing = 0, list[Told]()
        for gap in filter(self._has, told):
            alike = (row for row in left if (_key(row, of_book), row.end_us, row.cause) == (_key(gap), gap.end_us, gap.cause))
            row = next(alike, None)
            if row is None:
                differing.append(gap)
                continue
            left.remove(row)
            if row.filled_us in (gap.filled or (None,)):
                result.counts["gaps_proved"] += 1
            elif gap.read > sure if row.filled_us is None else reach.ahead and not gap.filled:
                pending += 1
            else:
                self._note(result, Wrong(ticker, channel, row, gap), f"filled at {row.filled_us}, told {gap.filled or 'never'}")
        for gap in differing:
            row = next((row for row in left if _key(row, of_book) == _key(gap)), None)
            if row is None:
                waits = gap.opened > sure
            else:
                left.remove(row)
                # Of a book's gap that is its market's last event, and of any in trades, the table may know the end already.
                known = gap.version == last if of_book else reach.ahead
                waits = gap.changed > sure if row.end_us is None else gap.end_us is None and known
            if waits:
                pending += 1
            else:
                self._note(result, Wrong(ticker, channel, row, gap), f"{gap}: {row or 'not in the table'}")
        for row in left:
            if row.version > last if of_book else reach.ahead:
                result.counts["gaps_unjudged"] += not of_book and self._wanted.to_us != END_US
                pending += 1
            else:
                self._note(result, Wrong(ticker, channel, row, None), f"no event tells of {row}")
        result.counts["gaps_pending"] += pending

    def _has(self, gap: Stored | Told) -> bool:
        """Tell whether a gap touches what is wanted."""
        end_us = END_US if gap.end_us is None else max(gap.end_us, gap.start_us + 1)
        return gap.start_us < self._wanted.to_us and end_us > self._wanted.from_us

    def _note(self, result: Result, wrong: Wrong, why: str) -> None:
        result.differs("gaps", f"{wrong.ticker}, {wrong.channel}: {why}")
        result.wrong_gaps.append(wrong)


def _key(gap: Stored | Told, of_book: bool = True) -> tuple[int, int]:
    """Return what tells a gap from another of its market and channel; of trades `version` only numbers those of one start."""
    return gap.start_us, gap.version if of_book else 0


async def of_nobody(pool: Any, met: set[str], result: Result) -> None:
    """Note gaps of markets that no raw row tells of; `met` are those it does."""
    for (ticker,) in await pool.fetch(_MARKETS):
        if ticker not in met:
            result.differs("gaps", f"{ticker}: no event tells of this market at all")
