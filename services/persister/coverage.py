"""Measuring what was recorded: closes hours, and measures what is due, some markets' hours at a time. Not in the path of rows.

An hour is closed when the book of this process is SETTLE_US past its end. A row of a closed hour is late: who writes it puts
its market's hour down as due, in the same transaction (`Store.write`). So whatever is committed is in a revision, or due.
"""

from typing import Any, Final

import asyncpg
import orjson

from kalshibook_core.postgres.coverage import MEASURED_GAPS, measure
from kalshibook_core.postgres.partitions import DAY_US
from kalshibook_core.wire.coverage import HOUR_US, MATCH, MISMATCH, UNKNOWN, Hour
from kalshibook_core.wire.quality import QUIET, Quality

SETTLE_US: Final = 900_000_000
"""Most of what belongs to an hour comes within it: audits are judged in ten minutes, late trades take seconds."""

AT_ONCE: Final = 20
"""Markets' hours in one transaction: what they hold is in memory meanwhile."""

FENCE: Final = 0x6B62_636F
"""The advisory lock between who writes rows (shared) and who closes an hour (alone)."""

_CLOSED: Final = "SELECT max(hour_us) FROM coverage_closed"
_CLOSE: Final = "INSERT INTO coverage_closed SELECT $1, $2 WHERE $1 > coalesce((SELECT max(hour_us) FROM coverage_closed), -1)"
_LAST_DUE: Final = "SELECT coalesce(max(hour_us), 0) FROM coverage_due"
_FIRST: Final = "SELECT min(recorded_us) FROM markets"
MARK_DAYS: Final = """
INSERT INTO conditions_due SELECT * FROM unnest($1::bigint[]) ON CONFLICT (day_us) DO UPDATE SET day_us = excluded.day_us"""

_TAKE: Final = """
SELECT market_id, hour_us FROM coverage_due WHERE hour_us <= $1 ORDER BY hour_us, market_id LIMIT $2 FOR UPDATE SKIP LOCKED"""
_DONE: Final = """
DELETE FROM coverage_due USING unnest($1::int[], $2::bigint[]) AS done (market_id, hour_us)
WHERE (coverage_due.market_id, coverage_due.hour_us) = (done.market_id, done.hour_us)"""

_COLUMNS: Final = (
    "hour_us", "changed_us", "recordable_us", "covered_us", "trades_recordable_us", "trades_covered_us", "latency_max_us",
    "market_id", "events", "trades", "first_version", "last_version", "matched", "mismatched", "unjudged", "revision", "latency",
    "gaps", "trades_gaps",
)  # fmt: skip
_NEWEST: Final = f"""
SELECT DISTINCT ON (market_id, hour_us) {", ".join(_COLUMNS)} FROM coverage
JOIN unnest($1::int[], $2::bigint[]) AS asked (market_id, hour_us) USING (market_id, hour_us)
ORDER BY market_id, hour_us, revision DESC"""

_TAKE_DAY: Final = f"""
SELECT day_us FROM conditions_due d WHERE day_us <= $1 - {DAY_US - HOUR_US}
  AND NOT EXISTS (SELECT FROM coverage_due WHERE hour_us >= day_us AND hour_us < day_us + {DAY_US})
ORDER BY day_us LIMIT 1 FOR UPDATE SKIP LOCKED"""

# A day is degraded by a gap that is not the exchange's own quiet, of whatever market and channel, and by an audit that found
# another book. It is missing when nothing at all was recorded on it.
_CONDITION: Final = f"""
WITH hours AS (
    SELECT DISTINCT ON (market_id, hour_us) * FROM coverage WHERE hour_us >= $1 AND hour_us < $1 + {DAY_US}
    ORDER BY market_id, hour_us, revision DESC
), told AS (
    SELECT coalesce(sum(recordable_us - covered_us), 0)::bigint AS uncovered_us, coalesce(sum(events), 0)::bigint AS events,
           coalesce(sum(trades), 0)::bigint AS trades, count(DISTINCT market_id) AS markets,
           coalesce(sum(matched), 0) AS matched, coalesce(sum(mismatched), 0) AS mismatched
    FROM hours
), hurt AS (
    SELECT count(DISTINCT market_id) AS markets_with_gap FROM {MEASURED_GAPS}
    WHERE filled_us IS NULL AND start_us < $1 + {DAY_US} AND (end_us IS NULL OR greatest(end_us, start_us + 1) > $1)
      AND cause <> ALL ($2::text[])
)
SELECT uncovered_us, events, trades, markets, markets_with_gap, matched, mismatched,
       CASE WHEN events + trades = 0 THEN 'missing' WHEN markets_with_gap + mismatched > 0 THEN 'degraded' ELSE 'available' END
FROM told, hurt"""
_SAY_CONDITION: Final = """
INSERT INTO conditions (day_us, changed_us, uncovered_us, events, trades, markets, markets_with_gap, matched, mismatched,
                        condition, revision)
SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, coalesce((SELECT max(revision) FROM conditions WHERE day_us = $1), 0) + 1
WHERE NOT EXISTS (
    SELECT FROM (SELECT * FROM conditions WHERE day_us = $1 ORDER BY revision DESC LIMIT 1) AS newest
    WHERE (uncovered_us, events, trades, markets, markets_with_gap, matched, mismatched, condition)
        = ($3, $4, $5, $6, $7, $8, $9, $10))"""


class Coverage:
    """The tables of quality, as one process writes them. Any number of processes may."""

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]") -> None:
        self._pool = pool
        self.measured = 0  # revisions
        self.days = 0

    async def close(self, book_us: int, now_us: int) -> None:
        """Close the hours that a book which has come to `book_us`, or to the last hour that is due, is surely past."""
        # What was written before this process began shows in what is due: the last hour written in is, until it is closed.
        reached = min(max(book_us, await self._pool.fetchval(_LAST_DUE)), now_us) - SETTLE_US
        hour_us = reached - reached % HOUR_US - HOUR_US
        if hour_us < 0 or hour_us <= await self.closed():
            return
        async with self._pool.acquire() as connection, connection.transaction():
            # All who wrote rows thinking the hour open have committed once this is ours; who comes after sees it closed.
            await connection.execute("SELECT pg_advisory_xact_lock($1)", FENCE)
            before = await connection.fetchval(_CLOSED)
            if await connection.execute(_CLOSE, hour_us, now_us) == "INSERT 0 0":
                return
            if before is None:
                first = await connection.fetchval(_FIRST)
                before = hour_us if first is None else first - first % DAY_US - HOUR_US
            # Days whose last hour is closed now; those in which nothing was recorded among them.
            days = range(before + HOUR_US - (before + HOUR_US) % DAY_US, hour_us + HOUR_US - DAY_US + 1, DAY_US)
            await connection.execute(MARK_DAYS, list(days))

    async def closed(self) -> int:
        """Return the last hour that is closed, -1 of none."""
        hour_us = await self._pool.fetchval(_CLOSED)
        return -1 if hour_us is None else int(hour_us)

    async def measure(self, now_us: int) -> int:
        """Measure some of what is due; return how many markets' hours that were.

        One transaction: what is due is locked, so that whoever else writes late rows of it waits or puts it down again; measured;
        a revision is appended where it gives something new; the days are put down as due; and it is due no longer. A crash
        leaves nothing of that, and it is done again.
        """
        async with self._pool.acquire() as connection, connection.transaction():
            taken = [tuple(row) for row in await connection.fetch(_TAKE, await self.closed(), AT_ONCE)]
            if not taken:
                return 0
            asked = [market_id for market_id, _ in taken], [hour_us for _, hour_us in taken]
            newest = {(row["market_id"], row["hour_us"]): row for row in await connection.fetch(_NEWEST, *asked)}
            made = [
                row
                for where, hour in zip(taken, await measure(connection, taken), strict=True)
                if (row := revision(where, hour, newest.get(where), now_us)) is not None
            ]
            await connection.copy_records_to_table("coverage", columns=_COLUMNS, records=made)
            await connection.execute(MARK_DAYS, sorted({row[0] - row[0] % DAY_US for row in made}))
            await connection.execute(_DONE, *asked)
        self.measured += len(made)
        return len(taken)

    async def condition(self, now_us: int) -> bool:
        """Say of one day that is due what its condition is; return whether there was one. One transaction, as in `measure`."""
        async with self._pool.acquire() as connection, connection.transaction():
            day_us = await connection.fetchval(_TAKE_DAY, await self.closed())
            if day_us is None:
                return False
            (told,) = await connection.fetch(_CONDITION, day_us, [str(cause) for cause in QUIET])
            await connection.execute(_SAY_CONDITION, day_us, now_us, *told.values())
            await connection.execute("DELETE FROM conditions_due WHERE day_us = $1", day_us)
        self.days += 1
        return True


def revision(where: tuple[int, int], hour: Hour, newest: Any, now_us: int) -> tuple[Any, ...] | None:
    """Return the row of a new revision, in the order of the columns; None where `newest`, the last one if any, says the same."""
    market_id, hour_us = where
    audits = [hour.audits.get(outcome, 0) for outcome in (MATCH, MISMATCH, UNKNOWN)]
    events, first, last, latency = hour.events, hour.first_version, hour.last_version, hour.latency
    if newest is not None and newest["events"] > events:  # its day has left for the archive: what was counted then holds
        events, first, last = newest["events"], newest["first_version"], newest["last_version"]
        latency = type(latency)(newest["latency"], newest["latency_max_us"])
    book, trade = hour.book, hour.trade
    row = (
        hour_us, now_us, book.recordable_us, book.covered_us, trade.recordable_us, trade.covered_us, latency.max_us,
        market_id, events, hour.trades, first, last, *audits, 1 if newest is None else newest["revision"] + 1,
        list(latency.buckets), _causes(book), _causes(trade),
    )  # fmt: skip
    if newest is None:
        return row
    same = all(newest[name] == value for name, value in zip(_COLUMNS, row, strict=True) if name not in ("changed_us", "revision"))
    return None if same else row


def _causes(quality: Quality) -> str:
    return orjson.dumps(quality.by_cause, option=orjson.OPT_SORT_KEYS).decode()
