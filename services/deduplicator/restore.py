"""Rebuilds a partition from what was committed: checkpoints and kalshi.book.v1, the tail of kalshi.trades.v1, kb.deduplicator.v1.

Call it only after the partition's transactional producer has started: that ends the transaction of whoever wrote before and
keeps it from writing again, so what is read here is all there is.
"""

from collections import deque
from collections.abc import AsyncIterator
from typing import Any

from kalshibook_core.kafka import topics
from kalshibook_core.kafka.cluster import Cluster
from kalshibook_core.kafka.consumer import Consumer, TopicPartition
from kalshibook_core.kafka.errors import OffsetLost
from kalshibook_core.kafka.reader import read_partition
from kalshibook_core.kafka.topics import Topic
from kalshibook_core.wire import codec
from kalshibook_core.wire.events import Checkpoint, Trade
from services.deduplicator.partition import Partition


async def restore(cluster: Cluster, number: int, partition: Partition) -> int:
    """Bring `partition`, which is new, to where its committed events end; return the raw offset up to which they surely reach.

    Raises BrokenLog if the events contradict each other, OffsetLost if retention took events that no checkpoint covers.
    """
    next_raw, resume = 0, None
    async for saved in _events(cluster, topics.MEMORY, number):
        partition.restore(saved)
        next_raw = max(next_raw, saved.raw_offset + 1)
    checkpoints: dict[str, Checkpoint] = {}
    async for saved in _events(cluster, topics.CHECKPOINTS, number):
        checkpoints[saved.market_ticker] = saved
        resume = max(resume or 0, saved.resume_offset)
    for saved in checkpoints.values():
        partition.restore(saved)
    async for event in _events(cluster, topics.BOOK, number, resume):
        partition.replay(event)
        next_raw = max(next_raw, event.raw_offset + 1)
    for trade in await _last_trades(cluster, number, partition.window.size):
        partition.replay(trade)
        next_raw = max(next_raw, trade.raw_offset + 1)
    return next_raw


async def _last_trades(cluster: Cluster, number: int, count: int) -> deque[Trade]:
    where = TopicPartition(cluster.topic(topics.TRADES), number)
    async with Consumer(cluster, [topics.TRADES], partitions=[number]) as consumer:
        end = (await consumer.end_offsets([where]))[where]
    reach = 2 * count  # gaps and transaction markers take offsets too, so it may have to be doubled
    while True:
        start = max(0, end - reach)
        found: deque[Trade] = deque(maxlen=count)
        try:
            async for event in _events(cluster, topics.TRADES, number, start or None, end):
                if isinstance(event, Trade):
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
