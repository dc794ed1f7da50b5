"""Canonical book events by hand: a market that tells the truth about itself, one event at a time."""

from kalshibook_core.orderbook import Book
from kalshibook_core.orderbook.checksum import to_signed
from kalshibook_core.wire.events import BOOK, BookDelta, BookEvent, BookSnapshot, Gap


class Market:
    """The truth of one market, and the canonical events that tell it."""

    def __init__(self, ticker: str, at_us: int = 1_000_000) -> None:
        self.ticker, self.version, self.at, self.book = ticker, 0, at_us, Book()
        self.gap: int | None = None

    def event(self, roll: int, pause: int) -> BookEvent:
        """Return the next event, `pause` µs after the last: by `roll` a snapshot, a gap or a delta that cannot go below 0."""
        self.version += 1
        self.at += pause
        if self.version == 1 or self.gap is not None or roll % 11 == 0:
            self.book = Book([(100 + roll, 5 + roll)], [(200, 7)] if roll % 2 else [])
            gap, self.gap = self.gap, None
            made: BookEvent = BookSnapshot(
                self.ticker, self.version, self.at, self.at, list(self.book.yes), list(self.book.no),
                to_signed(self.book.checksum),
                gap, "disconnect" if gap is not None else None, "g1", 0, 1, 1, self.version, 0,
            )  # fmt: skip
        elif roll % 13 == 0:
            self.gap = self.at
            checksum = to_signed(self.book.checksum)
            made = Gap(self.ticker, self.version, self.at, BOOK, self.at, None, "disconnect", self.at, checksum, "g1", 0, 1, 0)
        else:
            side, price, delta = roll % 2, roll % 50, 1 + roll
            self.book.apply(side, price, delta)
            checksum = to_signed(self.book.checksum)
            made = BookDelta(
                self.ticker, self.version, self.at, self.at, self.at, side, price, delta, checksum, "g1", 0, 1, 1, self.version, 0
            )
        return made
