"""One market's book log: raw book frames of all its sources in, numbered events out. Pure.

    nothing known --snapshot--> whole --the last aligned source leaves--> gap --snapshot--> whole

Whoever is first extends the log; the others confirm it. It stays whole while one source stands in it: also one that is behind,
which may yet deliver what follows. A source is a generation of a connection; a gatherer that hands a market over has two of
them for a while. What leaves one unaligned: a BREAK, a newer generation of its connection, its gatherer's START, content that
cannot be read or that the book cannot take, a snapshot on our asking that differs, an event that contradicts the log, and falling
out of the window. The last three leave its book known, so it is aligned again as soon as it agrees.

Two that contradict each other: whoever was first is believed, unless more sources say the same other thing than have
confirmed it. Then the log is corrected: a gap from the last instant that they agreed on, their book there, their events.

Bounds. A source whose place is not known keeps at most `Limits.events` events; full, it takes the older half into its book. If it
is ahead of the log and those it waits for are more than `Limits.patience_us` behind it, or its events are full, they are given
up: a gap is told and it begins the log anew. So a gatherer that died without a word holds a market that long and no longer.
"""

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, Final, NamedTuple, TypeAlias

from kalshibook_core.kalshi import messages
from kalshibook_core.orderbook import Book, CorruptBook
from kalshibook_core.orderbook.checksum import to_signed
from kalshibook_core.wire.events import BOOK, LAG_US, LET_GO, BookDelta, BookEvent, BookSnapshot, Cause, Gap, RawFrame
from kalshibook_core.wire.raw import Front
from services.deduplicator.alignment import (
    MARGIN,
    WHOLE_BOOK,
    Content,
    Heard,
    Life,
    Lives,
    Source,
    Standing,
    Window,
    book_of,
    book_state,
)

ALIGNED, SEEKING, BROKEN = Standing.ALIGNED, Standing.SEEKING, Standing.BROKEN
_new: Final = tuple.__new__  # `BookDelta._make` without counting the fields


Fields: TypeAlias = tuple[int, int, int, int, int, int, int, int, int, Book | None]
"""Those of `Heard`."""

PAST: Final = 64
"""Ended sources that a market keeps at most, with `Limits.events` together; what does not fit is in the gap alone, if
there is one."""


_CLOSED: Final = (0, WHOLE_BOOK, 0, 0)
"""The content of an empty whole book, such as a market closes with (seen on the wire)."""


def print_of(frame: bytes, start: int = 0) -> int:
    """Return a hash of a frame's content; it means something in this process only. The frame begins at `start`."""
    return hash(frame[frame.find(_CONTENT, start) :])


_CONTENT: Final = b'"msg":'


def _import_of(gatherer: str) -> list[str]:
    return gatherer.split(".")[:2]


class Limits(NamedTuple):
    """How much of a market is remembered."""

    events: int = 10_000
    patience_us: int = 300_000_000


LIMITS: Final = Limits()


class MarketLog:
    """The numbered log of one market's book."""

    __slots__ = (
        "_begun_us", "_cause", "_leader", "_lives", "_offset", "_raw", "_tell", "_trim_at", "_vouched_us", "book", "effective_us",
        "ended_us", "gap_cause", "gap_start_us", "grid", "key", "limits", "made", "past", "quiet", "sources", "tally", "ticker",
        "version", "window",
    )  # fmt: skip

    def __init__(
        self,
        ticker: str,
        tally: Counter[str],
        lives: Lives,
        limits: Limits,
        tell: Callable[[str, str, str], None],
    ) -> None:
        """Make an empty log.

        `lives` are the partition's. What happens is counted in `tally`; what an operator should know is told as well:
        `tell(kind, ticker, why)` does both.
        """
        self.ticker, self.tally, self.limits = ticker, tally, limits
        self.key = ticker.encode()
        self._lives, self._tell = lives, tell
        self.book = Book()
        self.version = 0
        self.effective_us = 0
        self.gap_start_us: int | None = None
        self.gap_cause: str | None = None
        self.ended_us = 0  # from this instant on nothing happens any more, 0 while it may
        self.grid: frozenset[int] | None = None  # the prices that a level may have, as yes prices
        self.sources: dict[tuple[str, int], Source] = {}  # by gatherer and connection
        self.past: list[Source] = []  # that ended ahead of the log, which may still come to what they heard
        self.window = Window()
        self.made: list[BookEvent] = []
        self.quiet = False  # the last record was a delta, the log's next event, and nobody waits
        self._leader = ("", 0)  # the gatherer and connection that the last event came from
        self._cause = str(Cause.DISCONNECT)  # why the last one left that stood in the log
        self._begun_us = 0  # effective time of the snapshot the window began with
        self._vouched_us = 0  # up to this instant those who have left had delivered everything
        self._trim_at = 2 * MARGIN

    @property
    def whole(self) -> bool:
        """True while the book is known."""
        return self.version > 0 and self.gap_start_us is None

    @property
    def waits(self) -> bool:
        """True while some source's place is not known."""
        for source in self.sources.values():  # noqa: SIM110  (asked of every event: any() takes thrice as long)
            if source.standing is SEEKING:
                return True
        return False

    @property
    def contradicting(self) -> set[str]:
        """The gatherers that said something else than the log, and have not agreed with it since."""
        return {each.life.gatherer.name for each in self.sources.values() if each.standing is SEEKING and each.against}

    # What the raw topic says. Each returns the events it makes.

    def usual(
        self, front: Front, seq: int, recv_us: int, clock_us: int, frame: bytes, start: int, offset: int
    ) -> Sequence[BookDelta] | None:
        """Take a book frame, no NO price of which is turned, if it is what its source had to deliver next and nothing hangs on
        it but that: a delta that the log has already, or its next event. Return None, having done nothing, if it is not.

        The frame begins at `start`. The rest is for `delta` and `snapshot`, which do of these what is done here.
        """
        source = self.sources.get(front.where)
        if source is None or source.standing is not ALIGNED or source.sid != front.sid or seq <= source.seq:
            return None
        window, life, at = self.window, source.life, source.at + 1
        if life.generation != front.generation:
            return None
        if at <= window.head:
            index = at - window.first
            if window.prints[index] != hash(frame[frame.find(_CONTENT, start) :]):
                return None
            source.seq, source.at = seq, at
            exchange_us, gatherer = window.times[index], life.gatherer
            if exchange_us > life.newest_us:
                life.reach(exchange_us)
            gatherer.confirmed += 1
            gatherer.behind = window.head - at
            return ()
        several = len(self.sources) > 1
        if at >= window.first + self._trim_at or self.past or (several and self.waits):
            return None
        change = messages.plain_change(frame, self.key, start)
        if change is None:
            return None
        side, price, size, exchange_us = change
        if self.grid is not None and (10_000 - price if side else price) not in self.grid:
            return None
        try:
            self.book.apply(side, price, size)
        except CorruptBook:
            return None
        source.seq = seq
        if exchange_us > life.newest_us:
            life.reach(exchange_us)
        event = exchange_us, side, price, size, recv_us, clock_us, front.sid, seq, offset, None
        return (self._write_delta(source, event, print_of(frame, start) if several else 0),)

    def admits(self, raw: RawFrame) -> bool:
        """Return whether imported frames may begin, or go on, with this one: where nothing is known from its time on.

        Else they would be taken for a gatherer that lags, and those whose book it is might have to wait for them.
        """
        for source in self.sources.values():  # an archive is imported as all the gatherers that it is of
            if source.standing is not BROKEN and _import_of(source.life.gatherer.name) == _import_of(raw.gatherer):
                return True
        return not self.version or (not self.whole and raw.clock_us >= self.effective_us)

    def delta(self, raw: RawFrame, offset: int, delta: tuple[int, int, int, int], mark: int = 0) -> list[BookEvent]:
        """Take an orderbook_delta, as `messages.Delta` has it; `mark` is the hash of its content."""
        self.made, self._raw, self._offset, self.quiet = [], raw, offset, False
        _, gatherer, connection, generation, _, sid, seq, _, _, recv_us, clock_us, _, _ = raw
        source = self.sources.get((gatherer, connection))
        if (
            source is not None
            and source.sid == sid
            and source.seq < seq
            and source.life.generation == generation
            and not source.over
        ):
            source.seq = seq  # the usual one, next in its sid
        else:
            source = self._source(raw)
        if source is None or source.standing is BROKEN:
            self.tally["refused"] += 1
            return self.made
        side, price, change, exchange_us = delta
        life = source.life
        if exchange_us > life.newest_us:
            life.reach(exchange_us)
        event = exchange_us, side, price, change, recv_us, clock_us, sid, seq, offset, None
        if source.standing is ALIGNED and source.at == self.window.head:
            self.quiet = self._extend(source, event, mark)
        else:
            self._hear(source, Heard._make(event))
        return self.made

    def snapshot(self, raw: RawFrame, offset: int, book: Book, solicited: bool) -> list[BookEvent]:
        """Take a whole book. `solicited`: it answers our get_snapshot, and nobody else got it."""
        self.made, self._raw, self._offset = [], raw, offset
        source = self._source(raw, new=True)
        if source is None:
            self.tally["refused"] += 1
            return self.made
        # It lives by the exchange's clock; its own, of which the generation is, may be months ahead of frames that are replayed.
        source.life.gatherer.newest_us = max(source.life.gatherer.newest_us, raw[10])
        event = Heard(0, WHOLE_BOOK, 0, book.checksum, raw[9], raw[10], raw[5], raw[6], offset, book)
        if source.standing is ALIGNED:
            if not solicited:
                self._hear(source, event)
            elif self.window.sums[source.at - self.window.first] == book.checksum:
                self.tally["snapshots_confirmed"] += 1
            else:
                source.anchor(book, raw[10], (raw[9], raw[5], raw[6], offset))
                self._left(Cause.SEQUENCE_GAP, self.effective_us)
        elif source.standing is SEEKING and self._stands() and not (solicited and source.checksum != book.checksum):
            if not solicited:
                self._hear(source, event)
        else:
            source.anchor(book, raw[10], (raw[9], raw[5], raw[6], offset))
            self._place(source)
        return self.made

    def broken(self, raw: RawFrame, offset: int) -> list[BookEvent]:
        """Take a BREAK: its sid was whole up to its clock_us, and nothing it lost of this market is older than LAG_US
        before that."""
        self.made, self._raw, self._offset = [], raw, offset
        source = self._source(raw)
        if source is not None:
            whole_us = max(raw.clock_us, source.life.newest_us) - LAG_US
            if raw.detail == Cause.MARKET_CLOSED:  # so late after the end that it has delivered all, however the clock went
                whole_us = max(whole_us, self.ended_us)
            self._leaves(source, raw.detail, whole_us)
            if raw.detail in LET_GO:
                del self.sources[source.life.where]
        return self.made

    def unreadable(self, raw: RawFrame, offset: int, exchange_us: int) -> list[BookEvent]:
        """Take a book frame without readable content; `exchange_us` is its own time, 0 if it has none.

        Up to that time nothing is missing; without it, up to where the frame can lag at most.
        """
        self.made, self._raw, self._offset = [], raw, offset
        source = self._source(raw)
        if source is None or source.standing is BROKEN:
            self.tally["refused"] += 1
        else:
            self._leaves(source, Cause.PARSE_FAILURE, exchange_us or raw.clock_us - LAG_US)
        return self.made

    def started(self, raw: RawFrame, offset: int) -> list[BookEvent]:
        """Take its gatherer's START: what the process before it had of this market has ended."""
        self.made, self._raw, self._offset = [], raw, offset
        self._over([source for source in self.sources.values() if source.life.gatherer.name == raw.gatherer])
        return self.made

    def review(self, raw: RawFrame, offset: int) -> list[BookEvent]:
        """Look at the waiting sources again, because the clocks of their connections have moved."""
        self.made, self._raw, self._offset = [], raw, offset
        for source in list(self.sources.values()):
            if source.standing is SEEKING:
                self._place(source)
        return self.made

    # Sources.

    def _source(self, raw: RawFrame, new: bool = False) -> Source | None:
        """Return the source of a record; None if it is over, or the record came before, or nothing is known and none is `new`."""
        gatherer, connection, generation = life = raw[1:4]
        source = self.sources.get((gatherer, connection))
        if source is not None:
            if source.life.generation == generation:
                return None if source.over or source.is_repeat(raw, new) else source
            if generation < source.life.generation:
                return None
        elif not new:
            return None
        if life[1:] in self._lives.gatherer(gatherer).over:
            return None
        ended = [each for each in self.sources.values() if each.life.ended_by(gatherer, connection)]
        if any(each.life.generation > generation and each.standing is not BROKEN for each in ended):
            return None
        self._over(ended)
        others = [each for each in self.sources.values() if each.life.gatherer.name == gatherer]
        successor = Source(self._lives.of(*life), min((each.at for each in others), default=self.window.head))
        for each in others:
            if each.over:
                del self.sources[each.life.where]
        self.sources[gatherer, connection] = successor
        successor.is_repeat(raw, new)
        return successor

    def _over(self, ended: Sequence[Source]) -> None:
        """These have ended, though no BREAK said so. They are kept for their place in the log: near it their gatherer goes on."""
        stood = any(source.standing is not BROKEN for source in ended)
        for source in ended:
            if source.standing is ALIGNED:
                self._vouched_us = max(self._vouched_us, source.life.newest_us - LAG_US)
            self._keep(source, Cause.DISCONNECT, 0)
            source.breaks()
            source.over = str(Cause.DISCONNECT), 0
        if stood:
            self._left(Cause.DISCONNECT, self.effective_us)

    def _keep(self, source: Source, cause: str, vouched_us: int) -> None:
        """Keep what an ended source heard ahead of the log, until the log comes to it or has passed it."""
        if source.standing is SEEKING and source.heard and self._stands() and source.last_us >= self.window.times[-1]:
            kept_events = sum(len(each.heard) for each in self.past)
            if len(self.past) >= PAST or kept_events + len(source.heard) > self.limits.events:
                self._tell("past_full", self.ticker, f"{len(source.heard)} events of {source.life.gatherer.name} are in no log")
                return
            kept = Source(source.life, source.at)
            assert source.base is not None
            kept.anchor(source.base, source.known_us, source.origin, source.base_us)
            kept.heard, kept.sums, kept.times = source.heard, source.sums, source.times
            kept.over = str(cause), vouched_us
            self.past.append(kept)

    def _stands(self) -> bool:
        """Return whether somebody who is still alive stands in the log, so that it can go on."""
        return any(
            (source.inside or source.standing is ALIGNED) and self._lives_on(source) for source in self.sources.values()
        ) or any(source.standing is ALIGNED for source in self.past)

    def _lives_on(self, source: Source) -> bool:
        """Return whether a source is not so far behind the others that its gatherer must be dead."""
        newest_us = max(each.alive_us for each in self.sources.values())
        return source.alive_us + self.limits.patience_us >= newest_us

    def _leaves(self, source: Source, cause: str, vouched_us: int) -> None:
        """A source's book is not known from here on; up to `vouched_us` it had delivered everything."""
        stood = source.standing is ALIGNED or source.inside
        if source.inside:
            self._place_inside(source, vouched_us)
        if source.standing is ALIGNED or (source.inside and not source.heard):
            self._vouched_us = max(self._vouched_us, vouched_us)
        self._keep(source, cause, vouched_us)
        source.breaks()
        if stood:
            self._left(cause, max(self.effective_us, self._vouched_us))

    def _left(self, cause: str, start_us: int) -> None:
        """A source that stood in the log does so no longer: if it was the last, find another or tell the gap."""
        self._cause = str(cause)
        if self._stands():
            return
        for source in [*self.sources.values(), *self.past]:
            if self.whole and source.standing is SEEKING and source.began_us < self._vouched_us:
                self._place_inside(source)
        if self._stands():
            return
        self._given_up()  # dead, as far as anybody knows
        # Of a market that has ended nothing is lost by who was whole up to its end. That a whole book came behind it is no proof:
        # it may be late, unless it is the empty one that a market closes with.
        closed_us = self.effective_us if self.window.contents[-1:] == [_CLOSED] else 0
        if self.whole and not 0 < self.ended_us <= max(self._vouched_us, self._begun_us - LAG_US, closed_us):
            self._gap(cause, start_us)
        self._begin_anew()

    def _given_up(self) -> None:
        """Those that stand in the log are waited for no longer."""
        for each in [*self.sources.values(), *self.past]:
            each.inside = False
            if each.standing is ALIGNED:
                self._unalign(each)

    def _unalign(self, source: Source) -> None:
        """Look for the place of a source anew that had one; its book is the log's there."""
        at, window = source.at, self.window
        last_us = window.times[at - window.first]
        origin = self._raw.recv_us, source.sid, source.seq, window.offsets[at - window.first]
        source.anchor(window.book_at(self.book, at), max(last_us, self._begun_us), origin, last_us)

    # Alignment.

    def _hear(self, source: Source, event: Heard, mark: int = 0) -> None:
        if source.standing is ALIGNED:
            window = self.window
            if source.at == window.head:
                self._extend(source, event, mark)
            elif event[:4] == window.contents[source.at + 1 - window.first]:
                self._confirm(source)
            else:
                self._contradict(source, event)
        elif source.standing is SEEKING:
            before_us = source.last_us or source.known_us
            source.hear(event)
            if before_us < event.exchange_us and self._stands():
                version = self.window.begins(event.exchange_us, self._begun_us)
                if version is not None:
                    self._meet(source, len(source.heard) - 1, version)
            if source.standing is SEEKING:
                self._place(source)

    def _confirm(self, source: Source) -> None:
        source.at += 1
        gatherer = source.life.gatherer
        gatherer.confirmed += 1
        gatherer.behind = self.window.head - source.at

    def _extend(self, source: Source, event: Fields, mark: int = 0) -> bool:
        """Write what the log's leader of the moment says next: an event as `Heard` has it. Return whether nobody waits."""
        exchange_us, side, price, change, recv_us, clock_us, sid, seq, offset, whole = event
        window, life = self.window, source.life
        if whole is None:
            try:
                self.book.apply(side, price, change)
            except CorruptBook as error:
                self._tell("corrupt_book", self.ticker, str(error))
                source.breaks()
                self._left(Cause.PARSE_FAILURE, self.effective_us)
                return False
            self.made.append(self._write_delta(source, event, mark))
        else:
            before, self.book = self.book, whole
            self.effective_us = max(self.effective_us, clock_us)
            self.version += 1
            self._write_snapshot(life, (recv_us, sid, seq, offset), None, None)
            window.append((exchange_us, side, price, change), whole.checksum, offset, mark, before)
            self._led(source)
        head = window.head
        if head - window.first >= self._trim_at:
            self._trim()
        if self.past or (len(self.sources) > 1 and self.waits):
            self._wake((exchange_us, side, price, change))
            return False
        return True

    def _write_delta(self, source: Source, event: Fields, mark: int) -> BookDelta:
        """Write a delta that the book has taken, as what its source led with."""
        exchange_us, side, price, change, recv_us, clock_us, sid, seq, offset, _ = event
        window, life, checksum = self.window, source.life, self.book.checksum
        self.version = version = self.version + 1
        effective_us = exchange_us or clock_us
        if effective_us > self.effective_us:
            self.effective_us = effective_us
        else:
            effective_us = self.effective_us
        window.append((exchange_us, side, price, change), checksum, offset, mark, None)
        self._led(source)
        return _new(BookDelta, (
            self.ticker, version, effective_us, exchange_us, recv_us, side, price, change,
            checksum - 0x1_0000_0000_0000_0000 if checksum >> 63 else checksum,
            *life.where, life.generation, sid, seq, offset,
        ))  # fmt: skip

    def _led(self, source: Source) -> None:
        source.at = self.window.head
        source.life.gatherer.led += 1
        self._leader = source.life.where

    def _wake(self, content: Content) -> None:
        """The log has a new event: perhaps one that a source ahead of it was waiting for."""
        waiting = [source for source in self.sources.values() if source.standing is SEEKING and source.heard]
        exchange_us, version = content[0], self.window.head
        if self.past:
            self.past = [each for each in self.past if each.standing is ALIGNED or each.last_us >= exchange_us]
            waiting += self.past
        if not waiting or content[1] == WHOLE_BOOK or self.window.begins(exchange_us, self._begun_us) != version:
            return
        for source in waiting:
            if source.standing is SEEKING and version >= self.window.first:  # unless one of them has begun it anew
                place = source.begins(exchange_us)
                if place is not None:
                    self._meet(source, place, version)

    def _meet(self, source: Source, place: int, version: int) -> None:
        """A timestamp begins with heard[place] and with `version` of the log: if they are one event, that is the proof by
        content."""
        at = version - self.window.first
        if source.sums[place] == self.window.sums[at] and source.heard[place][:4] == self.window.contents[at]:
            self._join(source, version, place + 1)

    def _join(self, source: Source, version: int, heard: int) -> None:
        """Put a source into the log after `version`, the first `heard` of its events being there; the others follow."""
        rest = source.heard[heard:]
        source.life.gatherer.confirmed += heard
        source.align(version)
        self.tally["aligned"] += 1
        for event in rest:
            self._hear(source, event)
        self._end(source)

    def _end(self, source: Source) -> None:
        """Let a source that was kept although it had ended go, now that it is used up."""
        if source.over is not None and source.standing is not SEEKING:
            self.past = [each for each in self.past if each is not source]
            if source.standing is ALIGNED:
                source.breaks()
                cause, vouched_us = source.over
                self._vouched_us = max(self._vouched_us, vouched_us)
                self._left(cause, max(self.effective_us, self._vouched_us))

    def _place(self, source: Source) -> None:
        """Do for a seeker what can be done without an event in common."""
        if not self._stands():
            if len(source.heard) > self.limits.events:
                self._fold(source, len(source.heard) // 2)
            if self.whole:  # who stood there has been outlived
                self._left(Cause.DISCONNECT, max(self.effective_us, self._vouched_us))
            else:
                self._begin_anew()
            return
        heard, window = source.heard, self.window
        full = len(heard) > self.limits.events
        if heard and 0 < heard[-1].exchange_us < window.times[0]:
            self._fold(source, len(heard))  # too far behind
            return
        if heard and source.times[0] > (window.times[-1] or self._begun_us) and (full or self._outlives_all(source)):
            self._tell("given_up", self.ticker, f"{source.life.gatherer.name} waited too long for those it is ahead of")
            self._given_up()
            self._gap(Cause.DISCONNECT, max(self.effective_us, self._vouched_us))
            self._begin(source)
            return
        stand = [each for each in self.sources.values() if each.standing is ALIGNED]
        vouched_us = max(self._vouched_us, max((each.life.newest_us for each in stand), default=0) - LAG_US)
        if source.inside or (source.began_us < vouched_us and not source.against):
            stood = source.inside
            self._place_inside(source)
            if stood and source.standing is not ALIGNED and not source.inside:
                self._left(self._cause, max(self.effective_us, self._vouched_us))
        if full and source.standing is SEEKING:
            self._fold(source, len(heard) // 2)

    def _outlives_all(self, source: Source) -> bool:
        others = (each.alive_us for each in self.sources.values() if each.standing is ALIGNED or each.inside)
        return max(others, default=0) + self.limits.patience_us < source.alive_us

    def _place_inside(self, source: Source, whole_us: int = 0) -> None:
        """Place a seeker whose book is none that the log is yet to reach, if it is none from before the window either.

        Up to `whole_us` it is known to have delivered everything.
        """
        assert source.base is not None
        start_us = self.window.times[0] or self._begun_us
        whole_us = max(whole_us, source.over[1] if source.over else source.life.newest_us - LAG_US)
        here_before = source.origin[3] < self._offset  # a book that comes only now is no proof for who has left
        if here_before and max(self.effective_us, source.began_us) < self._vouched_us and not source.against:
            self._place_at_the_end(source, whole_us)
            return
        if start_us > source.known_us - LAG_US and whole_us >= start_us:
            held = self._before(source, start_us + 1)
            if held is None:
                held = bisect_right(source.times, start_us)
            self._fold(source, held)  # so that it has all that the window begins with
        places = []
        if source.standing is SEEKING and max(whole_us, source.known_us - LAG_US) >= start_us:
            places = self.window.places(source.base.checksum, source.heard)
        source.inside = bool(places)
        if len(places) == 1:
            self._join(source, min(self.window.head, places[0] + len(source.heard)), self.window.head - places[0])

    def _place_at_the_end(self, source: Source, whole_us: int) -> None:
        """Place a seeker whose book is older than `_vouched_us`, the log being whole and quiet up to there.

        What it delivers from before that instant the log has; with all of that its book is the log's last, and the rest follows.
        Until then it stands inside. `whole_us`: up to there it has delivered everything.
        """
        held = self._before(source, self._vouched_us)
        if held is None:
            source.inside = False
            return
        checksum = source.sums[held - 1] if held else source.base.checksum  # type: ignore[union-attr]
        delivered = held < len(source.heard) or whole_us >= self._vouched_us
        source.inside = not delivered and source.over is None
        if delivered and checksum == self.window.sums[-1]:
            self._join(source, self.window.head, held)

    def _before(self, source: Source, us: int) -> int | None:
        """Return how many of what a seeker heard happened before this instant, up to which the log has everything.

        None where that is not known: a whole book has no time of its own, and its clock may be late. One that even so is younger
        than all that the log has did not.
        """
        held = bisect_left(source.times, us)
        for at, event in enumerate(source.heard[:held]):
            if event.book is not None and event.clock_us >= us:
                return at if event.clock_us - LAG_US > self.effective_us else None
        return held

    def _fold(self, source: Source, count: int) -> None:
        try:
            source.fold(count)
        except CorruptBook as error:
            self._tell("corrupt_book", self.ticker, str(error))
            source.breaks()

    # Contradictions.

    def _contradict(self, source: Source, event: Heard) -> None:
        """Take a source out of the log that says something else than the log; with more of its opinion, correct the log."""
        agreed = source.at
        source.life.gatherer.contradictions += 1
        self._tell("contradiction", self.ticker, f"{source.life.gatherer.name} contradicts version {agreed + 1}")
        self._unalign(source)
        source.hear(event)
        source.against = agreed + 1
        with_it = [
            each for each in self.sources.values()
            if each.standing is SEEKING and each.against == source.against and each.heard and each.heard[0][:4] == event[:4]
        ]  # fmt: skip
        against_it = {each.life.gatherer.name for each in self.sources.values() if each.standing is ALIGNED and each.at > agreed}
        if len({each.life.gatherer.name for each in with_it} - against_it) > len(against_it):
            self._correct(source, agreed, with_it)

    def _correct(self, source: Source, agreed: int, with_it: Sequence[Source]) -> None:
        self.tally["corrections"] += 1
        start_us = max(self.window.times[agreed - self.window.first], self._begun_us)
        with_it = [*with_it, *(each for each in self.sources.values() if each.standing is ALIGNED and each.at == agreed)]
        for each in self.sources.values():
            if each.standing is ALIGNED:
                excluded = each.at > agreed
                self._unalign(each)
                if excluded:
                    each.against = agreed + 1
                    self._tell("excluded", self.ticker, f"{each.life.gatherer.name} led or confirmed what most contradict")
        self._gap(Cause.SEQUENCE_GAP, start_us)
        self._begin(source, with_it)

    # Writing.

    def _begin_anew(self) -> None:
        """Let the earliest of those whose book is not older than the log begin it anew."""
        last_us = self.window.times[-1] or self.effective_us if self.version else -1
        waiting = [each for each in self.sources.values() if each.standing is SEEKING and self._lives_on(each)]
        ready: list[tuple[int, int, Source, int]] = []
        for source in waiting + self.past:
            held = bisect_right(source.times, last_us)  # what is not younger than the log's last event is in the log already
            if held < len(source.heard):
                ready.append((source.heard[held].exchange_us, len(ready), source, held))
            elif source.over is None and self._not_behind(source):
                ready.append((source.began_us, len(ready), source, held))
        self.past = [each for each in self.past if any(each is source for _, _, source, _ in ready)]
        for _, _, source, held in sorted(ready, key=itemgetter(0, 1)):
            self._fold(source, held)
            if source.standing is SEEKING:
                self._begin(source)
                return

    def _not_behind(self, source: Source) -> bool:
        """Return whether a seeker that delivered nothing later than the log's end cannot have more of it still to come.

        A later generation of the connection that the last event came from has not. Clocks may be late, so a book alone is
        believed only if it is none that the log had in the seconds before, or once its connection has surely delivered all that
        the log has. That it equals the log's last book is no proof: a burst may add up to zero.
        """
        if not self.version or source.life.ended_by(*self._leader):
            return True
        window, later_us = self.window, self.effective_us + LAG_US
        if source.last_us > (window.times[-1] or self.effective_us):
            return True
        if source.life.newest_us >= later_us:
            return source.last_us in (0, window.times[-1]) or not window.times[-1]
        if source.last_us:
            return False
        taken_us = source.heard[-1].clock_us if source.heard else source.known_us
        return taken_us >= later_us or (
            0 < window.times[0] <= taken_us - LAG_US and taken_us >= self.effective_us and not window.places(source.checksum, ())
        )

    def _begin(self, source: Source, alike: Sequence[Source] = ()) -> None:
        """Begin the log anew with a seeker's book; `alike` have the same."""
        assert source.base is not None
        if self.whole and (source.heard or source.base.checksum not in (0, self.book.checksum)):
            # Its end was known, but not all that came before it: more happened than that its book was emptied.
            self._gap(self._cause, max(self.effective_us, self._vouched_us))
        start_us, cause = self.gap_start_us, self.gap_cause
        self.gap_start_us = self.gap_cause = None
        if cause is not None:
            self.tally["gaps_closed"] += 1
        self.book, heard = source.base, source.heard
        self.version += 1
        self.effective_us = self._begun_us = max(self.effective_us, source.known_us)
        self._write_snapshot(source.life, source.origin, start_us, cause)
        self.window.begin(self.version, self.book.checksum, source.origin[3])
        self._trim_at, self._vouched_us, self._leader = 2 * MARGIN, 0, source.life.where
        source.life.gatherer.led += 1
        others = [(each, each.heard) for each in alike if each is not source]
        for each, _ in others:
            each.align(self.version)
        source.align(self.version)
        for each, rest in [(source, heard), *others]:
            for event in rest:
                self._hear(each, event)
            self._end(each)

    def _write_snapshot(
        self, life: Life, origin: tuple[int, int, int, int], gap_start_us: int | None, gap_cause: str | None
    ) -> None:
        recv_us, sid, seq, offset = origin
        book = self.book
        self.made.append(
            BookSnapshot(
                self.ticker, self.version, self.effective_us, recv_us, list(book.yes), list(book.no), to_signed(book.checksum),
                gap_start_us, gap_cause, life.gatherer.name, life.connection, life.generation, sid, seq, offset,
            )
        )  # fmt: skip

    def _gap(self, cause: str, start_us: int) -> None:
        raw = self._raw
        self.version += 1
        self.effective_us = max(self.effective_us, start_us)
        self.gap_start_us, self.gap_cause = start_us, str(cause)
        self.tally["gaps_opened"] += 1
        self.made.append(
            Gap(
                self.ticker, self.version, self.effective_us, BOOK, start_us, None, str(cause), raw.recv_us,
                to_signed(self.book.checksum), raw.gatherer, raw.connection, raw.generation, self._offset,
            )
        )  # fmt: skip

    def _trim(self) -> None:
        """Forget events that every gatherer has confirmed, and those beyond the window's bounds."""
        window, limits = self.window, self.limits
        oldest_us = window.times[-1] - limits.patience_us
        everybody = [*self.sources.values(), *self.past]
        low = min(source.at for source in everybody) - MARGIN
        keep = max(low, window.head - limits.events)
        keep = min(max(keep, window.first + bisect_left(window.times, oldest_us)), window.head)
        for source in everybody:
            if source.standing is ALIGNED and source.at < keep:
                self._tell("fell_behind", self.ticker, f"{source.life.gatherer.name} is {window.head - source.at} events behind")
                self._unalign(source)
        window.drop(keep)
        self._trim_at = window.head - window.first + MARGIN

    # Keeping.

    def state(self) -> list[Any]:
        """Return what `restore` needs, as JSON can hold it."""
        return [
            self.version, self.effective_us, self.gap_start_us, self.gap_cause, self._cause, self._leader, self._begun_us,
            self._vouched_us, self._trim_at, book_state(self.book), self.window.state(),
            [source.state() for source in self.sources.values()], [source.state() for source in self.past],
        ]  # fmt: skip

    def restore(self, state: Sequence[Any]) -> None:
        """Become the log that gave this state."""
        (
            self.version, self.effective_us, self.gap_start_us, self.gap_cause, self._cause, leader, self._begun_us,
            self._vouched_us, self._trim_at, book, window, sources, past,
        ) = state  # fmt: skip
        self._leader = leader[0], leader[1]
        restored = book_of(book)
        assert restored is not None
        self.book = restored
        self.window.restore(window)
        self.sources = {(each[0], each[1]): Source.restored(self._lives.of(*each[:3]), each) for each in sources}
        self.past = [Source.restored(self._lives.of(*each[:3]), each) for each in past]
