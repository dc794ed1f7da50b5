"""What the database says was missed: gaps of trades that nothing filled, and markets without a definition or an outcome."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple

from kalshibook_core.postgres import pool

_GAPS: Final = """
SELECT m.ticker, g.start_us, g.end_us, g.cause FROM gaps g JOIN markets m ON m.id = g.market_id
WHERE g.channel = 'trade' AND g.start_us >= $1 AND g.end_us <= $2 AND g.filled_us IS NULL ORDER BY g.start_us, m.ticker"""

_UNRESOLVED: Final = """
SELECT ticker, NULL AS status FROM markets WHERE body IS NULL
UNION ALL
SELECT ticker, coalesce(status, '') FROM markets
WHERE status IS DISTINCT FROM 'finalized' AND close_us BETWEEN $1 AND $2 AND body IS NOT NULL"""

_EVENTS: Final = "SELECT ticker FROM events WHERE ticker = ANY($1::text[])"


class Hole(NamedTuple):
    """A gap of trades that has ended."""

    ticker: str
    start_us: int
    end_us: int
    cause: str


class Unresolved(NamedTuple):
    """A market that nobody defined (no status), or that has closed and is not known to be settled."""

    ticker: str
    status: str | None


async def holes(dsn: str, since_us: int, until_us: int) -> list[Hole]:
    """Return the gaps of trades within [since_us, until_us] that nothing has filled. Raises DatabaseUnreachable."""
    async with _connected(dsn) as connection:
        return [Hole(*row) for row in await connection.fetch(_GAPS, since_us, until_us)]


async def unresolved(dsn: str, since_us: int, until_us: int) -> list[Unresolved]:
    """Return the markets without a definition, and those that closed in this time and are not settled. Raises as `holes`."""
    async with _connected(dsn) as connection:
        return [Unresolved(*row) for row in await connection.fetch(_UNRESOLVED, since_us, until_us)]


async def known_events(dsn: str, tickers: list[str]) -> list[str]:
    """Return those of these events that have a definition. Raises as `holes`."""
    async with _connected(dsn) as connection:
        return [row[0] for row in await connection.fetch(_EVENTS, tickers)]


@asynccontextmanager
async def _connected(dsn: str) -> AsyncIterator[Any]:
    connection = await pool.connect(dsn)
    try:
        yield connection
    except pool.UNREACHABLE as error:
        raise pool.DatabaseUnreachable(f"Postgres at {pool.describe(dsn)} went away: {error}") from error
    finally:
        await connection.close()
