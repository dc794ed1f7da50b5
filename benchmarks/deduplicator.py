"""How many raw frames a second one deduplicator process takes, of one gatherer and of three, beside a loop that passes bytes on.

Both read the raw topic as a group member and write in a transaction a batch and partition; the bare loop neither decodes, nor
numbers, nor encodes, and writes of three gatherers' frames every third. "Of its own CPU": by what the process itself used of it,
which on a machine shared with the broker and others depends less on them.
And what a transaction costs where there is little to do, beside producing the same record without one.
"""

import asyncio
import random
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
from kalshibook_core.runtime.settings import NOWHERE
from kalshibook_core.wire import codec
from kalshibook_core.wire.events import RawFrame
from services.deduplicator.serve import Member
from services.deduplicator.settings import Settings

NAME = "deduplicator"
FRAMES = 360_000
BATCH = 10_000


def run(addresses: Any) -> list[Row]:
    """Measure on the broker at `addresses.kafka`."""
    return asyncio.run(_measure(addresses.kafka))


async def _measure(brokers: str) -> list[Row]:
    rows = []
    for gatherers in (1, 3):
        cluster = Cluster(brokers, f"bench{uuid.uuid4().hex[:6]}.")
        await admin.ensure_topics(cluster)
        async with Producer(cluster) as producer:
            for raw in _raws(gatherers):
                producer.add(topics.RAW, raw.market_ticker.encode(), codec.encode(raw))
                if producer.added % 5000 == 0:
                    await producer.room()
        ours = await _ours(cluster)  # first: it would not take what the bare loop writes for its own
        bare = await _bare(cluster, gatherers)
        of = "one gatherer" if gatherers == 1 else f"{gatherers} gatherers"
        rows.append(Row.of(f"deduplicator, {of}", ours[0], "frames/s", bare[0]))
        rows.append(Row.of(f"deduplicator, {of}, of its own CPU", ours[1], "frames/s", bare[1]))
    one = await _record_ms(cluster, True), await _record_ms(cluster, False)
    return [*rows, Row.of("deduplicator, a transaction of one event", one[0], "ms", one[1])]


class _Clock:
    """Wall and CPU time since it was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def rates(self, count: int) -> tuple[float, float]:
        """Return how many a second of each."""
        return count / (time.perf_counter() - self._wall), count / (time.process_time() - self._cpu)


async def _ours(cluster: Cluster) -> tuple[float, float]:
    member, stop = Member(Settings(cluster, BATCH, 20, 50_000, 10_000, 300_000_000, 50_000, NOWHERE)), asyncio.Event()

    async def watch() -> tuple[float, float]:
        while not member.ready():  # noqa: ASYNC110  (watched from outside, as a supervisor would)
            await asyncio.sleep(0.001)
        clock = _Clock()
        while member.counters()["frames_total"] != FRAMES:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        stop.set()
        return clock.rates(FRAMES)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(member.run(stop))
        rates = tasks.create_task(watch())
    return rates.result()


async def _bare(cluster: Cluster, gatherers: int) -> tuple[float, float]:
    group = "bench-bare"
    async with Consumer(cluster, [topics.RAW], group) as consumer, asyncio.TaskGroup() as lifetimes:
        producers = [Producer(cluster, f"{cluster.group(group)}-{n}", linger_ms=0) for n in range(cluster.partitions)]
        opened, done = [asyncio.Event() for _ in producers], asyncio.Event()
        for producer, event in zip(producers, opened, strict=True):
            lifetimes.create_task(_keep_open(producer, event, done))
        for event in opened:
            await event.wait()
        clock, count = None, 0
        while count < FRAMES:
            batch = await consumer.poll(BATCH)
            clock = clock or _Clock()
            async with asyncio.TaskGroup() as tasks:
                for where, records in batch.items():
                    count += len(records)
                    tasks.create_task(_pass_on(producers[where.partition], where, records, cluster.group(group), gatherers))
        assert clock is not None
        rates = clock.rates(FRAMES)
        done.set()
    return rates


async def _keep_open(producer: Producer, opened: asyncio.Event, done: asyncio.Event) -> None:
    async with producer:
        opened.set()
        await done.wait()


async def _pass_on(producer: Producer, where: Any, records: list[Any], group: str, gatherers: int) -> None:
    async with producer.transaction():
        for record in records[::gatherers]:
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


def _raws(gatherers: int) -> Iterator[RawFrame]:
    """Yield the frames of gatherers that hear the same, now one and now the other ahead by up to thirty frames."""
    rng = random.Random(1)
    streams = [_heard(number, FRAMES // gatherers) for number in range(gatherers)]
    while streams:
        stream = rng.choice(streams)
        for _ in range(rng.randrange(1, 30)):
            raw = next(stream, None)
            if raw is None:
                streams.remove(stream)
                break
            yield raw


def _heard(gatherer: int, count: int) -> Iterator[RawFrame]:
    deep = [[f"0.{cents:02d}00", "100000000.00"] for cents in range(1, 100)]  # so that no delta takes a level below zero
    for number in range(count):
        raw = frames.raw(number)
        if number < frames.MARKETS:
            msg = {"market_ticker": frames.ticker(number), "yes_dollars_fp": deep, "no_dollars_fp": deep}
            payload = orjson.dumps({"type": "orderbook_snapshot", "sid": 2, "seq": number, "msg": msg})
        else:
            payload = raw.payload.replace(b'"}}', b'","ts_ms":%d}}' % (raw.recv_us // 1000))
        times = raw.recv_us + 137 * gatherer
        yield raw._replace(gatherer=f"g{gatherer + 1}", recv_us=times, clock_us=times, payload=payload)
