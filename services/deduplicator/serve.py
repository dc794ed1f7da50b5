"""The process: raw records of its partitions in, canonical events and raw offsets out, a transaction a batch and partition.

One batch of one partition, step by step, and what a crash leaves behind:

    1. poll             records are read. Crash: nothing happened; the successor reads them again.
    2. receive          the state in memory moves ahead of Kafka. Crash: it is gone, and is rebuilt from what was committed.
    3. begin, add       events are in the log, invisible to readers of committed records. Crash: the successor's producer aborts
                        them when it starts (it has the same transactional id), or the broker does after a minute.
    4. commit_offsets   likewise: the offset becomes the group's only with the transaction.
    5. commit           one decision of the broker makes events and offset visible. Crash before it: as 3. After it: the
                        successor restores from these events and starts at this offset.

A failed transaction leaves the state of step 2 ahead of Kafka, so it is never retried: the state is dropped. On assignment the
order is: start the producer (fences whoever had the partition, ends its transaction), restore, read the committed offset. On
revocation all is dropped. A process that was fenced has written nothing since, forgets everything and joins the group anew.
"""

import asyncio
from collections import Counter
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Final

import structlog

from kalshibook_core.kafka import admin, topics
from kalshibook_core.kafka.cluster import partition_of
from kalshibook_core.kafka.consumer import Batch, Consumer, Record, TopicPartition
from kalshibook_core.kafka.errors import Fenced
from kalshibook_core.kafka.producer import Producer
from kalshibook_core.runtime import health, logs
from kalshibook_core.wire import codec
from kalshibook_core.wire.events import BookDelta, BookSnapshot, Gap, Lifecycle, MarketMemory, RawFrame, Ticker, Trade
from services.deduplicator.partition import Partition
from services.deduplicator.restore import restore
from services.deduplicator.settings import Settings

GROUP: Final = "kb-deduplicator"
_TOPICS: Final = {
    BookSnapshot: topics.BOOK,
    BookDelta: topics.BOOK,
    Trade: topics.TRADES,
    Ticker: topics.TICKERS,
    Lifecycle: topics.LIFECYCLE,
    MarketMemory: topics.MEMORY,
}
_UNPARSABLE: Final = (
    "malformed_frame", "unknown_kind", "unparsable_book", "corrupt_book", "unparsable_trade", "unparsable_ticker",
    "unparsable_lifecycle", "unparsable_rest", "no_market",
)  # fmt: skip
_POLL_MS: Final = 200

_log = structlog.get_logger()


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """Serve until `stop` is set; the batch in hand is committed first."""
    await admin.ensure_topics(settings.cluster)
    member = Member(settings)
    async with health.serve(
        settings.health_port, member.ready, member.counters, service="deduplicator", host=settings.health_host
    ):
        while not stop.is_set():
            try:
                await member.run(stop)
            except* Fenced:
                _log.warning("fenced", why="another process took over a partition of ours; joining the group anew")


class Member:
    """This process as a member of the consumer group."""

    def __init__(self, settings: Settings) -> None:
        """Make a member that has joined nothing yet."""
        self._settings = settings
        self._cluster = settings.cluster
        self._group = settings.cluster.group(GROUP)
        self._tally: Counter[str] = Counter()
        self._gatherers: Counter[tuple[str, str]] = Counter()
        self._assigned: dict[TopicPartition, tuple[Partition, Producer]] = {}
        self._producers = AsyncExitStack()
        self._consumer: Consumer | None = None

    async def run(self, stop: asyncio.Event) -> None:
        """Join the group and work until `stop` is set. Raises Fenced, alone or in a group."""
        consumer = Consumer(self._cluster, [topics.RAW], GROUP, on_assigned=self._take_over, on_revoked=self._drop)
        async with consumer, self._producers:
            self._consumer = consumer
            try:
                while not stop.is_set():
                    batch = await consumer.poll(self._settings.batch, _POLL_MS)
                    await self._write(batch)
                    if sum(map(len, batch.values())) < self._settings.batch // 4:
                        await asyncio.sleep(self._settings.linger_ms / 1000)
            finally:
                self._consumer, self._assigned = None, {}

    def ready(self) -> bool:
        """Tell whether partitions are assigned and restored."""
        return bool(self._assigned)

    def counters(self) -> Mapping[str, int | float | str]:
        """Return what was counted since the process started."""
        tally = self._tally
        return {
            "frames_total": tally["frames"],
            "snapshots_total": tally["BookSnapshot"],
            "deltas_total": tally["BookDelta"],
            "trades_total": tally["Trade"],
            "tickers_total": tally["Ticker"],
            "lifecycle_total": tally["Lifecycle"],
            "stale_total": sum(count for (_, kind), count in self._gatherers.items() if kind == "STALE"),
            "unparsable_total": sum(tally[kind] for kind in _UNPARSABLE),
            **{
                f"{name}_total": tally[name]
                for name in (
                    "gaps_opened", "gaps_closed", "trade_gaps_opened", "trade_gaps_closed", "refused", "confirmed",
                    "trade_repeats", "lifecycle_repeats", "off_grid", "unknown_types", "foreign_records", "transactions",
                )
            },
            "markets": sum(len(partition.markets) for partition, _ in self._assigned.values()),
            "partitions": len(self._assigned),
            "lag_records": sum(self._consumer.lag().values()) if self._consumer else 0,
            "gatherers": ", ".join(f"{name} {kind} {count}" for (name, kind), count in sorted(self._gatherers.items())),
        }  # fmt: skip

    async def _take_over(self, assigned: set[TopicPartition]) -> dict[TopicPartition, int]:
        assert self._consumer is not None
        starts = {}
        taken = {}
        for where in sorted(assigned):
            partition = Partition(self._settings.trade_window, self._tally, self._gatherers)
            producer = Producer(self._cluster, f"{self._group}-{where.partition}", linger_ms=0)
            taken[where] = partition, await self._producers.enter_async_context(producer)
            reached = await restore(self._cluster, where.partition, partition)
            committed = await self._consumer.committed(where)
            if committed is not None and committed < reached:
                _log.warning("offset_behind", partition=where.partition, committed=committed, events_reach=reached)
            starts[where] = max(committed or 0, reached)
            _log.info("restored", partition=where.partition, markets=len(partition.markets), raw_offset=starts[where])
        self._assigned = taken
        return {where: start for where, start in starts.items() if start}

    async def _drop(self, _: set[TopicPartition]) -> None:
        # Rebalances are eager: all partitions are revoked together, whichever come back.
        self._assigned = {}
        await self._producers.aclose()

    async def _write(self, batch: Batch) -> None:
        # Side by side, so that one partition's commit is waited for while the next one's frames are worked on.
        async with asyncio.TaskGroup() as tasks:
            for where, records in batch.items():
                tasks.create_task(self._write_partition(where, records))

    async def _write_partition(self, where: TopicPartition, records: list[Record]) -> None:
        partition, producer = self._assigned[where]
        async with producer.transaction():
            self._receive(where.partition, partition, producer, records)
            await producer.commit_offsets({where: records[-1].offset + 1}, self._group)
        self._tally["transactions"] += 1
        for kind, (ticker, why) in partition.notices.items():
            if logs.once_a_minute(kind):
                _log.warning(kind, market_ticker=ticker, why=why, counted=self._tally[kind])
        partition.notices.clear()

    def _receive(self, number: int, partition: Partition, producer: Producer, records: list[Record]) -> None:
        receive, add, encode, decode, tally = partition.receive, producer.add, codec.encode, codec.decode, self._tally
        partitions = self._cluster.partitions
        tally["frames"] += len(records)
        for record in records:
            key = record.key
            try:
                raw = decode(record.value or b"")
            except codec.Undecodable as error:
                self._foreign(partition, record, str(error))
                continue
            if type(raw) is not RawFrame or key != raw.market_ticker.encode() or partition_of(key, partitions) != number:
                self._foreign(partition, record, "not a RawFrame under its own key in its own partition")
                continue
            for event in receive(raw, record.offset):
                kind = type(event)
                tally[kind.__name__] += 1
                topic = _TOPICS.get(kind)
                if topic is None:
                    assert isinstance(event, Gap)
                    topic = topics.BOOK if event.version else topics.TRADES
                add(topic, key, encode(event), record.timestamp)

    def _foreign(self, partition: Partition, record: Record, why: str) -> None:
        self._tally["foreign_records"] += 1
        partition.notices["foreign_records"] = (repr(record.key)[:80], f"offset {record.offset}: {why}")
