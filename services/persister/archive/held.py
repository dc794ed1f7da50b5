"""The records of one partition that wait to be written, as Kafka gave them. Pure; bounded by who fills it."""

from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple, Protocol, TypeVar

OVERHEAD: Final = 250
"""Bytes that a record takes in memory beside its key and value."""


Where = TypeVar("Where")


class Record(NamedTuple):
    """What is kept of a Kafka record."""

    offset: int
    key: bytes
    value: bytes


class Bounds(Protocol):
    """How much may be held, and for how long."""

    @property
    def rows(self) -> int:
        """Records of a partition."""

    @property
    def seconds(self) -> float:
        """Age of the first of them."""

    @property
    def bytes(self) -> int:
        """Memory of all partitions together."""


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


def due(held: Mapping[Where, Held], bounds: Bounds, now: float) -> Where | None:
    """Return the partition to be written next, if any: one whose records are many or old enough; memory full, the largest."""
    for where, each in held.items():
        if each.records and (len(each.records) >= bounds.rows or now - each.since >= bounds.seconds):
            return where
    if sum(each.bytes for each in held.values()) < bounds.bytes:
        return None
    return max(held, key=lambda where: held[where].bytes)
