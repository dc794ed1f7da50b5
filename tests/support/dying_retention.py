"""Retention that is killed after its n-th statement, for n = 1, 2, 3, …, life after life, until nothing is left to drop.

`python -m tests.support.dying_retention DSN FOLDER`. Prints how many lives were cut short. After each death every row must be in
a table or noted as dropped, and never both: else it ends with 1 and says of which.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import asyncpg

from kalshibook_core.archive.store import Folder
from tests.support import past

STATEMENTS = ("execute", "fetchval", "copy_records_to_table")  # BEGIN, COMMIT and the locks among them; all but what only looks
COUNTED = {"book_events": "sum(events)", "tickers": "count(*)", "checkpoints": "count(*)"}


def doom(n: int, statements: Sequence[str] = STATEMENTS) -> None:
    """Let this process be killed after its n-th statement of these kinds; BEGIN and COMMIT are some."""
    left = n

    def step() -> None:
        nonlocal left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)

    for name in statements:
        before = getattr(asyncpg.Connection, name)

        async def doomed(*arguments: Any, before: Any = before, **more: Any) -> Any:
            done = await before(*arguments, **more)
            step()
            return done

        setattr(asyncpg.Connection, name, doomed)


async def rows(dsn: str) -> dict[str, int]:
    """Return how many rows of each table are there or noted."""
    connection = await asyncpg.connect(dsn)
    noted = "(SELECT coalesce(sum(rows), 0) FROM cold_spans WHERE table_name = $1)"
    found = {
        table: int(await connection.fetchval(f"SELECT (SELECT coalesce({count}, 0) FROM {table}) + {noted}", table))
        for table, count in COUNTED.items()
    }
    await connection.close()
    return found


def main() -> int:
    """Return the exit code."""
    dsn, folder = sys.argv[1], Path(sys.argv[2])
    whole, killed = asyncio.run(rows(dsn)), 0
    while True:
        child = os.fork()
        if not child:
            doom(killed + 1)
            asyncio.run(past.retire(dsn, Folder(folder)))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if (now := asyncio.run(rows(dsn))) != whole:
            sys.stderr.write(f"after death {killed + 1}: {now} instead of {whole}\n")
            return 1
        if os.WIFEXITED(status):
            sys.stdout.write(str(killed))
            return os.WEXITSTATUS(status)
        killed += 1


if __name__ == "__main__":
    sys.exit(main())
