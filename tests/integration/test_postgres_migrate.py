"""Migrations and partitions on a real Postgres, with several processes at it at once."""

import asyncio
import uuid
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from kalshibook_core.postgres import migrate, partitions, pool

pytestmark = pytest.mark.stack

INSERT = (
    "INSERT INTO book_events (effective_us, exchange_us, recv_us, checksum, delta, market_id, version, price, side, kind, levels)"
    " VALUES ($1, 0, 0, 0, 0, 1, 1, 0, 0, 1, '')"
)


@pytest.fixture
async def empty(parts):
    """The DSN of a database without tables."""
    name = f"kb_test_{uuid.uuid4().hex[:12]}"
    server = await asyncpg.connect(parts.postgres)
    await server.execute(f"CREATE DATABASE {name}")
    yield urlunsplit(urlsplit(parts.postgres)._replace(path=f"/{name}"))
    await server.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await server.close()


async def test_each_migration_is_applied_once_by_whoever_comes_first(empty):
    told: list[str] = []
    done = await asyncio.gather(*(migrate.migrate(empty, told.append) for _ in range(4)))
    names = [migration.name for migration in migrate.available()]
    assert sorted(name for each in done for name in each) == names
    assert sorted(told) == [f"applied {name}" for name in names]
    assert await migrate.migrate(empty) == []


async def test_an_altered_migration_is_named_and_changes_nothing(database):
    connection = await asyncpg.connect(database)
    await connection.execute("UPDATE schema_migrations SET sha256 = 'other' WHERE number = 1")
    with pytest.raises(migrate.MigrationError, match="0001_market_history was altered"):
        await migrate.migrate(database)
    await connection.close()


async def test_a_migration_that_fails_leaves_nothing_of_itself(empty, monkeypatch):
    good = migrate.available()[0]
    bad = migrate.Migration(9999, "9999_bad", "CREATE TABLE half (id int); SELECT 1 / 0;")
    monkeypatch.setattr(migrate, "available", lambda: [good, bad])
    with pytest.raises(asyncpg.DivisionByZeroError):
        await migrate.migrate(empty)
    connection = await asyncpg.connect(empty)
    assert await connection.fetchval("SELECT to_regclass('half')") is None
    assert [row[0] for row in await connection.fetch("SELECT number FROM schema_migrations")] == [1]
    await connection.close()


async def test_partitions_are_made_once_while_others_read_and_rows_find_them(database):
    days = [day * partitions.DAY_US for day in (0, 18_687, 20_666)]
    wanted = [p for at in days for table in partitions.TABLES if (p := partitions.containing(table, at))]

    async def make() -> None:
        connection = await asyncpg.connect(database)
        for partition in wanted:
            await partitions.create(connection, partition)
        await connection.close()

    reader = await asyncpg.connect(database)
    await reader.execute("BEGIN")
    await reader.fetch("SELECT * FROM book_events_default")  # whoever reads holds attaching up for its own moment only
    making = asyncio.gather(*(make() for _ in range(3)))
    await reader.execute("COMMIT")
    await making
    for at in days:
        await reader.execute(INSERT, at)
        await reader.execute(INSERT, at + partitions.DAY_US - 1)
    await reader.execute(INSERT, 2**62)
    found = await reader.fetch("SELECT tableoid::regclass::text AS name, count(*) FROM book_events GROUP BY 1 ORDER BY 1")
    assert {row["name"]: row["count"] for row in found} == {
        "book_events_19700101": 2,
        "book_events_20210301": 2,
        "book_events_20260801": 2,
        "book_events_default": 1,
    }
    await reader.close()


async def test_a_point_in_time_query_reads_one_partition_by_its_index(database):
    connection = await asyncpg.connect(database)
    for day in (20_665, 20_666):
        await partitions.create(connection, partitions.containing("book_events", day * partitions.DAY_US))
    at = 20_666 * partitions.DAY_US
    await connection.execute(
        "INSERT INTO book_events SELECT $1 + n * 1000, 0, 0, 0, 0, n % 50, n / 50, 0, 0, 2, ''"
        " FROM generate_series(1::bigint, 20000) n",
        at,
    )
    await connection.execute("ANALYZE book_events")
    plan = await connection.fetch(
        "EXPLAIN SELECT * FROM book_events WHERE market_id = 7 AND effective_us BETWEEN"
        f" {at + 5_000_000} AND {at + 6_000_000} AND version > 3 ORDER BY effective_us, version"
    )
    text = "\n".join(row[0] for row in plan)
    assert "Index Scan" in text or "Bitmap Index Scan" in text
    assert "Seq Scan" not in text and "20260731" not in text
    await connection.close()


async def test_a_server_that_is_away_is_told_without_the_password():
    with pytest.raises(pool.DatabaseUnreachable, match=r"127\.0\.0\.1:1/kb") as told:
        await pool.connect_pool("postgresql://kb:hunter2@127.0.0.1:1/kb")
    assert "hunter2" not in str(told.value)
