"""A database of a benchmark's own: migrated, empty, and gone afterwards."""

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from kalshibook_core.postgres import migrate


@asynccontextmanager
async def fresh(server: str) -> AsyncIterator[str]:
    """Yield its DSN, on the Postgres of the DSN `server`."""
    name = f"kb_bench_{uuid.uuid4().hex[:8]}"
    admin = await asyncpg.connect(server)
    try:
        await admin.execute(f"CREATE DATABASE {name}")
        try:
            dsn = urlunsplit(urlsplit(server)._replace(path=f"/{name}"))
            await migrate.migrate(dsn)
            yield dsn
        finally:
            await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await admin.close()
