"""The latest book of each market in Redis, coalesced: however often a book changes, it is written once a round.

A round takes at most `_ROUND_BOOKS` and is followed by a pause of four times its length (at least 50 ms), so showing books never
takes more than a fifth of the process. What waits is a set of markets, so memory is bounded by their number. While Redis is
away rounds are tried again and books stay as old as they are there; every change since is written when it is back.
"""

import asyncio
import itertools
from typing import Final

import redis.asyncio
import structlog
from redis.exceptions import RedisError

from kalshibook_core.runtime import clock, logs
from kalshibook_core.wire import codec
from services.reconstructor.counters import Counters
from services.reconstructor.live_book import LiveBook

_ROUND_BOOKS: Final = 200
_ROUND_SECONDS: Final = 0.05
_LONGEST_PAUSE: Final = 5.0

_log = structlog.get_logger()


class Latest:
    """Books waiting to be shown."""

    def __init__(self, client: "redis.asyncio.Redis", prefix: str, counters: Counters) -> None:
        self._client = client
        self._prefix = prefix
        self._counters = counters
        self._waiting: dict[str, LiveBook] = {}
        self._forgotten = 0

    def changed(self, live: LiveBook) -> None:
        """Show the book as it will be when its turn comes; a corrupt one is taken away."""
        self._waiting[live.ticker] = live

    def forget(self) -> None:
        """Show nothing of what waits: its partitions are no longer ours."""
        self._waiting.clear()
        self._forgotten += 1

    async def show(self, stop: asyncio.Event) -> None:
        """Write rounds until `stop` is set, then what still waits."""
        pause = _ROUND_SECONDS
        while not stop.is_set() or self._waiting:
            started = clock.monotonic()
            try:
                await self._round()
                pause = max(_ROUND_SECONDS, 4 * (clock.monotonic() - started))
                self._counters.redis = "up"
            except (RedisError, OSError, TimeoutError) as error:
                pause = min(_LONGEST_PAUSE, pause * 2)
                self._counters.redis_retries += 1
                self._counters.redis = "away"
                if logs.once_a_minute("redis_away"):
                    _log.warning("redis_away", why=repr(error), then="books there grow old; trying again")
                if stop.is_set():
                    return  # Redis is written anew at the next start
            self._counters.waiting = len(self._waiting)
            await _pause(stop, pause)

    async def _round(self) -> None:
        books = list(itertools.islice(self._waiting.values(), _ROUND_BOOKS))
        if not books:
            return
        forgotten = self._forgotten
        pipeline = self._client.pipeline(transaction=False)
        for live in books:
            # Taken out first: a change that comes while Redis answers puts it back.
            del self._waiting[live.ticker]
            key = f"{self._prefix}kb:book:{live.ticker}"
            if live.corrupt:
                pipeline.delete(key)
            else:
                pipeline.set(key, codec.encode(live.checkpoint(live.offset + 1)))
        try:
            await pipeline.execute()
        except BaseException:
            if forgotten == self._forgotten:
                self._waiting.update((live.ticker, live) for live in books)
            raise
        self._counters.shown_books += len(books)


async def _pause(stop: asyncio.Event, seconds: float) -> None:
    if stop.is_set():
        return
    try:
        await asyncio.wait_for(stop.wait(), seconds)
    except TimeoutError:
        return
