"""Queries on what is known of a market's record: since when, with which gaps, and how far. Read-only; each walks an index."""

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import asyncpg

from kalshibook_core.kalshi.markets import ENDED
from kalshibook_core.postgres import coverage, runs
from kalshibook_core.postgres.coverage import MEASURED_GAPS
from kalshibook_core.postgres.partitions import DAY_US
from kalshibook_core.wire.coverage import MATCH, MISMATCH, UNKNOWN, Latency
from kalshibook_core.wire.events import BOOK, LAG_US
from kalshibook_core.wire.quality import TRADES_AFTER_US, Quality, Record, Span, of_span
from services.gateway.errors import ApiError

TIMEOUT: Final = 10.0
MOST: Final = 10_000
"""Gaps of one span that are looked at; were there more, all that comes after them would count as uncovered."""

_MARKET: Final = "SELECT open_us, recorded_us, status FROM markets WHERE id = $1"

_GAPS: Final = """
SELECT start_us, end_us, cause FROM {gaps}
WHERE market_id = $1 AND channel = $2 AND filled_us IS NULL AND start_us < $4
  AND (end_us IS NULL OR greatest(end_us, start_us + 1) > $3)
ORDER BY start_us, opened_version LIMIT {most}"""
_GAPS_AS_TOLD: Final = _GAPS.format(gaps="gaps", most=MOST + 1)
_GAPS_AS_MEASURED: Final = _GAPS.format(gaps=MEASURED_GAPS, most=MOST + 1)

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

UNMEASURED: Final = 48
"""Hours of one market that an answer measures by itself."""

_KNOWN: Final = "SELECT id, status, updated_us FROM markets WHERE ticker = $1"
_HOURS: Final = """
SELECT DISTINCT ON (hour_us) * FROM coverage WHERE market_id = $1 AND hour_us >= $2 AND hour_us < $3
ORDER BY hour_us, revision DESC"""
_DUE: Final = """
SELECT hour_us FROM coverage_due WHERE market_id = $1 AND hour_us >= $2 AND hour_us < $3 ORDER BY hour_us DESC LIMIT $4"""
_CONDITIONS: Final = """
SELECT DISTINCT ON (day_us) * FROM conditions WHERE day_us >= $1 AND day_us < $2 ORDER BY day_us, revision DESC"""
_CLOSED: Final = "SELECT coalesce(max(hour_us), -1) FROM coverage_closed"
_DAYS_DUE: Final = "SELECT day_us FROM conditions_due"
_ALL_GAPS: Final = f"""
SELECT market_id, start_us, end_us, cause FROM {MEASURED_GAPS}
WHERE channel = $1 AND filled_us IS NULL AND start_us < $3 AND (end_us IS NULL OR greatest(end_us, start_us + 1) > $2)
ORDER BY start_us LIMIT $4"""


class Counts(NamedTuple):
    """What was counted of one market's hour. `revision` 0: it is not measured for good yet."""

    hour_us: int
    events: int
    trades: int
    first_version: int | None
    last_version: int | None
    audits: Mapping[str, int]
    latency: Latency
    revision: int
    changed_us: int | None


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
        return of_span(*await self._record(market_id, channel, from_us, to_us, through_us, _GAPS_AS_TOLD))

    async def record(self, market_id: int, channel: str, from_us: int, to_us: int, through_us: int) -> Record:
        """Return what there is of a market in a span, to be measured: its gaps end with the market (docs/quality.md)."""
        return (await self._record(market_id, channel, from_us, to_us, through_us, _GAPS_AS_MEASURED))[0]

    async def _record(
        self, market_id: int, channel: str, from_us: int | None, to_us: int | None, through_us: int, gaps: str
    ) -> tuple[Record, int, int]:
        """Return what there is of a market in a span, and the span with its ends filled in; `gaps` is the query of them."""
        market = await self._pool.fetchrow(_MARKET, market_id, timeout=TIMEOUT)
        opens_us, first_us, status = (None, None, None) if market is None else market
        if first_us is not None and channel != BOOK:
            first_us += TRADES_AFTER_US
        if from_us is None:
            from_us = min((us for us in (opens_us, first_us) if us is not None), default=through_us)
        if to_us is None:
            to_us = max(from_us, through_us + 1)
        rows = [Span(*row) for row in await self._pool.fetch(gaps, market_id, channel, from_us, to_us, timeout=TIMEOUT)]
        if len(rows) > MOST:
            rows[-1] = rows[-1]._replace(end_us=None)
        return Record(rows, through_us, first_us, opens_us, status in ENDED), from_us, to_us

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

    async def market(self, ticker: str) -> tuple[int, int | None] | None:
        """Return a market's id and, if it is over, when it was last heard of; None if it was never recorded."""
        row = await self._pool.fetchrow(_KNOWN, ticker, timeout=TIMEOUT)
        return None if row is None else (row["id"], row["updated_us"] if row["status"] in ENDED else None)

    async def hours(self, market_id: int, from_us: int, to_us: int) -> list[Counts]:
        """Return what was counted of the market's hours in [from_us, to_us) of which anything is stored, in no order.

        Hours with rows that are not measured yet are measured now; raises the 503 where there are more than `UNMEASURED`.
        """
        found = {
            row["hour_us"]: _counts(row) for row in await self._pool.fetch(_HOURS, market_id, from_us, to_us, timeout=TIMEOUT)
        }
        due = [row[0] for row in await self._pool.fetch(_DUE, market_id, from_us, to_us, UNMEASURED + 1, timeout=TIMEOUT)]
        if len(due) > UNMEASURED:
            text = f"More than {UNMEASURED} hours of this range are stored and not measured yet; ask for fewer, or again later."
            raise ApiError(503, "not_measured", text)
        if due:
            async with self._pool.acquire() as connection:
                measured = await coverage.measure(connection, [(market_id, hour_us) for hour_us in due])
            for hour_us, hour in zip(due, measured, strict=True):
                before = found.get(hour_us)
                if before is None or hour.events >= before.events:  # else its events have left for the archive
                    found[hour_us] = Counts(
                        hour_us, hour.events, hour.trades, hour.first_version, hour.last_version, dict(hour.audits), hour.latency,
                        *((0, None) if before is None else (before.revision, before.changed_us)),
                    )  # fmt: skip
        return list(found.values())

    async def conditions(self, from_us: int, to_us: int) -> tuple[list[Any], int, set[int]]:
        """Return what is said of the days in [from_us, to_us), the last hour that is closed (-1: none) and which days are due."""
        rows = await self._pool.fetch(_CONDITIONS, from_us, to_us, timeout=TIMEOUT)
        closed = await self._pool.fetchval(_CLOSED, timeout=TIMEOUT)
        return rows, closed, {row[0] for row in await self._pool.fetch(_DAYS_DUE, timeout=TIMEOUT)}

    async def gaps(self, channel: str, from_us: int, to_us: int, most: int) -> list[tuple[int, Span]]:
        """Return (market id, gap as measured) of all of a channel that touch [from_us, to_us), at most so many, by start."""
        rows = await self._pool.fetch(_ALL_GAPS, channel, from_us, to_us, most, timeout=TIMEOUT)
        return [(row[0], Span(row[1], row[2], row[3])) for row in rows]


def _counts(row: Any) -> Counts:
    audits = {MATCH: row["matched"], MISMATCH: row["mismatched"], UNKNOWN: row["unjudged"]}
    return Counts(
        row["hour_us"], row["events"], row["trades"], row["first_version"], row["last_version"], audits,
        Latency(row["latency"], row["latency_max_us"]), row["revision"], row["changed_us"],
    )  # fmt: skip
