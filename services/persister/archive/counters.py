"""What the archive counts, for /status and /metrics."""

from dataclasses import dataclass, field
from typing import Final

from kalshibook_core.archive import tables
from services.persister.archive.files import Made

_TABLES: Final = tuple(tables.BY_NAME)


@dataclass(slots=True)
class Counters:
    """Plain integers, and the state a person wants to see beside them."""

    ready: bool = False
    store: str = "away"
    rows: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_TABLES, 0))
    commits: int = 0
    files: int = 0
    bytes: int = 0
    write_us: int = 0
    unreadable: int = 0
    retries: int = 0
    waiting_records: int = 0
    repacks: int = 0
    repacked_files: int = 0
    swept_files: int = 0
    damaged: int = 0
    lost_records: int = 0
    halted: str = ""

    def wrote(self, made: Made, seconds: float) -> None:
        """Count a commit that is in the archive."""
        self.rows[tables.BY_TOPIC[made.commit.topic].name] += made.rows
        self.commits += 1
        self.files += len(made.files)
        self.bytes += sum(file.entry.bytes for file in made.files)
        self.write_us += int(seconds * 1_000_000)
        self.unreadable += made.unreadable

    def shown(self) -> dict[str, int | float | str]:
        """Return them by short metric name."""
        return {
            **{f"{name}_rows_total": count for name, count in self.rows.items()},
            "commits_total": self.commits,
            "files_total": self.files,
            "bytes_total": self.bytes,
            "write_microseconds_total": self.write_us,
            "unreadable_total": self.unreadable,
            "retries_total": self.retries,
            "waiting_records": self.waiting_records,
            "repacks_total": self.repacks,
            "repacked_files_total": self.repacked_files,
            "swept_files_total": self.swept_files,
            "damaged_total": self.damaged,
            "lost_records": self.lost_records,
            "store": self.store,
            "halted": self.halted,
        }
