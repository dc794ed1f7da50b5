"""The whole process: read a batch, write it, until told to stop; start over as a new member where the partitions were lost."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

import structlog

from kalshibook_core.kafka import admin, topics
from kalshibook_core.kafka.consumer import Consumer, TopicPartition
from kalshibook_core.kafka.errors import OffsetLost
from kalshibook_core.postgres import partitions, pool
from kalshibook_core.runtime import clock, health, logs
from kalshibook_core.runtime.settings import ConfigurationError
from services.persister.batch import Batch
from services.persister.counters import Counters
from services.persister.coverage import Coverage
from services.persister.halt import go_on, halt
from services.persister.patience import Stopping, patiently
from services.persister.settings import Settings
from services.persister.store import RETRYABLE, OtherLog, Store, Superseded

TOPICS = (topics.BOOK, topics.TRADES, topics.TICKERS, topics.LIFECYCLE, topics.CHECKPOINTS, topics.AUDITED)
GROUP = "kb-persister"

_POLL_MS = 200
_LONGEST_PAUSE = 5.0
_AWAY = (*RETRYABLE, pool.DatabaseUnreachable)

_log = structlog.get_logger()
T = TypeVar("T")


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """Serve until `stop` is set, then write the batch at hand and leave the group."""
    counters = Counters()
    async with health.serve(settings.health, lambda: counters.ready, counters.shown, service="persister"):
        try:
            async with await _patiently(lambda: pool.connect_pool(settings.postgres_dsn, size=3), stop, counters) as connections:
                store = Store(connections)
                await _patiently(store.check, stop, counters)
                log = f"{await admin.cluster_id(settings.cluster)}/{settings.cluster.prefix}"
                try:
                    await _patiently(lambda: store.claim(log), stop, counters)
                except OtherLog as other:
                    raise ConfigurationError(f"KB_POSTGRES_DSN: {other}") from None
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(_cover(settings, Coverage(connections), counters, stop), name="coverage")
                    await _persist(settings, store, counters, stop)
        except* Stopping:
            _log.warning("stopped_while_postgres_is_away", then="the next start goes on where the tables stand")


async def _persist(settings: Settings, store: Store, counters: Counters, stop: asyncio.Event) -> None:
    while not stop.is_set():
        try:
            await _consume(settings, store, counters, stop)
        except Superseded as lost:
            if settings.cluster.instance:
                raise  # by a namesake: joining again would only push it out
            counters.superseded += 1
            _log.warning("partitions_lost", why=str(lost), then="the batch is dropped and the group joined again")
        except OffsetLost as lost:
            await halt(lost, lost.records, counters, stop)


async def _cover(settings: Settings, coverage: Coverage, counters: Counters, stop: asyncio.Event) -> None:
    """Measure what is due, whenever there is little else to do. Nothing is lost of what is left undone."""
    while not stop.is_set():
        try:
            if counters.lag_records <= settings.batch_rows:
                await coverage.close(counters.last_effective_us, clock.now_us())
                while counters.lag_records <= settings.batch_rows and not stop.is_set():
                    if not await coverage.measure(clock.now_us()) and not await coverage.condition(clock.now_us()):
                        break
        except _AWAY as error:
            if logs.once_a_minute("coverage_postponed"):
                _log.warning("coverage_postponed", why=repr(error), then="trying again")
        counters.rows |= {"coverage": coverage.measured, "conditions": coverage.days}
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), settings.coverage_seconds)


async def _consume(settings: Settings, store: Store, counters: Counters, stop: asyncio.Event) -> None:
    """One membership in the group. Raises Superseded when another process turns out to own what this one thought to own."""
    batch, begun, joined = Batch(), 0.0, False
    expected: dict[tuple[str, int], int] = {}

    async def assigned(ours: set[TopicPartition]) -> dict[TopicPartition, int]:
        # Called between two polls, never while a batch is being written. Rows of what was ours before are dropped with the batch
        # and read again, by us or by the new owner, from where the tables stand.
        nonlocal batch, joined
        batch, joined = Batch(), True
        expected.clear()
        expected.update(await _patiently(lambda: store.positions(sorted(ours)), stop, counters))
        _log.info("assigned", partitions=len(ours))
        # A new database begins with what the log has; in one that is not new nothing may be missing.
        return {partition: expected[partition] for partition in ours if expected[partition]}

    async def write() -> None:
        nonlocal batch
        if batch.next:
            await _write(store, batch, expected, counters, stop)
            expected.update(batch.next)
        batch = Batch()

    async with Consumer(settings.cluster, TOPICS, GROUP, on_assigned=assigned) as consumer:
        while not stop.is_set():
            await _make_ahead(store, stop, counters)
            left = begun + settings.batch_seconds - clock.monotonic() if batch.next else _POLL_MS / 1000
            polled = await consumer.poll(settings.batch_rows, timeout_ms=max(0, int(left * 1000)))
            if joined:
                go_on(counters)
            if not batch.next:
                begun = clock.monotonic()
            for source, records in polled.items():
                batch.add(source, records)
            if batch.rows >= settings.batch_rows or clock.monotonic() - begun >= settings.batch_seconds:
                await write()
            counters.waiting_rows = batch.rows
            counters.lag_records = sum(consumer.lag().values())
        await write()


async def _write(
    store: Store, batch: Batch, expected: dict[tuple[str, int], int], counters: Counters, stop: asyncio.Event
) -> None:
    # Nothing is polled meanwhile, so an outage of any length holds this one batch and what Kafka's client has fetched ahead.
    attempts = 0

    async def attempt() -> dict[str, int]:
        nonlocal attempts
        attempts += 1
        if attempts > 1 and await store.positions(sorted(batch.next)) == batch.next:
            return {}  # the transaction had committed and only the answer was lost
        return await store.write(batch, expected)

    started = clock.monotonic()
    counters.wrote(await _patiently(attempt, stop, counters), batch, clock.monotonic() - started)
    if batch.unreadable and logs.once_a_minute("unreadable"):
        _log.warning("unreadable_records", count=batch.unreadable, then="passed over; the raw topic has what they came from")


async def _make_ahead(store: Store, stop: asyncio.Event, counters: Counters) -> None:
    """Make the partitions of today and tomorrow, so that midnight finds its partition there. Free after the first time a day."""
    now_us = clock.now_us()
    today = now_us // partitions.DAY_US
    if today != counters.made_ahead_for:
        both = {
            partitions.containing(table, at_us) for table in partitions.TABLES for at_us in (now_us, now_us + partitions.DAY_US)
        }
        await _patiently(lambda: store.prepare({each for each in both if each}), stop, counters)
        counters.made_ahead_for = today


async def _patiently(attempt: Callable[[], Awaitable[T]], stop: asyncio.Event, counters: Counters) -> T:
    """Return what `attempt` returns, again and again while Postgres is away. Raise Stopping if `stop` is set meanwhile."""

    def tell(error: Exception | None) -> None:
        counters.postgres = "up" if error is None else "away"
        if error is not None:
            counters.retries += 1
            if logs.once_a_minute("postgres_away"):
                _log.warning("postgres_away", why=repr(error), then="reading waits; trying again")

    return await patiently(attempt, stop, _AWAY, _LONGEST_PAUSE, tell)
