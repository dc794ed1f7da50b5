"""How far the persister is."""

from typing import Final

import asyncpg

Pool = asyncpg.Pool

_OFFSETS: Final = "SELECT partition, next_offset FROM consumer_offsets WHERE topic = $1"


async def stored_offsets(pool: Pool, topic: str) -> list[tuple[int, int]]:
    """Return (partition, first offset whose rows are not in the tables yet) of a topic."""
    return [(partition, offset) for partition, offset in await pool.fetch(_OFFSETS, topic, timeout=5.0)]
