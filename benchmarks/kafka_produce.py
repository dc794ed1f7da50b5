"""Frames a second through our producer, next to bare aiokafka given the same bytes: whole batches at best, and `send` each."""

import asyncio
import time
import uuid
from typing import Any

from aiokafka import AIOKafkaProducer

from benchmarks import Row, frames
from kalshibook_core.kafka import admin, topics
from kalshibook_core.kafka.cluster import Cluster, partition_of
from kalshibook_core.kafka.consumer import TopicPartition
from kalshibook_core.kafka.producer import Producer
from kalshibook_core.wire import codec

NAME = "kafka_produce"
COUNT = 100_000
_CHUNK = 500  # frames a gatherer reads from its sockets before it looks at the broker again


def run(addresses: Any) -> list[Row]:
    """Measure; the topics are made for it and left to the broker's retention."""
    return asyncio.run(_measure(addresses.kafka))


async def _measure(brokers: str) -> list[Row]:
    cluster = Cluster(brokers, f"bench{uuid.uuid4().hex[:6]}.", 4)
    await admin.ensure_topics(cluster, (topics.RAW, topics.BOOK))
    records = [(frames.ticker(n).encode(), codec.encode(frames.raw(n))) for n in range(COUNT)]
    bare = await _bare_batches(cluster, records)
    rows = [
        Row.of(f"producer, {name}", await _ours(cluster, records, name), "frames/s", bare) for name in ("lz4", "zstd", "none")
    ]
    rows.append(Row.of("aiokafka send() of each, lz4", await _bare_send(cluster, records[: COUNT // 10]), "frames/s", bare))
    rows.append(Row.of("a transaction of 500 and its offsets", await _transactions(cluster, records), "frames/s", bare))
    return rows


async def _bare_batches(cluster: Cluster, records: list[tuple[bytes, bytes]]) -> float:
    """Fill whole batches and send them, with no linger, no bound, no bookkeeping: what aiokafka can do with these bytes."""
    topic = cluster.topic(topics.RAW)
    producer = AIOKafkaProducer(
        bootstrap_servers=cluster.brokers, enable_idempotence=True, compression_type="lz4", max_batch_size=512 * 1024
    )
    await producer.start()
    try:
        began = time.perf_counter()
        batches = {partition: producer.create_batch() for partition in range(cluster.partitions)}
        sent = []
        for key, value in records:
            partition = partition_of(key, cluster.partitions)
            if batches[partition].append(timestamp=None, key=key, value=value) is None:
                sent.append(await producer.send_batch(batches[partition], topic, partition=partition))
                batches[partition] = producer.create_batch()
                batches[partition].append(timestamp=None, key=key, value=value)
        sent += [await producer.send_batch(batch, topic, partition=partition) for partition, batch in batches.items()]
        await asyncio.gather(*sent)
        return len(records) / (time.perf_counter() - began)
    finally:
        await producer.stop()


async def _bare_send(cluster: Cluster, records: list[tuple[bytes, bytes]]) -> float:
    topic = cluster.topic(topics.RAW)
    producer = AIOKafkaProducer(
        bootstrap_servers=cluster.brokers, enable_idempotence=True, compression_type="lz4", max_batch_size=512 * 1024, linger_ms=5
    )
    await producer.start()
    try:
        began = time.perf_counter()
        await asyncio.gather(*[await producer.send(topic, value, key) for key, value in records])
        return len(records) / (time.perf_counter() - began)
    finally:
        await producer.stop()


async def _ours(cluster: Cluster, records: list[tuple[bytes, bytes]], compression: str) -> float:
    async with Producer(cluster, compression=None if compression == "none" else compression) as producer:
        began = time.perf_counter()
        for start in range(0, len(records), _CHUNK):
            for key, value in records[start : start + _CHUNK]:
                producer.add(topics.RAW, key, value)
            await producer.room()
            await asyncio.sleep(0)  # as a socket's reader gives way
        await producer.flush()
        return len(records) / (time.perf_counter() - began)


async def _transactions(cluster: Cluster, records: list[tuple[bytes, bytes]]) -> float:
    count, source = 50, TopicPartition(cluster.topic(topics.RAW), 0)
    async with Producer(cluster, cluster.group("bench")) as producer:
        began = time.perf_counter()
        for number in range(count):
            async with producer.transaction():
                for key, value in records[:_CHUNK]:
                    producer.add(topics.BOOK, key, value)
                await producer.commit_offsets({source: number}, cluster.group("kb-bench"))
        return count * _CHUNK / (time.perf_counter() - began)
