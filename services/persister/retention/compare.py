"""Rows of a table against the archive's rows of the same market and day, value for value, both ways. Pure.

Both come in the form that the table's columns have (COLUMNS; of book_events, that of its runs unpacked). `take` returns the first
difference as what to say of the market, None if there is none.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple, Protocol

from kalshibook_core.archive.columns import Books
from kalshibook_core.postgres import levels, runs
from kalshibook_core.wire.events import Checkpoint, Ticker

Row = tuple[Any, ...]


class Span(NamedTuple):
    """What a table has of a market and a day: rows, of book_events events."""

    first_us: int
    last_us: int
    first_version: int
    last_version: int
    rows: int

    def wider(self, other: "Span") -> "Span":
        """Return what is of either."""
        return Span(
            min(self.first_us, other.first_us), max(self.last_us, other.last_us),
            min(self.first_version, other.first_version), max(self.last_version, other.last_version), self.rows + other.rows,
        )  # fmt: skip


class Archived(Protocol):
    """What the archive has of a market and a day."""

    def take(self, rows: Sequence[Row]) -> str | None:
        """Meet rows of the table, in the table's order."""

    def left(self, dropped: int) -> str | None:
        """Return what is wrong with what nothing met, if so many rows had been dropped before."""


class BookEvents:
    """Book events, by version."""

    def __init__(self, books: Books) -> None:
        self._books, self._met = books, 0

    def take(self, rows: Sequence[Row]) -> str | None:
        """Meet `runs.Event`s, their versions ascending."""
        start = int(self._books.version.searchsorted(rows[0][0]))
        archived = self._books.cut(start, start + len(rows)).rows(levels.pack)
        if archived == list(rows):
            self._met += len(rows)
            return None
        for row, other in zip(rows, archived, strict=False):
            if row != other:
                return f"version {row[0]}: the table has {row}, the archive {other}"
        return f"version {rows[len(archived)][0]} is not in the archive"

    def left(self, dropped: int) -> str | None:
        """Return what is wrong with what nothing met."""
        return _more(len(self._books.version) - self._met, dropped)


class Rows:
    """Rows in no order, each as often as it is there."""

    def __init__(self, rows: Iterable[Row], *, repeats: bool = False) -> None:
        """`repeats`: the archive may have a row more often than the table, and rows that the table never had."""
        self._rows, self._repeats = Counter(rows), repeats

    def take(self, rows: Sequence[Row]) -> str | None:
        """Meet rows of the table."""
        for row in rows:
            if not self._rows[row]:
                return f"{row} is not in the archive"
            if not self._repeats:
                self._rows[row] -= 1
        return None

    def left(self, dropped: int) -> str | None:
        """Return what is wrong with what nothing met."""
        return None if self._repeats else _more(self._rows.total(), dropped)


def _more(left: int, dropped: int) -> str | None:
    if left == dropped:
        return None
    return f"the archive has {left:,} rows that the table does not have, and {dropped:,} were dropped before"


def checkpoint(event: Checkpoint) -> Row:
    """Return a checkpoint as a row of CHECKPOINT_COLUMNS."""
    packed = levels.pack(event.yes, event.no)
    return (event.effective_us, event.version, event.checksum, event.gap_start_us, event.gap_cause, packed)


def ticker(event: Ticker) -> Row:
    """Return a ticker as a row of TICKER_COLUMNS."""
    return event[1:13]


COLUMNS: Final = {
    "book_events": runs.COLUMNS,
    "checkpoints": ("effective_us", "version", "checksum", "gap_start_us", "gap_cause", "levels"),
    "tickers": (
        "exchange_us", "recv_us", "price", "yes_bid", "yes_ask", "yes_bid_size", "yes_ask_size", "last_trade_size", "volume",
        "open_interest", "dollar_volume", "dollar_open_interest",
    ),
}  # fmt: skip
"""The columns that a table's rows are compared by; of book_events they are unpacked first."""


def span(table: str, rows: Sequence[Row]) -> Span:
    """Return what rows in the form of a table are the span of."""
    times = [row[1] if table == "book_events" else row[0] for row in rows]
    versions = [0] if table == "tickers" else [row[0] if table == "book_events" else row[1] for row in rows]
    return Span(min(times), max(times), min(versions), max(versions), len(rows))
