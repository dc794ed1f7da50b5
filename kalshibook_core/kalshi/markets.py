"""A market's definition as the exchange tells it, as far as capturing it needs: whether it can still trade, and how soon it will.

The whole definition travels verbatim; this is only what decides which markets to subscribe, and in which order.
"""

from typing import Any, Final, NamedTuple

from kalshibook_core.kalshi import messages, numbers

ENDED: Final = frozenset({"determined", "disputed", "amended", "settled", "finalized"})
"""Lifecycle event types and REST statuses from determination on: nothing trades any more and the book cannot change (Kalshi docs,
"Market lifecycle")."""

DATE_RESOLUTION_US: Final = 999_999
"""A Date header names the second; the clock that wrote it may have been at its very end."""


class Market(NamedTuple):
    """One market. `occurrence_us` is when its event happens, which tells activity better than its close; 0: not said."""

    ticker: str
    status: str
    occurrence_us: int
    volume: int


def parse_market(body: Any) -> Market:
    """Read a REST market object; raise UnparsableFrame where it names no market. What else is missing or odd reads as nothing."""
    if type(body) is not dict or not messages.is_word(body.get("ticker")):
        raise messages.UnparsableFrame("market", "no ticker")
    try:
        occurrence_us = messages.time_us(body["occurrence_datetime"])
    except (KeyError, TypeError, ValueError):
        occurrence_us = 0
    try:
        volume = numbers.size(body["volume_fp"])
    except (KeyError, TypeError, ValueError):
        volume = 0
    return Market(body["ticker"], str(body.get("status", "")), occurrence_us, volume)


def skew_us(date_us: int, now_us: int) -> int:
    """Return the exchange's clock minus the local one, by a Date header that came at `now_us`: rather late than early."""
    return date_us + DATE_RESOLUTION_US - now_us
