"""Up to which instant the stored history of a partition is whole. No I/O.

The book topic tells how far in exchange time each offset is, the database the first offset it does not have. Markets of one
partition come over different connections, and the greatest lag between two seen on the wire is 10 s; so when an event of
instant t is stored, all events up to t - 10 s that will ever come are stored too.
"""

from collections import deque
from typing import Final

from kalshibook_core.wire.events import LAG_US

MAX_SAMPLES: Final = 4_096
"""Per partition; when full the oldest goes, which can only make the claim smaller."""


class Coverage:
    """The claim of each partition, 0 while nothing is known."""

    def __init__(self, partitions: int) -> None:
        self._samples: list[deque[tuple[int, int]]] = [deque(maxlen=MAX_SAMPLES) for _ in range(partitions)]
        self._through = [0] * partitions

    def seen(self, partition: int, offset: int, effective_us: int) -> None:
        """Take note that the event at an offset is of an instant."""
        self._samples[partition].append((offset, effective_us))

    def stored(self, partition: int, next_offset: int) -> None:
        """Take note that every event before `next_offset` is in the database."""
        if partition >= len(self._samples):
            return
        samples = self._samples[partition]
        while samples and samples[0][0] < next_offset:
            self._through[partition] = max(self._through[partition], samples.popleft()[1] - LAG_US)

    def through(self, partition: int) -> int:
        """Return the instant up to which the partition's history is stored whole."""
        return self._through[partition]
