"""The one query of the room."""

from typing import Any, Final

import asyncpg

_BY_DAY: Final = """
SELECT to_char(to_timestamp(at_us / 86400000000 * 86400) AT TIME ZONE 'UTC', 'YYYY-MM-DD') AS day, endpoint,
       count(*) AS calls, sum(credits)::bigint AS credits
FROM usage_ledger WHERE account_id = $1 AND at_us >= $2 GROUP BY 1, 2 ORDER BY 1, 2"""


async def by_day(pool: "asyncpg.Pool[asyncpg.Record]", account_id: str, start_us: int) -> list[Any]:
    """Return (day, endpoint, calls, credits) of an account from an instant on."""
    rows: list[Any] = await pool.fetch(_BY_DAY, account_id, start_us, timeout=10.0)
    return rows
