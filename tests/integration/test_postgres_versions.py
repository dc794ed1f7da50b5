"""The oldest PostgreSQL that is here, and what Supabase makes of one: its owner is no superuser, its REST roles are granted all.

Everything else runs on the newest; `KB_POSTGRES_BIN=/its/bin make test-integration` runs it on any.
"""

from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from kalshibook_core.archive.store import Folder
from kalshibook_core.kafka import topics
from kalshibook_core.kafka.cluster import Cluster
from kalshibook_core.kafka.producer import Producer
from kalshibook_core.postgres import migrate, pool
from kalshibook_core.postgres.partitions import DAY_US
from kalshibook_core.wire import codec
from kalshibook_tools.stack import External, local_stack, postgres
from services.gateway.history.store import Store
from tests.support import gateway, past
from tests.support.parts import Parts
from tests.support.service import Service, until
from tests.support.written import trade

pytestmark = pytest.mark.stack

# As github.com/supabase/postgres has them (migrations/db); there `postgres` owns the database and is no superuser.
ROLES = """
CREATE ROLE anon NOLOGIN NOINHERIT;
CREATE ROLE authenticated NOLOGIN NOINHERIT;
CREATE ROLE service_role NOLOGIN NOINHERIT BYPASSRLS;
CREATE ROLE authenticator LOGIN NOINHERIT PASSWORD 'rest';
GRANT anon, authenticated, service_role TO authenticator;
CREATE ROLE postgres LOGIN NOSUPERUSER CREATEDB CREATEROLE REPLICATION BYPASSRLS PASSWORD 'owner';
ALTER DATABASE kalshibook OWNER TO postgres;
GRANT USAGE ON SCHEMA public TO postgres, anon, authenticated, service_role;
ALTER DEFAULT PRIVILEGES FOR ROLE postgres IN SCHEMA public GRANT ALL ON TABLES TO postgres, anon, authenticated, service_role;
ALTER DEFAULT PRIVILEGES FOR ROLE postgres IN SCHEMA public GRANT ALL ON SEQUENCES TO postgres, anon, authenticated, service_role;
"""


@pytest.fixture
async def at(parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    """Where a server with those roles answers: HOST:PORT/DATABASE."""
    _, oldest = min((major, folder) for folder, major in postgres.here().items() if major >= postgres.OLDEST)
    monkeypatch.setenv("KB_POSTGRES_BIN", str(oldest))
    async with local_stack(tmp_path / "stack", external=External(kafka=parts.kafka, redis=parts.redis)) as own:
        superuser = await asyncpg.connect(own.addresses.postgres)
        await superuser.execute(ROLES)
        await superuser.close()
        found = urlsplit(own.addresses.postgres)
        yield f"{found.hostname}:{found.port}{found.path}"


async def test_all_is_written_read_and_dropped_by_an_owner_who_is_no_superuser_and_closed_to_all_others(
    at: str, cluster: Cluster, tmp_path: Path
) -> None:
    dsn = f"postgresql://postgres:owner@{at}"
    await migrate.migrate(dsn)
    market = past.busy("KXA-1", 1, 400, 3)
    events = past.topics_of(market)
    traded = trade("KXA-1", 1, market[5].effective_us)
    async with Producer(cluster) as producer:
        for topic in (topics.BOOK, topics.CHECKPOINTS, topics.TICKERS):
            for event in events[topic.name]:
                producer.add(topic, b"KXA-1", codec.encode(event))
        producer.add(topics.TRADES, b"KXA-1", codec.encode(traded))
        await producer.flush()
    async with Service("persister", cluster, tmp_path / "log", KB_POSTGRES_DSN=dsn, KB_PERSISTER_BATCH_ROWS="50") as service:

        async def written() -> bool:
            return (await service.counter("events_total") or 0) == sum(map(len, events.values())) + 1

        await until(written)
        assert await service.drain() == 0
    await gateway.key(dsn)
    archive = Folder(tmp_path / "archive")
    await past.archive(archive, events)
    assert len(await past.retire(dsn, archive, (past.DAY0 + 1) * DAY_US)) == 2

    async with await pool.connect_pool(dsn, size=2) as owner:
        held = Store(owner)
        number = await held.market_id("KXA-1")
        assert number is not None
        for event in (market[-1], next(each for each in market if each.effective_us >= (past.DAY0 + 2) * DAY_US)):
            state = await held.book_at(number, event.effective_us)
            folded = gateway.brute_force(market, event.effective_us)
            assert state is not None and folded is not None
            assert (state.version, list(state.book.yes), list(state.book.no)) == (
                folded[1].version,
                list(folded[0].yes),
                list(folded[0].no),
            )
        tables = [row[0] for row in await owner.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")]
        kept = {table for table in tables if await owner.fetchval(f"SELECT count(*) FROM {table}")}
    assert kept >= {"markets", "book_events", "checkpoints", "tickers", "trades", "cold_days", "api_keys", "consumer_offsets"}

    rest = await asyncpg.connect(f"postgresql://authenticator:rest@{at}")
    for role in ("anon", "authenticated"):
        await rest.execute(f"SET ROLE {role}")
        for table in tables:
            assert await rest.fetchval(f"SELECT count(*) FROM {table}") == 0, (role, table)
            assert await rest.execute(f"DELETE FROM {table}") == "DELETE 0", (role, table)
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await rest.execute(f"TRUNCATE {table}")
        for refused in ("INSERT INTO markets (ticker, updated_us) VALUES ('KXB', 1)", "SELECT setval('markets_id_seq', 1)"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await rest.execute(refused)
    await rest.execute("SET ROLE service_role")  # whose key the operator keeps: it reads all
    assert {table for table in tables if await rest.fetchval(f"SELECT count(*) FROM {table}")} == kept
    await rest.close()
