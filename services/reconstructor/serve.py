"""The whole process: fold the book topic, write checkpoints, show the latest books, audit them; start over where partitions were
lost."""

import asyncio
import gc
from collections.abc import Iterable
from contextlib import AsyncExitStack
from typing import Final

import redis.asyncio
import structlog

from kalshibook_core.kafka import topics
from kalshibook_core.kafka.cluster import Cluster, partition_of
from kalshibook_core.kafka.consumer import Consumer, Record, TopicPartition
from kalshibook_core.kafka.errors import Fenced
from kalshibook_core.kafka.producer import Producer
from kalshibook_core.kafka.reader import read_partition
from kalshibook_core.orderbook.checksum import to_signed
from kalshibook_core.runtime import clock, health, logs
from kalshibook_core.wire import codec, events
from services.reconstructor.audits import Audits, Outcome, judge, read
from services.reconstructor.checkpointing import PartitionBooks
from services.reconstructor.counters import Counters
from services.reconstructor.fold import fold
from services.reconstructor.latest import Latest
from services.reconstructor.live_book import Corruption, LiveBook
from services.reconstructor.settings import Settings

GROUP: Final = "kb-reconstructor"

_POLL_RECORDS: Final = 2_000
_WRITE_SECONDS: Final = 1.0  # how long a checkpoint waits for others of its partition, to share a transaction

_log = structlog.get_logger()


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """Serve until `stop` is set, then write down every book that moved and show it."""
    counters = Counters()
    async with AsyncExitStack() as opened:
        await opened.enter_async_context(
            health.serve(settings.health, lambda: counters.ready, counters.shown, service="reconstructor")
        )
        client = await opened.enter_async_context(redis.asyncio.from_url(settings.redis_url, socket_timeout=5))
        latest = Latest(client, settings.cluster.prefix, counters)
        folded, audits = asyncio.Event(), Audits()
        outcomes = await opened.enter_async_context(Producer(settings.cluster))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(latest.show(folded), name="show")
            tasks.create_task(_hear(settings.cluster, audits, counters, stop), name="hear")
            while not stop.is_set():
                try:
                    await Membership(settings, latest, audits, outcomes, counters).fold(stop)
                except Fenced as lost:
                    if settings.cluster.instance:
                        raise  # by a namesake: joining again would only push it out
                    counters.fenced += 1
                    latest.forget()
                    _log.warning("partitions_lost", why=str(lost), then="the books are dropped and the group joined again")
            folded.set()


async def _hear(cluster: Cluster, audits: Audits, counters: Counters, stop: asyncio.Event) -> None:
    """Take REST's books of all markets, from now on, until `stop` is set; whose market it is will know what to do with one."""
    async with Consumer(cluster, [topics.AUDITS], from_end=True) as consumer:
        while not stop.is_set():
            for records in (await consumer.poll(_POLL_RECORDS, timeout_ms=200)).values():
                for record in records:
                    try:
                        audits.expect(read(codec.decode(record.value)))
                    except (ValueError, AttributeError) as error:
                        counters.unreadable += 1
                        if logs.once_a_minute("unreadable_audit"):
                            _log.error("unreadable_audit", why=str(error), offset=record.offset)


class Membership:
    """One membership in the group: the books of the partitions it was given, and a producer of its own for each."""

    def __init__(self, settings: Settings, latest: Latest, audits: Audits, outcomes: Producer, counters: Counters) -> None:
        self._settings = settings
        self._cluster = settings.cluster
        self._latest = latest
        self._audits = audits
        self._outcomes = outcomes
        self._counters = counters
        self._books: dict[TopicPartition, PartitionBooks] = {}
        self._behind: dict[TopicPartition, int] = {}  # where a partition ended when it was assigned, until that is reached
        self._producers: dict[TopicPartition, Producer] = {}
        self._opened = AsyncExitStack()
        self._written_at = clock.monotonic()

    async def fold(self, stop: asyncio.Event) -> None:
        """Read until `stop` is set. Raises Fenced when another process has taken a partition over."""
        consumer = Consumer(self._cluster, [topics.BOOK], GROUP, on_assigned=self._assigned, on_revoked=self._revoked)
        async with self._opened, consumer:
            self._consumer = consumer
            while not stop.is_set():
                for partition, records in (await consumer.poll(_POLL_RECORDS, timeout_ms=200)).items():
                    self._apply(partition, records)
                for partition in list(self._behind):
                    await self._catch_up(partition)
                if clock.monotonic() - self._written_at >= _WRITE_SECONDS:
                    await self._write()
                    self._count()
                    self._audit()
                await asyncio.sleep(0)  # a poll that finds records waiting does not yield, and `show` wants its turn
            await self._write(rest=True)

    def _apply(self, partition: TopicPartition, records: list[Record]) -> None:
        books, now_us, counters = self._books[partition], clock.now_us(), self._counters
        show = None if partition in self._behind else self._latest.changed
        for record, outcome in zip(records, fold(books, records, now_us), strict=True):
            if outcome is None:
                counters.repeated += 1
            elif isinstance(outcome, LiveBook):
                counters.events += 1
                if show is not None:
                    show(outcome)
            elif isinstance(outcome, Corruption):
                why, number = str(outcome), partition.partition
                _log.error("corrupt_book", why=why, partition=number, then="not shown until it is repaired")
                self._latest.changed(books.books[outcome.ticker])
            else:
                counters.unreadable += 1
                if logs.once_a_minute("unreadable"):
                    _log.error("unreadable_record", why=str(outcome), partition=partition.partition, offset=record.offset)

    async def _catch_up(self, partition: TopicPartition) -> None:
        # Until a partition is folded to its end its books are older than what Redis may hold, so none is shown.
        if await self._consumer.position(partition) >= self._behind[partition]:
            del self._behind[partition]
            for live in self._books[partition].books.values():
                self._latest.changed(live)
            self._counters.ready = not self._behind
            self._count()

    async def _write(self, rest: bool = False) -> None:
        """Write the checkpoints that are due (with `rest`: of all that moved), a transaction a partition.

        1. Checkpoints are added to the transaction. A crash leaves none: the next owner folds from the checkpoints before.
        2. The group's offset moves to where a fold must begin, in the same transaction. It is for whoever watches the lag; a
           restore goes by the `resume_offset` of the checkpoints.
        3. Commit. A crash after it leaves both, and the next owner begins behind them. A crash before leaves neither.
        """
        now_us = clock.now_us()
        self._written_at = clock.monotonic()
        for partition, books in self._books.items():
            checkpoints = books.rest() if rest else books.due(now_us)
            if not checkpoints:
                continue
            producer = self._producers[partition]
            async with producer.transaction():
                for checkpoint in checkpoints:
                    producer.add(topics.CHECKPOINTS, checkpoint.market_ticker.encode(), codec.encode(checkpoint))
                await producer.commit_offsets({partition: books.resume_offset}, self._cluster.group(GROUP))
            self._counters.checkpoints += len(checkpoints)

    async def _assigned(self, ours: set[TopicPartition]) -> dict[TopicPartition, int]:
        self._counters.ready = False
        for partition in sorted(ours):
            # The producer first: it fences whoever wrote this partition before and ends what he had begun.
            name = self._cluster.group(f"{GROUP}-{partition.partition}")
            self._producers[partition] = await self._opened.enter_async_context(Producer(self._cluster, name))
            checkpoints = await self._checkpoints(partition.partition)
            gc.disable()  # millions of levels are made and none is garbage: looking for some takes a third of the time
            try:
                self._books[partition] = PartitionBooks(map(codec.decode, checkpoints), self._settings.policy)
            finally:
                gc.enable()
        gc.freeze()
        self._behind = await self._consumer.end_offsets(ours)
        _log.info("assigned", partitions=len(ours), markets=sum(len(books.books) for books in self._books.values()))
        return {partition: self._books[partition].next_offset for partition in ours}

    async def _checkpoints(self, partition: int) -> Iterable[bytes]:
        """Return the last one of each market; the very last of all has the greatest `resume_offset`."""
        found: dict[bytes, bytes] = {}
        async for record in read_partition(self._cluster, topics.CHECKPOINTS, partition):
            if record.value is not None:
                found[record.key] = record.value
        return found.values()

    async def _revoked(self, _: set[TopicPartition]) -> None:
        # What is not written down the next owner folds from the topic; writing it now would only delay the hand-over.
        self._books.clear()
        self._behind.clear()
        self._producers.clear()
        self._latest.forget()
        await self._opened.aclose()

    def _audit(self) -> None:
        lag = self._consumer.lag()
        topic, partitions = self._cluster.topic(topics.BOOK), self._cluster.partitions

        def where(ticker: str) -> TopicPartition:
            return TopicPartition(topic, partition_of(ticker.encode(), partitions))

        def live(ticker: str) -> LiveBook | None:
            books = self._books.get(where(ticker))
            return books.books.get(ticker) if books is not None else None

        now_us = clock.now_us()
        for audit in self._audits.due(now_us, live, lambda ticker: lag.get(where(ticker), 0) > _POLL_RECORDS):
            book = live(audit.ticker)
            assert book is not None
            outcome = judge(book, audit)
            self._counters.audits[outcome] += 1
            told = events.Audited(
                audit.ticker, outcome, audit.from_us, audit.to_us, to_signed(audit.checksum),
                book.version, to_signed(book.book.checksum), now_us,
            )  # fmt: skip
            self._outcomes.add(topics.AUDITED, audit.ticker.encode(), codec.encode(told))
            if outcome is Outcome.MISMATCH:
                self._counters.mismatch = f"{audit.ticker} version {book.version}, {audit.from_us} to {audit.to_us}"
                _log.error(
                    "audit_mismatch",
                    market_ticker=audit.ticker,
                    version=book.version,
                    from_us=audit.from_us,
                    to_us=audit.to_us,
                    do="compare the raw topic's frames of that time with its REST record of channel orderbook",
                )

    def _count(self) -> None:
        counters, consumer = self._counters, self._consumer
        counters.markets = sum(len(books.books) for books in self._books.values())
        counters.corrupt = sum(len(books.corrupt) for books in self._books.values())
        counters.lag_records = sum(consumer.lag().values())
