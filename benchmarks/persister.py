"""The persister next to the bare COPY it is made of: the same rows, from Kafka's bytes to committed rows, in one process.

"persister" decodes the topic's values, builds batches, moves offsets and copies, as the service does, short of fetching; "bare"
copies rows that were made before the clock started, with nothing around it.
"""

import asyncio
import time
import uuid
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from benchmarks import Row
from kalshibook_core.postgres import migrate, partitions, pool
from kalshibook_core.wire import codec
from kalshibook_core.wire.events import BookDelta
from services.persister.batch import BOOK_COLUMNS, Batch
from services.persister.store import Store

NAME = "persister"

_EVENTS = 200_000
_BATCH = 20_000
_START_US = 1_786_000_000_000_000


def run(addresses: Any) -> list[Row]:
    """Measure against the Postgres of `addresses.postgres`, in a database of its own."""
    return asyncio.run(_run(addresses.postgres))


async def _run(server: str) -> list[Row]:
    name = f"kb_bench_{uuid.uuid4().hex[:8]}"
    admin = await asyncpg.connect(server)
    await admin.execute(f"CREATE DATABASE {name}")
    try:
        dsn = urlunsplit(urlsplit(server)._replace(path=f"/{name}"))
        await migrate.migrate(dsn)
        return await _measure(dsn)
    finally:
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await admin.close()


async def _measure(dsn: str) -> list[Row]:
    records = [SimpleNamespace(offset=n, value=codec.encode(_delta(n))) for n in range(_EVENTS)]
    source = ("kalshi.book.v1", 0)
    async with await pool.connect_pool(dsn, size=2) as connections:
        store = Store(connections)
        positions = await store.positions([source])
        started, cpu = time.perf_counter(), time.process_time()
        for first in range(0, _EVENTS, _BATCH):
            batch = Batch()
            batch.add(source, records[first : first + _BATCH])
            await store.write(batch, positions)
            positions = batch.next
        wall, cpu = time.perf_counter() - started, time.process_time() - cpu
        bytes_each = (
            await connections.fetchval(
                "SELECT sum(pg_total_relation_size(inhrelid)) FROM pg_inherits WHERE inhparent = 'book_events'::regclass"
            )
            / _EVENTS
        )
        bare = await _bare(connections)
    rate, bare_rate = _EVENTS / wall, _EVENTS / bare
    return [
        Row("persister: book events into Postgres", round(rate), "rows/s", round(bare_rate), round(rate / bare_rate, 3)),
        Row("persister: rows per second of its own CPU", round(_EVENTS / cpu), "rows/s", None, None),
        Row("persister: a delta on disk, index included", round(float(bytes_each), 1), "bytes", None, None),
    ]


async def _bare(connections: "asyncpg.Pool[asyncpg.Record]") -> float:
    async with connections.acquire() as connection:
        await connection.execute("TRUNCATE book_events")
        partition = partitions.containing("book_events", _START_US)
        assert partition is not None
        [market_id] = await connection.fetchrow("SELECT id FROM markets LIMIT 1") or (1,)
        deltas = [_delta(n) for n in range(_EVENTS)]
        rows = [
            (
                e.effective_us,
                e.exchange_us,
                e.recv_us,
                e.checksum,
                e.delta,
                market_id + n % 500,
                e.version,
                e.price,
                e.side,
                2,
                b"",
            )
            for n, e in enumerate(deltas)
        ]
        started = time.perf_counter()
        for first in range(0, _EVENTS, _BATCH):
            await connection.copy_records_to_table("book_events", columns=BOOK_COLUMNS, records=rows[first : first + _BATCH])
        return time.perf_counter() - started


def _delta(n: int) -> BookDelta:
    at = _START_US + n * 100
    return BookDelta(
        f"KXBENCH-26AUG-T{n % 500}", n // 500 + 1, at, at, at + 20_000, n % 2, 100 * (n % 99 + 1), 500 - n % 1_000,
        (n * 0x9E37_79B9_7F4A_7C15) % 2**63, "g1", 0, _START_US, 1, n, n,
    )  # fmt: skip
