"""What the supervisor asks the database: which gaps stand, how far each market is, and which one makes a good first query.

Reads only; the tables are the persister's.
"""

import asyncio
from dataclasses import dataclass
from typing import Any

from kalshibook_core.postgres import pool
from services.gateway import instants

_GAPS = """
SELECT m.ticker, g.channel, g.start_us, g.end_us, g.cause, g.filled_from
FROM gaps g JOIN markets m ON m.id = g.market_id ORDER BY g.start_us, m.ticker"""

_REACHED = """
SELECT m.ticker,
       coalesce((SELECT version + events - 1 FROM book_events e WHERE e.market_id = m.id
                 ORDER BY effective_us DESC, version DESC LIMIT 1), 0) AS version,
       (SELECT count(*) FROM trades t WHERE t.market_id = m.id) AS trades
FROM markets m WHERE m.ticker = ANY($1)"""

# The markets heard of last, each with the time of its latest deltas: a book that lives.
_LIVELY = """
SELECT m.ticker, last.effective_us
FROM (SELECT id, ticker FROM markets ORDER BY updated_us DESC LIMIT 500) m
CROSS JOIN LATERAL (SELECT effective_us, kind FROM book_events e WHERE e.market_id = m.id
                    ORDER BY effective_us DESC, version DESC LIMIT 1) last
WHERE last.kind < 3 ORDER BY last.kind DESC, last.effective_us DESC LIMIT 5"""


@dataclass(frozen=True, slots=True)
class Reached:
    """How far a market is in the database."""

    version: int = 0
    trades: int = 0


class History:
    """A reader of the database, over one connection that its users take turns with."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._connection: Any = None
        self._turn = asyncio.Lock()
        self._counted: tuple[int, ...] | None = None
        self._gaps: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])

    async def gaps(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Return the gaps of books and of trades, oldest first; `end` is None while one is open, `filled` until it is."""
        counted = tuple((await self._fetch("SELECT count(*), count(end_us), count(filled_us) FROM gaps"))[0])
        if counted != self._counted:
            books: list[dict[str, Any]] = []
            trades: list[dict[str, Any]] = []
            for ticker, channel, start_us, end_us, cause, filled in await self._fetch(_GAPS):
                end = instants.optional_text(end_us)
                gap = {"market_ticker": ticker, "start": instants.text(start_us), "end": end, "cause": cause}
                if channel == "trade":
                    trades.append(gap | {"filled": filled})
                else:
                    books.append(gap)
            self._gaps, self._counted = (books, trades), counted
        return self._gaps

    async def reached(self, tickers: list[str]) -> dict[str, Reached]:
        """Return how far each market is; one the database does not know is left out."""
        return {ticker: Reached(version, trades) for ticker, version, trades in await self._fetch(_REACHED, tickers)}

    async def lively(self) -> list[tuple[str, str]]:
        """Return up to five (ticker, instant of its last book event), the best first query first."""
        return [(ticker, instants.text(effective_us)) for ticker, effective_us in await self._fetch(_LIVELY)]

    async def close(self) -> None:
        """Close the connection, if there is one."""
        if self._connection is not None and not self._connection.is_closed():
            await self._connection.close()

    async def _fetch(self, query: str, *arguments: object) -> list[Any]:
        # A database that is away is not the supervisor's end: it is started again, and the next look finds it.
        async with self._turn:
            if self._connection is None or self._connection.is_closed():
                self._connection = await pool.connect(self._dsn)
            return list(await self._connection.fetch(query, *arguments))
