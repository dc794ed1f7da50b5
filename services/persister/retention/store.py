"""Every statement of retention. The only one that removes anything is in `drop`."""

from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import UTC, datetime
from itertools import groupby
from operator import itemgetter
from typing import Any, Final, NamedTuple

import asyncpg

from kalshibook_core.postgres import coverage, partitions, runs
from kalshibook_core.postgres.partitions import CLOCKS, DAY_US, Partition
from services.persister.retention.compare import COLUMNS, Row, Span

HELD_UP: Final = "250ms"
"""How long a drop may wait for its locks, and so make those wait that come behind it."""
AT_ONCE: Final = 2_000
"""Rows of a table that are fetched together."""

BUSY: Final = (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError)
"""Somebody reads or writes what is to be dropped: to be tried again."""

_ONE_RETENTION: Final = 0x6B62_7265_7465  # any constant of ours; "kbrete" in ASCII

_PARTITIONS: Final = """
SELECT c.relname FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid WHERE inhparent = $1::regclass"""

_DROPPED_BEFORE: Final = """
SELECT m.ticker, sum(s.rows) FROM cold_spans s JOIN markets m ON m.id = s.market_id
WHERE s.table_name = $1 AND s.first_us >= $2 AND s.first_us < $3 GROUP BY m.ticker"""

_RECORD: Final = """
INSERT INTO cold_days (start_us, end_us, rows, verified_us, dropped_us, table_name, archive)
VALUES ($1, $2, $3, $4, $5, $6, $7) RETURNING id"""

_SPAN_COLUMNS: Final = (
    "first_us", "last_us", "first_version", "last_version", "rows", "market_id", "partition", "cold_day", "table_name",
)  # fmt: skip


class Market(NamedTuple):
    """A market that a table has rows of."""

    ticker: str
    id: int
    rows: int
    events: int  # of book_events; else as many as rows


class Proved(NamedTuple):
    """A partition of which every row is in the archive: `spans` are (span, market id, partition of the archive)."""

    partition: Partition
    rows: int
    verified_us: int
    spans: list[tuple[Span, int, int]]


class Changed(Exception):
    """Rows came since the partition was compared: it has to be compared again."""


class Store:
    """The tables, on one connection."""

    def __init__(self, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        self._connection = connection

    async def alone(self) -> bool:
        """Be the one retention of this database, until the connection ends; return False where another is."""
        return bool(await self._connection.fetchval("SELECT pg_try_advisory_lock($1)", _ONE_RETENTION))

    async def over(self, before_us: int) -> list[Partition]:
        """Return the partitions that end at or before an instant, oldest first."""
        found = []
        for table in partitions.TABLES:
            for (name,) in await self._connection.fetch(_PARTITIONS, table):
                partition = _named(table, name)
                if partition is not None and partition.end_us <= before_us:
                    found.append(partition)
        return sorted(found, key=lambda each: (each.end_us, each.table))

    async def house(self, before_us: int) -> None:
        """Give rows of days that are gone, which came late and lie in the default partition, a partition of their own again."""
        for table, clock in CLOCKS.items():
            query = f"SELECT DISTINCT {clock} / {DAY_US} FROM {table}_default WHERE {clock} >= 0 AND {clock} < $1"
            for (day,) in await self._connection.fetch(query, before_us):
                partition = partitions.containing(table, day * DAY_US)
                if partition is not None and partition.end_us <= before_us:
                    await partitions.create(self._connection, partition)

    async def covered(self, partition: Partition) -> bool:
        """Return whether all hours of a day are measured, so that its events may go: `coverage` outlives them."""
        return await coverage.covered(self._connection, partition.start_us)

    async def count(self, partition: Partition) -> int:
        """Return how many rows a partition has."""
        return int(await self._connection.fetchval(f"SELECT count(*) FROM {partition.name}"))

    async def positions(self, topic: str) -> dict[int, int]:
        """Return how far the persister has written a topic, by partition."""
        rows = await self._connection.fetch("SELECT partition, next_offset FROM consumer_offsets WHERE topic = $1", topic)
        return {row[0]: row[1] for row in rows}

    async def markets(self, partition: Partition, from_us: int, to_us: int) -> list[Market]:
        """Return what markets a partition has rows of, of a day."""
        clock = CLOCKS[partition.table]
        events = "sum(p.events)" if partition.table == "book_events" else "count(*)"
        query = f"""SELECT m.ticker, m.id, p.rows, p.events FROM (
                      SELECT market_id, count(*) AS rows, {events} AS events FROM {partition.name} p
                      WHERE {clock} >= $1 AND {clock} < $2 GROUP BY market_id) p
                    JOIN markets m ON m.id = p.market_id ORDER BY m.ticker"""
        return [Market(*row) for row in await self._connection.fetch(query, from_us, to_us)]

    async def dropped_before(self, table: str, from_us: int, to_us: int) -> dict[str, int]:
        """Return how many rows of a day had been dropped before, by ticker."""
        return {row[0]: int(row[1]) for row in await self._connection.fetch(_DROPPED_BEFORE, table, from_us, to_us)}

    async def rows(
        self, partition: Partition, ids: Sequence[int], from_us: int, to_us: int
    ) -> AsyncIterator[tuple[int, list[Row]]]:
        """Yield a partition's rows of a day and of some markets, some of one market at a time, in their order.

        Raises runs.DamagedRow.
        """
        table, clock = partition.table, CLOCKS[partition.table]
        columns = ", ".join(name for name in COLUMNS[table] if name != "market_id")
        order = f"market_id, {clock}" + (", version" if table != "tickers" else "")
        query = f"""SELECT market_id, {columns} FROM {partition.name}
                    WHERE market_id = ANY($1::int[]) AND {clock} >= $2 AND {clock} < $3 ORDER BY {order}"""
        async with self._connection.transaction(readonly=True):
            cursor = await self._connection.cursor(query, list(ids), from_us, to_us)
            while chunk := await cursor.fetch(AT_ONCE):
                for market_id, rows in groupby(chunk, key=itemgetter(0)):
                    if table == "book_events":
                        yield market_id, [e for _, us, *rest in rows for e in runs.unpack(us, market_id, *rest)]
                    else:
                        yield market_id, [tuple(row)[1:] for row in rows]

    async def drop(self, proved: Proved, archive: str, now_us: int) -> None:
        """Drop a partition whose every row is in the archive. Raise Changed if it has other rows now, or one of BUSY.

        All in one transaction; a crash anywhere before the end of 5 leaves everything as it was.

        1. Writers of this partition are kept out, readers are not.
        2. Its rows are counted: as many as were compared. Nothing ever changes or removes a row, so they are the same ones.
        3. What goes is written down: the day, and what of it is of which market.
        4. The partition is dropped. This needs its table for a moment, and gives up after `HELD_UP`.
        5. COMMIT. Who reads sees either the rows or what was written down about them.
        """
        partition = proved.partition
        async with self._connection.transaction():
            await self._connection.execute(f"SET LOCAL lock_timeout = '{HELD_UP}'")
            await self._connection.execute(f"LOCK TABLE {partition.name} IN SHARE ROW EXCLUSIVE MODE")
            if await self.count(partition) != proved.rows:
                raise Changed(f"{partition.name} has other rows than were compared")
            events = sum(span.rows for span, _, _ in proved.spans)
            told = (partition.start_us, partition.end_us, events, proved.verified_us, now_us, partition.table, archive)
            day = await self._connection.fetchval(_RECORD, *told)
            rows: Iterable[Any] = ((*span, *where, day, partition.table) for span, *where in proved.spans)
            await self._connection.copy_records_to_table("cold_spans", columns=_SPAN_COLUMNS, records=rows)
            await self._connection.execute(f"DROP TABLE {partition.name}")


def _named(table: str, name: str) -> Partition | None:
    """Return the partition of that name, None for the default one and for what others made."""
    suffix = name.removeprefix(f"{table}_")
    try:
        start = datetime.strptime(suffix if len(suffix) == 8 else f"{suffix}01", "%Y%m%d").replace(tzinfo=UTC)
    except ValueError:
        return None
    partition = partitions.containing(table, int(start.timestamp()) * 1_000_000)
    return partition if partition is not None and partition.name == name else None
