"""Queries on what is known of a market's record: since when, with which gaps, and how far. Read-only; each walks an index."""

from collections.abc import Callable
from typing import Final

import asyncpg

from kalshibook_core.postgres import runs
from kalshibook_core.postgres.partitions import DAY_US
from kalshibook_core.wire.events import BOOK, LAG_US
from kalshibook_core.wire.quality import TRADES_AFTER_US, Quality, Record, Span, of_span
from services.gateway.completeness import OVER

TIMEOUT: Final = 10.0
MOST: Final = 10_000
"""Gaps of one span that are looked at; were there more, all that comes after them would count as uncovered."""

_MARKET: Final = "SELECT open_us, recorded_us, status FROM markets WHERE id = $1"

_GAPS: Final = f"""
SELECT start_us, end_us, cause FROM gaps
WHERE market_id = $1 AND channel = $2 AND filled_us IS NULL AND start_us < $4
  AND (end_us IS NULL OR greatest(end_us, start_us + 1) > $3)
ORDER BY start_us, opened_version LIMIT {MOST + 1}"""

_ROW: Final = ", ".join(runs.COLUMNS)
# Of what was dropped from the tables (cold_spans), since the archive has it, the first and last events are told.
_LATER: Final = """
SELECT least((SELECT effective_us FROM book_events WHERE market_id = $1 AND effective_us >= $2 ORDER BY effective_us LIMIT 1),
             (SELECT greatest(first_us, $2) FROM cold_spans WHERE market_id = $1 AND table_name = 'book_events' AND last_us >= $2
              ORDER BY first_us LIMIT 1))"""
_LAST_DROPPED: Final = """
SELECT max(last_us) FROM cold_spans WHERE market_id = $1 AND table_name = 'book_events' AND last_us >= $3 AND last_us < $2"""
_LAST: Final = f"""
SELECT {_ROW} FROM book_events
WHERE market_id = $1 AND effective_us < $2 AND effective_us >= $3 ORDER BY effective_us DESC, version DESC LIMIT 1"""
_LAST_TRADE: Final = "SELECT max(exchange_us) FROM trades WHERE market_id = $1"


class Store:
    """What the tables say, and what the feed says of how far they reach."""

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]", through: Callable[[str, str], int]) -> None:
        """`through(ticker, channel)`: the instant up to which all that was received is stored, 0 if that is not known."""
        self._pool, self._through = pool, through

    async def through(self, ticker: str, market_id: int, channel: str, from_us: int | None, to_us: int | None) -> int:
        """Return how far all is stored; see `completeness.Measure`."""
        through = self._through(ticker, channel)
        if to_us is None or to_us - 1 > through:
            through = max(through, await self._stored(market_id, channel, from_us or 0, to_us))
        return through

    async def quality(self, market_id: int, channel: str, from_us: int | None, to_us: int | None, through_us: int) -> Quality:
        """Return the quality of a market's record; see `completeness.Measure`."""
        market = await self._pool.fetchrow(_MARKET, market_id, timeout=TIMEOUT)
        opens_us, first_us, status = (None, None, None) if market is None else market
        if first_us is not None and channel != BOOK:
            first_us += TRADES_AFTER_US
        if from_us is None:
            from_us = min((us for us in (opens_us, first_us) if us is not None), default=through_us)
        if to_us is None:
            to_us = max(from_us, through_us + 1)
        rows = [Span(*row) for row in await self._pool.fetch(_GAPS, market_id, channel, from_us, to_us, timeout=TIMEOUT)]
        if len(rows) > MOST:
            rows[-1] = rows[-1]._replace(end_us=None)
        return of_span(Record(rows, through_us, first_us, opens_us, status in OVER), from_us, to_us)

    async def _stored(self, market_id: int, channel: str, from_us: int, to_us: int | None) -> int:
        """Return the instant up to which what is stored of a market shows by itself that nothing before is still to come."""
        if channel != BOOK:
            last = await self._pool.fetchval(_LAST_TRADE, market_id, timeout=TIMEOUT)
            return 0 if last is None else int(last) - LAG_US
        if to_us is None:
            to_us = 1 << 62
        elif (later := await self._pool.fetchval(_LATER, market_id, to_us, timeout=TIMEOUT)) is not None:
            return int(later) - 1
        row = await self._pool.fetchrow(_LAST, market_id, to_us, from_us - from_us % DAY_US, timeout=TIMEOUT)
        if row is None:
            dropped = await self._pool.fetchval(_LAST_DROPPED, market_id, to_us, from_us, timeout=TIMEOUT)
            return 0 if dropped is None else int(dropped) - 1
        try:
            return int(runs.unpack(*row)[-1][1]) - 1
        except runs.DamagedRow:
            return int(row["effective_us"]) - 1
