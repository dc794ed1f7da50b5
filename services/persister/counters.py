"""What the persister counts, for /status and /metrics."""

from dataclasses import dataclass, field

from services.persister.batch import Batch


@dataclass(slots=True)
class Counters:
    """Plain integers, and the state a person wants to see beside them."""

    ready: bool = False
    postgres: str = "away"
    rows: dict[str, int] = field(default_factory=dict)  # by table
    events: int = 0
    batches: int = 0
    write_us: int = 0
    unreadable: int = 0
    retries: int = 0
    superseded: int = 0
    waiting_rows: int = 0
    lag_records: int = 0
    last_effective_us: int = 0
    lost_records: int = 0
    halted: str = ""
    made_ahead_for: int = -1  # the UTC day whose partitions, and the next one's, are known to stand

    def wrote(self, counts: dict[str, int], batch: Batch, seconds: float) -> None:
        """Count a batch that is in the tables."""
        for table, rows in counts.items():
            self.rows[table] = self.rows.get(table, 0) + rows
        self.events += batch.rows
        self.batches += 1
        self.write_us += int(seconds * 1_000_000)
        self.unreadable += batch.unreadable
        self.last_effective_us = max(self.last_effective_us, batch.last_effective_us)

    def shown(self) -> dict[str, int | float | str]:
        """Return them by short metric name."""
        return {
            "events_total": self.events,
            "batches_total": self.batches,
            "write_microseconds_total": self.write_us,
            "unreadable_total": self.unreadable,
            "missing_versions_total": self.rows.get("missing_versions", 0),
            "retries_total": self.retries,
            "superseded_total": self.superseded,
            "waiting_rows": self.waiting_rows,
            "lag_records": self.lag_records,
            "last_effective_us": self.last_effective_us,
            **{f"{table}_rows_total": self.rows.get(table, 0) for table in TABLES},
            **{f"{name}_total": self.rows.get(name, 0) for name in RECONCILED},
            "lost_records": self.lost_records,
            "postgres": self.postgres,
            "halted": self.halted,
        }


RECONCILED = ("trades_backfilled", "trades_repeated", "trades_different", "gaps_filled")
"""Trades that only REST told, known ones told again, those told otherwise; gaps of trades that REST was read over."""

TABLES = (
    "book_events", "trades", "tickers", "lifecycle", "checkpoints", "gaps", "markets", "events", "series", "audits", "coverage",
    "conditions",
)  # fmt: skip
