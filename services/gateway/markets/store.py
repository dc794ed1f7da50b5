"""Queries on `markets`, the persister's table."""

from typing import Any, Final

import asyncpg

_COLUMNS: Final = "ticker, event_ticker, series_ticker, title, status, result, open_us, close_us, settled_us, updated_us"

_LIST: Final = f"""
SELECT {_COLUMNS} FROM markets
WHERE ticker > $1 AND ($2::text IS NULL OR status = $2) AND ($3::text IS NULL OR event_ticker = $3)
  AND ($4::text IS NULL OR series_ticker = $4)
ORDER BY ticker LIMIT $5"""

_ONE: Final = f"SELECT {_COLUMNS}, body::text AS body FROM markets WHERE ticker = $1"


class Store:
    """Markets, read from one pool."""

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]") -> None:
        self._pool = pool

    async def markets(
        self, after: str, status: str | None, event_ticker: str | None, series_ticker: str | None, limit: int
    ) -> list[Any]:
        """Return markets with a greater ticker than `after` that fit the filters, by ticker."""
        rows: list[Any] = await self._pool.fetch(_LIST, after, status, event_ticker, series_ticker, limit, timeout=10.0)
        return rows

    async def market(self, ticker: str) -> Any | None:
        """Return one market with its `body`, None if it was never recorded."""
        return await self._pool.fetchrow(_ONE, ticker, timeout=10.0)
