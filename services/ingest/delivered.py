"""Which of the spooled records the topic has already, for the life of a gatherer after the one that spooled them. No I/O.

The broker keeps the order of a partition, so of a partition's spooled records it has a first part and lacks the rest. Read in
order from an offset before that first part, the topic shows it, with other gatherers' records between.
"""

import hashlib
from collections import deque

Digest = bytes


def digest(value: bytes) -> Digest:
    """Return what a record is recognised by: its whole content (gatherer, generation, seq and local time among it)."""
    return hashlib.blake2b(value, digest_size=16).digest()


class Delivered:
    """The digests of what stands in the topic, by partition and in its order; forgotten as they are passed."""

    def __init__(self) -> None:
        """Know of no record."""
        self._found: dict[int, deque[Digest]] = {}

    def found(self, partition: int, value: bytes) -> None:
        """The topic has this record next."""
        self._found.setdefault(partition, deque()).append(digest(value))

    def has(self, partition: int, value: bytes) -> bool:
        """Return whether the topic has the next spooled record of its partition. Ask for every one of them, in order."""
        found = self._found.get(partition)
        if not found:
            return False
        wanted = digest(value)
        while found:
            if found.popleft() == wanted:
                return True
        return False

    def pending(self, partition: int) -> bool:
        """Return whether later spooled records of the partition may be there as well."""
        return bool(self._found.get(partition))
