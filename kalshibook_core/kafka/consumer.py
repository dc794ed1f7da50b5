"""A consumer whose rebalances happen in its reader's own task, and which never skips what it was to read.

Promises: `on_assigned` and `on_revoked` run inside `poll`, between two batches, never beside the reader: a partition is
handed over only after the reader has come back for more, and an exception in a callback is an exception of `poll`. A
partition without committed offset starts at its first record. An offset that retention has passed by raises OffsetBehind, one
after the log's end OffsetAhead, when a partition is assigned; nothing jumps over a hole.

With `Cluster.instance` a process that died is succeeded at once by the next of its name, without waiting for its session to end
(static membership, KIP-345), and leaving does not move partitions to others for so long. If the one before still lives it gets
Displaced from `poll` and must end; what it still tries to write is up to fenced producers and offsets that compare and set.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Final, Self

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import KafkaError, NoOffsetForPartitionError, OffsetOutOfRangeError

from kalshibook_core.kafka import coordinator, records
from kalshibook_core.kafka.cluster import Cluster
from kalshibook_core.kafka.errors import Displaced, KafkaFault, OffsetAhead, OffsetBehind, OffsetLost
from kalshibook_core.kafka.records import Record
from kalshibook_core.kafka.topics import Topic

__all__ = ["Batch", "Consumer", "Record", "TopicPartition"]

Batch = dict[TopicPartition, list[Record]]
Assigned = Callable[[set[TopicPartition]], Awaitable[Mapping[TopicPartition, int] | None]]
Revoked = Callable[[set[TopicPartition]], Awaitable[None]]

_FETCH_BYTES: Final = 4 * 1024 * 1024
_SESSION_MS: Final = 10_000
"""A member silent for so long is put out of the group."""

_HAND_OVER_MS: Final = 60_000
"""How long the group waits for a member that is busy with a batch; past it the member is put out."""


coordinator.mend()
records.lighten()


class Consumer:
    """Reads topics as a member of `group`, or, without one, every partition of them (or those in `partitions`)."""

    def __init__(
        self,
        cluster: Cluster,
        topics: Iterable[Topic],
        group: str | None = None,
        *,
        read_committed: bool = True,
        on_assigned: Assigned | None = None,
        on_revoked: Revoked | None = None,
        partitions: Iterable[int] | None = None,
        from_end: bool = False,
    ) -> None:
        """Prepare a consumer; `async with` connects it.

        `group` is a name without prefix. `on_assigned` is given the partitions that are now ours and may return offsets to
        start from; those it does not name start at the committed offset, else at the first record (with `from_end`: after
        the last).
        """
        self._cluster = cluster
        self._topics = [cluster.topic(topic) for topic in topics]
        self._group = cluster.group(group) if group is not None else None
        self._read_committed = read_committed
        self._on_assigned = on_assigned
        self._on_revoked = on_revoked
        self._partitions = list(partitions if partitions is not None else range(cluster.partitions))
        self._from_end = from_end
        self._assigned: set[TopicPartition] | None = None  # told by Kafka, not yet by us
        self._revoking: set[TopicPartition] | None = None
        self._released = asyncio.Event()
        self._polling: asyncio.Timeout | None = None
        self._closing = False

    async def __aenter__(self) -> Self:
        self._kafka = AIOKafkaConsumer(
            bootstrap_servers=self._cluster.brokers,
            group_id=self._group,
            group_instance_id=(self._cluster.instance or None) if self._group is not None else None,
            enable_auto_commit=False,
            auto_offset_reset="none",  # `_start_at` chooses; a reset by itself would skip records in silence
            isolation_level="read_committed" if self._read_committed else "read_uncommitted",
            max_partition_fetch_bytes=_FETCH_BYTES,
            session_timeout_ms=_SESSION_MS,
            heartbeat_interval_ms=500,  # also how soon a member hears of another's coming
            rebalance_timeout_ms=_HAND_OVER_MS,
            max_poll_interval_ms=900_000,  # a restore at assignment may take minutes
        )
        try:
            await self._kafka.start()
        except BaseException as error:
            await self._kafka.stop()
            if isinstance(error, KafkaError):
                raise KafkaFault(f"cannot connect to Kafka at {self._cluster.brokers}: {error!r}") from error
            raise
        if self._group is not None:
            self._kafka.subscribe(self._topics, listener=_Listener(self))
        else:
            every = {TopicPartition(topic, partition) for topic in self._topics for partition in self._partitions}
            self._kafka.assign(every)
            self._assigned = every
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._closing = True
        self._released.set()
        await self._kafka.stop()

    async def poll(self, max_records: int | None = None, timeout_ms: int = 500) -> Batch:
        """Return the next records by partition, in order within each; empty if none came within `timeout_ms`.

        Raises OffsetLost, Displaced, KafkaFault, and whatever a rebalance callback raises.
        """
        await self._rebalance()
        batch: Batch = {}
        try:
            async with asyncio.timeout(timeout_ms / 1000) as self._polling:
                batch = await self._kafka.getmany(timeout_ms=timeout_ms, max_records=max_records)
        except TimeoutError:
            pass  # also how a rebalance interrupts; aiokafka hands records over only without waiting, so none is lost
        except OffsetOutOfRangeError as lost:
            raise OffsetLost(
                f"{lost.args[0]} is outside the log: its records are gone, or this is another log; reset the offsets to go on"
            ) from lost
        except NoOffsetForPartitionError as unset:
            # A group's is of an assignment that ended before `_rebalance` had sought; the next one's is sought in any case.
            if self._assigned is None and self._group is None:
                raise KafkaFault(f"no offset to start from: {unset!r}") from unset
        except (KafkaError, coordinator.Displacement) as error:
            raise self._fault("reading failed", error) from error
        finally:
            self._polling = None
        if self._assigned is not None and batch:
            # Fetched between the assignment and our hearing of it: `on_assigned` comes first.
            for partition, records in batch.items():
                self._kafka.seek(partition, records[0].offset)
            return {}
        return batch

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Commit the next offset to read of each partition. Raises KafkaFault if they are not ours any more, Displaced."""
        if not offsets:
            return
        try:
            await self._kafka.commit(dict(offsets))
        except (KafkaError, coordinator.Displacement) as error:
            raise self._fault("offsets were not committed", error) from error

    async def committed(self, partition: TopicPartition) -> int | None:
        """Return the group's committed offset, None if there is none."""
        offset: int | None = await self._kafka.committed(partition)
        return offset

    async def position(self, partition: TopicPartition) -> int:
        """Return the offset of the next record to be read."""
        return int(await self._kafka.position(partition))

    async def end_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """Return where each partition ends now: the offset after its last readable record (or transaction marker).

        Raises KafkaFault if nobody can be asked.
        """
        try:
            ends: dict[TopicPartition, int] = await self._kafka.end_offsets(list(partitions))
        except KafkaError as error:
            raise KafkaFault(f"cannot ask where the partitions end: {error!r}") from error
        return ends

    async def begin_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """Return where each partition begins now: the offset of the first record that retention has left."""
        try:
            begins: dict[TopicPartition, int] = await self._kafka.beginning_offsets(list(partitions))
        except KafkaError as error:
            raise KafkaFault(f"cannot ask where the partitions begin: {error!r}") from error
        return begins

    def assignment(self) -> set[TopicPartition]:
        """Return the partitions that are ours."""
        return set(self._kafka.assignment())

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Read `partition` from `offset` on."""
        self._kafka.seek(partition, offset)

    def pause(self, *partitions: TopicPartition) -> None:
        """Return nothing from these partitions until `resume`."""
        self._kafka.pause(*partitions)

    def resume(self, *partitions: TopicPartition) -> None:
        """Undo `pause`."""
        self._kafka.resume(*partitions)

    def lag(self) -> dict[TopicPartition, int]:
        """Return how many offsets each of our partitions is behind its end, as of the last fetch; asks nobody."""
        lags = {}
        for partition in self._kafka.assignment():
            state = self._kafka._subscription.subscription.assignment.state_value(partition)
            end = state.lso if self._read_committed else state.highwater
            if state.has_valid_position and end is not None:
                lags[partition] = max(0, end - state.position)
        return lags

    async def _rebalance(self) -> None:
        if self._revoking is not None:
            revoked, self._revoking = self._revoking, None
            self._assigned = None
            if self._on_revoked is not None and revoked:
                await self._on_revoked(revoked)
            self._released.set()
        if self._assigned is not None:
            assigned = self._assigned
            seeks = await self._on_assigned(assigned) if self._on_assigned is not None and assigned else None
            offsets = await self._starts(assigned, seeks or {})
            if self._assigned is not assigned or self._revoking is not None:
                return  # taken away while it was asked where to begin: the next poll tells of that first
            for partition, offset in offsets.items():
                self._kafka.seek(partition, offset)
            self._assigned = None

    async def _starts(self, assigned: set[TopicPartition], seeks: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
        """Return where to begin. Raises OffsetLost where that is not in the log."""
        known: dict[TopicPartition, int] = {}
        for partition in assigned:
            offset = seeks.get(partition)
            if offset is None and self._group is not None:
                offset = await self._kafka.committed(partition)
            if offset is not None:
                known[partition] = offset
        if known:
            begins, ends = await self.begin_offsets(known), await self.end_offsets(known)
            for partition, offset in known.items():
                within(partition, offset, begins[partition], ends[partition])
        if unset := assigned - known.keys():
            known |= await (self._kafka.end_offsets(unset) if self._from_end else self._kafka.beginning_offsets(unset))
        return known

    def _fault(self, what: str, error: Exception) -> KafkaFault:
        if not coordinator.displaced(self._kafka):
            return KafkaFault(f"{what}: {error!r}")
        return Displaced(
            f"another process is {self._cluster.instance!r} in group {self._group} now, or this one was silent for "
            f"{_SESSION_MS // 1000} s; it ends, and may be started again"
        )

    def _interrupt(self) -> None:
        if self._polling is not None:
            self._polling.reschedule(asyncio.get_running_loop().time())


def within(partition: TopicPartition, offset: int, begin: int, end: int) -> None:
    """Raise OffsetBehind or OffsetAhead where the offset to read next is not in a log of [begin, end)."""
    what = f"{partition.topic} partition {partition.partition}: the record to read next is {offset:,}"
    if offset < begin:
        raise OffsetBehind(f"{what}, but the log begins at {begin:,}: retention took {begin - offset:,} unread", begin - offset)
    if offset > end:
        raise OffsetAhead(
            f"{what}, but the log ends at {end:,}: the brokers lost {offset - end:,} records, or this is another log",
            offset - end,
        )


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    """Runs in aiokafka's coordination task, which sends heartbeats meanwhile; it passes the word on to `poll`."""

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer

    async def on_partitions_revoked(self, revoked: Any) -> None:
        consumer = self._consumer
        if consumer._closing:
            return
        consumer._revoking = set(revoked)
        consumer._released.clear()
        consumer._interrupt()
        await consumer._released.wait()

    async def on_partitions_assigned(self, assigned: Any) -> None:
        self._consumer._assigned = set(assigned)
        self._consumer._interrupt()
