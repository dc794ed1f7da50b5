"""The records of one partition that wait to be written, as Kafka gave them. Pure; bounded by who fills it."""

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

OVERHEAD: Final = 250
"""Bytes that a record takes in memory beside its key and value."""


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
        self.since = 0.0  # when the first came

    def add(self, records: Iterable[Any], now: float) -> None:
        """Take Kafka records (`offset`, `key`, `value`), in their order."""
        if not self.records:
            self.since = now
        for record in records:
            if self.first is None:
                self.first = record.offset
            self.next = record.offset + 1
            key, value = record.key or b"", record.value
            if value is not None:  # a tombstone says nothing about the exchange
                self.records.append(Record(record.offset, key, value))
                self.bytes += len(key) + len(value) + OVERHEAD
