"""The one place that asks for the time; everything else is told it."""

import time


def now_us() -> int:
    """Return the wall clock, microseconds since the epoch."""
    return time.time_ns() // 1000  # noqa: TID251  (this is the place)


def monotonic() -> float:
    """Return seconds of a clock that never steps back; only differences mean anything."""
    return time.monotonic()
