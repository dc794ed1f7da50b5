"""The reconstructor started over: 100,000 markets' books out of their checkpoints and the events after those, until it is ready.

Of every market two checkpoints stand in the compacted topic (what the broker has not compacted yet is read too), then the events
since; each market's last checkpoint, its book after the events and every event on the way are verified. Measured is the process
itself, from before it is started until its /readyz says yes: on the clock and by its own CPU time. Bare is a consumer that
fetches the same records and looks at none.
"""

import asyncio
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import psutil

from benchmarks import Row
from kalshibook_core.kafka import admin, topics
from kalshibook_core.kafka.cluster import Cluster
from kalshibook_core.kafka.producer import Producer
from kalshibook_core.kafka.reader import read_partition
from kalshibook_core.orderbook import Book
from kalshibook_core.orderbook.checksum import to_signed
from kalshibook_core.wire import codec
from kalshibook_core.wire.events import BookDelta, Checkpoint
from tests.support.service import Service, until

NAME = "recovery"

_MARKETS = 100_000
_EVENTS = 200_000
_LEVELS = 20  # of each side
_START_US = 1_786_000_000_000_000


def run(addresses: Any) -> list[Row]:
    """Measure against the Kafka and the Redis of `addresses`."""
    return asyncio.run(_run(Cluster(addresses.kafka, f"bench-{uuid.uuid4().hex[:8]}.", 4), addresses.redis))


async def _run(cluster: Cluster, redis_url: str) -> list[Row]:
    await admin.ensure_topics(cluster)
    await _write(cluster)
    began = time.perf_counter()
    bare = sum([await _read(cluster, topic) for topic in (topics.CHECKPOINTS, topics.BOOK)])
    bare_s = time.perf_counter() - began
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        async with Service("reconstructor", cluster, Path(folder) / "log", KB_REDIS_URL=redis_url) as service:
            await service.ready()
            wall = time.perf_counter() - began
            assert service.process is not None
            used = psutil.Process(service.process.pid).cpu_times()
            counters = (await until(service.status))["counters"]
            assert counters["events_total"] == _EVENTS
            assert (counters["markets_count"], counters["corrupt_count"]) == (_MARKETS, 0)
    return [
        Row.of(f"recovery: {_MARKETS:,} markets, {bare:,} records, until ready", round(wall, 1), "s", round(bare_s, 2)),
        Row("recovery: its own CPU", round(used.user + used.system, 1), "s", None, None),
    ]


async def _read(cluster: Cluster, topic: topics.Topic) -> int:
    count = 0
    for partition in range(cluster.partitions):
        async for _ in read_partition(cluster, topic, partition):
            count += 1
    return count


async def _write(cluster: Cluster) -> None:
    """Of each market a checkpoint of version 1, then one of version 2, then the events after that."""
    ladder = [[(100 * price, 100 * (n + price)) for price in range(1, _LEVELS + 1)] for n in range(100)]
    books = [Book(levels, levels) for levels in ladder]
    async with Producer(cluster) as producer:
        for version in (1, 2):
            for n in range(_MARKETS):
                levels, checksum = ladder[n % 100], to_signed(books[n % 100].checksum)
                at = (_START_US + version, levels, levels, checksum, None, None, "g1", 0, _START_US, -1, 0)
                producer.add(topics.CHECKPOINTS, _ticker(n).encode(), codec.encode(Checkpoint(_ticker(n), version, *at)))
                await producer.room()
        moved: dict[int, Book] = {}
        for i in range(_EVENTS):
            n = i * 7919 % _MARKETS
            book = moved.setdefault(n, books[n % 100].copy())
            side, price, delta = i % 2, 100 * (i % 30 + 1), 100
            book.apply(side, price, delta)
            at_us, version = _START_US + 10 + i, 3 + i // _MARKETS
            event = BookDelta(
                _ticker(n), version, at_us, at_us, at_us, side, price, delta, to_signed(book.checksum),
                "g1", 0, _START_US, 1, i, i,
            )  # fmt: skip
            producer.add(topics.BOOK, event.market_ticker.encode(), codec.encode(event))
            await producer.room()
        await producer.flush()


def _ticker(n: int) -> str:
    return f"KXBENCH-26AUG-T{n}"
