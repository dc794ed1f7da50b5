"""The ledger's table: written by the ledger's consumer, read for what an account used in a period."""

from collections.abc import Sequence
from typing import Final

import asyncpg

from kalshibook_core.wire.events import Usage

Pool = asyncpg.Pool  # [asyncpg.Record]

_INSERT: Final = """
INSERT INTO usage_ledger (usage_id, account_id, key_id, endpoint, credits, at_us, status)
SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::integer[], $6::bigint[], $7::smallint[])
ON CONFLICT (usage_id) DO NOTHING"""

_USED: Final = "SELECT coalesce(sum(credits), 0)::bigint FROM usage_ledger WHERE account_id = $1 AND at_us >= $2"


async def write(pool: Pool, events: Sequence[Usage]) -> int:
    """Add events to the ledger, all or none, and return how many were new."""
    status = await pool.execute(_INSERT, *(list(column) for column in zip(*events, strict=True)), timeout=30.0)
    return int(status.rsplit(" ", 1)[1])


async def used_since(pool: Pool, account_id: str, start_us: int) -> int:
    """Return the credits an account used from an instant on, as far as the ledger has them."""
    used: int = await pool.fetchval(_USED, account_id, start_us, timeout=5.0)
    return used
