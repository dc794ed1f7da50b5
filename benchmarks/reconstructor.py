"""The reconstructor next to the bare fold: events a second from Kafka's bytes to verified books, and a book for Redis.

"bare" applies deltas to books with nothing around it: no decoding, no verification, no checkpoint.
"""

import time
from typing import Any

from benchmarks import Row
from kalshibook_core.orderbook import Book
from kalshibook_core.orderbook.checksum import to_signed
from kalshibook_core.wire import codec
from kalshibook_core.wire.events import BookDelta, BookSnapshot
from services.reconstructor.checkpointing import PartitionBooks

NAME = "reconstructor"

_MARKETS = 200
_EVENTS = 200_000
_START_US = 1_786_000_000_000_000


def run(addresses: Any) -> list[Row]:
    """Measure in memory; the addresses are not used."""
    values, deltas = _stream()
    books = PartitionBooks()
    started = time.perf_counter()
    for offset, value in enumerate(values):
        books.apply(codec.decode(value), offset, 0)
        if offset % 1_000 == 0:
            for checkpoint in books.due(0):
                codec.encode(checkpoint)
    rate = len(values) / (time.perf_counter() - started)

    bare = [Book() for _ in range(_MARKETS)]
    started = time.perf_counter()
    for n, side, price, delta in deltas:
        bare[n].apply(side, price, delta)
    bare_rate = len(deltas) / (time.perf_counter() - started)

    live = list(books.books.values())
    started = time.perf_counter()
    for book in live:
        codec.encode(book.checkpoint(0))
    shown = len(live) / (time.perf_counter() - started)
    return [
        Row("reconstructor: verified book events", round(rate), "events/s", round(bare_rate), round(rate / bare_rate, 3)),
        Row("reconstructor: books of 200 levels encoded for Redis", round(shown), "books/s", None, None),
    ]


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
