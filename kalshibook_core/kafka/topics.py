"""Every topic there is: its name, what the broker does with old records, and who alone writes it.

All are keyed by UTF-8 ticker (usage by account id) and have the same partition count, so partition p of the raw topic feeds
partition p of all the others.
"""

from dataclasses import dataclass
from typing import Final

_DAY_MS: Final = 86_400_000


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic's name without prefix, and its policy."""

    name: str
    writer: str  # the service that alone writes it
    cleanup: str = "delete"  # or "compact": the last record of each key is kept for ever
    retention_ms: int = 7 * _DAY_MS


RAW: Final = Topic("kalshi.raw.v1", "ingest")
BOOK: Final = Topic("kalshi.book.v1", "deduplicator")
TRADES: Final = Topic("kalshi.trades.v1", "deduplicator")
TICKERS: Final = Topic("kalshi.tickers.v1", "deduplicator")
LIFECYCLE: Final = Topic("kalshi.lifecycle.v1", "deduplicator")
AUDITS: Final = Topic("kalshi.audits.v1", "deduplicator")
AUDITED: Final = Topic("kalshi.audited.v1", "reconstructor", retention_ms=30 * _DAY_MS)
CHECKPOINTS: Final = Topic("kalshi.checkpoints.v1", "reconstructor", cleanup="compact", retention_ms=-1)
MEMORY: Final = Topic("kb.deduplicator.v2", "deduplicator", cleanup="compact", retention_ms=-1)
USAGE: Final = Topic("kb.usage.v1", "gateway", retention_ms=30 * _DAY_MS)

ALL: Final = (RAW, BOOK, TRADES, TICKERS, LIFECYCLE, AUDITS, AUDITED, CHECKPOINTS, MEMORY, USAGE)
