"""The reconstructor's latest books, read from Redis. Redis away, or a book not there, is None: Postgres answers then."""

from typing import Any

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from kalshibook_core.runtime.logs import once_a_minute
from kalshibook_core.wire import codec
from kalshibook_core.wire.events import Checkpoint

log = structlog.get_logger()


class Latest:
    """Reads `{prefix}kb:book:{ticker}`."""

    def __init__(self, redis: Redis, prefix: str) -> None:
        self._redis, self._prefix = redis, prefix
        self.failed = 0

    async def book(self, ticker: str) -> Checkpoint | None:
        """Return the latest book of a market, None if Redis cannot tell."""
        try:
            value: Any = await self._redis.get(f"{self._prefix}kb:book:{ticker}")
            checkpoint = None if value is None else codec.decode(value)
        except (RedisError, OSError, TimeoutError, codec.Undecodable) as error:
            self.failed += 1
            if once_a_minute("gateway.latest.unreadable"):
                log.warning("gateway.latest.unreadable", why=type(error).__name__, effect="Postgres answers instead")
            return None
        return checkpoint if isinstance(checkpoint, Checkpoint) else None
