"""What a market is, as far as numbering needs it: lifecycle events once each, whether it has ended, and its price grid. Pure.

A websocket lifecycle frame repeats another if it equals the market's last one; compared with the last of any type, because
"activated, deactivated, activated" happens and is three events. A REST market object repeats if it equals the last one.
"""

from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final

from kalshibook_core.kalshi import numbers

ENDED: Final = frozenset({"determined", "disputed", "amended", "settled", "finalized"})
"""Lifecycle event types and REST statuses from determination on: nothing trades any more (Kalshi docs, "Market lifecycle")."""

Grid = frozenset[int]
"""Every YES price a market can have."""


def digest(body: bytes) -> int:
    """Return a signed 64-bit digest that tells bodies apart; never 0, which stands for none."""
    return int.from_bytes(blake2b(body, digest_size=8).digest(), "big", signed=True) or 1


def ends(definition: dict[str, Any]) -> bool:
    """Return whether a lifecycle message or a REST market object says that the market's outcome is determined."""
    return definition.get("event_type") in ENDED or definition.get("status") in ENDED


def grid(definition: dict[str, Any]) -> Grid | None:
    """Return the grid of a definition's `price_ranges` (Kalshi docs, "Fixed point migration"), None where it states none."""
    ranges = definition.get("price_ranges")
    try:
        return _grid(tuple((each["start"], each["end"], each["step"]) for each in ranges)) if ranges else None
    except (KeyError, TypeError, ValueError):
        return None  # an unreadable grid only means that prices are not checked


@lru_cache(maxsize=256)
def _grid(ranges: tuple[tuple[str, str, str], ...]) -> Grid:
    prices: set[int] = set()
    for start, end, step in ranges:
        prices.update(range(numbers.price(start), numbers.price(end) + 1, numbers.price(step)))
    return frozenset(prices)
