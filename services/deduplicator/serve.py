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
order is: start the producer (fences whoever had the partition, ends its transaction), restore, which reads the committed
offset. On revocation all is dropped. A process that was fenced has written nothing since, forgets everything and joins the group
anew.

From time to time a transaction is a savepoint: it also writes the state of the markets that changed since the last one. A crash
costs doing again what came after it (`restore`), so how often is a matter of time and not of truth.
"""

import asyncio
import gc
from collections import Counter, defaultdict
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import structlog

from kalshibook_core.kafka import admin, topics
from kalshibook_core.kafka.cluster import partition_of
from kalshibook_core.kafka.consumer import Batch, Consumer, Record, TopicPartition
from kalshibook_core.kafka.errors import Fenced
from kalshibook_core.kafka.producer import Producer
from kalshibook_core.kafka.topics import Topic
from kalshibook_core.runtime import clock, health, logs
from kalshibook_core.runtime.metrics import Counters
from kalshibook_core.wire import codec, columns
from kalshibook_core.wire.events import BookDelta, BookSnapshot, Gap, Lifecycle, RawFrame, Ticker, Trade
from kalshibook_core.wire.raw import RawReader
from services.deduplicator.alignment import Gatherer
from services.deduplicator.market_log import Limits
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
    RawFrame: topics.AUDITS,
}
_UNPARSABLE: Final = (
    "malformed_frame", "unknown_kind", "unparsable_book", "corrupt_book", "unparsable_trade", "unparsable_ticker",
    "unparsable_lifecycle", "unparsable_rest", "no_market",
)  # fmt: skip
_COUNTED: Final = ("records_total", "led_total", "confirmed_total", "contradictions_total", "breaks_total")
_NOW: Final = ("excluded_markets", "lag_seconds", "lag_events")
MOST_GATHERERS: Final = 8
"""Gatherers with figures of their own; what else calls itself one is counted as "other"."""

_COLLECT: Final = 50_000
"""New objects until the garbage collector looks at them: more than a batch makes, since few of those outlive it."""

_POLL_MS: Final = 200
_SAVE_SECONDS: Final = 30.0
"""After which a savepoint is written where little happens."""

_log = structlog.get_logger()


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """Serve until `stop` is set; the batch in hand is committed first."""
    await admin.ensure_topics(settings.cluster)
    member = Member(settings)
    async with health.serve(settings.health, member.ready, member.counters, service="deduplicator"):
        while not stop.is_set():
            try:
                await member.run(stop)
            except* Fenced:
                if settings.cluster.instance:
                    raise  # a namesake has taken our place: to join anew would put it out in turn
                _log.warning("fenced", why="another process took over a partition of ours; joining the group anew")


@dataclass(slots=True)
class _Assigned:
    """A partition of ours."""

    partition: Partition
    producer: Producer
    saved_at: float
    unsaved: int = 0  # records since the last savepoint
    offset: int = -1  # of the last record received


class Member:
    """This process as a member of the consumer group."""

    def __init__(self, settings: Settings) -> None:
        """Make a member that has joined nothing yet."""
        self._settings = settings
        self._cluster = settings.cluster
        self._group = settings.cluster.group(GROUP)
        self._tally: Counter[str] = Counter()
        self._gatherers: Counter[tuple[str, str]] = Counter()
        self._before: Counter[tuple[str, str]] = Counter()  # what gatherers were good for in partitions given back
        self._assigned: dict[TopicPartition, _Assigned] = {}
        self._reader = RawReader()
        self._producers = AsyncExitStack()
        self._consumer: Consumer | None = None

    async def run(self, stop: asyncio.Event) -> None:
        """Join the group and work until `stop` is set. Raises Fenced, alone or in a group."""
        gc.set_threshold(_COLLECT)
        consumer = Consumer(self._cluster, [topics.RAW], GROUP, on_assigned=self._take_over, on_revoked=self._drop)
        async with consumer, self._producers:
            self._consumer = consumer
            try:
                while not stop.is_set():
                    batch = await consumer.poll(self._settings.batch, _POLL_MS)
                    await self._write(batch)
                    if sum(map(len, batch.values())) < self._settings.batch // 4:
                        await asyncio.sleep(self._settings.linger_ms / 1000)
                for ours in self._assigned.values():
                    await self._save(ours)
            finally:
                self._consumer, self._assigned = None, {}

    def ready(self) -> bool:
        """Tell whether partitions are assigned and restored."""
        return bool(self._assigned)

    def counters(self) -> Counters:
        """Return what was counted since the process started."""
        tally, by_gatherer = self._tally, self._by_gatherer()
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
                    "gaps_opened", "gaps_closed", "trade_gaps_opened", "trade_gaps_closed", "refused", "snapshots_confirmed",
                    "trade_repeats", "lifecycle_repeats", "ticker_repeats", "off_grid", "unknown_types", "foreign_records",
                    "transactions", "savepoints", "aligned", "contradiction", "excluded", "corrections", "given_up",
                    "fell_behind", "past_full", "rest_trades", "trade_gaps_filled",
                    "import_refused",
                )
            },
            "markets": sum(len(ours.partition.markets) for ours in self._assigned.values()),
            "waiting_markets": sum(ours.partition.waiting for ours in self._assigned.values()),
            "partitions": len(self._assigned),
            "lag_records": sum(self._consumer.lag().values()) if self._consumer else 0,
            "confirmed_total": sum(by_gatherer["gatherer_confirmed_total"].values()),
            **by_gatherer,
        }  # fmt: skip

    def _everybody(self) -> list[Gatherer]:
        return [each for ours in self._assigned.values() for each in ours.partition.lives.gatherers.values()]

    def _by_gatherer(self) -> dict[str, dict[str, int | float]]:
        """What each gatherer is good for: counted since the process started, or as it is now in the partitions assigned."""
        figures: dict[str, dict[str, int | float]] = {f"gatherer_{name}": {} for name in (*_COUNTED, *_NOW)}
        everybody = self._everybody()
        front_us = max((each.newest_us for each in everybody), default=0)
        for (name, kind), count in self._gatherers.items():
            _add(figures["gatherer_records_total"], name, count)
            _add(figures["gatherer_breaks_total"], name, count if kind == "BREAK" else 0)
        for each in everybody:
            _add(figures["gatherer_led_total"], each.name, each.led)
            _add(figures["gatherer_confirmed_total"], each.name, each.confirmed)
            _add(figures["gatherer_contradictions_total"], each.name, each.contradictions)
            _add(figures["gatherer_lag_events"], each.name, each.behind)
        for (name, figure), count in self._before.items():
            _add(figures[figure], name, count)
        for name in {each.name for each in everybody}:
            newest_us = max(each.newest_us for each in everybody if each.name == name)
            _add(figures["gatherer_lag_seconds"], name, round((front_us - newest_us) / 1e6, 3) if newest_us else 0)
            excluded = sum(ours.partition.excluded[name] for ours in self._assigned.values())
            _add(figures["gatherer_excluded_markets"], name, excluded)
        return figures

    async def _take_over(self, assigned: set[TopicPartition]) -> dict[TopicPartition, int]:
        assert self._consumer is not None
        consumer, settings = self._consumer, self._settings
        starts, taken = {}, {}
        for where in sorted(assigned):
            limits = Limits(settings.window, settings.patience_us)
            partition = Partition(settings.trade_window, self._tally, self._gatherers, limits)
            producer = Producer(self._cluster, f"{self._group}-{where.partition}", linger_ms=0)
            await self._producers.enter_async_context(producer)
            begun = clock.monotonic()
            tally, gatherers = self._tally.copy(), self._gatherers.copy()
            starts[where] = await restore(self._cluster, where.partition, partition, partial(consumer.committed, where))
            # What was done again was counted when it was done first.
            self._tally.clear()
            self._tally.update(tally)
            self._gatherers.clear()
            self._gatherers.update(gatherers)
            partition.notices.clear()
            for each in partition.lives.gatherers.values():
                each.led = each.confirmed = each.contradictions = 0
            taken[where] = _Assigned(partition, producer, clock.monotonic(), offset=starts[where] - 1)
            seconds = round(clock.monotonic() - begun, 3)
            markets = len(partition.markets)
            _log.info("restored", partition=where.partition, markets=markets, raw_offset=starts[where], seconds=seconds)
        self._assigned = taken
        return {where: start for where, start in starts.items() if start}

    async def _drop(self, _: set[TopicPartition]) -> None:
        # Rebalances are eager: all partitions are revoked together, whichever come back.
        for each in self._everybody():
            counts = {"led": each.led, "confirmed": each.confirmed, "contradictions": each.contradictions}
            self._before.update({(each.name, f"gatherer_{name}_total"): count for name, count in counts.items()})
        self._assigned = {}
        await self._producers.aclose()

    async def _write(self, batch: Batch) -> None:
        # Side by side, so that one partition's commit is waited for while the next one's frames are worked on.
        async with asyncio.TaskGroup() as tasks:
            for where, records in batch.items():
                tasks.create_task(self._write_partition(where, records))
        for ours in self._assigned.values():
            if ours.unsaved and ours.saved_at + _SAVE_SECONDS < clock.monotonic():
                await self._save(ours)

    async def _write_partition(self, where: TopicPartition, records: list[Record]) -> None:
        ours = self._assigned[where]
        partition, producer = ours.partition, ours.producer
        async with producer.transaction():
            self._receive(where.partition, partition, producer, records)
            ours.offset, ours.unsaved = records[-1].offset, ours.unsaved + len(records)
            if ours.unsaved >= self._settings.save_every:
                self._add_memories(ours)
            await producer.commit_offsets({where: ours.offset + 1}, self._group)
        self._tally["transactions"] += 1
        for kind, (ticker, why) in partition.notices.items():
            if logs.once_a_minute(kind):
                _log.warning(kind, market_ticker=ticker, why=why, counted=self._tally[kind])
        partition.notices.clear()

    async def _save(self, ours: _Assigned) -> None:
        if ours.unsaved:
            async with ours.producer.transaction():
                self._add_memories(ours)

    def _add_memories(self, ours: _Assigned) -> None:
        for memory in ours.partition.memories(ours.offset):
            ours.producer.add(topics.MEMORY, memory.market_ticker.encode(), codec.encode(memory))
        self._tally["savepoints"] += 1
        ours.unsaved, ours.saved_at = 0, clock.monotonic()

    def _receive(self, number: int, partition: Partition, producer: Producer, records: list[Record]) -> None:
        partitions, tally = self._cluster.partitions, self._tally
        made: defaultdict[Topic, list[tuple[Any, int]]] = defaultdict(list)  # all are this partition's markets'
        books = made[topics.BOOK].append
        for record, event in partition.events(records, self._reader, lambda key: partition_of(key, partitions) == number):
            if isinstance(event, BookDelta):
                books((event, record.timestamp))
                continue
            topic = _TOPICS.get(type(event))
            if topic is None:
                assert isinstance(event, Gap)
                topic = topics.BOOK if event.version else topics.TRADES
            made[topic].append((event, record.timestamp))
        tally["frames"] += len(records)
        for topic, rows in made.items():
            tally.update(type(event).__name__ for event, _ in rows)
            deltas = iter(columns.encoded([event for event, _ in rows if isinstance(event, BookDelta)]))
            producer.extend(
                topic,
                number,
                [
                    (
                        event.market_ticker.encode(),
                        next(deltas) if isinstance(event, BookDelta) else codec.encode(event),
                        timestamp,
                    )
                    for event, timestamp in rows
                ],
            )


def _add(figure: dict[str, int | float], gatherer: str, value: int | float) -> None:
    name = gatherer if gatherer in figure or len(figure) < MOST_GATHERERS else "other"
    figure[name] = figure.get(name, 0) + value
