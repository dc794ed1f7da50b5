"""What is billable, and for how many credits: this table and nothing else.

Only answers with status 2xx are billed; errors (4xx and 5xx) are free. What tells where our record is not whole (gaps), what
was used (usage) and whether we are up is free, so that nobody pays for finding out.
"""

from typing import Final

PER_ROWS: Final = 100
"""Rows of a list that one credit buys, begun hundreds counting whole."""

STREAM_MESSAGES: Final = 1_000
"""Messages of a stream that one credit buys; each is taken before the first of its messages is sent."""

CREDITS: Final[dict[str, tuple[int, bool]]] = {
    "orderbook": (1, False),
    "orderbook_at": (2, False),
    "orderbooks": (2, True),
    "bbo": (1, True),
    "candles": (1, True),
    "deltas": (1, True),
    "trades": (1, True),
    "markets": (1, True),
    "market": (1, False),
    "events": (1, True),
    "event": (1, False),
    "all_series": (1, True),
    "series": (1, False),
    "lifecycle": (1, True),
    "stream": (1, False),
    "gaps": (0, False),
    "quality": (0, False),
    "conditions": (0, False),
    "market_conditions": (0, False),
    "incidents": (0, False),
    "usage": (0, False),
    "source": (0, False),
}
"""By endpoint: credits, and whether they are per `PER_ROWS` rows (at least one unit) or per answer."""


def credits(endpoint: str, rows: int = 0) -> int:
    """Return what an answer costs."""
    price, by_rows = CREDITS[endpoint]
    return price * max(1, -(-rows // PER_ROWS)) if by_rows else price
