"""Whether what the deduplicator makes of several hurt copies is the truth, event by event; and if not, where.

Each canonical event names the raw record it was made of, and of each raw record it is known which event of the truth it carried,
so nothing is compared by likeness: of a thousand equal deltas in one microsecond the right one must stand in the right place.

    lost        events that are not in the stream although no gap is told there; trades too, unless a copy that stands to the end
                may yet tell them
    extra       events that are in it twice, or where they do not belong
    wrong       an event whose content, time, version or checksum is not the true one; a gap whose cause was none
    false_gaps  gaps told although a copy stood there that was known to be whole: it had two timestamps in common with the log, or
                its snapshot was older than what the last one before it had surely delivered, and younger than what the log
                remembers by the greatest lag; or both its snapshot and the log's last event were older
    unseen      events in a gap that no copy heard
    seen        events in a gap that a copy heard, but none whose place in the log could be known then
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, tee
from typing import Final, NamedTuple

from kalshibook_core.kalshi import messages
from kalshibook_core.orderbook import Book, CorruptBook
from kalshibook_core.orderbook.checksum import to_signed
from kalshibook_core.wire import codec
from kalshibook_core.wire import events as wire
from kalshibook_core.wire.events import BOOK, LAG_US, TRADES, BookDelta, BookEvent, BookSnapshot, Cause, Gap, RawFrame, Trade
from kalshibook_core.wire.raw import RawReader
from kalshibook_tools.verify.copies import Told
from kalshibook_tools.verify.truth import Event
from services.deduplicator.alignment import MARGIN
from services.deduplicator.market_log import LIMITS, Limits
from services.deduplicator.partition import Partition

AT_ONCE: Final = 1000
"""Raw records that are merged together, before what came out of them is looked at."""

DIFFERENCES: Final = ("lost", "extra", "wrong", "false_gaps")


@dataclass(slots=True)
class Result:
    """What was found; `differences` are none if the promise holds."""

    counts: Counter[str] = field(default_factory=Counter)
    told: list[str] = field(default_factory=list)

    def differs(self, kind: str, why: str) -> None:
        """Note a difference."""
        self.counts[kind] += 1
        if len(self.told) < 20:
            self.told.append(f"{kind}: {why}")

    @property
    def differences(self) -> int:
        """How many there are."""
        return sum(self.counts[kind] for kind in DIFFERENCES)


@dataclass(slots=True)
class _Run:
    """A contiguous run of the truth that a copy delivered of a market: from the book after `start` events to that after `end`."""

    generation: int
    start: int
    end: int
    offset: int
    known_us: int


@dataclass(slots=True)
class _Market:
    """What is true of a market, what its copies delivered so far, and how far the log is."""

    events: list[Event] = field(default_factory=list)
    trades: dict[str, int] = field(default_factory=dict)
    trade_gaps: list[Gap] = field(default_factory=list)
    vouched: dict[tuple[str, int], int] = field(default_factory=dict)  # since when, by copy and connection
    vouched_us: int = 1 << 62  # since when a copy did first
    runs: dict[tuple[str, int], _Run] = field(default_factory=dict)  # by copy and connection
    heard: set[int] = field(default_factory=set)
    heard_trades: set[str] = field(default_factory=set)
    traded: set[str] = field(default_factory=set)
    causes: set[str] = field(default_factory=lambda: {Cause.DISCONNECT})  # what dies without a word needs no record to say so
    book: Book = field(default_factory=Book)
    version: int = 0
    effective_us: int = 0
    number: int = -1  # the log's book is that after so many events; -1: none yet
    first: int = 0  # since its last whole book: after so many
    begun_us: int = 0  # effective time of that one
    gap: Gap | None = None
    ended_us: int = 0  # effective time of the last event before it


def compare(
    truth: Sequence[Event],
    told: Iterable[Told],
    limits: Limits = LIMITS,
    progress: Callable[[int], None] = lambda _: None,
) -> Result:
    """Merge the raw records and compare what comes out with the truth; `progress` hears of every thousand records more."""
    markets: dict[str, _Market] = {}
    for event in truth:
        market = markets.setdefault(event.ticker, _Market())
        if messages.CHANNEL_OF_TYPE[event.kind] == BOOK:
            market.events.append(event)
        else:
            market.trades[event.trade_id] = event.us // 1000 * 1000  # as the stream says it
    result, partition, numbers = Result(), Partition(limits=limits), list[int]()
    counts, started, alive_us = result.counts, set[str](), defaultdict[str, int](int)
    given, after = tee(told)
    pairs = zip(after, merged((one.raw for one in given), partition), strict=True)
    for offset, (one, (raw, events)) in enumerate(pairs):
        numbers.append(number := one.number)
        heard = markets.get(raw.market_ticker)
        if raw.kind == "START":
            started.add(raw.gatherer)
            for each in markets.values():
                _start(each, raw.gatherer)
        ended = _hear(heard, raw, number, offset, raw.gatherer in started) if heard is not None else None
        if heard is not None and number > 0 and raw.kind == "FRAME" and raw.channel == BOOK:
            us = raw.clock_us if b'"orderbook_snapshot"' in raw.payload[:40] else heard.events[number - 1].us
            alive_us[raw.gatherer] = max(alive_us[raw.gatherer], us)
        for made in events:
            if isinstance(made, BookDelta | BookSnapshot | Gap):
                market = markets[made.market_ticker]
                if isinstance(made, Gap) and not made.version:
                    counts["trade_gaps"] += 1
                    market.trade_gaps.append(made)
                else:
                    _Check(result, market, limits, numbers, raw, ended, alive_us).take(made)
            elif isinstance(made, Trade):
                market = markets[made.market_ticker]
                counts["trades"] += 1
                if made.trade_id in market.traded or made.trade_id not in market.trades:
                    result.differs("extra", f"trade {made.trade_id}")
                market.traded.add(made.trade_id)
        if offset % 1000 == 999:
            progress(1000)
    for market in markets.values():
        counts["events"] += len(market.events)
        tail = len(market.events) - max(market.number, 0)
        if tail and market.gap is None and (market.number >= 0 or market.heard):
            # The last of a stream that a copy lost and nobody could notice yet, or that waits for the proof of its place.
            waits = sum(1 for n in market.heard if n > market.number)
            counts["unfinished"] += tail - waits
            counts["waiting"] += waits
        for trade_id in market.trades.keys() - market.traded:
            us = market.trades[trade_id]
            if trade_id in market.heard_trades:
                result.differs("lost", f"trade {trade_id}")
            elif any(gap.start_us <= us <= (us if gap.end_us is None else gap.end_us) for gap in market.trade_gaps):
                counts["trades_unseen"] += 1
            elif us >= market.vouched_us and not any(since_us <= us for since_us in market.vouched.values()):
                result.differs("lost", f"trade {trade_id} at {us}, that no copy heard, with no gap told")
    counts["records"] = len(numbers)
    for gatherer in partition.lives.gatherers.values():
        counts["contradictions"] += gatherer.contradictions
    for kind in ("corrections", "given_up", "fell_behind", "aligned"):
        counts[kind] = partition.tally[kind]
    return result


class _Record(NamedTuple):
    """A raw record as the deduplicator gets it."""

    offset: int
    timestamp: int
    key: bytes
    value: bytes


def merged(raws: Iterable[RawFrame], partition: Partition) -> Iterator[tuple[RawFrame, list[wire.Event]]]:
    """Yield each raw record with the events that are made of it: from their bytes and many at once, as the service takes them."""
    reader, left, offset = RawReader(), iter(raws), 0
    while some := list(islice(left, AT_ONCE)):
        records = [_Record(n, 0, raw.market_ticker.encode(), codec.encode(raw)) for n, raw in enumerate(some, offset)]
        made = defaultdict[int, list[wire.Event]](list)
        for record, event in partition.events(records, reader, lambda _: True):
            made[record.offset].append(event)
        for raw in some:
            yield raw, made[offset]
            offset += 1


def _hear(market: _Market, raw: RawFrame, number: int, offset: int, started: bool) -> _Run | None:
    """Follow what a copy delivers, which `started` or never said so; return the run that this record ends."""
    if raw.kind == "FRAME" and raw.channel == TRADES and b'"type":"trade"' in raw.payload:
        market.heard_trades.add(messages.envelope(raw.payload).msg["trade_id"])
    if raw.channel == TRADES:
        _vouch(market, raw)
    if raw.channel != BOOK or raw.kind == "STALE":
        return None
    ended = None
    where = raw.gatherer, raw.connection
    for name in [where] if started else [each for each in market.runs if each[0] == raw.gatherer]:
        if name in market.runs and raw.generation > market.runs[name].generation:
            ended = market.runs.pop(name)
    run = market.runs.get(where)
    if raw.kind == "BREAK":
        market.causes.add(raw.detail)
        return market.runs.pop(where, ended)
    if number >= 0:
        snapshot = b'"orderbook_snapshot"' in raw.payload[:40]
        if run is None:
            if snapshot:
                market.runs[where] = _Run(raw.generation, number, number, offset, raw.clock_us)
        else:
            run.end = max(run.end, number)
            market.heard.update((number,))
    return ended


def _vouch(market: _Market, raw: RawFrame) -> None:
    """Follow which connections of the copies vouch for the market's trades, and since when."""
    if raw.kind == "RESUME":
        market.vouched[raw.gatherer, raw.connection] = raw.clock_us
        market.vouched_us = min(market.vouched_us, raw.clock_us)
    elif raw.kind == "BREAK":
        market.vouched.pop((raw.gatherer, raw.connection), None)


def _start(market: _Market, gatherer: str) -> None:
    """A copy's new process has ended all that the one before delivered."""
    market.runs = {where: run for where, run in market.runs.items() if where[0] != gatherer}
    market.vouched = {where: since for where, since in market.vouched.items() if where[0] != gatherer}


@dataclass(slots=True)
class _Check:
    """One canonical event against the truth."""

    result: Result
    market: _Market
    limits: Limits
    numbers: list[int]
    raw: RawFrame
    ended: _Run | None
    alive_us: Mapping[str, int]  # the latest instant at which each copy is known to have lived

    def take(self, made: BookEvent) -> None:
        """Check it, and follow it."""
        market, differs = self.market, self.result.differs
        where = f"{made.market_ticker} version {made.version}"
        if made.version != market.version + 1 or made.effective_us < market.effective_us:
            differs("wrong", f"{where} after {market.version}, effective {made.effective_us - market.effective_us} µs later")
        match made:
            case Gap():
                self._gap(made, where)
            case BookSnapshot():
                self._snapshot(made, where)
            case BookDelta():
                self._delta(made, where)
        market.version, market.effective_us = made.version, made.effective_us
        if to_signed(market.book.checksum) != made.checksum:
            differs("wrong", f"{where}: its checksum is not that of the book")

    def _delta(self, made: BookDelta, where: str) -> None:
        market = self.market
        number = self.numbers[made.raw_offset]
        event = market.events[number - 1]
        self._follows(number, where)
        if (made.side, made.price, made.delta) != event.delta or made.exchange_us != event.us:
            self.result.differs("wrong", f"{where}: {made} is not {event}")
        try:
            market.book.apply(made.side, made.price, made.delta)
        except CorruptBook as error:
            self.result.differs("wrong", f"{where}: {error}")

    def _snapshot(self, made: BookSnapshot, where: str) -> None:
        market, gap = self.market, self.market.gap
        number = self.numbers[made.raw_offset]
        self.result.counts["snapshots"] += 1
        market.book = Book(made.yes, made.no)
        true = self._book_after(number)
        if market.book != true:
            self.result.differs("wrong", f"{where}: not the book after event {number}")
        if market.number >= 0 and gap is None:
            self._follows(number, where)
            return
        if gap is not None:
            if (made.gap_start_us, made.gap_cause) != (gap.start_us, gap.cause):
                self.result.differs("wrong", f"{where}: it does not end the gap before it")
            if number < market.number:
                self.result.differs("extra", f"{where}: begins anew {market.number - number} events before the log's end")
            for n in range(market.number + 1, number + 1):
                self.result.counts["seen" if n in market.heard else "unseen"] += 1
                # An event older than the log's last, whose snapshot's clock was late, would have taken effect with it.
                if (
                    market.events[n - 1].delta
                    and not gap.start_us <= max(market.events[n - 1].us, market.ended_us) <= made.effective_us
                ):
                    self.result.differs("lost", f"{where}: event {n} at {market.events[n - 1].us} lies outside the gap")
        market.gap, market.number, market.first, market.begun_us = None, number, number, made.effective_us

    def _follows(self, number: int, where: str) -> None:
        market = self.market
        self.result.counts["followed"] += 1
        if number > market.number + 1:
            for n in range(market.number + 1, number):
                self.result.differs("lost", f"{where}: event {n}, with no gap told")
        elif number <= market.number:
            self.result.differs("extra", f"{where}: event {number} after event {market.number}")
        market.number = number

    def _gap(self, made: Gap, where: str) -> None:
        market = self.market
        market.gap, market.ended_us = made, market.effective_us
        self.result.counts["gaps"] += 1
        if made.start_us < market.begun_us:
            self.result.differs("wrong", f"{where}: it begins before the gap before it ended")
        if made.cause not in market.causes:
            self.result.differs("wrong", f"{where}: the cause {made.cause} was none")
        vouched_us = self.raw.clock_us - LAG_US if self.raw.kind == "BREAK" and self.ended is not None else 0
        ahead = max((run.end for run in market.runs.values()), default=0) - market.number
        if ahead > self.limits.events:
            return  # whoever is behind by so much is waited for no longer
        remembered = max(market.first, market.number - MARGIN)
        since_us = market.events[remembered - 1].us if remembered > market.first else market.begun_us
        waited_us = max(self.alive_us.values()) - self.limits.patience_us
        for name, run in market.runs.items():
            if self.alive_us[name[0]] < waited_us:
                continue  # nor whoever is behind by so long: dead, as far as anybody knows
            if run.start <= market.number and market.number - run.end <= self.limits.events:
                shared = [e.us for e in market.events[max(run.start, market.first) : min(run.end, market.number)] if e.delta]
                if (
                    (shared and shared[0] != shared[-1])
                    or (run.start >= remembered and since_us <= run.known_us - LAG_US and run.known_us <= vouched_us)
                    or max(market.effective_us, run.known_us) < vouched_us
                ):
                    self.result.differs(
                        "false_gaps", f"{where}: {name} stood there, from {run.start} to {run.end} of {market.number}"
                    )

    def _book_after(self, number: int) -> Book:
        # Backwards to a whole book, then forwards; the truth begins with empty books.
        events, at = self.market.events, number
        while at and events[at - 1].book is None:
            at -= 1
        whole = events[at - 1].book if at else None
        book = whole.copy() if whole is not None else Book()
        for event in events[at:number]:
            assert event.delta is not None
            book.apply(*event.delta)
        return book
