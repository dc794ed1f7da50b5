"""Rebuilds a partition: from its last savepoint and the tail of kalshi.trades.v1, and by doing again what came after it.

What is done again was written before, so it is not written twice; but it is compared with what stands in kalshi.book.v1, market
by market, and a difference stops the service: a log that is not what its inputs make is continued by nobody.

Call it only after the partition's transactional producer has started: that ends the transaction of whoever wrote before and
keeps it from writing again, so what is read here is all there is.
"""

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from kalshibook_core.kafka import topics
from kalshibook_core.kafka.cluster import Cluster, partition_of
from kalshibook_core.kafka.consumer import Consumer, Record, TopicPartition
from kalshibook_core.kafka.errors import OffsetLost
from kalshibook_core.kafka.reader import read_partition
from kalshibook_core.kafka.topics import Topic
from kalshibook_core.orderbook.checksum import to_signed
from kalshibook_core.wire import codec
from kalshibook_core.wire.events import BY_REST, BookEvent, MarketMemory, Trade
from kalshibook_core.wire.raw import AT_ONCE, RawReader
from services.deduplicator.partition import Partition


class BrokenLog(Exception):
    """The stored events of a market are not what the raw records make, so they cannot be continued."""


async def restore(cluster: Cluster, number: int, partition: Partition, committed: Callable[[], Awaitable[int | None]]) -> int:
    """Bring `partition`, which is new, to where its committed events end; return the raw offset it goes on at.

    `committed` returns the group's raw offset. Raises BrokenLog, and OffsetLost if retention took raw records since the
    savepoint.
    """
    saved: dict[str, MarketMemory] = {}
    async for memory in _events(cluster, topics.MEMORY, number):
        saved[memory.market_ticker] = memory
    since = max((memory.raw_offset for memory in saved.values()), default=-1) + 1
    trades = await _trades_before(cluster, number, partition.window.size, since)
    assert partition.restore(saved.values(), trades) == since
    last, reached = await _last_events(cluster, number)
    until = max(await committed() or 0, reached, since)
    if until > since:
        reader, records = RawReader(), list[Record]()
        async for record in read_partition(cluster, topics.RAW, number, since or None, until):
            records.append(record)
            if len(records) == AT_ONCE:
                _do_again(partition, records, reader, cluster, number)
                records.clear()
        _do_again(partition, records, reader, cluster, number)
    for ticker, event in last.items():
        log = partition.market(ticker).book
        if (log.version, to_signed(log.book.checksum)) != (event.version, event.checksum):
            raise BrokenLog(
                f"{ticker}: kalshi.book.v1 ends with version {event.version}, checksum {event.checksum}; the raw records before "
                f"offset {until} make version {log.version}, checksum {to_signed(log.book.checksum)}"
            )
    return until


def _do_again(partition: Partition, records: Sequence[Record], reader: RawReader, cluster: Cluster, number: int) -> None:
    deque(partition.events(records, reader, lambda key: partition_of(key, cluster.partitions) == number), maxlen=0)


async def _last_events(cluster: Cluster, number: int) -> tuple[dict[str, BookEvent], int]:
    """Return each market's last book event since the reconstructor's checkpoints, and the raw offset they reach to at least."""
    resume, reached = None, 0
    async for checkpoint in _events(cluster, topics.CHECKPOINTS, number):
        resume = max(resume or 0, checkpoint.resume_offset)
    last: dict[str, BookEvent] = {}
    async for event in _events(cluster, topics.BOOK, number, resume):
        before = last.get(event.market_ticker)
        if before is not None and event.version != before.version + 1:
            raise BrokenLog(f"{event.market_ticker}: version {event.version} follows {before.version} in kalshi.book.v1")
        last[event.market_ticker] = event
        reached = max(reached, event.raw_offset + 1)
    return last, reached


async def _trades_before(cluster: Cluster, number: int, count: int, raw_offset: int) -> deque[Trade]:
    """Return the last `count` trades that connections delivered in raw records before `raw_offset`."""
    where = TopicPartition(cluster.topic(topics.TRADES), number)
    async with Consumer(cluster, [topics.TRADES], partitions=[number]) as consumer:
        end = (await consumer.end_offsets([where]))[where]
    reach = 2 * count  # gaps and transaction markers take offsets too, so it may have to be doubled
    while True:
        start = max(0, end - reach)
        found: deque[Trade] = deque(maxlen=count)
        try:
            async for event in _events(cluster, topics.TRADES, number, start or None, end):
                if isinstance(event, Trade) and event.raw_offset < raw_offset and event.connection != BY_REST:
                    found.append(event)
        except OffsetLost:
            reach, found = end, deque(maxlen=count)  # older than the first record: read from there
            continue
        if len(found) == count or not start:
            return found
        reach *= 2


async def _events(
    cluster: Cluster, topic: Topic, number: int, start: int | None = None, end: int | None = None
) -> AsyncIterator[Any]:
    async for record in read_partition(cluster, topic, number, start, end):
        if record.value is not None:
            yield codec.decode(record.value)
