"""The book at an instant out of a checkpoint and the events after it, and the checks that make it worth serving. No I/O.

The events with effective_us <= at are a prefix of the market's versions, because effective time never decreases; so the
answer is the fold of that prefix and every checkpoint inside it is a valid place to start.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from operator import itemgetter
from typing import Any, Final, NamedTuple

from kalshibook_core.orderbook import Book, CorruptBook
from kalshibook_core.orderbook.checksum import MASK
from kalshibook_core.postgres import levels, runs
from kalshibook_core.postgres.runs import DELTA, SNAPSHOT
from kalshibook_core.wire.events import Checkpoint

_VERSION: Final = itemgetter(0)
_EFFECTIVE_US: Final = itemgetter(1)


class CorruptHistory(Exception):
    """What is stored contradicts itself; whatever comes of it must not be served as good."""


class Start(NamedTuple):
    """Where a fold began: a stored checkpoint, the first snapshot of the market, or the latest live book."""

    version: int
    effective_us: int
    source: str  # "checkpoint", "snapshot" or "live"


class State:
    """A market's book while its events are folded into it.

    `recv_us` is None while no event came after the checkpoint (a checkpoint does not say when its event was received). `gap` is
    the (start, cause) that a checkpoint in a gap tells, while it lasts. `later_us` is when the first event took effect that was
    seen and left out, None if there was none.
    """

    __slots__ = ("applied", "book", "checksum", "effective_us", "gap", "in_gap", "later_us", "recv_us", "start", "version")

    def __init__(self) -> None:
        self.book = Book()
        self.version = 0
        self.effective_us = 0
        self.recv_us: int | None = None
        self.checksum = 0
        self.in_gap = False
        self.gap: tuple[int, str] | None = None
        self.later_us: int | None = None
        self.applied = 0
        self.start: Start | None = None

    def restore(
        self, version: int, effective_us: int, checksum: int, packed: bytes, gap_start_us: int | None, gap_cause: str | None
    ) -> None:
        """Begin from a stored checkpoint."""
        self.gap = None if gap_start_us is None else (gap_start_us, gap_cause or "")
        self._begin(Start(version, effective_us, "checkpoint"), checksum, _book(version, packed), gap_start_us is not None)

    def restore_live(self, latest: Checkpoint) -> None:
        """Begin from the latest book of the reconstructor."""
        try:
            book = Book(latest.yes, latest.no)
        except CorruptBook as error:
            raise CorruptHistory(f"the latest book, version {latest.version}, cannot be one: {error}") from error
        start = Start(latest.version, latest.effective_us, "live")
        self._begin(start, latest.checksum, book, latest.gap_start_us is not None)

    def _begin(self, start: Start, checksum: int, book: Book, in_gap: bool) -> None:
        self.start, self.checksum, self.book, self.in_gap = start, checksum, book, in_gap
        self.version, self.effective_us = start.version, start.effective_us
        self.verify()

    def fold_rows(self, rows: Iterable[Any], at_us: int) -> None:
        """Apply what the rows of book_events say after this version and up to an instant; raise CorruptHistory."""
        try:
            self.fold_after([event for row in rows for event in runs.unpack(*row)], at_us)
        except runs.DamagedRow as error:
            raise CorruptHistory(str(error)) from error

    def fold_after(self, events: list[Any], at_us: int) -> None:
        """Apply those of events in order of version that come after this one, up to an instant; raise CorruptHistory."""
        first = bisect_left(events, self.version, key=_VERSION)
        if first < len(events) and events[first][0] == self.version:
            self._compare(events[first])
            first += 1
        end = max(first, bisect_right(events, at_us, key=_EFFECTIVE_US))
        if end < len(events):
            self.later_us = events[end][1]
        self.fold(events[first:end])

    def _compare(self, event: Any) -> None:
        # The event that the checkpoint was made after, where it is stored already: the two were written by different services.
        if event[8] != self.checksum:
            raise CorruptHistory(f"the checkpoint of version {self.version} and the event of that version have other checksums")

    def fold(self, rows: Iterable[Any]) -> None:
        """Apply events in order of version, each a `runs.Event` or its values.

        Raise CorruptHistory where one is missing or cannot be true.
        """
        version, book, applied = self.version, self.book, 0
        effective_us, checksum, recv_us = self.effective_us, self.checksum, self.recv_us
        try:
            for number, effective_us, _, recv_us, kind, side, price, delta, checksum, packed in rows:  # noqa: B007 (the last stay)
                if number != version + 1:
                    raise CorruptHistory(f"version {version + 1} is missing: {number} follows {version}")
                version = number
                applied += 1
                if kind == DELTA:
                    book.apply(side, price, delta)
                elif kind == SNAPSHOT:
                    book = _book(number, packed)
                    self.in_gap, self.gap = False, None
                    if self.start is None:
                        self.start = Start(number, effective_us, "snapshot")
                else:
                    self.in_gap = True
        except CorruptBook as error:
            raise CorruptHistory(f"version {version} cannot be applied: {error}") from error
        self.version, self.book, self.applied = version, book, self.applied + applied
        self.effective_us, self.checksum, self.recv_us = effective_us, checksum, recv_us
        if self.start is None and applied:
            raise CorruptHistory(f"version {version}: the market does not begin with a snapshot")
        self.verify()

    def verify(self) -> None:
        """Raise CorruptHistory unless the book's own checksum is the one recorded with its last event."""
        if self.book.checksum != self.checksum & MASK:
            recorded = f"{self.checksum & MASK:016x}"
            raise CorruptHistory(
                f"the book at version {self.version} has checksum {self.book.checksum:016x}, recorded is {recorded}"
            )


def _book(version: int, packed: bytes) -> Book:
    try:
        return Book(*levels.unpack(packed))
    except ValueError as error:  # CorruptBook is one
        raise CorruptHistory(f"the levels of version {version} cannot be read: {error}") from error
