"""Canonical book events by hand: a market that tells the truth about itself, one event at a time."""

import orjson

from kalshibook_core.kalshi.numbers import format_price, format_size
from kalshibook_core.orderbook import Book
from kalshibook_core.orderbook.checksum import to_signed
from kalshibook_core.wire.events import AUDIT, BOOK, BookDelta, BookEvent, BookSnapshot, Gap, RawFrame, RawKind


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


def rest_book(market: Market, asked_us: int, answered_us: int, book: Book | None = None) -> RawFrame:
    """Return the record of a book that REST had between these instants; the gatherer's clock is the exchange's."""
    shown = book or market.book
    sides = ([[format_price(price), format_size(size)] for price, size in side] for side in (shown.yes, shown.no))
    body = {"ticker": market.ticker, "orderbook_fp": dict(zip(("yes_dollars", "no_dollars"), sides, strict=True))}
    return RawFrame(
        RawKind.REST, "g1", -1, asked_us, AUDIT, -1, -1, False, market.ticker, answered_us, answered_us,
        "/trade-api/v2/markets/orderbooks", orjson.dumps(body),
    )  # fmt: skip
