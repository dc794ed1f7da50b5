"""Records as a batch has them, once `lighten` is called: at two thirds less than aiokafka 0.14 takes to hand one over.

aiokafka makes a tuple of eleven fields of every record, by a chain of Python calls; nobody here asks for more than four. What it
takes apart in C already is such an object, and is handed on as it is (benchmarks/kafka_consume.py).
"""

from collections.abc import Iterator
from typing import Any, Final, Protocol

from aiokafka.consumer import fetcher

AIOKAFKAS: Final = fetcher.PartitionRecords


class Record(Protocol):
    """A record; its topic and partition are the batch's."""

    @property
    def offset(self) -> int:
        """Where it stands in its partition."""

    @property
    def timestamp(self) -> int:
        """Milliseconds since the epoch."""

    @property
    def key(self) -> Any:
        """The key, bytes."""

    @property
    def value(self) -> Any:
        """The value, bytes; None is a tombstone."""


class _Records(AIOKAFKAS):  # type: ignore[misc, valid-type]
    """What was fetched of a partition."""

    def __iter__(self) -> Iterator[Record]:
        unpacked: Iterator[Record] = self._records_iterator
        return unpacked

    def _consumer_record(self, _: Any, record: Record) -> Record:
        return record


def lighten() -> None:
    """Put it in place; harmless to call twice."""
    fetcher.PartitionRecords = _Records
