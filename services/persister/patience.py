"""Waiting out a storage that is away: the same attempt again and again, until it succeeds or the process is told to stop."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

_FIRST_SECONDS: Final = 0.1

T = TypeVar("T")


class Stopping(Exception):
    """The process was told to stop while its storage is away. What was read and not written is read again by the next one."""


async def patiently(
    attempt: Callable[[], Awaitable[T]],
    stop: asyncio.Event,
    away: tuple[type[Exception], ...],
    longest: float,
    tell: Callable[[Exception | None], None],
) -> T:
    """Return what `attempt` returns, again and again while it raises `away`. Raise Stopping if `stop` is set meanwhile.

    The pause doubles up to `longest` seconds. `tell` hears of each attempt: its error, or None where it succeeded.
    """
    pause = _FIRST_SECONDS
    while True:
        try:
            done = await attempt()
        except away as error:
            tell(error)
        else:
            tell(None)
            return done
        try:
            await asyncio.wait_for(stop.wait(), pause)
            raise Stopping
        except TimeoutError:
            pause = min(longest, pause * 2)
