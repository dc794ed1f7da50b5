"""One market's live book, verified event by event: a version without a hole, time that does not run back, the checksum each time.

What does not verify is corruption, and a corrupt book never changes again and is never shown as good.
"""

from bisect import bisect_right
from operator import itemgetter
from typing import Final

from kalshibook_core.orderbook import Book, CorruptBook
from kalshibook_core.orderbook.checksum import MASK, to_signed
from kalshibook_core.wire import codec
from kalshibook_core.wire.events import BookDelta, BookEvent, BookSnapshot, Checkpoint

RECENT_US: Final = 30_000_000
RECENT_STATES: Final = 20_000
_FEW: Final = 8
"""What a book was in the last half minute is remembered, for audits: at most so many states, and so few while nothing happens."""

_since = itemgetter(0)

Told = tuple[str, int, int] | bytes
"""Who told the last event (gatherer, connection, generation); or that event's Kafka value, since it is seldom asked for."""


class Corruption(Exception):
    """An event contradicts the book it follows, so one of the two is wrong."""

    def __init__(self, why: str, ticker: str = "") -> None:
        super().__init__(why)
        self.ticker = ticker


class LiveBook:
    """The book of one market after its event `version`, which stood at `offset` of its partition."""

    __slots__ = (
        "book", "corrupt", "effective_us", "gap_cause", "gap_start_us", "offset", "recent", "saved_effective_us", "saved_version",
        "ticker", "told", "trim_at", "version",
    )  # fmt: skip

    def __init__(self, ticker: str) -> None:
        self.ticker = ticker
        self.book = Book()
        self.version = self.effective_us = 0
        self.offset = -1
        self.gap_start_us: int | None = None
        self.gap_cause: str | None = None
        self.told: Told = ("", 0, 0)
        self.saved_version = self.saved_effective_us = 0  # of the last checkpoint
        self.corrupt = ""  # why, once it is
        self.recent: list[tuple[int, int | None]] = []  # (effective time, checksum from then on; None: not known)
        self.trim_at = _FEW

    @classmethod
    def restored(cls, checkpoint: Checkpoint) -> "LiveBook":
        """Return the book a checkpoint holds; a checkpoint that contradicts its own checksum comes back corrupt."""
        live = cls(checkpoint.market_ticker)
        live.version, live.effective_us, live.offset = checkpoint.version, checkpoint.effective_us, checkpoint.book_offset
        live.gap_start_us, live.gap_cause = checkpoint.gap_start_us, checkpoint.gap_cause
        live.told = (checkpoint.gatherer, checkpoint.connection, checkpoint.generation)
        live.saved_version, live.saved_effective_us = checkpoint.version, checkpoint.effective_us
        try:
            live.book = Book(checkpoint.yes, checkpoint.no)
            live._verify(checkpoint.checksum)
        except (CorruptBook, Corruption) as error:
            live.corrupt = f"checkpoint of version {checkpoint.version}: {error}"
        live._remember()
        return live

    def apply(self, event: BookEvent, offset: int) -> bool:
        """Apply the market's next event; return False for one the book already holds. Raise Corruption, and stay so."""
        told = (event.gatherer, event.connection, event.generation)
        if isinstance(event, BookDelta):
            return self.change(
                event.version, event.effective_us, event.side, event.price, event.delta, event.checksum, offset, told
            )  # fmt: skip
        if event.version <= self.version or self.corrupt:
            return False
        try:
            self._follow(event.version, event.effective_us)
            if isinstance(event, BookSnapshot):
                self.book = Book(event.yes, event.no)
                self.gap_start_us = self.gap_cause = None
            else:
                self.gap_start_us, self.gap_cause = event.start_us, event.cause
            self._verify(event.checksum)
        except (CorruptBook, Corruption) as error:
            raise self._spoilt(offset, error) from error
        self._moved(event.version, event.effective_us, offset, told)
        return True

    def change(
        self, version: int, effective_us: int, side: int, price: int, delta: int, checksum: int, offset: int, told: Told
    ) -> bool:
        """Do what `apply` does of a BookDelta with these fields, which need not be made for it."""
        if version <= self.version or self.corrupt:
            return False
        try:
            self._follow(version, effective_us)
            if self.gap_start_us is not None:
                raise Corruption(f"version {version} changes a book that is not known")
            self.book.apply(side, price, delta)
            self._verify(checksum)
        except (CorruptBook, Corruption) as error:
            raise self._spoilt(offset, error) from error
        self._moved(version, effective_us, offset, told)
        return True

    def checkpoint(self, resume_offset: int) -> Checkpoint:
        """Return the book as a checkpoint, for a partition that is to be folded from `resume_offset`."""
        if isinstance(self.told, bytes):
            event = codec.decode(self.told)
            self.told = (event.gatherer, event.connection, event.generation)
        return Checkpoint(
            self.ticker,
            self.version,
            self.effective_us,
            list(self.book.yes),
            list(self.book.no),
            to_signed(self.book.checksum),
            self.gap_start_us,
            self.gap_cause,
            *self.told,
            self.offset,
            resume_offset,
        )

    def _follow(self, version: int, effective_us: int) -> None:
        if version != self.version + 1:
            raise Corruption(f"after version {self.version} comes {version}")
        if effective_us < self.effective_us:
            raise Corruption(f"version {version} is effective before version {self.version}")

    def _spoilt(self, offset: int, error: Exception) -> Corruption:
        self.corrupt = f"offset {offset}: {error}"
        return Corruption(f"{self.ticker} {self.corrupt}", self.ticker)

    def _moved(self, version: int, effective_us: int, offset: int, told: Told) -> None:
        self.version = version
        self.effective_us = effective_us
        self.offset = offset
        self.told = told
        if not self.saved_effective_us:
            self.saved_effective_us = effective_us
        self._remember()

    def _verify(self, checksum: int) -> None:
        if self.book.checksum != checksum & MASK:
            raise Corruption(f"checksum {to_signed(self.book.checksum)} where the event says {checksum}")

    def _remember(self) -> None:
        recent = self.recent
        recent.append((self.effective_us, self.book.checksum if self.gap_start_us is None else None))
        if len(recent) >= self.trim_at:
            old = bisect_right(recent, self.effective_us - RECENT_US, key=_since) - 1  # it held at that time
            del recent[: max(old, len(recent) - RECENT_STATES, 0)]
            self.trim_at = max(_FEW, 2 * len(recent))
