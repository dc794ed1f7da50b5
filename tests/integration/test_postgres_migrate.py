"""Migrations and partitions on a real Postgres, with several processes at it at once."""

import asyncio
import uuid
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from kalshibook_core.postgres import levels, migrate, partitions, pool, runs
from kalshibook_core.wire.events import BookDelta, BookEvent, BookSnapshot, Gap
from tests.support.canonical import Market

pytestmark = pytest.mark.stack

INSERT = "INSERT INTO book_events (effective_us, market_id, version, events, kind, packed) VALUES ($1, 1, 1, 1, 1, '')"


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


async def test_book_events_of_the_release_before_are_taken_over_each_as_it_was(empty, monkeypatch):
    every = migrate.available()
    monkeypatch.setattr(migrate, "available", lambda: every[:1])
    await migrate.migrate(empty)
    connection = await asyncpg.connect(empty)
    market, midnight = Market("KXA", 20_666 * partitions.DAY_US - 60), 20_666 * partitions.DAY_US
    events = [market.event(1 + n % 40, 1) for n in range(120)]
    events[-1] = events[-1]._replace(effective_us=2**62)  # outside any partition
    for at in (midnight - 1, midnight):
        await partitions.create(connection, partitions.containing("book_events", at))
    rows = [as_before(event, 7) for event in events]
    await connection.copy_records_to_table("book_events", records=rows)

    monkeypatch.setattr(migrate, "available", lambda: every)
    await migrate.migrate(empty)
    found = await connection.fetch(f"SELECT {', '.join(runs.COLUMNS)} FROM book_events ORDER BY version")
    taken = [runs.Event._make(event) for row in found for event in runs.unpack(*row)]
    assert [
        (e.effective_us, e.exchange_us, e.recv_us, e.checksum, e.delta, 7, e.version, e.price, e.side, e.kind, e.levels)
        for e in taken
    ] == rows
    counts = await connection.fetch("SELECT tableoid::regclass::text AS name, count(*) FROM book_events GROUP BY 1 ORDER BY 1")
    assert {row["name"]: row["count"] for row in counts} == {
        "book_events_20260731": 59,
        "book_events_20260801": 60,
        "book_events_default": 1,
    }
    assert await connection.fetchval("SELECT count(*) FROM pg_class WHERE relname LIKE '%before%'") == 0
    await connection.close()


async def test_markets_that_ended_in_an_open_gap_have_their_end_and_are_measured_again(empty, monkeypatch):
    every = migrate.available()
    monkeypatch.setattr(migrate, "available", lambda: [each for each in every if each.number != 15])
    await migrate.migrate(empty)
    connection = await asyncpg.connect(empty)
    day, hour, old = partitions.DAY_US, 3_600_000_000, 8 * partitions.DAY_US
    markets = [("gap", "finalized", 5), ("rest", "determined", 5), ("open", "active", old), ("old", "finalized", 5)]
    markets.append(("fresh", "finalized", old))
    await connection.executemany(
        "INSERT INTO markets (id, ticker, status, updated_us) VALUES ($1, $2, $3, $4)",
        [(n, *market) for n, market in enumerate(markets, 1)],
    )
    words = [
        (1, "created", 1, "{}"), (1, "settled", 3 * day + 9, "{}"), (1, "determined", 3 * day, "{}"), (4, "settled", 9, "{}"),
        (2, "market", 1, '{"status": "active"}'), (2, "market", 4 * day, '{"title": "\\u0000", "status": "finalized"}'),
        (3, "market", 2, '{"status":"active"}'), (5, "determined", 7, "{}"),
    ]  # fmt: skip
    await connection.executemany(
        "INSERT INTO lifecycle (recv_us, market_id, event_type, clock_us, body) VALUES (0, $1, $2, $3, $4)", words
    )
    await connection.executemany("INSERT INTO gaps VALUES ($1, $2, $3, 1, 'orderbook_delta', 'disconnect')", [
        (5, None, 1), (6, None, 2), (7, None, 3), (8, 9, 4)])  # fmt: skip
    for market_id, hour_us in ((1, 2 * day), (1, 3 * day), (1, 3 * day + hour), (3, 3 * day), (4, 3 * day)):
        await connection.execute(
            f"INSERT INTO coverage VALUES ({hour_us}, {'0, ' * 6}{market_id}, {'0, ' * 7}1, '{{}}', '{{}}', '{{}}')"
        )
    await connection.execute(
        f"INSERT INTO conditions SELECT n * {day}, 0, 0, 0, 0, 0, 0, 0, 0, 1, '' FROM generate_series(1, 5) n"
    )

    monkeypatch.setattr(migrate, "available", lambda: every)
    await migrate.migrate(empty)
    ends = dict(await connection.fetch("SELECT ticker, ended_us FROM markets"))
    assert ends == {"gap": 3 * day, "rest": 4 * day, "open": None, "old": None, "fresh": 7}
    due = await connection.fetch("SELECT market_id, hour_us FROM coverage_due ORDER BY hour_us")
    assert [tuple(row) for row in due] == [(1, 3 * day), (1, 3 * day + hour)]
    assert [row[0] // day for row in await connection.fetch("SELECT * FROM conditions_due ORDER BY 1")] == [3, 4, 5]
    await connection.close()


def as_before(event: BookEvent, market_id: int) -> tuple:
    """Return the row that release 0.1 wrote of an event."""
    head = (event.recv_us, event.checksum)
    match event:
        case BookDelta():
            return (
                event.effective_us,
                event.exchange_us,
                *head,
                event.delta,
                market_id,
                event.version,
                event.price,
                event.side,
                2,
                b"",
            )
        case BookSnapshot():
            return (event.effective_us, 0, *head, 0, market_id, event.version, 0, 0, 1, levels.pack(event.yes, event.no))
        case Gap():
            return (event.effective_us, 0, *head, 0, market_id, event.version, 0, 0, 3, b"")


async def test_every_table_is_closed_to_all_but_its_owner(database):
    owner = await asyncpg.connect(database)
    await partitions.create(owner, partitions.containing("book_events", 20_666 * partitions.DAY_US))
    await owner.execute(INSERT, 20_666 * partitions.DAY_US)
    await owner.execute("INSERT INTO markets (ticker, updated_us) VALUES ('KXA', 1)")
    tables = [row[0] for row in await owner.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1")]
    assert {"markets", "book_events", "book_events_20260801", "checkpoints_default", "api_keys", "schema_migrations"} <= {*tables}
    role = f"kb_anon_{uuid.uuid4().hex[:12]}"  # as Supabase's anon: granted everything, owner of nothing
    await owner.execute(f"CREATE ROLE {role}; GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}")
    try:
        assert (
            await owner.fetchval("SELECT count(*) FROM book_events") == await owner.fetchval("SELECT count(*) FROM markets") == 1
        )
        await owner.execute(f"SET ROLE {role}")
        for table in tables:
            assert await owner.fetchval(f"SELECT count(*) FROM {table}") == 0, table
            assert await owner.execute(f"DELETE FROM {table}") == "DELETE 0", table
        for refused in ("INSERT INTO markets (ticker, updated_us) VALUES ('KXB', 1)", INSERT.replace("$1", "0")):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await owner.execute(refused)
        await owner.execute("RESET ROLE")
        open_ones = "SELECT relname FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace WHERE nspname = 'public'"
        assert await owner.fetch(f"{open_ones} AND relkind IN ('r', 'p') AND NOT relrowsecurity") == []
    finally:
        await owner.execute(f"RESET ROLE; DROP OWNED BY {role}; DROP ROLE {role}")
        await owner.close()


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
        "INSERT INTO book_events SELECT $1 + n * 1000, n % 50, n / 50, 1, 2, '' FROM generate_series(1::bigint, 20000) n",
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
