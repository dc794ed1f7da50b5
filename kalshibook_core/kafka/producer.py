"""A producer that fills one batch per partition by itself and never loses a record in silence.

Promises: `add` never waits; order within a partition is the order of `add`; a retry writes nothing twice (idempotence,
acks=all); `flush` returns when all that was added is on the broker's log, or raises. The first failure is final: from then on
every call raises it, so a service stops, and starts again from what its input's offsets say.

With a transactional id what is added within `transaction()` is seen by readers of committed records altogether or not at all. The
broker acknowledges a commit some milliseconds before it shows in every partition; but a producer that starts with the same id
waits until the transaction before it is complete. So who restores from its own output opens its producer first.

Memory is bounded by `room`: a caller that awaits it once per receive loop has at most `max_buffered` bytes unacknowledged
plus what it adds between two calls.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Final, Self

import structlog
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import IllegalOperation, KafkaError, ProducerFenced

from kalshibook_core.kafka.admin import MAX_RECORD_BYTES
from kalshibook_core.kafka.cluster import Cluster, partition_of
from kalshibook_core.kafka.errors import Fenced, ProduceFailed
from kalshibook_core.kafka.topics import Topic

_RECORD_OVERHEAD: Final = 16
"""Bytes a record takes in a batch beside key and value, roughly."""

_STOP_SECONDS: Final = 5.0

_log = structlog.get_logger()

# It warns of every retry. A broker of 4.x asks for one whenever a transaction follows close on another (KIP-890), and a batch
# that is given up fails the producer anyway.
logging.getLogger("aiokafka.producer.sender").setLevel(logging.ERROR)


class _Lane:
    """One partition of one topic: the open batch, the full ones before it, and what is under way (one batch at most)."""

    __slots__ = ("acked", "added", "closed", "in_flight", "open", "open_bytes", "open_count", "partition", "topic")

    def __init__(self, topic: str, partition: int) -> None:
        self.topic = topic
        self.partition = partition
        self.open: Any = None
        self.open_bytes = 0
        self.open_count = 0
        self.closed: deque[tuple[Any, int, int]] = deque()  # (batch, bytes, records)
        self.in_flight = False
        self.added = 0
        self.acked = 0

    def close_open(self) -> None:
        self.closed.append((self.open, self.open_bytes, self.open_count))
        self.open, self.open_bytes, self.open_count = None, 0, 0


class Producer:
    """See the module. `added` and `acked` count records, `buffered` the bytes not acknowledged yet."""

    def __init__(
        self,
        cluster: Cluster,
        transactional_id: str | None = None,
        *,
        linger_ms: int = 5,
        max_batch: int = 512 * 1024,
        max_buffered: int = 64 * 1024 * 1024,
        delivery_seconds: float = 120.0,
        compression: str | None = "zstd",
        on_acked: Callable[[int, int, int], None] | None = None,
    ) -> None:
        """Prepare a producer; `async with` connects it.

        A batch waits at most `linger_ms` for company, and is sent as soon as it has `max_batch` bytes (a larger record goes
        alone). A batch or a transaction's end that the broker has not acknowledged after `delivery_seconds` fails the
        producer: an outage shorter than that is waited out. zstd takes a frame to a twentieth, lz4 to an eighth, for no less CPU
        (benchmarks/kafka_produce.py). `on_acked(partition, records, next_offset)` is called as batches are acknowledged, those
        of a partition in their order; next_offset is 0 where the broker had the batch already and does not say where.
        """
        self._cluster = cluster
        self._transactional_id = transactional_id
        self._linger = linger_ms / 1000
        self._max_batch = max_batch
        self._max_buffered = max_buffered
        self._delivery = delivery_seconds
        self._compression = compression
        self._on_acked = on_acked
        self._lanes: dict[tuple[str, int], _Lane] = {}
        self._waiting: dict[_Lane, None] = {}  # lanes with something to send, in the order they got it
        self._timer: asyncio.TimerHandle | None = None
        self._wake = asyncio.Event()
        self._progress = asyncio.Event()
        self._sending = asyncio.Lock()  # held while batches are handed to aiokafka, which waits where it must learn of a topic
        self._flushes = 0
        self._in_transaction = False
        self._failure: ProduceFailed | None = None
        self.added = 0
        self.acked = 0
        self.buffered = 0

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._kafka = AIOKafkaProducer(
            bootstrap_servers=self._cluster.brokers,
            transactional_id=self._transactional_id,
            enable_idempotence=True,
            acks="all",
            compression_type=self._compression,
            max_batch_size=self._max_batch,
            max_request_size=MAX_RECORD_BYTES,
            # With aiokafka's 100 ms a transaction that follows close on another waits most of its time.
            retry_backoff_ms=10 if self._transactional_id else 100,
            # Readers of committed records stand still behind a killed producer's transaction for at most this long.
            transaction_timeout_ms=60_000,
        )
        try:
            async with asyncio.timeout(self._delivery):
                await self._kafka.start()
        except (KafkaError, TimeoutError) as error:
            await self._kafka.stop()
            raise ProduceFailed(f"cannot connect to Kafka at {self._cluster.brokers}: {error!r}") from error
        except BaseException:
            await self._kafka.stop()
            raise
        self._tasks = asyncio.TaskGroup()
        await self._tasks.__aenter__()
        self._pump_task = self._tasks.create_task(self._pump(), name="kafka-producer")
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        # What was added before a failure elsewhere is still delivered, unless it belongs to a transaction that did not end.
        try:
            if self._failure is None and self._transactional_id is None:
                await self.flush()
        finally:
            self._pump_task.cancel()
            if self._timer is not None:
                self._timer.cancel()
            if self._failure is None and self.buffered:
                self._fail(ProduceFailed("the producer was closed before everything was delivered"))
            await self._tasks.__aexit__(None, None, None)
            await self._stop()
        if kind is None and self._failure is not None:
            raise self._failure

    def add(self, topic: Topic, key: bytes, value: bytes | None, timestamp_ms: int | None = None) -> int:
        """Append a record to its partition's open batch; return the partition. `value` None is a tombstone.

        Raises ProduceFailed after a failure.
        """
        if self._failure is not None:
            raise self._failure
        partition = partition_of(key, self._cluster.partitions)
        lane = self._lanes.get((topic.name, partition))
        if lane is None:
            lane = self._lane(topic, partition)
        batch = lane.open
        if batch is None:
            batch = self._open(lane)
        if batch.append(timestamp=timestamp_ms, key=key, value=value) is None:
            lane.close_open()
            self._wake.set()
            self._open(lane).append(timestamp=timestamp_ms, key=key, value=value)
        self._count(lane, len(key) + (len(value) if value is not None else 0) + _RECORD_OVERHEAD, 1)
        return partition

    def extend(self, topic: Topic, partition: int, rows: Sequence[tuple[bytes, bytes, int]]) -> None:
        """Do what `add` does, at half its cost, of each (key, value, timestamp_ms); their keys are all of this partition.

        Raises ProduceFailed after a failure.
        """
        if self._failure is not None:
            raise self._failure
        if not rows:
            return
        lane = self._lanes.get((topic.name, partition)) or self._lane(topic, partition)
        append, size, count = (lane.open or self._open(lane)).append, 0, 0
        for key, value, timestamp_ms in rows:
            if append(timestamp=timestamp_ms, key=key, value=value) is None:
                self._count(lane, size, count)
                lane.close_open()
                self._wake.set()
                append, size, count = self._open(lane).append, 0, 0
                append(timestamp=timestamp_ms, key=key, value=value)
            size += len(key) + len(value) + _RECORD_OVERHEAD
            count += 1
        self._count(lane, size, count)

    async def room(self) -> None:
        """Wait while more than `max_buffered` bytes are unacknowledged. Raises ProduceFailed after a failure."""
        while self.buffered > self._max_buffered and self._failure is None:
            self._progress.clear()
            await self._progress.wait()
        if self._failure is not None:
            raise self._failure

    async def flush(self) -> None:
        """Return when everything added so far is acknowledged. Raises ProduceFailed if anything failed."""
        goals = [(lane, lane.added) for lane in self._lanes.values() if lane.acked < lane.added]
        self._flushes += 1
        try:
            for lane, goal in goals:
                while lane.acked < goal and self._failure is None:
                    self._wake.set()
                    self._progress.clear()
                    await self._progress.wait()
        finally:
            self._flushes -= 1
        if self._failure is not None:
            raise self._failure

    def abandon(self) -> None:
        """Fail now rather than deliver what is not acknowledged; for who has it elsewhere as well."""
        self._fail(ProduceFailed("its owner gave up on what was not acknowledged"))

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        """Make all that is added, and the offsets committed, within the block visible together at its end, or not at all.

        An exception in the block aborts, and passes. Raises Fenced if another producer took over the transactional id. If
        it raises ProduceFailed, whether the transaction ended is known only to the broker: read the committed offsets again.
        """
        await self._end(self._kafka.begin_transaction(), "begin a transaction")
        self._in_transaction = True
        try:
            yield
            await self.flush()
        except BaseException:
            self._in_transaction = False
            if self._failure is None:
                await self._abort()
            raise
        self._in_transaction = False
        try:
            await self._end(self._kafka.commit_transaction(), "commit a transaction")
        except asyncio.CancelledError:
            self._fail(ProduceFailed("cancelled while committing a transaction"))
            raise

    async def commit_offsets(self, offsets: Mapping[TopicPartition, int], group: str) -> None:
        """Within a transaction: commit the next offsets to read of consumer group `group` (a full name, `Cluster.group`)."""
        if offsets:
            await self._end(self._kafka.send_offsets_to_transaction(dict(offsets), group), "commit offsets")

    async def _stop(self) -> None:
        if self._failure is None:
            await self._kafka.stop()
            return
        # With batches given up aiokafka's own stop may wait for a dead broker, or trip over them.
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                await self._kafka.stop()
        except Exception as error:  # noqa: BLE001  (a KeyError of its bookkeeping among them; the failure is known already)
            _log.warning("producer_stop_failed", why=repr(error))
            await self._kafka.client.close()
        if self._transactional_id is not None:
            # aiokafka keeps the failure for a waiter that will not come; asyncio would tell of it as of an error nobody saw.
            ended = self._kafka._txn_manager._transaction_waiter
            if ended is not None and ended.done():
                ended.exception()

    def _lane(self, topic: Topic, partition: int) -> _Lane:
        lane = self._lanes[topic.name, partition] = _Lane(self._cluster.topic(topic), partition)
        return lane

    def _count(self, lane: _Lane, size: int, count: int) -> None:
        lane.open_bytes += size
        lane.open_count += count
        lane.added += count
        self.buffered += size
        self.added += count

    def _open(self, lane: _Lane) -> Any:
        if self._transactional_id is not None and not self._in_transaction:
            raise RuntimeError("a transactional producer adds only within transaction()")
        lane.open = self._kafka.create_batch()
        self._waiting[lane] = None
        self._arm()
        return lane.open

    def _arm(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(self._linger, self._lingered)

    def _lingered(self) -> None:
        self._timer = None
        self._wake.set()

    async def _pump(self) -> None:
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                async with self._sending:
                    for lane in [lane for lane in self._waiting if not lane.in_flight]:
                        await self._send(lane)
        except (KafkaError, IllegalOperation) as error:
            # IllegalOperation: a batch's turn came after its transaction had been fenced or aborted.
            self._fail(error)

    async def _send(self, lane: _Lane) -> None:
        if not lane.closed:
            lane.close_open()
        batch, size, count = lane.closed.popleft()
        if not lane.closed and lane.open is None:
            del self._waiting[lane]
        lane.in_flight = True
        done = await self._kafka.send_batch(batch, lane.topic, partition=lane.partition)
        overdue = self._loop.call_later(self._delivery, self._overdue, lane)

        def acknowledged(future: "asyncio.Future[Any]") -> None:
            overdue.cancel()
            lane.in_flight = False
            error = None if future.cancelled() else future.exception()
            if future.cancelled() or error is not None:
                self._fail(error or ProduceFailed("sending was cancelled"))
                return
            lane.acked += count
            self.acked += count
            self.buffered -= size
            if self._on_acked is not None:
                self._on_acked(lane.partition, count, future.result().offset + count if future.result().offset >= 0 else 0)
            self._progress.set()
            if lane.closed or (self._flushes and lane.open is not None):
                self._wake.set()
            elif lane.open is not None:
                self._arm()

        done.add_done_callback(acknowledged)

    def _overdue(self, lane: _Lane) -> None:
        silent = f"no acknowledgement for {lane.topic}/{lane.partition} after {self._delivery:g} s"
        self._fail(ProduceFailed(f"{silent}: is Kafka at {self._cluster.brokers} up?"))

    def _fail(self, error: BaseException) -> None:
        manager = self._kafka._txn_manager
        if isinstance(error, IllegalOperation) and manager is not None and manager.is_fatal_error():
            error = manager.wait_for_transaction_end().exception() or error  # what ended the transaction under the batch
        if self._failure is not None and (isinstance(self._failure, Fenced) or not isinstance(error, ProducerFenced)):
            return  # the first tells, but being fenced tells more
        if isinstance(error, ProduceFailed):
            self._failure = error
        elif isinstance(error, ProducerFenced):
            self._failure = Fenced(f"another producer took over the transactional id {self._transactional_id}")
        else:
            self._failure = ProduceFailed(f"Kafka did not take a batch: {error!r}")
        self._failure.__cause__ = None if error is self._failure else error
        _log.error("produce_failed", why=str(self._failure), unacknowledged=self.added - self.acked)
        # aiokafka retries an idempotent batch for ever and would wait for it when it is stopped; it has no public way to give up.
        self._kafka._message_accumulator.fail_all(self._failure)
        self._progress.set()

    async def _end(self, step: Any, what: str) -> None:
        if self._failure is not None:
            step.close()
            raise self._failure
        try:
            async with asyncio.timeout(self._delivery):
                await step
        except (KafkaError, TimeoutError) as error:
            if isinstance(error, ProducerFenced):
                self._fail(error)
            else:
                self._fail(ProduceFailed(f"could not {what}: {error!r}"))
            assert self._failure is not None
            raise self._failure from error

    async def _abort(self) -> None:
        # Batches still here were never sent; those under way are awaited by aiokafka and voided by the abort marker.
        async with self._sending:
            for lane in self._waiting:
                lane.closed.clear()
                lane.open, lane.open_bytes, lane.open_count = None, 0, 0
            self._waiting.clear()
        try:
            await self._end(self._kafka.abort_transaction(), "abort a transaction")
        except ProduceFailed:
            return  # told by `_fail`; the exception that led here matters more
        for lane in self._lanes.values():
            lane.added = lane.acked
        self.added, self.buffered = self.acked, 0
