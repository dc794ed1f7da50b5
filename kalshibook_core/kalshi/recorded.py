"""Recorded frames: `{"recv_ms": …, "event": {the frame as the exchange sent it}}`, a line a frame. Pure."""

import re
from collections.abc import Iterable

_LINE = re.compile(rb'\s*\{\s*"recv_ms"\s*:\s*(\d{1,15})\s*,\s*"event"\s*:\s*(\{.*\})\s*\}\s*', re.DOTALL)


def read(line: bytes) -> tuple[int, bytes]:
    """Return when a frame was received, in milliseconds, and its own bytes; raise ValueError."""
    match = _LINE.fullmatch(line)
    if match is None:
        raise ValueError('not a line {"recv_ms": milliseconds, "event": {frame}}')
    return int(match[1]), match[2]


def deaths(restarts: Iterable[tuple[int, int]]) -> tuple[int, ...]:
    """Return the instants after which the recorder's connection was dead, from where each stream's seq began anew.

    One death shows in many streams, in each as a restart somewhere between its last frame before and its first after: restarts
    whose intervals overlap are one death, and it lies behind the latest frame before.
    """
    found: list[int] = []
    earliest_after = -1
    for before, after in sorted(restarts, key=lambda restart: restart[1]):
        if found and before < earliest_after:
            found[-1] = max(found[-1], before)
        else:
            found.append(before)
            earliest_after = after
    return tuple(found)
