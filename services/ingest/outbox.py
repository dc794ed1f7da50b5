"""The way of every record to the raw topic: straight to the broker while it answers, over the spool while it does not.

Promises: `add` never waits and never refuses; records of a partition reach the topic once and in the order of `add`, also over a
kill of the process, but for those that only its memory held (their generations end with it, and the next one shows that). What
is spooled goes before what comes after. Memory, then disk are bounded: past that `full` is true, and who goes on adding breaks.

The exactness over a kill: a record goes into the spool before its fate at the broker is known only after the spool has noted an
offset of each partition that is at or before it. The next life reads the topic from there, and skips what it finds (`delivered`).
It waits SETTLE_SECONDS first, since the broker may still have a dead process's last request in its socket.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import structlog

from kalshibook_core.kafka import admin, topics
from kalshibook_core.kafka.cluster import Cluster, partition_of
from kalshibook_core.kafka.consumer import Consumer, TopicPartition
from kalshibook_core.kafka.errors import KafkaFault, OffsetLost, ProduceFailed, TopicMismatch
from kalshibook_core.kafka.producer import Producer
from kalshibook_core.kafka.reader import read_partition
from kalshibook_core.runtime import clock, logs
from kalshibook_core.runtime.settings import ConfigurationError
from services.ingest.delivered import Delivered
from services.ingest.segments import Record
from services.ingest.settings import SpoolSettings
from services.ingest.spool import Floor, Segment, Spool

STALL_SECONDS: Final = 1.0
"""Nothing acknowledged for so long: the broker is away."""

TICK_SECONDS: Final = 0.05
SYNC_SECONDS: Final = 1.0
SETTLE_SECONDS: Final = 2.0
CLOSE_SECONDS: Final = 10.0
CONNECT_SECONDS: Final = 5.0
RETRY_SECONDS: Final = 0.5
DRAIN_BYTES: Final = 8 * 1024 * 1024
OUTAGE_SECONDS: Final = 86_400.0
"""How long the producer itself waits for the broker, before the process gives up."""

_log = structlog.get_logger()


class Outbox:
    """See the module. Without spool settings there is only memory, and the first connection to the broker must succeed."""

    def __init__(self, cluster: Cluster, spool: SpoolSettings | None, gatherer: str, buffer_bytes: int) -> None:
        """Prepare; `async with` opens the spool and looks for the broker. `buffer_bytes`: the most that memory holds."""
        self.full = False  # from when the bound is passed until half of it is free again
        self.spooled = 0
        self._cluster = cluster
        self._settings = spool
        self._folder = spool.folder / gatherer if spool is not None else Path()
        self._buffer_bytes = buffer_bytes
        self._spool: Spool | None = None
        self._producer: Producer | None = None
        self._direct = False  # records go to the producer, since nothing waits in the spool
        # What the broker has not acknowledged, by partition; None: it stands in the spool.
        self._unacked: list[deque[tuple[bytes, bytes, int] | None]] = [deque() for _ in range(cluster.partitions)]
        self._added = [0] * cluster.partitions  # handed to the producer, by partition, as the three below
        self._acked = [0] * cluster.partitions
        self._next_offset = [0] * cluster.partitions
        self._given_up: deque[tuple[Segment, list[int], Floor]] = deque()  # read: `added` at its end, floor of what follows
        self._reading: Segment | None = None
        self._rereads = 0  # records at the reading end of the spool that were handed on before they were written
        self._recovered = False
        self._delivered = Delivered()
        self._moved = asyncio.Event()
        self._looked = asyncio.Event()
        self._closing = asyncio.Event()
        self._refusal: KafkaFault | None = None
        self._refused = False  # the disk did not take the note that spooling begins with
        self._left = False
        self._name = gatherer.encode()
        self._silent = 0.0  # seconds without an acknowledgement in which one could have been heard

    async def __aenter__(self) -> Self:
        if self._settings is not None:
            try:
                self._spool = Spool(self._folder, clock.now_us())
            except OSError as error:
                raise ConfigurationError(f"KB_SPOOL: {error}") from error
            self._recovered = not self._spool.empty
        self._tasks = asyncio.TaskGroup()
        await self._tasks.__aenter__()
        self._delivering = self._tasks.create_task(self._deliver(), name="outbox")
        self._keeping = self._tasks.create_task(self._keep(), name="outbox-keep")
        try:
            async with asyncio.timeout(CONNECT_SECONDS if self._spool is not None else None):
                await self._looked.wait()
        except TimeoutError:
            self._looked.set()
            self._tell_away("no answer")
        if self._refusal is not None:
            await self.__aexit__(None, None, None)
            raise self._refusal
        if self._producer is None and self._spool is not None and self._spool.empty:
            self._spool.remember({})
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Deliver what is held; what the broker does not take soon stays in the spool for the next life."""
        self._closing.set()
        if self._producer is None:
            self._delivering.cancel()
        try:
            if kind is None:
                await asyncio.wait([self._delivering])
            self._keeping.cancel()
            await self._tasks.__aexit__(kind, error, trace)
        finally:
            if self._spool is not None:
                self._spool.close()
                if not self._spool.empty:
                    _log.warning(
                        "left_in_spool", bytes=self._spool.size, folder=str(self._folder), do="the next start delivers it"
                    )

    def add(self, key: bytes, value: bytes, timestamp_ms: int) -> None:
        """Take a record of the raw topic. Raises ProduceFailed where the broker refuses for good."""
        producer = self._producer
        if self._direct and producer is not None:
            partition = producer.add(topics.RAW, key, value, timestamp_ms)
            if self._spool is not None:
                self._unacked[partition].append((key, value, timestamp_ms))
                self._added[partition] += 1
            if producer.buffered > self._buffer_bytes:
                self._overfull()
        else:
            assert self._spool is not None and self._settings is not None
            self.spooled += 1
            self._spool.append(Record(key, value, timestamp_ms))
            if self._spool.size > self._settings.limit_bytes:
                self.full = True

    @property
    def buffered(self) -> int:
        """Bytes in memory that the broker has not acknowledged."""
        return self._producer.buffered if self._producer is not None else 0

    @property
    def spool_bytes(self) -> int:
        """Bytes on the disk."""
        return self._spool.size if self._spool is not None else 0

    @property
    def state(self) -> str:
        """Where records go: "direct" to the broker, or "spooling"; before the broker was found "away"."""
        return "direct" if self._direct else "spooling" if self._producer is not None else "away"

    async def room(self) -> None:
        """Wait while `full`."""
        while self.full:
            await self._change()

    async def safe(self) -> None:
        """Return when all that was added so far is at the broker or on the disk: then it survives this process."""
        if self._spool is None:
            if self._producer is not None:
                await self._producer.flush()
            return
        added = list(self._added)
        while self._direct and any(acked < goal for acked, goal in zip(self._acked, added, strict=True)):
            await self._change()
        appended = self._spool.appended
        while self._spool.written < appended:
            await self._change()

    async def _change(self) -> None:
        self._moved.clear()
        await self._moved.wait()

    # To the broker.

    async def _deliver(self) -> None:
        try:
            async with AsyncExitStack() as stack:
                producer = await self._reach(stack)
                if producer is None:
                    return
                try:
                    await self._begin(producer)
                    await self._carry(producer)
                finally:
                    self._leave_rest(producer)
        except ProduceFailed:
            if not self._left:
                raise

    async def _reach(self, stack: AsyncExitStack) -> Producer | None:
        """Look for the broker until it answers; None where it will not do, or does not answer and there is no spool."""
        while True:
            try:
                await admin.ensure_topics(self._cluster)
                self._next_offset = await self._ends() if self._spool is not None else self._next_offset
                producer = Producer(
                    self._cluster, max_buffered=2 * self._buffer_bytes, delivery_seconds=OUTAGE_SECONDS, on_acked=self._on_acked
                )
                return await stack.enter_async_context(producer)
            except KafkaFault as error:
                if self._spool is None or isinstance(error, TopicMismatch):
                    if self._looked.is_set():
                        raise
                    self._refusal = error
                    self._looked.set()
                    return None
                self._tell_away(str(error))
            await asyncio.sleep(RETRY_SECONDS)

    async def _ends(self) -> list[int]:
        where = [TopicPartition(self._cluster.topic(topics.RAW), each) for each in range(self._cluster.partitions)]
        async with Consumer(self._cluster, [topics.RAW]) as consumer:
            ends = await consumer.end_offsets(where)
        return [ends[each] for each in where]

    async def _begin(self, producer: Producer) -> None:
        spool = self._spool
        if spool is not None and self._recovered:
            await self._find_delivered(spool)
        if spool is not None and not spool.empty and spool.floor == {}:
            while not self._noted(lambda: spool.remember(dict(enumerate(self._next_offset)))):  # noqa: ASYNC110  (a disk tells nobody)
                await asyncio.sleep(RETRY_SECONDS)
        self._producer = producer
        self._direct = spool is None or spool.empty
        self._looked.set()

    async def _find_delivered(self, spool: Spool) -> None:
        """Read what the topic has of what a life before this one spooled."""
        await asyncio.sleep(SETTLE_SECONDS)
        floor = spool.floor
        for partition in range(self._cluster.partitions) if floor is None else floor:
            start = None if floor is None else floor[partition]
            try:
                await self._find(partition, start)
            except OffsetLost:
                await self._find(partition, None)

    async def _find(self, partition: int, start: int | None) -> None:
        mine = 16 + len(self._name)  # the gatherer's name stands within the first bytes of its records
        async for record in read_partition(self._cluster, topics.RAW, partition, start, read_committed=False):
            if record.value is not None and self._name in record.value[:mine]:
                self._delivered.found(partition, record.value)

    async def _carry(self, producer: Producer) -> None:
        """Watch over what goes straight, and carry on what is spooled, until everything is delivered at the end."""
        deadline: float | None = None
        now = clock.monotonic()
        while True:
            before, now = now, clock.monotonic()
            # Time in which this process was busy with something else says nothing about the broker.
            self._silent = self._silent + min(now - before, 2 * TICK_SECONDS) if producer.buffered else 0.0
            answering = self._silent < STALL_SECONDS
            self._refused = self._refused and not answering
            if self._spool is not None:
                if self._direct and not answering:
                    self._spill()
                while answering and not self._direct and producer.buffered < DRAIN_BYTES:
                    self._spool.write()
                    if not self._carry_on(self._spool, producer):
                        break
                    await asyncio.sleep(0)
                self._give_up(self._spool)
            if self._closing.is_set():
                deadline = deadline or now + CLOSE_SECONDS
                if self._spool is None or (self._direct and producer.buffered == 0) or now > deadline:
                    return
            await producer.room()  # never waits here: it raises where the producer has failed
            await asyncio.sleep(TICK_SECONDS)

    async def _keep(self) -> None:
        """Bring what is appended to the disk, whatever else is going on."""
        spool, settings = self._spool, self._settings
        synced_at = 0.0
        while True:
            if spool is not None and settings is not None:
                spool.write()
                now = clock.monotonic()
                if settings.sync == "always" or (settings.sync == "interval" and now - synced_at > SYNC_SECONDS):
                    synced_at = now
                    await asyncio.to_thread(spool.sync)
            self._look_at_room()
            self._moved.set()
            await asyncio.sleep(TICK_SECONDS)

    def _leave_rest(self, producer: Producer) -> None:
        if self._spool is None or (self._direct and producer.buffered == 0):
            return
        self._spill()
        self._left = True
        producer.abandon()

    def _tell_away(self, why: str) -> None:
        if logs.once_a_minute("broker_away"):
            _log.warning("broker_away", why=why, do="frames go to the spool until it answers")

    def _on_acked(self, partition: int, records: int, next_offset: int) -> None:
        self._silent = 0.0
        if self._spool is not None:
            forget = self._unacked[partition].popleft
            for _ in range(records):
                forget()
            self._acked[partition] += records
            self._next_offset[partition] = max(next_offset, self._next_offset[partition])

    # Over the spool.

    def _overfull(self) -> None:
        if self._spool is not None:
            self._spill()
            return
        self.full = True
        if logs.once_a_minute("broker_stalls"):
            _log.warning("broker_stalls", buffered=self.buffered)

    def _look_at_room(self) -> None:
        held, bound, blocked = self.buffered, self._buffer_bytes, False
        if self._spool is not None and self._settings is not None:
            held, bound, blocked = self._spool.size, self._settings.limit_bytes, self._spool.blocked or self._refused
        if held > bound or blocked:
            self.full = True
        elif held <= bound // 2:
            self.full = False

    def _spill(self) -> None:
        """From here on records go to the spool, those first whose fate is not known.

        1. The offsets are noted that these records can only stand behind. A crash here: the spool is empty.
        2. They are written. A crash here: as many of them as were written are found or delivered by the next life, the others
           were only in memory, like every record of a process that is killed.

        Where a full disk does not take the note, records stay in memory, no more are captured, and it is tried again.
        """
        spool = self._spool
        if not self._direct or spool is None:
            return
        self._refused = spool.empty and not self._noted(lambda: spool.remember(dict(enumerate(self._next_offset))))
        if self._refused:
            self.full = True
            return
        self._direct = False
        held = sum(record is not None for lane in self._unacked for record in lane)
        if logs.once_a_minute("broker_stalls"):
            _log.warning("broker_stalls", buffered=self.buffered, spooling=held, folder=str(self._folder))
        for partition, lane in enumerate(self._unacked):
            for record in lane:
                if record is not None:
                    spool.append(Record(*record))
            self._unacked[partition] = deque([None] * len(lane))
        self.spooled += held
        self._rereads += held
        self._given_up = deque(each for each in self._given_up if each[0] != spool.last)  # it goes on
        spool.write()

    def _carry_on(self, spool: Spool, producer: Producer) -> bool:
        """Hand on the next spooled records; where there are none, what comes now goes straight. Return whether there were."""
        found = spool.read()
        if found is None:
            if spool.exhausted:
                if spool.last is not None:
                    self._passed(spool.last)
                self._reading = None
                self._direct = True
                _log.info("spool_drained")
            return False
        segment, records = found
        if self._reading is not None and self._reading != segment:
            self._passed(self._reading)
        self._reading = segment
        for record in records:
            if self._rereads:
                self._rereads -= 1
                continue
            partition = partition_of(record.key, self._cluster.partitions)
            if not self._delivered.has(partition, record.value):
                producer.add(topics.RAW, *record)
                self._unacked[partition].append(None)
                self._added[partition] += 1
        return True

    def _passed(self, segment: Segment) -> None:
        # What a life before this one delivered of the segments still to come stands behind their old floor.
        old = self._spool.floor or {} if self._spool is not None else {}
        pending = self._delivered.pending
        floor = {p: old.get(p, 0) if pending(p) else at for p, at in enumerate(self._next_offset)}
        self._given_up.append((segment, list(self._added), floor))

    def _give_up(self, spool: Spool) -> None:
        """Delete the segments whose every record the broker has acknowledged."""
        while self._given_up:
            segment, added, floor = self._given_up[0]
            if any(acked < goal for acked, goal in zip(self._acked, added, strict=True)):
                return
            if not self._noted(lambda segment=segment, floor=floor: spool.delete(segment, floor)):  # type: ignore[misc]
                return
            self._given_up.popleft()

    def _noted(self, note: Callable[[], None]) -> bool:
        """Return whether the spool could note something; a full disk refuses it, and it is to be tried again."""
        try:
            note()
        except OSError as error:
            if logs.once_a_minute("spool_note_failed"):
                _log.error("spool_note_failed", why=str(error), folder=str(self._folder), do="make room; it is tried again")
            return False
        return True
