"""A day of one market, 200,000 changes, as 86,400 samples by the second, as minute candles, as changes of the best levels.

The book wanders as a busy one does, about 70 levels, changes thickest at the best ones: once in bursts of five, stored together;
and once evenly, each change in a row of its own and another book in every second, the dearest there can be. Asked is the whole
route inside one process: the queries, rows unpacked and checked, the walk, JSON; without the socket, the key and the charge.
Counted is the CPU of our process, the best of three; the database's own stands apart. Bare is a loop that applies the same
changes, unpacked already, to two dicts.
"""

import asyncio
import random
import time
from typing import Any, Final
from urllib.parse import urlencode

import asyncpg
import numpy as np
import orjson

from benchmarks import Row, database
from kalshibook_core.orderbook import Book
from kalshibook_core.orderbook.checksum import to_signed
from kalshibook_core.postgres import levels, partitions, pool, runs
from kalshibook_core.runtime import clock
from kalshibook_core.wire.columns import Deltas
from kalshibook_core.wire.events import BookSnapshot
from services.gateway import app
from services.gateway.history import series
from services.gateway.history.store import Store
from services.gateway.quality.store import Store as Quality

NAME = "sampling"
CHANGES, BURST, EVERY = 200_000, 5, 1_000
DAY: Final = partitions.DAY_US
T0: Final = 20_000 * DAY
ASKED: Final = {
    "86,400 best levels by the second": ("orderbooks", {"interval": "1s", "depth": 1, "view": "yes", "limit": 86_400}, 86_400),
    "86,400 best levels by the second, changes only": (
        "orderbooks", {"interval": "1s", "depth": 1, "view": "yes", "limit": 86_400, "changes_only": "true"}, 1,
    ),
    "1,440 candles by the minute": ("candles", {"interval": "1m", "limit": 1_440}, 1_440),
    "10,000 changes of the best levels": ("bbo", {"limit": 10_000}, 10_000),
}  # fmt: skip


def run(addresses: Any) -> list[Row]:
    """Measure against the Postgres of `addresses.postgres`, in a database of its own."""
    return asyncio.run(_run(addresses.postgres))


async def _run(server: str) -> list[Row]:
    async with database.fresh(server) as dsn:
        for market_id, (ticker, burst) in enumerate((("BURSTS", BURST), ("ALONE", 1)), 1):
            columns, checkpoints = _day(burst)
            await _fill(dsn, market_id, ticker, burst, columns, checkpoints)
        bare = min(_bare(columns) for _ in range(3))
        async with await pool.connect_pool(dsn, size=2) as connections:
            quality = Quality(connections, lambda *_: 0)
            routes = app.create([series.routes(Store(connections), quality)])
            rows = []
            for asked, (path, parameters, least) in ASKED.items():
                rows.append(
                    Row.of(f"sampling: {asked}, CPU", await _best(routes, f"/v1/{path}/BURSTS", parameters, least), "s", bare)
                )
            first, (path, *rest) = next(iter(ASKED.items()))
            alone = await _best(routes, f"/v1/{path}/ALONE", *rest)
            return [*rows, Row.of(f"sampling: {first}, each change alone in its row, CPU", alone, "s", bare)]


def _day(burst: int) -> tuple[list[np.ndarray[Any, Any]], list[tuple[Any, ...]]]:
    """Return the columns of `Deltas` from `market` on, and checkpoints without their market."""
    dice, book = random.Random(1), Book()
    rows, checkpoints = [], []
    for number in range(CHANGES):
        side, drift = dice.randrange(2), int(6 * np.sin(number / 9_000))
        best = 48 + drift if side == 0 else 48 - drift
        price = 100 * min(best, max(1, int(dice.gauss(best - 5, 8))))
        size = book.sides[side].get(price, 0)
        delta = -size if size and dice.random() < 0.3 else 100 * dice.randint(1, 50)
        book.apply(side, price, delta)
        at, version = T0 + DAY // CHANGES * (number - number % burst) + number % burst, number + 2
        rows.append((0, version, at, at, at + 30_000, side, price, delta, to_signed(book.checksum)))
        if version % EVERY == 0:
            packed = levels.pack(book.yes, book.no)
            checkpoints.append((at, to_signed(book.checksum), None, version, None, packed))
    return list(np.array(rows, np.int64).T), checkpoints


async def _fill(
    dsn: str, market_id: int, ticker: str, burst: int, columns: list[np.ndarray[Any, Any]], checkpoints: list[tuple[Any, ...]]
) -> None:
    connection = await asyncpg.connect(dsn)
    for table in ("book_events", "checkpoints"):
        partition = partitions.containing(table, T0)
        assert partition is not None
        await partitions.create(connection, partition)
    await connection.execute("INSERT INTO markets (id, ticker, updated_us) VALUES ($1, $2, 1)", market_id, ticker)
    rows = [runs.pack_snapshot(market_id, BookSnapshot(ticker, 1, T0, T0, [], [], 0, None, None, "", 0, 0, 0, 0, 0))]
    for start in range(0, CHANGES, burst):
        part = Deltas([ticker], *(column[start : start + burst] for column in columns))
        rows += runs.pack_deltas(np.array([market_id]), part)
    await connection.copy_records_to_table("book_events", columns=runs.COLUMNS, records=rows)
    books = [(*book[:3], market_id, *book[3:]) for book in checkpoints]
    await connection.copy_records_to_table("checkpoints", records=books)
    await connection.execute("VACUUM ANALYZE")
    await connection.close()


def _bare(columns: list[np.ndarray[Any, Any]]) -> float:
    sides: tuple[dict[int, int], dict[int, int]] = ({}, {})
    rows = list(zip(*(column.tolist() for column in columns[5:8]), strict=True))
    began = time.process_time()
    for side, price, delta in rows:
        ladder = sides[side]
        size = ladder.get(price, 0) + delta
        if size:
            ladder[price] = size
        else:
            del ladder[price]
    return time.process_time() - began


async def _best(routes: Any, path: str, parameters: dict[str, Any], least: int) -> float:
    query = urlencode(parameters | {"from": T0, "to": T0 + DAY}).encode()
    times, wall = [], clock.monotonic()
    for _ in range(3):
        began = time.process_time()
        body = await _ask(routes, path, query)
        times.append(time.process_time() - began)
    rows = orjson.loads(body)["data"]
    if len(rows) < least:
        raise RuntimeError(f"{path}: {len(rows)} rows, {least} were to come")
    print(f"  {path}: {len(body):,} bytes, {len(rows):,} rows, {(clock.monotonic() - wall) / 3:.2f} s")
    return round(min(times), 3)


async def _ask(routes: Any, path: str, query: bytes) -> bytes:
    parts: list[bytes] = []
    scope = {
        "type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "query_string": query, "headers": [],
        "http_version": "1.1", "scheme": "http", "server": ("", 0), "client": ("", 0), "root_path": "", "state": {},
    }  # fmt: skip

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start" and message["status"] != 200:
            raise RuntimeError(f"{path}: {message}")
        parts.append(message.get("body", b""))

    await routes(scope, receive, send)
    return b"".join(parts)
