"""Records a second through our consumer, next to bare aiokafka `getmany` of the same topic, and with decoding."""

import asyncio
import time
import uuid
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.consumer import fetcher

from benchmarks import Row, frames
from kalshibook_core.kafka import admin, records, topics
from kalshibook_core.kafka.cluster import Cluster
from kalshibook_core.kafka.consumer import Consumer
from kalshibook_core.kafka.producer import Producer
from kalshibook_core.wire import codec

NAME = "kafka_consume"
COUNT = 100_000


def run(addresses: Any) -> list[Row]:
    """Measure; the topic is made for it and left to the broker's retention."""
    return asyncio.run(_measure(addresses.kafka))


async def _measure(brokers: str) -> list[Row]:
    cluster = Cluster(brokers, f"bench{uuid.uuid4().hex[:6]}.", 4)
    await admin.ensure_topics(cluster, (topics.BOOK,))
    async with Producer(cluster) as producer:
        for number in range(COUNT):
            producer.add(topics.BOOK, frames.ticker(number).encode(), codec.encode(frames.delta(number)))
            if number % 500 == 0:
                await producer.room()
    bare = await _bare(cluster)
    return [
        Row.of("consumer", await _ours(cluster, decode=False), "records/s", bare),
        Row.of("consumer and decoding", await _ours(cluster, decode=True), "records/s", bare),
    ]


async def _bare(cluster: Cluster) -> float:
    fetcher.PartitionRecords = records.AIOKAFKAS  # ours hands records over as they are
    consumer = AIOKafkaConsumer(
        cluster.topic(topics.BOOK),
        bootstrap_servers=cluster.brokers,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
        max_partition_fetch_bytes=4 * 1024 * 1024,
    )
    await consumer.start()
    try:
        got, began = 0, time.perf_counter()
        while got < COUNT:
            got += sum(map(len, (await consumer.getmany(timeout_ms=500)).values()))
        return COUNT / (time.perf_counter() - began)
    finally:
        await consumer.stop()
        records.lighten()


async def _ours(cluster: Cluster, *, decode: bool) -> float:
    async with Consumer(cluster, [topics.BOOK]) as consumer:
        got, began = 0, time.perf_counter()
        while got < COUNT:
            for fetched in (await consumer.poll()).values():
                got += len(fetched)
                if decode:
                    for record in fetched:
                        codec.decode(record.value)
        return COUNT / (time.perf_counter() - began)
