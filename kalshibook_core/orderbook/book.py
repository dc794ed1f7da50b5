"""One market's book: bids only, a yes ladder and a no ladder (Kalshi docs, "Orderbook responses": YES ask = 1 - best NO bid).

Prices are integers in 1/10,000 dollar, sizes integers in 1/100 contract. A level exists while its size is above zero; a
delta that would take it below zero is corruption and changes nothing. The two-sided view is derived at the edge, not here.
"""

from collections.abc import Iterable

from kalshibook_core.orderbook.checksum import MASK, book_checksum, level_weight

YES, NO = 0, 1
MAX_PRICE = 10_000
MAX_SIZE = 2**63 - 1  # what Avro and Postgres hold

Levels = tuple[tuple[int, int], ...]
"""Levels of one side, ascending by price: ((price, size), ...)."""


class CorruptBook(ValueError):
    """An event cannot be true of the book it was applied to, so one of the two is wrong."""


class Book:
    """The levels of one market with their checksum, kept in step with every change."""

    __slots__ = ("checksum", "sides")

    def __init__(self, yes: Iterable[tuple[int, int]] = (), no: Iterable[tuple[int, int]] = ()) -> None:
        """Make a book from levels in any order; raise CorruptBook for a size or price that no level can have."""
        self.sides: tuple[dict[int, int], dict[int, int]] = (_ladder(yes), _ladder(no))
        self.checksum = book_checksum(*self.sides)

    def apply(self, side: int, price: int, delta: int) -> None:
        """Add a signed size to one level; gone at exactly 0. Raise CorruptBook, and change nothing, if it would go below."""
        levels = self.sides[side]
        size = levels.get(price, 0) + delta
        if size > 0:
            if not 0 <= price <= MAX_PRICE or size > MAX_SIZE:
                raise CorruptBook(f"no level can be {size} at {price}")
            levels[price] = size
        elif size == 0:
            levels.pop(price, None)
        else:
            raise CorruptBook(f"level {('yes', 'no')[side]} {price} would hold {size}")
        self.checksum = (self.checksum + delta * level_weight(side, price)) & MASK

    @property
    def yes(self) -> Levels:
        """The yes bids, ascending."""
        return tuple(sorted(self.sides[YES].items()))

    @property
    def no(self) -> Levels:
        """The no bids, ascending."""
        return tuple(sorted(self.sides[NO].items()))

    @property
    def empty(self) -> bool:
        """True when neither side holds a level."""
        return not (self.sides[YES] or self.sides[NO])

    def copy(self) -> "Book":
        """Return an independent book with the same levels."""
        twin = Book.__new__(Book)
        twin.sides = (self.sides[YES].copy(), self.sides[NO].copy())
        twin.checksum = self.checksum
        return twin

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Book) and self.sides == other.sides

    __hash__ = None  # type: ignore[assignment]  # a book changes; its checksum is what identifies a state

    def __repr__(self) -> str:
        return f"Book(yes={self.yes}, no={self.no})"


def _ladder(levels: Iterable[tuple[int, int]]) -> dict[int, int]:
    ladder: dict[int, int] = {}
    for price, size in levels:
        if size <= 0 or not 0 <= price <= MAX_PRICE or price in ladder:
            raise CorruptBook(f"no level can be {size} at {price}" + (" twice" if price in ladder else ""))
        ladder[price] = size
    return ladder
