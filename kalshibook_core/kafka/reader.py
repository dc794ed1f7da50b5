"""Reads a bounded range of one partition, as a restore does.

Promises: every readable record of [start, end) in order, once, and an end; a start that retention has
passed by raises OffsetLost.
"""

from collections.abc import AsyncIterator

from kalshibook_core.kafka.cluster import Cluster
from kalshibook_core.kafka.consumer import Consumer, Record, TopicPartition
from kalshibook_core.kafka.topics import Topic


async def read_partition(
    cluster: Cluster,
    topic: Topic,
    partition: int,
    start: int | None = None,
    end: int | None = None,
    *,
    read_committed: bool = True,
) -> AsyncIterator[Record]:
    """Yield the records with start <= offset < end; from the first one if `start` is None, to the end as it is now if `end` is.

    Offsets have holes (compaction, transaction markers), so fewer than end - start records may come.
    """
    where = TopicPartition(cluster.topic(topic), partition)

    async def begin(assigned: set[TopicPartition]) -> dict[TopicPartition, int]:
        return {} if start is None else {where: start}

    async with Consumer(cluster, [topic], partitions=[partition], read_committed=read_committed, on_assigned=begin) as consumer:
        last = (await consumer.end_offsets([where]))[where]
        stop = last if end is None else min(end, last)
        batch = await consumer.poll(timeout_ms=0)
        while True:
            for record in batch.get(where, ()):
                if record.offset >= stop:
                    return
                yield record
            if await consumer.position(where) >= stop:
                return
            batch = await consumer.poll(timeout_ms=500)
