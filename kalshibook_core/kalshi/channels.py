"""The exchange's websocket channels (Kalshi docs, "Websockets"), by the names that commands, answers and our own events carry."""

from typing import Final

BOOK: Final = "orderbook_delta"
TRADES: Final = "trade"
TICKERS: Final = "ticker"
LIFECYCLE: Final = "market_lifecycle_v2"
COMBO_LIFECYCLE: Final = "multivariate_market_lifecycle"
"""What LIFECYCLE is for all other markets it is for combos, KXMVE… (Kalshi changelog, Feb 12 2026)."""

OF_MARKETS: Final = (BOOK, TRADES, TICKERS)
"""Subscribed market by market; the others have all markets and events."""

LIFECYCLES: Final = (LIFECYCLE, COMBO_LIFECYCLE)

LAG_US: Final = 10_000_000
"""The greatest lag between the markets of one subscription seen on the wire: behind an event of a time t none older than
t - LAG_US comes, so none before it is younger than t + LAG_US."""
