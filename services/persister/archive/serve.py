"""The whole process: wait until a partition has enough for files, read that much, write it, until told to stop."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Final, TypeVar

import structlog

from kalshibook_core.archive.coverage import Followed
from kalshibook_core.archive.manifest import Repacked
from kalshibook_core.archive.reader import Archive, Damaged
from kalshibook_core.archive.reader import Held as InArchive
from kalshibook_core.kafka import admin, topics
from kalshibook_core.kafka.consumer import Consumer, TopicPartition, within
from kalshibook_core.kafka.errors import KafkaFault, OffsetLost
from kalshibook_core.runtime import clock, health, logs
from kalshibook_core.runtime.settings import ConfigurationError
from services.persister.archive import commit, files, repack
from services.persister.archive.counters import Counters
from services.persister.archive.held import Held, Waiting, due
from services.persister.archive.settings import Settings
from services.persister.halt import go_on, halt
from services.persister.patience import Stopping, patiently

TOPICS: Final = (topics.RAW, topics.BOOK, topics.TRADES, topics.TICKERS, topics.LIFECYCLE, topics.CHECKPOINTS)
GROUP: Final = "kb-archive"

_POLL_MS: Final = 500
_POLL_RECORDS: Final = 20_000
_IDLE_POLLS: Final = 4
_LAST_SECONDS: Final = 25.0
"""For so long it goes on after it was told to stop, which is less than a drain may take; what is left then is left in Kafka."""
_LONGEST_PAUSE: Final = 10.0
_LOOK_SECONDS: Final = 600.0
"""From one look for finished days to the next."""

_log = structlog.get_logger()
T = TypeVar("T")


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """Serve until `stop` is set, then write what waits and leave the group."""
    counters = Counters()
    async with health.serve(settings.health, lambda: counters.ready, counters.shown, service="archive"):
        while not stop.is_set():
            try:
                member = _Member(settings, counters, stop)
                await member.claim()
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(member.run())
                    tasks.create_task(member.repack())
            except* (OffsetLost, commit.Vanished) as group:
                (lost, *_) = _flat(group)
                await halt(lost, getattr(lost, "records", 0), counters, stop)
            except* Stopping:
                _log.warning("stopped_while_storage_is_away", then="the next start goes on where the archive ends")


def _flat(group: BaseExceptionGroup[Exception]) -> Iterator[Exception]:
    for each in group.exceptions:
        yield from _flat(each) if isinstance(each, BaseExceptionGroup) else (each,)


class _Member:
    """This process as a member of the consumer group."""

    def __init__(self, settings: Settings, counters: Counters, stop: asyncio.Event) -> None:
        self._settings, self._counters, self._stop = settings, counters, stop
        self._life = secrets.token_hex(4)
        self._archive = Archive(settings.store)
        self._names = {settings.cluster.topic(topic): topic.name for topic in TOPICS}
        self._starts: dict[TopicPartition, int | None] = {}  # where each partition of ours stands in the archive
        self._waiting: dict[TopicPartition, Waiting] = {}
        self._followed: dict[int, Followed] = {}  # the books of each partition, as far as this process archived them
        self._over = self._joined = False

    async def claim(self) -> None:
        cluster = self._settings.cluster
        log = f"{await admin.cluster_id(cluster)}/{cluster.prefix}"
        reached, store = await admin.reached(cluster, GROUP), self._settings.store
        try:
            await self._patiently(lambda: asyncio.to_thread(commit.claim, store, log, reached, self._settings.anew))
        except (commit.OtherLog, commit.Vanished) as why:
            raise ConfigurationError(f"KB_ARCHIVE: {why}") from None

    async def run(self) -> None:
        consumer = Consumer(self._settings.cluster, TOPICS, GROUP, on_assigned=self._assigned, on_revoked=self._revoked)
        async with consumer as self._consumer:
            while not self._stop.is_set():
                await self._look()
                where = due(self._waiting, self._settings.rows, self._settings.seconds, clock.monotonic())
                if where is None:
                    # All are paused: this hears of rebalances, and returns nothing.
                    await self._consumer.poll(timeout_ms=_POLL_MS)
                else:
                    await self._take(where)
            await self._write_the_rest()

    async def _assigned(self, ours: set[TopicPartition]) -> dict[TopicPartition, int]:
        # Called within a poll, as `_revoked` is. What is held then is dropped, and read again by us or by the new owner from
        # where the archive stands.
        starts: dict[TopicPartition, int | None] = {}
        for where in sorted(ours):
            topic, number = self._names[where.topic], where.partition
            starts[where] = await self._patiently(
                lambda topic=topic, number=number: asyncio.to_thread(self._archive.next_offset, topic, number)  # type: ignore[misc]
            )
        # What the group has committed tells only how far the archive was once; where it goes on, the archive says.
        begins = await self._consumer.begin_offsets([where for where, start in starts.items() if start is None])
        begin = {where: begins[where] if start is None else start for where, start in starts.items()}
        if not self._settings.anew:
            for where in sorted(ours):
                self._compare(where, begin[where], await self._consumer.committed(where) or 0)
        self._starts, self._waiting, self._joined = starts, {}, True
        self._followed = {}  # who had them meanwhile may have archived more
        self._consumer.pause(*ours)
        _log.info("assigned", partitions=len(ours))
        return begin

    def _compare(self, where: TopicPartition, archived: int, once: int) -> None:
        if archived < once:
            raise commit.Vanished(
                f"{self._settings.store} ends at offset {archived:,} of {where.topic} partition {where.partition}, but was "
                f"written to up to {once:,}: it is another one, or commits of it are gone"
            )

    async def _revoked(self, _: set[TopicPartition]) -> None:
        self._starts, self._waiting = {}, {}

    async def _look(self) -> None:
        """See what waits in Kafka."""
        now = clock.monotonic()
        try:
            ends = await self._consumer.end_offsets(self._starts) if self._starts else {}
        except KafkaFault as error:
            if logs.once_a_minute("broker_away"):
                _log.warning("broker_away", why=str(error), then="trying again")
            return
        for where, end in ends.items():
            position = await self._consumer.position(where)
            within(where, position, 0, end)  # a paused partition is not fetched, so nobody else would say
            records = end - position
            before = self._waiting.get(where)
            self._waiting[where] = Waiting(records, before.since if before is not None and before.records else now)
        self._counters.waiting_records = sum(each.records for each in self._waiting.values())
        if self._joined:
            go_on(self._counters)

    async def _take(self, where: TopicPartition) -> None:
        """Read what waits of a partition, as much as one commit may have, and write it."""
        starts, held = self._starts, Held(self._starts[where])
        end = await self._consumer.position(where) + self._waiting[where].records
        rows, most = self._settings.rows, self._settings.bytes
        self._consumer.resume(where)
        idle = 0
        # Behind the last record may lie a transaction's marker, which takes an offset and is never returned.
        while await self._consumer.position(where) < end and len(held.records) < rows and held.bytes < most:
            polled = await self._consumer.poll(min(rows - len(held.records), _POLL_RECORDS), _POLL_MS)
            if self._starts is not starts:
                return  # the partitions are others now
            held.add(polled.get(where, ()))
            idle = 0 if polled else idle + 1
            if idle == _IDLE_POLLS:
                break  # the broker is away, or a transaction has no end yet: its turn comes again
        self._consumer.pause(where)
        self._waiting[where] = Waiting(0, clock.monotonic())
        if held.records:
            await self._write(where, held)
            self._starts[where] = held.next

    async def _write(self, where: TopicPartition, held: Held) -> None:
        assert held.first is not None and held.next is not None
        started = clock.monotonic()
        made = await asyncio.to_thread(
            files.make, self._names[where.topic], where.partition, held.first, held.next, self._life, held.records,
            self._followed.setdefault(where.partition, Followed()),
        )  # fmt: skip
        await self._patiently(lambda: asyncio.to_thread(commit.is_there, self._settings.store))
        await commit.write(self._settings.store, made, self._patiently)
        with suppress(KafkaFault):  # a witness, and no more: another one may own the partition by now
            await self._consumer.commit({where: held.next})
        self._counters.wrote(made, clock.monotonic() - started)
        if made.unreadable and logs.once_a_minute("unreadable"):
            _log.warning("unreadable_records", count=made.unreadable, then="passed over; the raw rows they came from are kept")

    async def _write_the_rest(self) -> None:
        began, longest = clock.monotonic(), 0.0
        await self._look()
        while (where := due(self._waiting, 1, float("inf"), began)) is not None:
            each = clock.monotonic()
            if each - began + longest > _LAST_SECONDS:
                _log.warning("left_in_kafka", records=self._counters.waiting_records, then="the next start archives them")
                return
            await self._take(where)
            await self._look()
            longest = max(longest, clock.monotonic() - each)

    async def repack(self) -> None:
        """Put finished days together, until told to stop. Beside the records: who comes second to a day does no harm."""
        try:
            await self._repack_all()
        finally:
            self._over = True  # a thread at work ends with the file it is at

    async def _repack_all(self) -> None:
        while not self._stop.is_set():
            for where in sorted(self._starts):
                try:
                    await self._repack(self._names[where.topic], where.partition)
                except (Damaged, repack.Unequal) as found:
                    self._counters.damaged += 1
                    _log.error("not_repacked", why=str(found), then="left as it is; see `kb verify`")
                except repack.Abandoned:
                    return
            pause = min(_LOOK_SECONDS, 1 + self._settings.repack_after) if self._starts else 1
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), pause)

    async def _repack(self, topic: str, partition: int) -> None:
        store, archive, counters = self._settings.store, self._archive, self._counters
        after_us, grace_us = int(self._settings.repack_after * 1e6), int(self._settings.repack_grace * 1e6)

        def look() -> tuple[InArchive, list[int]]:
            held = archive.held_of(topic, partition)
            return held, repack.due(archive, held, clock.now_us(), after_us)

        def put_together(day: int) -> Repacked | None:
            life = f"r{secrets.token_hex(4)}"
            return repack.repack(store, held, day, life, clock.now_us(), lambda: self._over or self._stop.is_set())

        held, days = await self._patiently(lambda: asyncio.to_thread(look))
        for day in days:
            told = await self._patiently(lambda day=day: asyncio.to_thread(put_together, day))  # type: ignore[misc]
            if told is not None:
                counters.repacks += 1
                counters.repacked_files += len(told.replaced)
        counters.swept_files += await self._patiently(
            lambda: asyncio.to_thread(repack.sweep, store, topic, partition, clock.now_us(), grace_us)
        )

    async def _patiently(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Return what `attempt` returns, again and again while the storage is away. Raise Stopping if told to stop meanwhile."""
        return await patiently(attempt, self._stop, (OSError,), _LONGEST_PAUSE, self._tell)

    def _tell(self, error: Exception | None) -> None:
        self._counters.store = "up" if error is None else "away"
        if error is not None:
            self._counters.retries += 1
            if logs.once_a_minute("storage_away"):
                place = str(self._settings.store)
                _log.warning("storage_away", where=place, why=str(error), then="reading waits; trying again")
