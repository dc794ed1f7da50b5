"""The persister's write that is killed after its n-th statement, for n = 1, 2, 3, …, life after life, until one gets through.

`python -m tests.support.dying_persister DSN`. Prints how many lives were cut short. After each death the tables must hold what
came before the offset they name, each once, and nothing else: else it ends with 1 and says of which table.
"""

import asyncio
import os
import sys
from types import SimpleNamespace
from typing import Any, Final

import asyncpg

from kalshibook_core.postgres import pool, runs
from kalshibook_core.postgres.partitions import DAY_US
from kalshibook_core.wire import codec
from kalshibook_core.wire.events import Checkpoint, Lifecycle, Ticker
from services.persister.batch import Batch
from services.persister.store import Store
from tests.support.canonical import Market
from tests.support.dying_retention import STATEMENTS, doom
from tests.support.written import audit, trade

SOURCE: Final = ("all of it", 0)
LIVES: Final = 200
ROLLS: Final = ((11, DAY_US), (1, 5), (2, 5), (26, 5), (4, 5), (3, 5))
BOOK, GAP = len(ROLLS), 3
CLOCKS: Final = {
    "trades": "exchange_us",
    "tickers": "exchange_us",
    "lifecycle": "clock_us",
    "checkpoints": "effective_us",
    "audits": "to_us",
    "gaps": "start_us",
}


def batches() -> list[list[Any]]:
    """Return what is to be written: a day in each, with something for every table, and partitions to be made."""
    market, made = Market("KXA-1", 20_400 * DAY_US), list[list[Any]]()
    for number in range(LIVES):
        book = [market.event(roll, pause) for roll, pause in ROLLS]
        at, last = market.at, book[-1]
        told = (list(market.book.yes), list(market.book.no), last.checksum, None, None)
        made.append([
            *book,
            trade("KXA-1", number, at),
            audit("KXA-1", at),
            Ticker("KXA-1", at, at, 1, None, None, *[None] * 7, raw_offset=number),
            Lifecycle("KXA-1", "market", at, at, b'{"ticker":"KXA-1","status":"active"}', number),
            Checkpoint("KXA-1", last.version, at, *told, "g1", 0, 1, 0, 0),
        ])  # fmt: skip
    return made


async def life(dsn: str, made: list[list[Any]], n: int) -> None:
    """Write the next batch, and be killed after the n-th statement of it."""
    size = len(made[0])
    async with await pool.connect_pool(dsn, size=1) as connections:
        store = Store(connections)
        positions = await store.positions([SOURCE])
        at, batch = positions[SOURCE], Batch()
        values = map(codec.encode, made[at // size])
        batch.add(SOURCE, [SimpleNamespace(offset=offset, value=value) for offset, value in enumerate(values, at)])
        doom(n, (*STATEMENTS, "fetch", "executemany"))
        await store.write(batch, positions)


async def wrong(dsn: str, made: list[list[Any]]) -> str | None:
    """Return a table that does not hold what came before the offset, each once."""
    connection = await asyncpg.connect(dsn)
    try:
        at = await connection.fetchval("SELECT coalesce(max(next_offset), 0) FROM consumer_offsets")
        written, rest = divmod(at, len(made[0]))
        book = [event for each in made[:written] for event in each[:BOOK]]
        rows = await connection.fetch(f"SELECT {', '.join(runs.COLUMNS)} FROM book_events ORDER BY version")
        found = [event[:2] for row in rows for event in runs.unpack(*row)]
        if rest or found != [(event.version, event.effective_us) for event in book]:
            return "book_events"
        for table, clock in CLOCKS.items():
            told = [each[GAP if table == "gaps" else BOOK - 1].effective_us for each in made[:written]]
            if [row[0] for row in await connection.fetch(f"SELECT {clock} FROM {table} ORDER BY {clock}")] != told:
                return table
        return None
    finally:
        await connection.close()


def main() -> int:
    """Return the exit code."""
    dsn, made = sys.argv[1], batches()
    for killed in range(LIVES):
        child = os.fork()
        if not child:
            asyncio.run(life(dsn, made, killed + 1))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if table := asyncio.run(wrong(dsn, made)):
            sys.stderr.write(f"after death {killed + 1}: {table} is not what came before the offset\n")
            return 1
        if os.WIFEXITED(status):
            sys.stdout.write(str(killed))
            return os.WEXITSTATUS(status)
    return 1


if __name__ == "__main__":
    sys.exit(main())
