"""The persister next to the bare COPY it replaces, and what a delta takes on disk: from Kafka's bytes to committed rows.

The flow is 5,000 markets, of which the n-th moves 1/n as often as the first, in bursts of one to six deltas (recorded markets
have eight to ten in a busy tenth of a second). "persister" decodes the topic's values, builds batches, moves offsets, looks that
no version comes twice, packs and copies, as the service does, short of fetching.

The claim's bare is a COPY of the same events, each a row of a table with the same key: what whoever does not pack has to send.
The rows are made before its clock starts. The other bare is a COPY of the rows that the persister has packed already, an eleventh
as many: no claim, but what Postgres alone takes of ours, so that the rest is decoding and packing. The worst case on disk is a
delta alone of its market in its flush. "the service" is the process itself, reading what waits for it in Kafka.
"""

import asyncio
import random
import tempfile
import time
import uuid
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import asyncpg
import psutil

from benchmarks import Row, database
from kalshibook_core.kafka import admin, topics
from kalshibook_core.kafka.cluster import Cluster
from kalshibook_core.kafka.producer import Producer
from kalshibook_core.orderbook.checksum import MASK, level_weight, to_signed
from kalshibook_core.postgres import partitions, pool, runs
from kalshibook_core.wire import codec
from kalshibook_core.wire.events import BookDelta
from services.persister.batch import Batch
from services.persister.store import Store
from tests.support.service import Service

NAME = "persister"

_EVENTS = 200_000
_BATCH = 20_000
_ROUNDS = 3
_MARKETS = 5_000
_START_US = 1_786_000_000_000_000
_PLAIN = """
CREATE TABLE plain (
    effective_us bigint NOT NULL, exchange_us bigint NOT NULL, recv_us bigint NOT NULL, checksum bigint NOT NULL,
    delta bigint NOT NULL, market_id integer NOT NULL, version integer NOT NULL, price smallint NOT NULL,
    side smallint NOT NULL, PRIMARY KEY (market_id, effective_us, version))"""
_SIZE = """
SELECT sum(pg_total_relation_size(inhrelid)) / (SELECT sum(events) FROM book_events)
FROM pg_inherits WHERE inhparent = 'book_events'::regclass"""


def run(addresses: Any) -> list[Row]:
    """Measure against the Postgres of `addresses.postgres`, in a database of its own."""
    return asyncio.run(_run(addresses.postgres, Cluster(addresses.kafka, f"bench-{uuid.uuid4().hex[:8]}.", 2)))


async def _run(server: str, cluster: Cluster) -> list[Row]:
    async with database.fresh(server) as dsn:
        rows = await _measure(dsn)
        wall, cpu = await _as_a_service(dsn, cluster)
        return [
            *rows,
            Row.of("persister: the service, from Kafka", wall, "events/s", rows[0].bare),
            Row("persister: the service, from Kafka, per second of its own CPU", cpu, "events/s", None, None),
        ]


async def _measure(dsn: str) -> list[Row]:
    flow = deltas(_EVENTS)
    records = [SimpleNamespace(offset=n, value=codec.encode(event)) for n, event in enumerate(flow)]
    async with await pool.connect_pool(dsn, size=2) as connections:
        store = Store(connections)
        warm = partitions.containing("book_events", _START_US)
        assert warm is not None
        await store.prepare({warm})
        await connections.execute(_PLAIN)
        plain = [(e[2], e[3], e[4], e[8], e[7], int(e[0][14:]), e[1], e[6], e[5]) for e in flow]
        ours, bare, bare_packed = list[tuple[float, float]](), list[float](), list[float]()
        for _ in range(_ROUNDS):  # in turns, and the best of each: other programs take their share of both
            await connections.execute("TRUNCATE plain")
            bare.append(await _copied(connections, "plain", plain, _BATCH))
            await connections.execute("TRUNCATE book_events, consumer_offsets")
            ours.append(await _written(store, records, _BATCH))
            on_disk = {f"{_BATCH:,} a flush": await _a_delta(connections)}
            packed = [tuple(row) for row in await connections.fetch(f"SELECT {', '.join(runs.COLUMNS)} FROM book_events")]
            await connections.execute("TRUNCATE book_events")
            bare_packed.append(await _copied(connections, "book_events", packed, len(packed) * _BATCH // _EVENTS))
        alone = [SimpleNamespace(offset=n, value=codec.encode(e._replace(market_ticker=f"KX-{n}"))) for n, e in enumerate(flow)]
        for name, some, flush in (("1,000 a flush", records, 1_000), ("each alone in its row", alone[:_BATCH], _BATCH)):
            await connections.execute("TRUNCATE book_events, consumer_offsets")
            await _written(store, some, flush)
            on_disk[name] = await _a_delta(connections)
    rate, rate_bare, rate_packed, rate_cpu = (
        round(_EVENTS / min(times)) for times in ([wall for wall, _ in ours], bare, bare_packed, [cpu for _, cpu in ours])
    )
    return [
        Row.of("persister: book events into Postgres (bare: COPY of the same, a keyed row each)", rate, "events/s", rate_bare),
        Row.of("persister: book events into Postgres (bare: COPY of rows packed before)", rate, "events/s", rate_packed),
        Row("persister: book events per second of its own CPU", rate_cpu, "events/s", None, None),
        *(
            Row(f"persister: a delta on disk, index included, {name}", round(size, 1), "bytes", None, None)
            for name, size in on_disk.items()
        ),
    ]


async def _as_a_service(dsn: str, cluster: Cluster) -> tuple[float, float]:
    """Return how many a second the process writes while it catches up, its start left out: of the clock, and of its own CPU."""
    await admin.ensure_topics(cluster)
    await publish(cluster, deltas(_EVENTS * 2))
    with tempfile.TemporaryDirectory() as folder:
        async with Service("persister", cluster, Path(folder) / "log", KB_POSTGRES_DSN=dsn) as service:

            async def now() -> tuple[int, float, float]:
                written = await service.counter("events_total") or 0
                assert service.process is not None
                used = psutil.Process(service.process.pid).cpu_times()
                return written, time.perf_counter(), used.user + used.system

            first = last = await now()
            while last[0] < _EVENTS * 2:
                await asyncio.sleep(0.02)
                last = await now()
                first = first if first[0] else last
            return round((last[0] - first[0]) / (last[1] - first[1])), round((last[0] - first[0]) / (last[2] - first[2]))


async def publish(cluster: Cluster, events: list[BookDelta]) -> None:
    """Put book events into the topic, letting others run meanwhile."""
    async with Producer(cluster) as producer:
        for event in events:
            producer.add(topics.BOOK, event.market_ticker.encode(), codec.encode(event))
            if producer.added % 1_000 == 0:
                await asyncio.sleep(0)
                await producer.room()
        await producer.flush()


async def _written(store: Store, records: Sequence[Any], flush: int) -> tuple[float, float]:
    """Return the wall and CPU seconds it takes, `flush` records a batch."""
    source = ("kalshi.book.v1", 0)
    positions = await store.positions([source])
    started, cpu = time.perf_counter(), time.process_time()
    for first in range(0, len(records), flush):
        batch = Batch()
        batch.add(source, records[first : first + flush])
        await store.write(batch, positions)
        positions = batch.next
    return time.perf_counter() - started, time.process_time() - cpu


async def _a_delta(connections: "asyncpg.Pool[asyncpg.Record]") -> float:
    return float(await connections.fetchval(_SIZE))


async def _copied(connections: "asyncpg.Pool[asyncpg.Record]", table: str, rows: Sequence[Any], at_once: int) -> float:
    async with connections.acquire() as connection:
        started = time.perf_counter()
        for first in range(0, len(rows), at_once):
            await connection.copy_records_to_table(table, records=rows[first : first + at_once])
        return time.perf_counter() - started


def deltas(count: int) -> list[BookDelta]:
    """Return deltas of many markets, a few of them busy, 10,000 a second; every market's checksums follow from each other."""
    dice = random.Random(1)
    busy = list(accumulate(1 / n for n in range(1, _MARKETS + 1)))
    last = [(0, 0)] * _MARKETS
    made: list[BookDelta] = []
    while len(made) < count:
        [market] = dice.choices(range(_MARKETS), cum_weights=busy)
        for _ in range(dice.randint(1, 6)):
            version, checksum = last[market]
            side, price, delta = dice.randrange(2), 100 * dice.randrange(1, 100), 100 * dice.randrange(-400, 400)
            checksum = (checksum + delta * level_weight(side, price)) & MASK
            last[market] = (version + 1, checksum)
            at, n = _START_US + len(made) * 100, len(made)
            event = (version + 1, at, at, at + dice.randrange(15_000, 90_000), side, price, delta, to_signed(checksum))
            made.append(BookDelta(f"KXBENCH-26AUG-{market}", *event, "g1", 0, _START_US, 1, n, n))
    return made[:count]
