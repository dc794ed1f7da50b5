"""The reconstructor next to the bare fold: events a second from Kafka's bytes to verified books, and a book for Redis.

Both by own CPU time, in memory. "bare" applies deltas to books and does nothing else: no decoding, verification or checkpoint.
"""

import time
from types import SimpleNamespace
from typing import Any

from benchmarks import Row
from kalshibook_core.orderbook import Book
from kalshibook_core.orderbook.checksum import to_signed
from kalshibook_core.wire import codec
from kalshibook_core.wire.events import BookDelta, BookSnapshot
from services.reconstructor.checkpointing import PartitionBooks
from services.reconstructor.fold import fold
from services.reconstructor.live_book import LiveBook

NAME = "reconstructor"

_MARKETS = 200
_EVENTS = 200_000
_START_US = 1_786_000_000_000_000


def run(addresses: Any) -> list[Row]:
    """Measure in memory; the addresses are not used."""
    values, deltas = _stream()
    records = [SimpleNamespace(offset=offset, value=value) for offset, value in enumerate(values)]
    rate, books = _folded(records, 2_000)
    live_rate, _ = _folded(records, 20)

    bare = [Book() for _ in range(_MARKETS)]
    started = time.process_time()
    for n, side, price, delta in deltas:
        bare[n].apply(side, price, delta)
    bare_rate = len(deltas) / (time.process_time() - started)

    live = list(books.books.values())
    started = time.process_time()
    for book in live:
        codec.encode(book.checkpoint(0))
    shown = len(live) / (time.process_time() - started)
    return [
        Row("reconstructor: verified book events", round(rate), "events/s", round(bare_rate), round(rate / bare_rate, 3)),
        Row(
            "reconstructor: the same, 20 a poll", round(live_rate), "events/s", round(bare_rate), round(live_rate / bare_rate, 3)
        ),
        Row("reconstructor: books of 200 levels encoded for Redis", round(shown), "books/s", None, None),
    ]


def _folded(records: list[Any], batch: int) -> tuple[float, PartitionBooks]:
    """Fold as the process does when it is behind (2,000 records a poll) or abreast; return events a second, and the books."""
    books = PartitionBooks()
    started = time.process_time()
    for at in range(0, len(records), batch):
        for outcome in fold(books, records[at : at + batch], 0):
            assert isinstance(outcome, LiveBook)
        for checkpoint in books.due(0):
            codec.encode(checkpoint)
    return len(records) / (time.process_time() - started), books


def _stream() -> tuple[list[bytes], list[tuple[int, int, int, int]]]:
    ladder = [(100 * price, 10_000) for price in range(1, 100)]
    books = [Book(ladder, ladder) for _ in range(_MARKETS)]
    values = [
        codec.encode(
            BookSnapshot(
                f"KXBENCH-{n}", 1, _START_US, _START_US, ladder, ladder, to_signed(book.checksum), None, None, "g1", 0, 1, 1, n, n
            )
        )
        for n, book in enumerate(books)
    ]
    deltas = []
    for i in range(_EVENTS):
        n, side, price, delta = i % _MARKETS, i % 2, 100 * (i % 99 + 1), 7 - i % 3
        books[n].apply(side, price, delta)
        deltas.append((n, side, price, delta))
        at = _START_US + i * 100
        event = BookDelta(
            f"KXBENCH-{n}", i // _MARKETS + 2, at, at, at, side, price, delta, to_signed(books[n].checksum), "g1", 0, 1, 1, i, i
        )
        values.append(codec.encode(event))
    return values, deltas
