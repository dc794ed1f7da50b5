"""A partition's records into its books, read one by one or together, as `PartitionBooks.apply` has them either way. Pure."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Final

from kalshibook_core.kafka.consumer import Record
from kalshibook_core.wire import codec, columns, events
from services.reconstructor.checkpointing import PartitionBooks
from services.reconstructor.live_book import Corruption, LiveBook

TOGETHER: Final = 60
"""Deltas in a row, from which on it is quicker to read them together (benchmarks/reconstructor.py)."""

Outcome = LiveBook | Corruption | codec.Undecodable | None


def fold(books: PartitionBooks, records: Sequence[Record], now_us: int, together: int = TOGETHER) -> Iterator[Outcome]:
    """Apply each record; yield the book it changed, what was wrong with it, or None if a checkpoint held it already."""
    for many, group in itertools.groupby(records, _is_delta):
        run = list(group)
        if many and len(run) >= together:
            try:
                deltas = columns.deltas([record.value for record in run])
            except codec.Undecodable:
                pass  # which of them it is, is found one by one
            else:
                yield from books.apply_deltas(deltas, run, now_us)
                continue
        for record in run:
            yield _one(books, record, now_us)


def _is_delta(record: Record) -> bool:
    return record.value is not None and record.value.startswith(columns.DELTA)


def _one(books: PartitionBooks, record: Record, now_us: int) -> Outcome:
    try:
        event = codec.decode(record.value or b"")
        if not isinstance(event, events.BookEvent):
            raise codec.Undecodable(f"{type(event).__name__} is no book event")
        return books.apply(event, record.offset, now_us)
    except (Corruption, codec.Undecodable) as error:
        return error
