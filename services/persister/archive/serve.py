"""The whole process: hold records until there are enough for files, write these, until told to stop."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import structlog

from kalshibook_core.archive.reader import Archive
from kalshibook_core.kafka import admin, topics
from kalshibook_core.kafka.consumer import Consumer, TopicPartition
from kalshibook_core.runtime import clock, health, logs
from kalshibook_core.runtime.settings import ConfigurationError
from services.persister.archive import commit, files
from services.persister.archive.counters import Counters
from services.persister.archive.held import Held, due
from services.persister.archive.settings import Settings

TOPICS: Final = (topics.RAW, topics.BOOK, topics.TRADES, topics.TICKERS, topics.LIFECYCLE, topics.CHECKPOINTS)
GROUP: Final = "kb-archive"

_POLL_MS: Final = 500
_POLL_RECORDS: Final = 20_000
_BACKOFF_SECONDS: Final = (0.1, 10.0)

_log = structlog.get_logger()
T = TypeVar("T")


class Stopping(Exception):
    """The process was told to stop while the storage is away. What was read and not written is read again by the next one."""


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """Serve until `stop` is set, then write what is held and leave the group."""
    counters = Counters()
    async with health.serve(
        settings.health_port, lambda: counters.ready, counters.shown, service="archive", host=settings.health_host
    ):
        try:
            member = _Member(settings, counters, stop)
            await member.claim()
            await member.run()
        except* Stopping:
            _log.warning("stopped_while_storage_is_away", then="the next start goes on where the archive ends")


class _Member:
    """This process as a member of the consumer group."""

    def __init__(self, settings: Settings, counters: Counters, stop: asyncio.Event) -> None:
        self._settings, self._counters, self._stop = settings, counters, stop
        self._life = secrets.token_hex(4)
        self._archive = Archive(settings.store)
        self._names = {settings.cluster.topic(topic): topic.name for topic in TOPICS}
        self._held: dict[TopicPartition, Held] = {}

    async def claim(self) -> None:
        cluster = self._settings.cluster
        log = f"{await admin.cluster_id(cluster)}/{cluster.prefix}"
        try:
            await self._patiently(lambda: asyncio.to_thread(commit.claim, self._settings.store, log))
        except commit.OtherLog as other:
            raise ConfigurationError(f"KB_ARCHIVE: {other}") from None

    async def run(self) -> None:
        at_once = min(_POLL_RECORDS, self._settings.rows)
        async with Consumer(self._settings.cluster, TOPICS, GROUP, on_assigned=self._assigned) as consumer:
            while not self._stop.is_set():
                for where, records in (await consumer.poll(at_once, _POLL_MS)).items():
                    self._held[where].add(records, clock.monotonic())
                while (where := due(self._held, self._settings, clock.monotonic())) is not None:
                    await self._write(where)
                self._counters.waiting_rows = sum(len(held.records) for held in self._held.values())
                self._counters.waiting_bytes = sum(held.bytes for held in self._held.values())
                self._counters.lag_records = sum(consumer.lag().values())
            for where in sorted(self._held):
                await self._write(where)

    async def _assigned(self, ours: set[TopicPartition]) -> dict[TopicPartition, int]:
        # Called between two polls, never while a commit is being written. What was held is read again, by us or by the new
        # owner, from where the archive stands.
        self._held.clear()
        for where in sorted(ours):
            held = await self._patiently(
                lambda where=where: asyncio.to_thread(self._archive.next_offset, self._names[where.topic], where.partition)  # type: ignore[misc]
            )
            self._held[where] = Held(held)
        self._counters.ready = True
        _log.info("assigned", partitions=len(ours))
        return {where: held.first for where, held in self._held.items() if held.first is not None}

    async def _write(self, where: TopicPartition) -> None:
        held = self._held[where]
        if held.first is None or held.next is None or not held.records:
            return
        started = clock.monotonic()
        # Nothing is polled meanwhile, so an outage of any length holds these records and what Kafka's client has fetched ahead.
        made = await asyncio.to_thread(
            files.make, self._names[where.topic], where.partition, held.first, held.next, self._life, held.records
        )
        await commit.write(self._settings.store, made, self._patiently)
        self._held[where] = Held(held.next)
        self._counters.wrote(made, clock.monotonic() - started)
        if made.unreadable and logs.once_a_minute("unreadable"):
            _log.warning("unreadable_records", count=made.unreadable, then="passed over; the raw rows they came from are kept")

    async def _patiently(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Return what `attempt` returns, again and again while the storage is away. Raise Stopping if told to stop meanwhile."""
        pause, longest = _BACKOFF_SECONDS
        while True:
            try:
                done = await attempt()
                self._counters.store = "up"
                return done
            except OSError as error:
                self._counters.retries += 1
                self._counters.store = "away"
                if logs.once_a_minute("storage_away"):
                    where = str(self._settings.store)
                    _log.warning("storage_away", where=where, why=str(error), then="reading waits; trying again")
            try:
                await asyncio.wait_for(self._stop.wait(), pause)
                raise Stopping
            except TimeoutError:
                pause = min(longest, pause * 2)
