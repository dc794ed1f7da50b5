"""What the reconstructor counts, for /status and /metrics."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class Counters:
    """Plain integers, and the state a person wants to see beside them."""

    ready: bool = False
    events: int = 0
    repeated: int = 0
    unreadable: int = 0
    checkpoints: int = 0
    shown_books: int = 0
    waiting: int = 0
    markets: int = 0
    corrupt: int = 0
    lag_records: int = 0
    redis_retries: int = 0
    fenced: int = 0
    audits: Counter[str] = field(default_factory=Counter)  # by outcome
    mismatch: str = ""  # the last one
    redis: str = "away"

    def shown(self) -> dict[str, int | float | str]:
        """Return them by short metric name."""
        return {
            "events_total": self.events,
            "repeated_total": self.repeated,
            "unreadable_total": self.unreadable,
            "checkpoints_total": self.checkpoints,
            "books_shown_total": self.shown_books,
            "books_waiting_count": self.waiting,
            "markets_count": self.markets,
            "corrupt_count": self.corrupt,
            "lag_records": self.lag_records,
            "redis_retries_total": self.redis_retries,
            "fenced_total": self.fenced,
            "audits_matched_total": self.audits["match"],
            "audits_mismatched_total": self.audits["mismatch"],
            "audits_unknown_total": self.audits["unknown"],
            "redis": self.redis,
            "mismatch": self.mismatch,
        }
