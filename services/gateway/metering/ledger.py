"""Writes the ledger: consumer group kb-ledger of kb.usage.v1, at least once, made exact by the ledger's primary key."""

import asyncio
from typing import Final

import structlog

from kalshibook_core.kafka import topics
from kalshibook_core.kafka.cluster import Cluster
from kalshibook_core.kafka.consumer import Consumer, Record
from kalshibook_core.kafka.errors import Displaced, KafkaFault
from kalshibook_core.postgres.pool import UNREACHABLE
from kalshibook_core.wire import codec
from kalshibook_core.wire.events import Usage
from services.gateway.metering import store

GROUP: Final = "kb-ledger"
BATCH: Final = 2_000
RETRY_SECONDS: Final = 1.0

log = structlog.get_logger()


class Ledger:
    """The task and what it counted."""

    def __init__(self, pool: "store.Pool") -> None:
        self._pool = pool
        self.written = 0
        self.repeated = 0
        self.unreadable = 0

    async def consume(self, cluster: Cluster, stop: asyncio.Event) -> None:
        """Write usage events until `stop` is set. What a lost connection or a rebalance leaves uncommitted is read again."""
        while not stop.is_set():
            try:
                await self._consume(cluster, stop)
            except Displaced:
                raise  # another gateway of our name lives: this one ends
            except KafkaFault as error:
                log.warning("gateway.ledger.kafka_away", why=str(error), effect="usage waits in its topic")
                await asyncio.sleep(RETRY_SECONDS)

    async def _consume(self, cluster: Cluster, stop: asyncio.Event) -> None:
        async with Consumer(cluster, [topics.USAGE], group=GROUP) as consumer:
            while not stop.is_set():
                batch = await consumer.poll(max_records=BATCH, timeout_ms=200)
                if not batch:
                    continue
                read = (self._usage(where.partition, record) for where, records in batch.items() for record in records)
                usages = [usage for usage in read if usage is not None]
                # 1 the rows, in one transaction. A crash before or in it: the events are read again.
                if usages and not await self._write(usages, stop):
                    return
                # 2 the offsets. A crash before it: the events are read again and change nothing.
                await consumer.commit({partition: records[-1].offset + 1 for partition, records in batch.items()})

    async def _write(self, usages: list[Usage], stop: asyncio.Event) -> bool:
        while True:
            try:
                new = await store.write(self._pool, usages)
            except UNREACHABLE as error:
                if stop.is_set():
                    return False  # not committed, so read again
                log.warning("gateway.ledger.storage_away", why=type(error).__name__, effect="the same events are tried again")
                await asyncio.sleep(RETRY_SECONDS)
            else:
                self.written += new
                self.repeated += len(usages) - new
                return True

    def _usage(self, partition: int, record: Record) -> Usage | None:
        try:
            usage = codec.decode(record.value)
        except codec.Undecodable as error:
            usage, why = None, str(error)
        else:
            why = f"a {type(usage).__name__}"
        if isinstance(usage, Usage):
            return usage
        # It stays in the topic; only the ledger goes without it.
        self.unreadable += 1
        log.error("gateway.ledger.unreadable", partition=partition, offset=record.offset, why=why)
        return None
