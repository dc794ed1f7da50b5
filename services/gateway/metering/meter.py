"""Taking the credits of a call, and the policy for when Redis is away. The order of steps is in the room's contract."""

from collections.abc import Awaitable, Callable
from importlib import resources
from typing import Any, Final
from uuid import uuid4

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from kalshibook_core.wire import codec
from kalshibook_core.wire.events import Usage
from services.gateway.accounts import Caller, Receipt, period_start
from services.gateway.errors import ApiError
from services.gateway.metering.outbox import Outbox

KEEP_SECONDS: Final = 40 * 86_400
"""How long a period's counter lives in Redis: longer than a month; the ledger keeps it for ever."""

AWAY_SECONDS: Final = 1.0
"""After Redis failed, calls do not wait for it again for so long."""

log = structlog.get_logger()


class Meter:
    """Charges calls: one per process, shared by all of them."""

    def __init__(
        self,
        redis: Redis,
        outbox: Outbox,
        used_since: Callable[[str, int], Awaitable[int]],
        prefix: str,
        now_us: Callable[[], int],
        monotonic: Callable[[], float],
    ) -> None:
        """`used_since(account, µs)` asks the ledger, when Redis has forgotten a counter."""
        self._take = redis.register_script((resources.files(__package__) / "take.lua").read_text())
        self._outbox, self._used_since, self._prefix = outbox, used_since, prefix
        self._now_us, self._monotonic = now_us, monotonic
        self._away_until = 0.0
        self.charged = 0
        self.refused = 0
        self.without_redis = 0

    async def charge(self, caller: Caller, endpoint: str, credits: int, status: int) -> Receipt:
        """Take credits for one call; raise the 402 where the plan has none left and the 503 where metering is full."""
        usage = Usage(str(uuid4()), caller.account_id, caller.key_id, endpoint, credits, self._now_us(), status)
        with self._outbox.room():
            used = await self._taken(caller, usage)
            self._outbox.put(usage)
        self.charged += 1
        allowance = caller.allowance
        return Receipt(usage.usage_id, credits, None if allowance is None or used is None else max(0, allowance - used))

    async def _taken(self, caller: Caller, usage: Usage) -> int | None:
        if self._monotonic() < self._away_until:
            self.without_redis += 1
            return None
        start_us, seed = period_start(usage.at_us), -1
        keys = [f"{self._prefix}kb:credits:{caller.account_id}:{start_us}", self._outbox.pending_key]
        allowance = -1 if caller.allowance is None else caller.allowance
        while True:
            arguments: list[Any] = [usage.usage_id, codec.encode(usage), usage.credits, allowance, seed, KEEP_SECONDS]
            try:
                outcome, used = await self._take(keys, arguments)
            except (RedisError, OSError, TimeoutError) as error:
                # Fail open, once a second at most asking again: history stays readable while the cache is away.
                self._away_until = self._monotonic() + AWAY_SECONDS
                self.without_redis += 1
                log.warning(
                    "gateway.metering.redis_away",
                    why=type(error).__name__,
                    effect="calls are served, allowances are not enforced",
                )
                return None
            if outcome == 1:
                return int(used)
            if outcome == 0:
                self.refused += 1
                message = f"The plan {caller.plan!r} has no credits left for this call this month."
                raise ApiError(
                    402, "out_of_credits", message, plan=caller.plan, credits_allowed=allowance, credits_used=int(used)
                )
            # Redis forgot the counter (a new month, or it lost its memory): the ledger knows, less the calls still on their way.
            seed = await self._used_since(caller.account_id, start_us)
