"""How fast to ask and how long to wait after a refusal: pure arithmetic, fed the time and the chance."""

import random
from typing import Final

LONGEST: Final = 30.0

RECOVERS: Final = 60.0
"""Seconds without a refusal after which the rate is what it was. No sooner: who is refused again and again gets nothing done."""


class Pace:
    """Spreads actions evenly: at most `rate` a second, after a burst of at most one second's worth."""

    def __init__(self, rate: float) -> None:
        """`rate` is actions a second."""
        self._least = self._interval = 1 / rate
        self._next = 0.0
        self._slowed_at: float | None = None

    def slow(self) -> None:
        """Halve the rate, to one a second at least; it comes back when it was not refused for RECOVERS seconds."""
        self._interval = max(self._interval, min(1.0, 2 * self._interval))
        self._slowed_at = None

    def wait(self, now: float) -> float:
        """Reserve the next action; return how many seconds after `now` it may happen."""
        if self._slowed_at is None:
            self._slowed_at = now
        elif now - self._slowed_at > RECOVERS:
            self._interval = self._least
        self._next = max(self._next, now - 1.0) + self._interval
        return max(0.0, self._next - now)


def backoff(failures: int, rng: random.Random, first: float = 0.25) -> float:
    """Return seconds to wait after so many failures in a row: doubling, capped, with full jitter, so that many do not meet."""
    return rng.uniform(0, min(LONGEST, first * 2 ** min(failures, 16)))
