"""How fast to ask and how long to wait after a refusal: pure arithmetic, fed the time and the chance."""

import random
from typing import Final

LONGEST: Final = 30.0


class Pace:
    """Spreads actions evenly: at most `rate` a second, after a burst of at most one second's worth."""

    def __init__(self, rate: float) -> None:
        """`rate` is actions a second."""
        self._interval = 1 / rate
        self._next = 0.0

    def slow(self) -> None:
        """Halve the rate, to one a second at least."""
        self._interval = max(self._interval, min(1.0, 2 * self._interval))

    def wait(self, now: float) -> float:
        """Reserve the next action; return how many seconds after `now` it may happen."""
        self._next = max(self._next, now - 1.0) + self._interval
        return max(0.0, self._next - now)


def backoff(failures: int, rng: random.Random, first: float = 0.25) -> float:
    """Return seconds to wait after so many failures in a row: doubling, capped, with full jitter, so that many do not meet."""
    return rng.uniform(0, min(LONGEST, first * 2 ** min(failures, 16)))
