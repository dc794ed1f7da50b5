"""How whole the rows of a file are, where the rows themselves do not tell it as book events and trades do. Pure.

`Received`: raw rows of the book or of trades, by our clock. From one record of a market to the next on one sid, without a BREAK
between, nothing of it was lost, because each hole breaks every market of its sid; so what no sid of any gatherer spans is a gap.
A sid that says nothing more is taken to stand until a frame comes to another and not to it, or its gatherer has a later
connection; that its gatherer died without a word, another file may tell.

`Followed`: how the book of each market was followed, as the manifests of the book's files tell. The channel of tickers has no
`seq`, so a ticker lost on a live connection cannot be seen; but it is subscribed in one breath with the book, and so the book's
gaps are the spans in which tickers may be missing.
"""

from bisect import bisect_right
from collections import Counter, OrderedDict
from typing import Any, Final, NamedTuple

from kalshibook_core.wire.events import LAG_US, LET_GO, Cause, RawFrame, RawKind
from kalshibook_core.wire.quality import LISTED, Quality, Record, Span, of_span

MOST: Final = 100_000
"""Markets whose book is remembered; of those heard of longest ago nothing is known any more."""

FRAME, STALE, BREAK, RESUME = map(str, (RawKind.FRAME, RawKind.STALE, RawKind.BREAK, RawKind.RESUME))


class _Run:
    """What one sid delivered of a market in order: from `start_us` to `last_us`; `cause` says what broke it."""

    __slots__ = ("cause", "last_us", "start_us")

    def __init__(self, start_us: int, last_us: int) -> None:
        self.start_us, self.last_us, self.cause = start_us, last_us, ""


_Life = tuple[str, int, int]
"""(gatherer, connection, generation)"""


class _Market:
    """The runs of one market."""

    __slots__ = ("ended", "first_us", "frames", "last_us", "standing")

    def __init__(self, us: int) -> None:
        self.first_us = self.last_us = us
        self.standing: dict[tuple[_Life, int], _Run] = {}  # by sid; of a broken one until it delivers again
        self.ended: list[_Run] = []
        self.frames: list[int] = []  # when each frame came


class Received:
    """The raw rows of one channel's file, in the order of their offsets."""

    def __init__(self) -> None:
        """Begin with no row."""
        self._markets: dict[str, _Market] = {}
        self._ahead: dict[tuple[_Life, int], int] = {}  # the exchange's clock less ours, at the last frame of a sid
        self._sources: dict[_Life, tuple[Counter[str], list[int]]] = {}
        self._breaks: dict[_Life, Counter[str]] = {}

    def add(self, raw: RawFrame) -> None:
        """Take the next row; one that is no part of a sid's order says nothing."""
        kind, life, sid, us = raw.kind, raw[1:4], raw.sid, raw.recv_us
        if kind not in (FRAME, STALE, BREAK, RESUME):
            return
        counts, span = self._sources.setdefault(life, (Counter(), [us, us]))
        counts[kind] += 1
        span[1] = us
        if kind == STALE:
            return
        market = self._markets.get(raw.market_ticker)
        if market is None:
            market = self._markets[raw.market_ticker] = _Market(us)
        market.last_us = max(market.last_us, us)
        source = life, sid
        run = market.standing.get(source)
        if kind == BREAK:
            self._breaks.setdefault(life, Counter())[raw.detail] += 1
            if run is None:
                run = market.standing[source] = _Run(market.first_us, market.first_us)
            if not run.cause:
                # Whole up to the exchange's time clock_us, so up to a frame that was received no sooner than that by our clock.
                whole_us = raw.clock_us - self._ahead[source] if source in self._ahead else run.last_us
                if raw.detail in LET_GO:
                    whole_us = us
                run.last_us, run.cause = max(run.last_us, min(whole_us, us)), raw.detail
            return
        if run is None or run.cause:
            if run is not None:
                market.ended.append(run)
            run = market.standing[source] = _Run(us, us)
        run.last_us = max(run.last_us, us)
        if kind == FRAME:
            self._ahead[source] = raw.clock_us - us
            market.frames.append(us)

    def sources(self) -> list[dict[str, Any]]:
        """Return who delivered what: each connection's life with its frames and, by their cause, how many markets it broke."""
        return [
            {
                "gatherer": life[0],
                "connection": life[1],
                "generation": life[2],
                "first_us": first_us,
                "last_us": last_us,
                "frames": counts[FRAME],
                "stale": counts[STALE],
                "breaks": dict(sorted(self._breaks.get(life, {}).items())),
            }
            for life, (counts, (first_us, last_us)) in sorted(self._sources.items())
        ]

    def quality(self, ticker: str) -> Quality | None:
        """Return the quality of a market from its first record to its last, by our clock; None where no row tells any."""
        market = self._markets.get(ticker)
        if market is None:
            return None
        gaps, at, cause = list[Span](), market.first_us, ""
        for run in sorted(self._runs(market), key=lambda run: run.start_us):
            if run.start_us > at:
                gaps.append(Span(at, run.start_us, cause))
            if run.last_us >= at:
                at, cause = run.last_us, run.cause or Cause.DISCONNECT
        if at < market.last_us:
            gaps.append(Span(at, None, cause))
        record = Record(gaps, market.last_us, market.first_us, market.first_us)
        return of_span(record, market.first_us, market.last_us + 1)

    def _runs(self, market: _Market) -> list[_Run]:
        frames = sorted(market.frames)
        runs = list(market.ended)
        for ((gatherer, _, generation), _), run in market.standing.items():
            until_us = run.last_us
            if not run.cause:
                superseded = any(
                    life[0] == gatherer and life[2] > generation and other.start_us >= until_us
                    for (life, _), other in market.standing.items()
                )
                following = bisect_right(frames, until_us)
                if not superseded:
                    until_us = frames[following] if following < len(frames) else market.last_us
            told = _Run(run.start_us, until_us)
            told.cause = run.cause
            runs.append(told)
        return runs


class _Book(NamedTuple):
    """How a market's book was followed from `since_us` on; before `first_us` there was none."""

    since_us: int
    first_us: int
    gaps: list[Span]


class Followed:
    """How the books of a partition were followed, learned from the manifests of its files in the order of their offsets."""

    def __init__(self, since_us: int | None = None) -> None:
        """Know of no market; with `since_us`, all files of what happened since then will be learned."""
        self._since_us = since_us
        self._books: OrderedDict[str, _Book] = OrderedDict()
        self.through_us = 0
        """Up to this instant all there is has been learned."""

    def learn(self, told: dict[str, Any]) -> None:
        """Take the manifest of a file of book events."""
        for ticker, its in told["markets"].items():
            spans = [Span(**gap) for gap in its.get("gaps", ())]
            book = self._books.pop(ticker, None)
            if book is None:
                begins = its["first_version"] == 1
                known_us = min([its["first_us"], *(gap.start_us for gap in spans)])
                since_us = self._since_us if self._since_us is not None else 0 if begins else known_us
                book = _Book(since_us, its["first_us"] if begins else min(since_us, known_us), [])
            for gap in spans:
                if book.gaps and book.gaps[-1].start_us == gap.start_us and book.gaps[-1].end_us is None:
                    book.gaps.pop()  # told anew, now that it has ended
                book.gaps.append(gap)
            if len(book.gaps) > LISTED:
                forgotten = book.gaps.pop(0)
                book = book._replace(since_us=max(book.since_us, forgotten.end_us or forgotten.start_us))
            self._books[ticker] = book
            if len(self._books) > MOST:
                self._books.popitem(last=False)
        self.through_us = max(self.through_us, told["time"]["last_us"] - LAG_US)

    def quality(self, ticker: str, from_us: int, to_us: int) -> Quality | None:
        """Return the quality of the book in what is known of [from_us, to_us), None where that is nothing."""
        book = self._books.get(ticker)
        if book is None or to_us <= book.since_us:
            return None
        gaps = sorted(book.gaps, key=lambda gap: gap.start_us)
        return of_span(Record(gaps, self.through_us, book.first_us), max(from_us, book.since_us), to_us)
