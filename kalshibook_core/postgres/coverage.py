"""What the tables hold of markets' hours, measured by `wire.coverage`; and how far the measuring has come.

An hour of a market is measured once it is closed (table coverage_closed), again whenever rows of it come later (table
coverage_due), and each time it gives something new a further revision is appended to table coverage. Hours in which nothing
was recorded have no row: nothing happened in them, and table gaps says what was covered (`MEASURED_GAPS`).
"""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final

from kalshibook_core.postgres import runs
from kalshibook_core.postgres.partitions import DAY_US
from kalshibook_core.wire.coverage import HOUR_US, Hour, Rows, of_hour
from kalshibook_core.wire.events import BOOK
from kalshibook_core.wire.quality import TRADES_AFTER_US, Record, Span

MOST_GAPS: Final = 10_000

MEASURED_GAPS: Final = """(
    SELECT told.market_id, channel, start_us, cause, opened_version, filled_us,
           CASE WHEN over.ended_us IS NULL THEN told.end_us ELSE greatest(over.ended_us, start_us) END AS end_us
    FROM gaps told LEFT JOIN markets over ON over.id = told.market_id AND told.end_us IS NULL
) AS gaps"""
"""What measures over time and markets read in place of table gaps: one that nothing ended lasts until its market's end was first
heard. What an answer says of a book is told by the table: there the gap has no end, since that book is never known again."""

_ASKED: Final = "unnest($1::int[], $2::bigint[]) WITH ORDINALITY AS asked (market_id, hour_us, number)"

# From the row that begins before the hour, on its UTC day, and may reach into it.
_BOOK: Final = f"""
SELECT number, {", ".join(f"e.{column}" for column in runs.COLUMNS)} FROM {_ASKED}, LATERAL (
    SELECT * FROM book_events WHERE market_id = asked.market_id AND effective_us < hour_us + {HOUR_US}
      AND effective_us >= hour_us - hour_us % {DAY_US}
      AND effective_us >= coalesce((SELECT effective_us FROM book_events WHERE market_id = asked.market_id
                                      AND effective_us < hour_us AND effective_us >= hour_us - hour_us % {DAY_US}
                                    ORDER BY effective_us DESC LIMIT 1), hour_us)
) e ORDER BY number, e.version"""

_TRADES: Final = f"""
SELECT number, recv_us - exchange_us, origin FROM {_ASKED} JOIN trades t
ON t.market_id = asked.market_id AND exchange_us >= hour_us AND exchange_us < hour_us + {HOUR_US}"""

_AUDITS: Final = f"""
SELECT number, outcome, count(*) FROM {_ASKED} JOIN audits a
ON a.market_id = asked.market_id AND to_us >= hour_us AND to_us < hour_us + {HOUR_US} GROUP BY number, outcome"""

_GAPS: Final = f"""
SELECT number, g.* FROM {_ASKED}, LATERAL (
    SELECT channel, start_us, end_us, cause FROM {MEASURED_GAPS} WHERE market_id = asked.market_id AND filled_us IS NULL
      AND start_us < hour_us + {HOUR_US} AND (end_us IS NULL OR greatest(end_us, start_us + 1) > hour_us)
    ORDER BY start_us, opened_version LIMIT {MOST_GAPS}
) g ORDER BY number, g.start_us"""

_MARKETS: Final = f"SELECT number, opens.open_us, recorded_us FROM {_ASKED} JOIN markets opens ON opens.id = market_id"

_COVERED: Final = f"""
SELECT coalesce((SELECT max(hour_us) FROM coverage_closed) >= $1 + {DAY_US - HOUR_US}, false)
   AND NOT EXISTS (SELECT FROM coverage_due WHERE hour_us >= $1 AND hour_us < $1 + {DAY_US})"""


async def measure(connection: Any, hours: Sequence[tuple[int, int]], through_us: int | None = None) -> list[Hour]:
    """Return the coverage of each (market id, hour). `through_us`: how far they are stored, None: to their ends."""
    asked = [market_id for market_id, _ in hours], [hour_us for _, hour_us in hours]
    book: dict[int, list[Any]] = defaultdict(list)
    for number, *row in await connection.fetch(_BOOK, *asked):
        book[number].append(row)
    lags: dict[int, list[int]] = defaultdict(list)
    trades: dict[int, int] = defaultdict(int)
    for number, lag_us, origin in await connection.fetch(_TRADES, *asked):
        trades[number] += 1
        if origin == "stream":
            lags[number].append(lag_us)
    audits: dict[int, dict[str, int]] = defaultdict(dict)
    for number, outcome, count in await connection.fetch(_AUDITS, *asked):
        audits[number][outcome] = count
    gaps: dict[tuple[int, bool], list[Span]] = defaultdict(list)
    for number, channel, *span in await connection.fetch(_GAPS, *asked):
        gaps[number, channel == BOOK].append(Span(*span))
    begun = {number: (opens_us, first_us) for number, opens_us, first_us in await connection.fetch(_MARKETS, *asked)}
    found = []
    for number, (_, hour_us) in enumerate(hours, 1):
        events, first, last, book_lags = _in_hour(book.pop(number, ()), hour_us)
        rows = Rows(events, first, last, trades[number], book_lags + lags[number], audits[number])
        await asyncio.sleep(0)  # others have their turn between two busy hours
        opens_us, first_us = begun.get(number, (None, None))
        through = hour_us + HOUR_US - 1 if through_us is None else through_us
        trades_us = None if first_us is None else first_us + TRADES_AFTER_US
        records = (
            Record(gaps[number, is_book], through, since_us, opens_us)
            for is_book, since_us in ((True, first_us), (False, trades_us))
        )
        found.append(of_hour(hour_us, rows, *records))
    return found


def _in_hour(rows: Sequence[Any], hour_us: int) -> tuple[int, int | None, int | None, list[int]]:
    """Return how many book events an hour has, its first and last version and the lags of its deltas, given the rows touching it.

    Of a damaged row what its key says is counted: that it was recorded is true, and whoever reads it is told.
    """
    versions, lags = list[int](), list[int]()
    for row in rows:
        try:
            for event in runs.unpack(*row):
                if hour_us <= event[1] < hour_us + HOUR_US:
                    versions.append(event[0])
                    if event[4] == runs.DELTA:
                        lags.append(event[3] - event[2])
        except runs.DamagedRow:
            if row[0] >= hour_us:
                versions += range(row[2], row[2] + row[3])
    return len(versions), versions[0] if versions else None, versions[-1] if versions else None, lags


async def covered(connection: Any, day_us: int) -> bool:
    """Return whether all hours of the UTC day that begins at `day_us` are measured, with every row that has come so far."""
    found: bool = await connection.fetchval(_COVERED, day_us)
    return found
