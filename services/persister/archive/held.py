"""The records of one partition on their way to files, as Kafka gave them, and whose turn it is. Pure.

What waits, waits in Kafka: a partition is read when there is enough of it for files, or when it has waited long enough, and only
one is held at a time. So memory is that of one commit, and files are as large as the settings allow, however many partitions.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple, TypeVar

OVERHEAD: Final = 250
"""Bytes that a record takes in memory beside its key and value."""

Where = TypeVar("Where")


class Record(NamedTuple):
    """What is kept of a Kafka record."""

    offset: int
    key: bytes
    value: bytes


class Held:
    """Records of consecutive offsets: `first` is where the partition stands in the archive, `next` where it will."""

    def __init__(self, first: int | None) -> None:
        """Begin at an offset; None: at whatever comes first."""
        self.first = self.next = first
        self.records: list[Record] = []
        self.bytes = 0

    def add(self, records: Iterable[Any]) -> None:
        """Take Kafka records (`offset`, `key`, `value`), in their order."""
        for record in records:
            if self.first is None:
                self.first = record.offset
            self.next = record.offset + 1
            key, value = record.key or b"", record.value
            if value is not None:  # a tombstone says nothing about the exchange
                self.records.append(Record(record.offset, key, value))
                self.bytes += len(key) + len(value) + OVERHEAD


class Waiting(NamedTuple):
    """What of a partition is in Kafka and not in the archive."""

    records: int
    since: float  # when the first of them was seen


def due(waiting: Mapping[Where, Waiting], rows: int, seconds: float, now: float) -> Where | None:
    """Return the partition to be written next: the oldest of those that waited long enough, else the largest of the large."""
    aged = {where: each.since for where, each in waiting.items() if each.records and now - each.since >= seconds}
    if aged:
        return min(aged, key=lambda where: aged[where])
    large = {where: each.records for where, each in waiting.items() if each.records >= rows}
    return max(large, key=lambda where: large[where]) if large else None
