"""The persister while Postgres answers nothing, and afterwards: what it takes of memory as events wait, how fast it catches up.

Its offsets are locked by another session, so every transaction of its own stands still, while a million events are published.
Then the lock is let go. Bare is the memory before, and the rate at which the same process wrote what came before.
"""

import asyncio
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any, Final

import asyncpg
import psutil

from benchmarks import Row, database
from benchmarks.persister import deltas, publish
from kalshibook_core.kafka import admin
from kalshibook_core.kafka.cluster import Cluster
from tests.support.service import Service

NAME = "outage"

_BEFORE: Final = 200_000
_WAITING: Final = 1_000_000
_STILL_SECONDS: Final = 5.0  # after all is published, so that what would be fetched meanwhile has been


def run(addresses: Any) -> list[Row]:
    """Measure against the Postgres and the Kafka of `addresses`, in a database and topics of its own."""
    return asyncio.run(_run(addresses.postgres, Cluster(addresses.kafka, f"bench-{uuid.uuid4().hex[:8]}.", 2)))


async def _run(server: str, cluster: Cluster) -> list[Row]:
    flow = deltas(_BEFORE + _WAITING)
    async with database.fresh(server) as dsn:
        await admin.ensure_topics(cluster)
        await publish(cluster, flow[:_BEFORE])
        with tempfile.TemporaryDirectory() as folder:
            async with Service("persister", cluster, Path(folder) / "log", KB_POSTGRES_DSN=dsn) as service:
                usual = await _written(service, _BEFORE)
                memory = psutil.Process(service.process.pid).memory_info  # type: ignore[union-attr]
                before = memory().rss
                other = await asyncpg.connect(dsn)
                async with other.transaction():
                    await other.execute("LOCK TABLE consumer_offsets")
                    publishing = asyncio.create_task(publish(cluster, flow[_BEFORE:]))  # noqa: TID251  (beside the sampling)
                    peak, until = 0, 0.0
                    while not publishing.done() or time.perf_counter() < until:
                        if not publishing.done():
                            until = time.perf_counter() + _STILL_SECONDS
                        peak = max(peak, memory().rss)
                        await asyncio.sleep(0.05)
                    await publishing
                    stood = await service.counter("events_total")
                    assert stood == _BEFORE, f"{stood} events were written through the lock"
                await other.close()
                caught_up = await _written(service, _BEFORE + _WAITING)
                after = memory().rss
    return [
        Row.of(f"outage: peak memory of the persister as {_WAITING:,} events wait (bare: before)", _mb(peak), "MB", _mb(before)),
        Row.of("outage: memory of the persister when it has caught up (bare: before)", _mb(after), "MB", _mb(before)),
        Row.of("outage: caught up with them (bare: what came before)", caught_up, "events/s", usual),
    ]


async def _written(service: Service, events: int) -> int:
    """Return how many a second it writes, from the first it has written on, until it is so many."""
    first = last = (await service.counter("events_total") or 0, time.perf_counter())
    while last[0] < events:
        await asyncio.sleep(0.02)
        last = await service.counter("events_total") or 0, time.perf_counter()
        first = first if first[0] else last
    return round((last[0] - first[0]) / (last[1] - first[1]))


def _mb(size: int) -> float:
    return round(size / 1e6, 1)
