"""How long the book at an instant takes from Postgres, warm, and whether the length of history matters.

Twenty markets move 5,000 times a day each, five deltas to a flush, with a checkpoint every 1,000 events. One database holds a day
of it (100,000 deltas), the other ten days, or what KB_BENCH_DELTAS says (10000000: a hundred days, which takes some minutes).
Both are asked in turn for random instants of random markets, so that other programs slow both alike. An answer is the query, the
rows unpacked, about 500 events folded and the checksum compared; bare is the query alone, its rows thrown away.
"""

import asyncio
import os
import random
import time
from typing import Any, Final

import asyncpg
import numpy as np

from benchmarks import Row, database
from kalshibook_core.orderbook import Book
from kalshibook_core.orderbook.checksum import level_weight, to_signed
from kalshibook_core.postgres import levels, partitions, pool, runs
from kalshibook_core.runtime import clock
from kalshibook_core.wire.columns import Deltas
from kalshibook_core.wire.events import BookSnapshot
from services.gateway.history.store import CHUNK, POINT, Store, yesterday

NAME = "history"
MARKETS, A_DAY, A_FLUSH, EVERY = 20, 5_000, 5, 1_000
SHORT: Final = MARKETS * A_DAY
LONG: Final = int(os.environ.get("KB_BENCH_DELTAS", 10 * SHORT))  # noqa: TID251
ASKED, WARM = 2_000, 500
STEP_US: Final = partitions.DAY_US // A_DAY
T0: Final = 20_000 * partitions.DAY_US
Measured = tuple[list[float], list[float], list[float], list[float]]
"""Seconds an answer took: of the short history, of the long one, of the query alone, and of our CPU."""
PRICES: Final = 97  # every level is filled, then emptied, then filled again


def run(addresses: Any) -> list[Row]:
    """Measure against the Postgres of `addresses.postgres`, in databases of its own."""
    short, long, bare, cpu = map(sorted, asyncio.run(_run(addresses.postgres)))
    rows = [Row("history: CPU of an answer, p99, our process", round(1000 * cpu[int(len(cpu) * 0.99)], 2), "ms", None, None)]
    for name, part in (("p50", 0.5), ("p99", 0.99)):
        ours, day, query = (round(1000 * times[int(len(times) * part)], 2) for times in (long, short, bare))
        rows += [
            Row.of(f"history: book at an instant of {LONG:,} deltas, {name} warm (bare: the query)", ours, "ms", query),
            Row.of(f"history: book at an instant of {LONG:,} deltas, {name} warm (bare: of {SHORT:,})", ours, "ms", day),
        ]
    return rows


async def _run(server: str) -> Measured:
    async with database.fresh(server) as short, database.fresh(server) as long:
        await _fill(short, SHORT)
        await _fill(long, LONG)
        return await _timed(short, long)


async def _fill(dsn: str, count: int) -> None:
    connection = await asyncpg.connect(dsn)
    for us in range(T0, T0 + (count // MARKETS + 1) * STEP_US, partitions.DAY_US):
        for table in ("book_events", "checkpoints"):
            partition = partitions.containing(table, us)
            assert partition is not None
            await partitions.create(connection, partition)
    ids = np.arange(1, MARKETS + 1)
    empty = [runs.pack_snapshot(n, BookSnapshot("", 1, T0, T0, [], [], 0, None, None, "", 0, 0, 0, 0, 0)) for n in ids.tolist()]
    await connection.copy_records_to_table("book_events", columns=runs.COLUMNS, records=empty)
    checksum = 0
    for first in range(0, count // MARKETS, A_DAY):
        numbers = np.arange(first, min(first + A_DAY, count // MARKETS))
        day, checksum = _day(numbers, checksum)
        rows = [
            row
            for flush in range(0, len(numbers), A_FLUSH)
            for row in runs.pack_deltas(ids, _of_all(Deltas([], *(column[flush : flush + A_FLUSH] for column in day))))
        ]
        await connection.copy_records_to_table("book_events", columns=runs.COLUMNS, records=rows)
        books = [_checkpoint(number) for number in numbers.tolist() if number % EVERY == EVERY - 1]
        checkpoints = [(*book[:3], n, *book[3:]) for book in books for n in ids.tolist()]
        await connection.copy_records_to_table("checkpoints", records=checkpoints)
    await connection.execute("VACUUM ANALYZE")
    await connection.close()


def _delta(number: Any) -> tuple[Any, Any, Any]:
    """Return side, price and signed size of a market's delta by its number (an integer or many)."""
    turn = number // PRICES
    return turn // 2 % 2, 100 * (number % PRICES + 1), 500 * (1 - turn % 2 * 2)


def _day(numbers: Any, checksum: int) -> tuple[tuple[Any, ...], int]:
    """Return the columns of Deltas from `market` on, of one market, and the checksum after them."""
    side, price, delta = _delta(numbers)
    weights = np.array([[level_weight(s, 100 * (p + 1)) for p in range(PRICES)] for s in (0, 1)], np.uint64)
    changes = delta.astype(np.uint64) * weights[side, numbers % PRICES]
    after = np.cumsum(changes, dtype=np.uint64) + np.uint64(checksum)
    at = T0 + (numbers + 1) * STEP_US
    columns = (np.zeros_like(numbers), numbers + 2, at, at, at + 30_000, side, price, delta, after.view(np.int64))
    return columns, int(after[-1])


def _of_all(flush: Deltas) -> Deltas:
    """Return a flush of one market as that of all of them."""
    market = np.repeat(np.arange(MARKETS), len(flush.version))
    return Deltas([str(n) for n in range(MARKETS)], market, *(np.tile(column, MARKETS) for column in flush[2:]))


def _checkpoint(number: int) -> tuple[Any, ...]:
    """Return what a checkpoint after a delta has, but the market."""
    book = Book()
    for each in range(number // (4 * PRICES) * 4 * PRICES, number + 1):  # at the beginning of four turns it is empty
        book.apply(*_delta(each))
    packed = levels.pack(book.yes, book.no)
    return T0 + (number + 1) * STEP_US, to_signed(book.checksum), None, number + 2, None, packed


async def _timed(short: str, long: str) -> Measured:
    dice = random.Random(1)
    async with await pool.connect_pool(short, size=1) as one, await pool.connect_pool(long, size=1) as other:
        times: tuple[list[float], list[float], list[float]] = ([], [], [])
        async with other.acquire() as connection:
            query = await connection.prepare(POINT)
            for _ in range(ASKED):
                market, at = dice.randint(1, MARKETS), T0 + dice.randrange(LONG // MARKETS * STEP_US)
                began = clock.monotonic()
                await query.fetch(market, at, CHUNK, yesterday(at))
                times[2].append(clock.monotonic() - began)
        stores = ((Store(one), SHORT, times[0]), (Store(other), LONG, times[1]))
        cpu = list[float]()
        for _ in range(ASKED + WARM):
            for store, count, taken in stores:
                market, at = dice.randint(1, MARKETS), T0 + dice.randrange(count // MARKETS * STEP_US)
                began, used = clock.monotonic(), time.process_time()
                state = await store.book_at(market, at)
                taken.append(clock.monotonic() - began)
                cpu.append(time.process_time() - used)
                if state is None or state.version != 1 + (at - T0) // STEP_US or state.applied > EVERY:
                    raise RuntimeError(f"market {market} at {at}: {state and state.version}")
        return times[0][WARM:], times[1][WARM:], times[2][WARM:], cpu[2 * WARM :]
