"""Numbered SQL migrations: `migrations/NNNN_name.sql`, applied once each, in order, forward only.

Each runs in a transaction of its own together with the row that records it, so a crash leaves whole migrations applied or not at
all. An advisory lock of that transaction lets any number of processes migrate at once (and works through a transaction
pooler). The text of an applied file is remembered by its SHA-256: an altered one is an error, never a guess. When all stand, all
tables are closed (`closing`).
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Final

from kalshibook_core.postgres import closing, pool

_LOCK: Final = 0x6B61_6C73_6869  # any constant of ours; "kalshi" in ASCII
_TABLE: Final = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    number     integer PRIMARY KEY,
    name       text NOT NULL,
    sha256     text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)"""


class MigrationError(Exception):
    """The database and the migration files contradict each other; nothing was changed."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file of SQL."""

    number: int
    name: str
    sql: str

    @property
    def sha256(self) -> str:
        """The digest of the text, as the database remembers it."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def available() -> list[Migration]:
    """Return the migrations shipped with this code, by number."""
    files = (resources.files("kalshibook_core.postgres") / "migrations").iterdir()
    found = [
        Migration(int(file.name[:4]), file.name.removesuffix(".sql"), file.read_text(encoding="utf-8"))
        for file in files
        if file.name.endswith(".sql")
    ]
    return sorted(found, key=lambda migration: migration.number)


def plan(migrations: Sequence[Migration], applied: dict[int, tuple[str, str]]) -> list[Migration]:
    """Return the migrations still to run, given {number: (name, sha256)} of those applied; raise MigrationError.

    Rooms number their files in ranges of their own, so a new file may have a lower number than an applied one.
    """
    known = {migration.number: migration for migration in migrations}
    if len(known) != len(migrations):
        numbers = [migration.number for migration in migrations]
        twice = [migration.name for migration in migrations if numbers.count(migration.number) > 1]
        raise MigrationError(f"migrations with one number: {', '.join(twice)}; renumber all but one")
    for number, (name, sha256) in sorted(applied.items()):
        if number not in known:
            raise MigrationError(
                f"migration {name} was applied to this database but is not in this release: it is older than the database"
            )
        if known[number].sha256 != sha256:
            raise MigrationError(f"migration {name} was altered after it was applied: restore the file and write a new migration")
    return [migration for migration in migrations if migration.number not in applied]


def tables(migrations: Sequence[Migration]) -> list[str]:
    """Return the tables that these migrations make."""
    whole = "\n".join([_TABLE, *(migration.sql for migration in migrations)])
    return re.findall(r"^CREATE TABLE (?:IF NOT EXISTS )?(\w+)", whole, re.MULTILINE)


async def migrate(dsn: str, progress: Callable[[str], None] = lambda line: None) -> list[str]:
    """Bring the database up to date and return the names applied; `progress` is told each. Safe to repeat and to run at once.

    Raises MigrationError, DatabaseUnreachable, or what Postgres says about a migration (asyncpg.PostgresError).
    """
    migrations, names = available(), list[str]()
    connection = await pool.connect(dsn)
    try:
        while True:
            async with connection.transaction():
                await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK)
                await connection.execute(_TABLE)
                rows = await connection.fetch("SELECT number, name, sha256 FROM schema_migrations")
                pending = plan(migrations, {row["number"]: (row["name"], row["sha256"]) for row in rows})
                if not pending:
                    await closing.close(connection, tables(migrations))
                    return names
                await connection.execute(pending[0].sql)
                await connection.execute(
                    "INSERT INTO schema_migrations (number, name, sha256) VALUES ($1, $2, $3)",
                    pending[0].number, pending[0].name, pending[0].sha256,
                )  # fmt: skip
            names.append(pending[0].name)
            progress(f"applied {pending[0].name}")
    finally:
        await connection.close()
