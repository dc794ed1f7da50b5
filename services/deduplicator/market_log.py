"""One market's book log: raw book frames in, numbered events out. Pure; its whole state can be rebuilt from its own events.

    nothing known --snapshot--> whole --BREAK, successor, parse failure, contradiction--> gap --snapshot--> whole

The state is the book, the version and effective time of the last event, who it came from and, in a gap, the gap. Each of them
stands in the last event (or in a Checkpoint), so `restore` and `replay` give exactly the state that wrote them: nothing may be
added here that an event does not carry.
"""

from collections import Counter

from kalshibook_core.kalshi import messages
from kalshibook_core.orderbook import Book, CorruptBook
from kalshibook_core.orderbook.checksum import to_signed
from kalshibook_core.wire.events import BOOK, BookDelta, BookEvent, BookSnapshot, Cause, Checkpoint, Gap, RawFrame
from services.deduplicator.alignment import NOBODY, Source, Standing, may_rebase, standing

LAG_US = 10_000_000
"""The greatest lag between the markets of one subscription seen on the wire: a sid that was whole up to t has lost nothing older
than t - LAG_US of any market."""


class BrokenLog(Exception):
    """The stored events of a market do not follow one another, so no state can be rebuilt from them."""


class MarketLog:
    """The numbered log of one market's book."""

    __slots__ = ("book", "effective_us", "gap_cause", "gap_start_us", "leader", "tally", "ticker", "version")

    def __init__(self, ticker: str, tally: Counter[str]) -> None:
        """Make an empty log; what happens in it is counted in `tally`."""
        self.ticker = ticker
        self.tally = tally
        self.book = Book()
        self.version = 0
        self.effective_us = 0
        self.leader: Source = NOBODY
        self.gap_start_us: int | None = None
        self.gap_cause: str | None = None

    @property
    def whole(self) -> bool:
        """True while the book is known."""
        return self.version > 0 and self.gap_start_us is None

    def delta(self, raw: RawFrame, offset: int, delta: messages.Delta) -> list[BookEvent]:
        """Return the events that an orderbook_delta makes; raise CorruptBook, having changed nothing, if it cannot be true."""
        if self.gap_start_us is not None or raw[1:4] != self.leader:
            return self._unaligned(raw, offset)
        side, price, change, exchange_us = delta
        book = self.book
        book.apply(side, price, change)
        self.version += 1
        self.effective_us = max(self.effective_us, exchange_us or raw.clock_us)
        _, gatherer, connection, generation, _, sid, seq, _, _, recv_us, _, _, _ = raw
        checksum = book.checksum
        return [
            BookDelta(
                self.ticker, self.version, self.effective_us, exchange_us, recv_us, side, price, change,
                checksum - 0x1_0000_0000_0000_0000 if checksum >> 63 else checksum,
                gatherer, connection, generation, sid, seq, offset,
            )
        ]  # fmt: skip

    def snapshot(self, raw: RawFrame, offset: int, book: Book, solicited: bool, ended: bool) -> list[BookEvent]:
        """Return the events that a whole book makes. `solicited`: it answers our get_snapshot, and nobody else got it."""
        found = standing(self.leader, raw[1:4])
        if not self.whole:
            if self.version and not may_rebase(found, raw.clock_us, self.effective_us):
                return self._refuse()
            return [self._rebase(raw, offset, book)]
        if found is Standing.LEADER:
            if not solicited:
                return [self._rebase(raw, offset, book)]
            if book == self.book:
                self.tally["confirmed"] += 1
                return []
            return [self._gap(raw, offset, Cause.SEQUENCE_GAP, self.effective_us), self._rebase(raw, offset, book)]
        if found is Standing.SUCCESSOR:
            lost: list[BookEvent] = [] if ended else [self._gap(raw, offset, Cause.DISCONNECT, self.effective_us)]
            return [*lost, self._rebase(raw, offset, book)]
        return self._refuse()

    def broken(self, raw: RawFrame, offset: int) -> list[BookEvent]:
        """Return the events that a BREAK makes: a gap from the last instant that its sid surely had everything of."""
        found = standing(self.leader, raw[1:4])
        if not self.whole or found not in (Standing.LEADER, Standing.SUCCESSOR):
            return []
        if found is Standing.SUCCESSOR:
            return self._unaligned(raw, offset)
        return [self._gap(raw, offset, raw.detail, max(self.effective_us, raw.clock_us - LAG_US))]

    def unreadable(self, raw: RawFrame, offset: int, exchange_us: int) -> list[BookEvent]:
        """Return the events that a book frame without readable content makes; `exchange_us` is its own time, 0 if it has none.

        Up to that time nothing is missing; without it, up to where the frame can lag at most.
        """
        if raw[1:4] != self.leader or not self.whole:
            return self._unaligned(raw, offset)
        start_us = max(self.effective_us, exchange_us or raw.clock_us - LAG_US)
        return [self._gap(raw, offset, Cause.PARSE_FAILURE, start_us)]

    def contradicted(self, raw: RawFrame, offset: int) -> list[BookEvent]:
        """Return the gap of a delta that the book cannot take: the book is wrong already, since nobody knows when."""
        return [self._gap(raw, offset, Cause.PARSE_FAILURE, self.effective_us)]

    def restore(self, saved: Checkpoint) -> None:
        """Take the state a checkpoint holds, if it is newer; raise BrokenLog if its book and checksum differ."""
        if saved.version <= self.version:
            return
        self.book = Book(saved.yes, saved.no)
        self.version, self.effective_us = saved.version, saved.effective_us
        self.gap_start_us, self.gap_cause = saved.gap_start_us, saved.gap_cause
        self.leader = (saved.gatherer, saved.connection, saved.generation)
        self._verify(saved.checksum)

    def replay(self, event: BookEvent) -> None:
        """Take one of the log's own events, in order; those that a checkpoint covers pass by. Raise BrokenLog."""
        if event.version <= self.version:
            return
        if event.version != self.version + 1:
            raise BrokenLog(f"{self.ticker}: version {event.version} follows {self.version} in kalshi.book.v1")
        if isinstance(event, BookDelta):
            try:
                self.book.apply(event.side, event.price, event.delta)
            except CorruptBook as error:
                raise BrokenLog(f"{self.ticker} version {event.version}: {error}") from error
        elif isinstance(event, BookSnapshot):
            self.book = Book(event.yes, event.no)
            self.gap_start_us = self.gap_cause = None
        else:
            self.gap_start_us, self.gap_cause = event.start_us, event.cause
        self.version, self.effective_us = event.version, event.effective_us
        self.leader = (event.gatherer, event.connection, event.generation)
        self._verify(event.checksum)

    def _verify(self, checksum: int) -> None:
        if to_signed(self.book.checksum) != checksum:
            raise BrokenLog(
                f"{self.ticker} version {self.version}: the book in kalshi.book.v1 does not have the checksum it states"
            )

    def _refuse(self) -> list[BookEvent]:
        self.tally["refused"] += 1
        return []

    def _unaligned(self, raw: RawFrame, offset: int) -> list[BookEvent]:
        # A frame of the leader's successor proves the leader dead even if no BREAK came (its gatherer was killed).
        self.tally["refused"] += 1
        if self.whole and standing(self.leader, raw[1:4]) is Standing.SUCCESSOR:
            return [self._gap(raw, offset, Cause.DISCONNECT, self.effective_us)]
        return []

    def _rebase(self, raw: RawFrame, offset: int, book: Book) -> BookSnapshot:
        gap_start_us, gap_cause = self.gap_start_us, self.gap_cause
        self.book = book
        self.version += 1
        self.effective_us = max(self.effective_us, raw.clock_us)
        self.leader = raw[1:4]
        self.gap_start_us = self.gap_cause = None
        if gap_cause is not None:
            self.tally["gaps_closed"] += 1
        return BookSnapshot(
            self.ticker, self.version, self.effective_us, raw.recv_us, list(book.yes), list(book.no), to_signed(book.checksum),
            gap_start_us, gap_cause, raw.gatherer, raw.connection, raw.generation, raw.sid, raw.seq, offset,
        )  # fmt: skip

    def _gap(self, raw: RawFrame, offset: int, cause: str, start_us: int) -> Gap:
        self.version += 1
        self.effective_us = start_us
        self.leader = raw[1:4]
        self.gap_start_us, self.gap_cause = start_us, str(cause)
        self.tally["gaps_opened"] += 1
        return Gap(
            self.ticker, self.version, start_us, BOOK, start_us, None, str(cause), raw.recv_us, to_signed(self.book.checksum),
            raw.gatherer, raw.connection, raw.generation, offset,
        )  # fmt: skip
