"""The whole process: look for days that are over, compare each with the archive, drop those that it has, until told to stop."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, TypeVar

import structlog

from kalshibook_core.archive.reader import Archive, Damaged
from kalshibook_core.postgres import pool
from kalshibook_core.postgres.partitions import DAY_US, Partition
from kalshibook_core.runtime import clock, health, logs
from services.persister.patience import Stopping, patiently
from services.persister.retention import verify
from services.persister.retention.counters import Counters
from services.persister.retention.settings import Settings
from services.persister.retention.store import BUSY, Changed, Proved, Store
from services.persister.retention.verify import TOPICS, Differs, Pending
from services.persister.store import RETRYABLE

_TRIES: Final = 20
"""How often a drop is tried that comes in between others, before it is left to the next look."""
_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 10.0
_AWAY: Final = (*RETRYABLE, pool.DatabaseUnreachable, OSError)

_log = structlog.get_logger()
T = TypeVar("T")


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """Serve until `stop` is set; what is being compared then is left for the next start."""
    counters = Counters()
    async with health.serve(settings.health, lambda: counters.ready, counters.shown, service="retention"):
        with suppress(Stopping):
            while not stop.is_set():
                await _patiently(lambda: _session(settings, counters, stop), stop, counters)


async def _session(settings: Settings, counters: Counters, stop: asyncio.Event) -> None:
    """One connection to the database. Raises one of _AWAY when it is lost, or the archive's storage is."""
    connection = await pool.connect(settings.postgres_dsn)
    try:
        store, archive, pending = Store(connection), Archive(settings.store), Pending()
        counters.ready = True
        while not await store.alone():
            counters.state = "another runs"
            await _wait(stop, _LONGEST_PAUSE)
        while not stop.is_set():
            await _look(settings, store, archive, pending, counters, stop)
            counters.state = "waiting" if settings.hot_days else "KB_HOT_DAYS is not set: everything is kept"
            await _wait(stop, settings.pause_seconds)
    finally:
        connection.terminate()


async def _look(
    settings: Settings, store: Store, archive: Archive, pending: Pending, counters: Counters, stop: asyncio.Event
) -> None:
    if not settings.hot_days:
        return
    before_us = clock.now_us() - settings.hot_days * DAY_US
    await store.house(before_us)
    differing = behind = 0
    for partition in await store.over(before_us):
        if partition.table == "book_events" and not await store.covered(partition):
            _log.info("coverage_behind", partition=partition.name, then="looked at again once all its hours are measured")
            continue
        is_behind = await pending.is_behind(store, archive, partition, settings.cluster.topic(TOPICS[partition.table]))
        try:
            await _retire(settings, store, archive, partition, counters, stop)
        except (Differs, Damaged) as differs:
            if is_behind and isinstance(differs, Differs):
                behind += 1
                _log.info("archive_behind", partition=partition.name, why=str(differs), then="looked at again")
            else:
                differing += 1
                counters.differences += 1
                _log.error("archive_differs", partition=partition.name, why=str(differs), then="the partition stays")
        except (Changed, *BUSY) as busy:
            _log.warning("partition_busy", partition=partition.name, why=str(busy), then="looked at again")
    counters.differing, counters.behind = differing, behind


async def _retire(
    settings: Settings, store: Store, archive: Archive, partition: Partition, counters: Counters, stop: asyncio.Event
) -> None:
    compared = 0

    def progress(events: int) -> None:
        nonlocal compared
        if stop.is_set():
            raise Stopping
        compared += events
        counters.verified += events
        counters.state = f"comparing {partition.name}: {compared:,} events"
        if logs.once_a_minute("comparing"):
            _log.info("comparing", partition=partition.name, events=compared)

    proved = await verify.verify(store, archive, partition, clock.now_us(), progress)
    for left in range(_TRIES - 1, -1, -1):
        try:
            await store.drop(proved, str(settings.store), clock.now_us())
            break
        except BUSY:
            if not left:
                raise
            await _wait(stop, _PAUSE)
    counters.dropped += 1
    counters.dropped_events += _events(proved)
    _log.info("dropped", partition=partition.name, rows=proved.rows, events=_events(proved), markets=len(proved.spans))


def _events(proved: Proved) -> int:
    return sum(span.rows for span, _, _ in proved.spans)


async def _wait(stop: asyncio.Event, seconds: float) -> None:
    """Wait; raise Stopping if told to stop meanwhile."""
    with suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)
        raise Stopping


async def _patiently(attempt: Callable[[], Awaitable[T]], stop: asyncio.Event, counters: Counters) -> T:
    def tell(error: Exception | None) -> None:
        if error is not None:
            counters.state, counters.retries = "database or archive is away", counters.retries + 1
            if logs.once_a_minute("away"):
                _log.warning("database_or_archive_away", why=repr(error), then="trying again")

    return await patiently(attempt, stop, _AWAY, _LONGEST_PAUSE, tell)
