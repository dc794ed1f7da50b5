"""How many raw frames a second one deduplicator process takes, beside the same loop that only passes the bytes on.

Both read the raw topic as a group member and write in a transaction a batch and partition; the bare loop neither decodes, nor
numbers, nor encodes. And what a transaction costs where there is little to do, beside producing the same record without one.
"""

import asyncio
import time
import uuid
from collections.abc import Iterator
from typing import Any

import orjson

from benchmarks import Row, frames
from kalshibook_core.kafka import admin, topics
from kalshibook_core.kafka.cluster import Cluster
from kalshibook_core.kafka.consumer import Consumer
from kalshibook_core.kafka.producer import Producer
from kalshibook_core.wire import codec
from kalshibook_core.wire.events import RawFrame
from services.deduplicator.serve import Member
from services.deduplicator.settings import Settings

NAME = "deduplicator"
FRAMES = 200_000
BATCH = 4000


def run(addresses: Any) -> list[Row]:
    """Measure on the broker at `addresses.kafka`."""
    return asyncio.run(_measure(Cluster(addresses.kafka, f"bench{uuid.uuid4().hex[:6]}.")))


async def _measure(cluster: Cluster) -> list[Row]:
    await admin.ensure_topics(cluster)
    async with Producer(cluster) as producer:
        for raw in _raws():
            producer.add(topics.RAW, raw.market_ticker.encode(), codec.encode(raw))
            if producer.added % 5000 == 0:
                await producer.room()
    ours = await _ours(cluster)  # first: it would not take what the bare loop writes for its own
    return [
        Row.of("deduplicator, one process", ours, "frames/s", await _bare(cluster)),
        Row.of(
            "deduplicator, a transaction of one event", await _record_ms(cluster, True), "ms", await _record_ms(cluster, False)
        ),
    ]


async def _ours(cluster: Cluster) -> float:
    member, stop = Member(Settings(cluster, BATCH, 20, 50_000, 10_000, 300_000_000, 50_000, "127.0.0.1", 0)), asyncio.Event()

    async def watch() -> float:
        while not member.ready():  # noqa: ASYNC110  (watched from outside, as a supervisor would)
            await asyncio.sleep(0.001)
        begun = time.perf_counter()
        while int(member.counters()["frames_total"]) < FRAMES:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        stop.set()
        return FRAMES / (time.perf_counter() - begun)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(member.run(stop))
        rate = tasks.create_task(watch())
    return rate.result()


async def _bare(cluster: Cluster) -> float:
    group = "bench-bare"
    async with Consumer(cluster, [topics.RAW], group) as consumer, asyncio.TaskGroup() as lifetimes:
        producers = [Producer(cluster, f"{cluster.group(group)}-{n}", linger_ms=0) for n in range(cluster.partitions)]
        opened, done = [asyncio.Event() for _ in producers], asyncio.Event()
        for producer, event in zip(producers, opened, strict=True):
            lifetimes.create_task(_keep_open(producer, event, done))
        for event in opened:
            await event.wait()
        begun, count = 0.0, 0
        while count < FRAMES:
            batch = await consumer.poll(BATCH)
            begun = begun or time.perf_counter()
            async with asyncio.TaskGroup() as tasks:
                for where, records in batch.items():
                    count += len(records)
                    tasks.create_task(_pass_on(producers[where.partition], where, records, cluster.group(group)))
        rate = FRAMES / (time.perf_counter() - begun)
        done.set()
    return rate


async def _keep_open(producer: Producer, opened: asyncio.Event, done: asyncio.Event) -> None:
    async with producer:
        opened.set()
        await done.wait()


async def _pass_on(producer: Producer, where: Any, records: list[Any], group: str) -> None:
    async with producer.transaction():
        for record in records:
            producer.add(topics.BOOK, record.key, record.value, record.timestamp)
        await producer.commit_offsets({where: records[-1].offset + 1}, group)


async def _record_ms(cluster: Cluster, transactional: bool) -> float:
    rounds = 50
    async with Producer(cluster, cluster.group("bench-one") if transactional else None, linger_ms=0) as producer:
        began = time.perf_counter()
        for _ in range(rounds):
            if transactional:
                async with producer.transaction():
                    producer.add(topics.TICKERS, b"KXBENCH", b"x" * 130)
            else:
                producer.add(topics.TICKERS, b"KXBENCH", b"x" * 130)
                await producer.flush()
        return (time.perf_counter() - began) * 1000 / rounds


def _raws() -> Iterator[RawFrame]:
    deep = [[f"0.{cents:02d}00", "100000000.00"] for cents in range(1, 100)]  # so that no delta takes a level below zero
    for number in range(frames.MARKETS):
        msg = {"market_ticker": frames.ticker(number), "yes_dollars_fp": deep, "no_dollars_fp": deep}
        yield frames.raw(number)._replace(
            payload=orjson.dumps({"type": "orderbook_snapshot", "sid": 2, "seq": number, "msg": msg})
        )
    for number in range(frames.MARKETS, FRAMES):
        yield frames.raw(number)
