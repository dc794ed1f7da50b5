"""Queries on `markets`, `events`, `series` and `lifecycle`, the persister's tables."""

from typing import Any, Final

import asyncpg

TIMEOUT: Final = 10.0

_MARKETS: Final = """
SELECT m.ticker, m.event_ticker, coalesce(m.series_ticker, e.series_ticker) AS series_ticker, m.title, m.status, m.result,
       m.settlement_value, m.open_us, m.close_us, m.settled_us, m.updated_us{body}
FROM markets m LEFT JOIN events e ON e.ticker = m.event_ticker WHERE """

# Only what was asked for stands in the statement, so an index can answer it. A market's object names no series; its event does.
_FILTERS: Final = {
    "status": "m.status = ANY(${n})",
    "event_ticker": "m.event_ticker = ${n}",
    "series_ticker": """(m.series_ticker = ${n}
        OR m.event_ticker = ANY(ARRAY(SELECT ticker FROM events WHERE series_ticker = ${n})))""",
    "settled_from": "m.settled_us >= ${n}",
    "settled_to": "m.settled_us < ${n}",
}
_MARKET: Final = _MARKETS.format(body=", m.body::text AS body") + "m.ticker = $1"

_EVENTS: Final = """
SELECT ticker, series_ticker, title, category, updated_us FROM events
WHERE ticker > $1 AND ($2::text IS NULL OR series_ticker = $2) AND ($3::text IS NULL OR category = $3) ORDER BY ticker LIMIT $4"""

_ALL_SERIES: Final = """
SELECT ticker, title, category, updated_us FROM series
WHERE ticker > $1 AND ($2::text IS NULL OR category = $2) ORDER BY ticker LIMIT $3"""

_EVENT: Final = "SELECT ticker, series_ticker, title, category, updated_us, body::text AS body FROM events WHERE ticker = $1"
_SERIES: Final = "SELECT ticker, title, category, updated_us, body::text AS body FROM series WHERE ticker = $1"

# Rows have no number of their own: a page goes on at an instant, past so many of its rows in an order that says all of them.
_LIFECYCLE: Final = """
SELECT event_type, clock_us, recv_us, body::text AS body FROM lifecycle
WHERE market_id = $1 AND clock_us >= $2 AND clock_us < $3 AND ($4::text IS NULL OR event_type = $4)
ORDER BY clock_us, recv_us, event_type, body::text LIMIT $5 OFFSET $6"""


class Store:
    """Markets and what they belong to, read from one pool."""

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]") -> None:
        self._pool = pool

    async def markets(self, after: str, limit: int, **filters: Any) -> list[Any]:
        """Return markets with a greater ticker than `after` that fit the filters (of `_FILTERS`; None: any), by ticker."""
        given = {name: value for name, value in filters.items() if value is not None}
        where = "".join(" AND " + _FILTERS[name].replace("{n}", str(n)) for n, name in enumerate(given, 3))
        statement = _MARKETS.format(body="") + "m.ticker > $1" + where + " ORDER BY m.ticker LIMIT $2"
        rows: list[Any] = await self._pool.fetch(statement, after, limit, *given.values(), timeout=TIMEOUT)
        return rows

    async def market(self, ticker: str) -> Any | None:
        """Return one market with its `body`, None if it was never recorded."""
        return await self._pool.fetchrow(_MARKET, ticker, timeout=TIMEOUT)

    async def events(self, after: str, series_ticker: str | None, category: str | None, limit: int) -> list[Any]:
        """Return events with a greater ticker than `after`, by ticker."""
        rows: list[Any] = await self._pool.fetch(_EVENTS, after, series_ticker, category, limit, timeout=TIMEOUT)
        return rows

    async def event(self, ticker: str) -> Any | None:
        """Return one event with its `body`, None if it was never read."""
        return await self._pool.fetchrow(_EVENT, ticker, timeout=TIMEOUT)

    async def all_series(self, after: str, category: str | None, limit: int) -> list[Any]:
        """Return series with a greater ticker than `after`, by ticker."""
        rows: list[Any] = await self._pool.fetch(_ALL_SERIES, after, category, limit, timeout=TIMEOUT)
        return rows

    async def series(self, ticker: str) -> Any | None:
        """Return one series with its `body`, None if it was never read."""
        return await self._pool.fetchrow(_SERIES, ticker, timeout=TIMEOUT)

    async def lifecycle(
        self, ticker: str, from_us: int, to_us: int, event_type: str | None, limit: int, past: int
    ) -> list[Any] | None:
        """Return what was told of a market with from_us <= clock_us < to_us, past so many rows; None if it was never recorded."""
        market_id = await self._pool.fetchval("SELECT id FROM markets WHERE ticker = $1", ticker, timeout=TIMEOUT)
        if market_id is None:
            return None
        rows: list[Any] = await self._pool.fetch(_LIFECYCLE, market_id, from_us, to_us, event_type, limit, past, timeout=TIMEOUT)
        return rows
