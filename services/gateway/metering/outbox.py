"""Usage events on their way to Kafka: a bounded queue in memory, doubled in Redis until Kafka has acknowledged them."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from typing import Final

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from kalshibook_core.kafka import topics
from kalshibook_core.kafka.cluster import Cluster
from kalshibook_core.kafka.errors import ProduceFailed
from kalshibook_core.kafka.producer import Producer
from kalshibook_core.wire import codec
from kalshibook_core.wire.events import Usage
from services.gateway.errors import ApiError

MAX_WAITING: Final = 50_000
"""Events Kafka has not acknowledged; when full, billable calls are refused with a 503."""
BATCH: Final = 1_000
LINGER_SECONDS: Final = 0.1
"""Events wait so long for company: one Kafka batch, one Redis call and one insert serve them all. They are safe in Redis."""
TICK_SECONDS: Final = 0.5
SWEEP_US: Final = 15_000_000
"""Pending events older than this are published again; their gateway is gone, or could not delete them."""

log = structlog.get_logger()


class Outbox:
    """The queue and the task that empties it."""

    def __init__(self, redis: Redis, prefix: str, now_us: Callable[[], int]) -> None:
        self._redis, self._now_us = redis, now_us
        self.pending_key = f"{prefix}kb:usage:pending"
        self._waiting: deque[Usage] = deque()
        self._reserved = 0
        self._more = asyncio.Event()
        self._swept_us = 0
        self.published = 0
        self.swept = 0

    def __len__(self) -> int:
        return len(self._waiting) + self._reserved

    @contextmanager
    def room(self) -> Iterator[None]:
        """Hold a place in the queue for one event; raise the 503 if there is none."""
        if len(self) >= MAX_WAITING:
            message = "Usage cannot be recorded at the moment, so billable calls are not served. Try again in a few seconds."
            raise ApiError(503, "metering_unavailable", message)
        self._reserved += 1
        try:
            yield
        finally:
            self._reserved -= 1

    def put(self, usage: Usage) -> None:
        """Queue an event for Kafka; inside `room`."""
        self._waiting.append(usage)
        self._more.set()

    async def publish(self, cluster: Cluster, stop: asyncio.Event) -> None:
        """Publish what is queued until `stop` is set and the queue is empty.

        A producer that failed is replaced and the batch sent again: an event sent twice is one row of the ledger.
        """
        while True:
            try:
                async with Producer(cluster) as producer:
                    while not (stop.is_set() and not len(self)):
                        await self._publish_waiting(producer)
                        await self._sweep(producer)
                        with suppress(TimeoutError):
                            async with asyncio.timeout(TICK_SECONDS):
                                await self._more.wait()
                        with suppress(TimeoutError):
                            async with asyncio.timeout(LINGER_SECONDS):
                                await stop.wait()
                return
            except ProduceFailed as error:
                log.error("gateway.metering.kafka_refused", why=str(error), waiting=len(self), effect="sent again until accepted")
                await asyncio.sleep(TICK_SECONDS)

    async def _publish_waiting(self, producer: Producer) -> None:
        self._more.clear()
        while batch := list(islice(self._waiting, BATCH)):
            # 1 to Kafka. A crash before its acknowledgement leaves the events pending in Redis: swept later.
            for usage in batch:
                producer.add(topics.USAGE, usage.account_id.encode(), codec.encode(usage))
            await producer.flush()
            # 2 out of the queue and out of pending. A crash between leaves them pending: published twice, billed once.
            for _ in batch:
                self._waiting.popleft()
            self.published += len(batch)
            await self._forget([usage.usage_id for usage in batch])

    async def _sweep(self, producer: Producer) -> None:
        now_us = self._now_us()
        if now_us - self._swept_us < SWEEP_US:
            return
        # The first sweep takes all there is: what a gateway before us left. Later ones leave the others their time.
        before_us, self._swept_us = now_us if self._swept_us == 0 else now_us - SWEEP_US, now_us
        try:
            async for usage_id, value in self._redis.hscan_iter(self.pending_key, count=BATCH):
                usage = self._pending(value)
                if usage is None or usage.at_us <= before_us:
                    if usage is not None:
                        producer.add(topics.USAGE, usage.account_id.encode(), value)
                        await producer.flush()
                        self.swept += 1
                    await self._forget([usage_id.decode()])
        except (RedisError, OSError, TimeoutError) as error:
            log.warning("gateway.metering.sweep_put_off", why=type(error).__name__)

    def _pending(self, value: bytes) -> Usage | None:
        try:
            usage = codec.decode(value)
        except codec.Undecodable as error:
            log.error("gateway.metering.pending_unreadable", why=str(error), value=value.hex())
            return None
        return usage if isinstance(usage, Usage) else None

    async def _forget(self, usage_ids: list[str]) -> None:
        try:
            await self._redis.hdel(self.pending_key, *usage_ids)
        except (RedisError, OSError, TimeoutError) as error:
            log.warning(
                "gateway.metering.pending_kept", why=type(error).__name__, effect="published again by a sweep, billed once"
            )
