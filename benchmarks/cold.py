"""How long the book at an instant takes from Parquet, once its day was dropped from the tables, with the index warm.

One day of one series: a market of 200,000 events with a checkpoint every 1,000, beside 3,000 markets of eight events each;
archived in 96 commits as they come every quarter of an hour, and then put together. Asked for are random instants of the busy
market and, each tenth time, of a quiet one. An answer is two queries, the archive's checkpoint, about 500 events folded and the
checksum compared.

Files are remembered, compressed and proved; no rows are, so that each answer decodes its own. "Again" keeps them, as the gateway
does. By CPU time of our process, which other programs hardly change. Bare is pyarrow reading the same events of the market, by
its own filters, out of the same file.

"From S3": the same day in a MinIO on loopback, by the clock, since its waiting is what it costs; nowhere where there is no MinIO.
There are as many commits behind it as `DAYS` days of a partition make. "A file that is not here": the index is warm, the file is
fetched and proved each time. The first of a process lists all commits, those days' too, before anything else.
"""

import asyncio
import os
import random
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import asyncpg
import numpy as np
import pyarrow.parquet as pq

from benchmarks import Row, database
from benchmarks.history import _delta
from kalshibook_core.archive.layout import Commit, Repack
from kalshibook_core.archive.past import Past
from kalshibook_core.archive.reader import Archive
from kalshibook_core.archive.store import Bucket, Folder
from kalshibook_core.orderbook import Book
from kalshibook_core.orderbook.checksum import to_signed
from kalshibook_core.postgres import pool
from kalshibook_core.postgres.partitions import DAY_US
from kalshibook_core.wire import codec
from kalshibook_core.wire.events import BookDelta, BookSnapshot, Checkpoint
from services.gateway.history.cold import Cold
from services.gateway.history.store import Store
from services.persister.archive import commit, files, repack
from services.persister.archive.held import Record
from tests.support import s3 as servers

NAME = "cold"
EVENTS, QUIET, EACH, EVERY, COMMITS = 200_000, 3_000, 8, 1_000, 96
ASKED, WARM = 300, 30
DAYS = 30
DAY: Final = 20_000
T0: Final = DAY * DAY_US
STEP_US: Final = DAY_US // (EVENTS + 1)
BOOKS, CHECKPOINTS = "kalshi.book.v1", "kalshi.checkpoints.v1"
BUSY: Final = "KXBENCH-0"
_BY: Final = ((1, ""), (0, " by the clock"))


def run(addresses: Any) -> list[Row]:
    """Measure against the Postgres of `addresses.postgres`, in a database and a folder of its own."""
    return asyncio.run(_run(addresses.postgres))


async def _run(server: str) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="kb-bench-") as folder:
        async with database.fresh(server) as dsn:
            place = Folder(Path(folder))
            await _fill(dsn, place)
            rows = await _measured(dsn, place, "of a day in 96 commits", None)
            for topic in (BOOKS, CHECKPOINTS):
                held = Archive(place).held_of(topic, 0)
                assert repack.repack(place, held, DAY, "r", 1)
            (file,) = Path(folder, "book").rglob("*rx0.parquet")
            rows += await _measured(dsn, place, "of a day put together", file)
            return rows + await _from_s3(dsn, place, Path(folder))


async def _from_s3(dsn: str, place: Folder, folder: Path) -> list[Row]:
    if servers.minio() is None:
        return []
    os.environ.update(servers.KEYS)  # noqa: TID251  (of this process alone, for the server below)
    (folder / "s3").mkdir()
    with servers.running(folder / "s3") as server:
        bucket = server.bucket("cold")
        objects = {path: place.get(path) for path, _ in place.listed("") if not path.startswith("s3/")}
        for topic in (BOOKS, CHECKPOINTS):
            after = Archive(place).held_of(topic, 0).chain.next
            for day in range(DAY + 1, DAY + DAYS):
                objects[Repack(topic, 0, day, 0, after + COMMITS, "r").path] = b""
                objects |= {Commit(topic, 0, n, n + 1, day, day, "a").path: b"" for n in range(after, after + COMMITS)}
                after += COMMITS
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(bucket.put, objects, objects.values()))
        return await _clocked(dsn, bucket)


async def _clocked(dsn: str, place: Bucket) -> list[Row]:
    dice, times = random.Random(4), dict[str, list[tuple[float, float]]]()
    async with await pool.connect_pool(dsn, size=1) as connections:
        here, not_here = Past(Archive(place)), Past(Archive(place))
        nothing = type(here._books)(0)
        not_here._files = type(here._files)(0)
        ids = dict(await connections.fetch("SELECT ticker, id FROM markets"))
        for each in range(-WARM, ASKED):
            what, past = ("a file that is here", here) if each % 2 else ("a file that is not here", not_here)
            if not each % 10:
                what, past = "the first of a process", Past(Archive(place))
            past._books = past._checkpoints = nothing
            at = T0 + dice.randrange(DAY_US)
            began, used = time.perf_counter(), time.process_time()
            state = await Store(connections, Cold(connections, past)).book_at(ids[BUSY], at)
            times.setdefault(what, []).append((time.perf_counter() - began, time.process_time() - used))
            if each < 0:
                times.clear()
            if state is None or state.version != min(EVENTS, 1 + (at - T0) // STEP_US):
                raise RuntimeError(f"{at}: {state and state.version}")
    name = "cold: book at an instant from S3 of a day put together"
    return [
        *(_row(f"{name}, the first of a process{by}", times["the first of a process"], n, "p50", None) for n, by in _BY),
        *(_row(f"{name}, {what}, p99{by}", times[what], n, "p99", None) for what in sorted(times)[:2] for n, by in _BY),
    ]


async def _fill(dsn: str, place: Folder) -> None:
    events, checkpoints = _events()
    commit.claim(place, "bench", {}, False)
    for topic, made, at_once in ((BOOKS, events, len(events) // COMMITS + 1), (CHECKPOINTS, checkpoints, len(checkpoints) // 8)):
        for first in range(0, len(made), at_once):
            values = [Record(first + n, e[0].encode(), codec.encode(e)) for n, e in enumerate(made[first : first + at_once])]
            one = files.make(topic, 0, first, first + len(values), "a", values)
            await commit.write(place, one, lambda attempt: attempt())
    connection = await asyncpg.connect(dsn)
    await connection.execute(
        "INSERT INTO markets (ticker, updated_us) SELECT 'KXBENCH-' || n, 1 FROM generate_series(0, $1) n", QUIET
    )
    for table in ("book_events", "checkpoints"):
        columns = "start_us, end_us, rows, verified_us, dropped_us, table_name, archive"
        await connection.execute(f"INSERT INTO cold_days ({columns}) VALUES ($1, $1, 1, 1, 1, $2, '')", T0, table)
    ids = dict(await connection.fetch("SELECT ticker, id FROM markets"))
    for number, (table, made) in enumerate((("book_events", events), ("checkpoints", checkpoints)), 1):
        spans: dict[str, list[int]] = {}
        for event in made:
            known = spans.setdefault(event.market_ticker, [event.effective_us, 0, event.version, 0, 0])
            known[1], known[3], known[4] = event.effective_us, event.version, known[4] + 1
        columns = (
            "first_us",
            "last_us",
            "first_version",
            "last_version",
            "rows",
            "market_id",
            "cold_day",
            "partition",
            "table_name",
        )
        records = [(*span, ids[ticker], number, 0, table) for ticker, span in spans.items()]
        await connection.copy_records_to_table("cold_spans", columns=columns, records=records)
    await connection.close()


def _events() -> tuple[list[Any], list[Checkpoint]]:
    dice, made, checkpoints = random.Random(1), list[Any](), list[Checkpoint]()

    def checkpoint(ticker: str, last: Any, book: Book) -> None:
        levels = list(book.yes), list(book.no)
        told = (ticker, last.version, last.effective_us, *levels, last.checksum, None, None, "g1", 0, 1, 0, 0)
        checkpoints.append(Checkpoint(*told))

    for number in range(QUIET + 1):
        ticker, book = f"KXBENCH-{number}", Book()
        start = T0 if not number else T0 + dice.randrange(DAY_US // 2)
        made.append(BookSnapshot(ticker, 1, start, start, [], [], 0, None, None, "g1", 0, 1, 1, 1, 0))
        count = EVENTS - 1 if not number else EACH - 1
        for n in range(count):
            at = T0 + (n + 1) * STEP_US if not number else start + (n + 1) * 60_000_000
            side, price, delta = _delta(n)
            book.apply(side, price, delta)
            checksum = to_signed(book.checksum)
            event = BookDelta(ticker, n + 2, at, at, at + 30_000, side, price, delta, checksum, "g1", 0, 1, 1, n, n)
            made.append(event)
            if event.version % EVERY == 0 or (number and n == count - 1):
                checkpoint(ticker, event, book)
    made.sort(key=lambda event: event.effective_us)
    checkpoints.sort(key=lambda event: event.effective_us)
    return made, checkpoints


async def _measured(dsn: str, place: Folder, what: str, file: Path | None) -> list[Row]:
    dice = random.Random(2)
    async with await pool.connect_pool(dsn, size=1) as connections:
        past = Past(Archive(place))
        kept, nothing = (past._books, past._checkpoints), type(past._books)(0)
        store = Store(connections, Cold(connections, past))
        ids = dict(await connections.fetch("SELECT ticker, id FROM markets"))

        async def ask(each: int, keep: bool) -> tuple[float, float]:
            market = ids[BUSY if each % 10 else f"KXBENCH-{1 + dice.randrange(QUIET)}"]
            at = T0 + (dice.randrange(DAY_US) if each % 10 else DAY_US - 1)
            if not keep:
                past._books = past._checkpoints = nothing
            began, used = time.perf_counter(), time.process_time()
            state = await store.book_at(market, at)
            took = time.perf_counter() - began, time.process_time() - used
            expected = min(EVENTS, 1 + (at - T0) // STEP_US) if each % 10 else EACH
            if state is None or state.version != expected or state.applied > EVERY:
                raise RuntimeError(f"{market} at {at}: {state and (state.version, state.applied)} instead of {expected}")
            return took

        first = await ask(1, False)
        fresh = [await ask(each, False) for each in range(WARM + ASKED)][WARM:]
        past._books, past._checkpoints = kept
        again = [await ask(each, True) for each in range(WARM + ASKED)][WARM:]
    bare = None if file is None else _bare(file)
    name = f"cold: book at an instant from Parquet {what}"
    return [
        Row(f"{name}, the first", round(1000 * first[1], 1), "ms CPU", None, None),
        *(_row(f"{name}, {part}", fresh, 1, part, bare) for part in ("p50", "p99")),
        _row(f"{name}, p99 by the clock", fresh, 0, "p99", None),
        _row(f"{name}, p99 again", again, 1, "p99", None),
    ]


def _row(name: str, times: list[tuple[float, float]], which: int, part: str, bare: Callable[[str], float] | None) -> Row:
    value, unit = round(1000 * _at([each[which] for each in times], part), 1), "ms CPU" if which else "ms"
    return Row(name, value, unit, None, None) if bare is None else Row.of(name, value, unit, round(1000 * bare(part), 1))


def _at(times: list[float], part: str) -> float:
    return float(np.percentile(times, int(part[1:])))


def _bare(file: Path) -> Callable[[str], float]:
    """Return how long pyarrow alone takes for about 500 events of the busy market."""
    dice, times = random.Random(3), []
    for _ in range(ASKED // 4):
        at = T0 + dice.randrange(DAY_US)
        since = at - at % (EVERY * STEP_US)
        used = time.process_time()
        wanted = [("market_ticker", "=", BUSY), ("effective_us", ">=", since), ("effective_us", "<=", at)]
        pq.read_table(file, filters=wanted, partitioning=None)
        times.append(time.process_time() - used)
    return lambda part: _at(times, part)
