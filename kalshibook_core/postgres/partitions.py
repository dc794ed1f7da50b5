"""Range partitions by UTC day or month: which one an instant belongs to, and making it before its first row is written.

A partition is built beside its table and then attached, which lets reading and writing of all other partitions go on; the
default partition is locked meanwhile.
"""

from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple, TypeAlias

import asyncpg
import asyncpg.pool

from kalshibook_core.postgres import closing

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record] | asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"

TABLES: Final = {"book_events": "day", "tickers": "day", "checkpoints": "month"}
"""The span of one partition, by partitioned table."""
CLOCKS: Final = {"book_events": "effective_us", "tickers": "exchange_us", "checkpoints": "effective_us"}
"""The column that says which partition a row belongs to."""

DAY_US: Final = 86_400_000_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_US: Final = 253_402_300_800_000_000 - 31 * DAY_US  # later instants have no date; their rows go to the default partition


class Partition(NamedTuple):
    """One partition: its rows lie in [start_us, end_us)."""

    table: str
    name: str
    start_us: int
    end_us: int


def containing(table: str, at_us: int) -> Partition | None:
    """Return the partition of `table` that holds an instant; None where only the default one can (outside years 1970-9999)."""
    if not 0 <= at_us < _LAST_US:
        return None
    day = _EPOCH + timedelta(days=at_us // DAY_US)
    if TABLES[table] == "day":
        start, end, suffix = day, day + timedelta(days=1), f"{day:%Y%m%d}"
    else:
        start = day.replace(day=1)
        end = (start + timedelta(days=31)).replace(day=1)
        suffix = f"{start:%Y%m}"
    return Partition(table, f"{table}_{suffix}", _us(start), _us(end))


async def create(connection: "Connection", partition: Partition) -> None:
    """Make a partition unless it stands; any number of processes may ask for the same one at once.

    What lies in the default partition and belongs into it is taken along: rows of a day that was dropped (see migration 0006) may
    come late, from a process that believes the partition to stand.
    """
    table, name, start_us, end_us = partition
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock(hashtext($1))", name)
        if await connection.fetchval("SELECT to_regclass($1)", name) is None:
            await connection.execute(f"CREATE TABLE {name} (LIKE {table} INCLUDING ALL)")
            # Row security is not inherited: without its own, a partition would be open by its name (see migration 0004).
            await connection.execute(f"ALTER TABLE {name} ENABLE ROW LEVEL SECURITY")
            await closing.close(connection, [name])
            await connection.execute(f"LOCK TABLE {table}_default IN SHARE ROW EXCLUSIVE MODE")
            late = f"DELETE FROM {table}_default WHERE {CLOCKS[table]} >= {start_us} AND {CLOCKS[table]} < {end_us} RETURNING *"
            await connection.execute(f"WITH late AS ({late}) INSERT INTO {name} SELECT * FROM late")
            await connection.execute(f"ALTER TABLE {table} ATTACH PARTITION {name} FOR VALUES FROM ({start_us}) TO ({end_us})")


def _us(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1)
