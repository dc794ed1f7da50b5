"""What retention counts, for /status and /metrics."""

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """Plain integers, and the state a person wants to see beside them."""

    ready: bool = False
    state: str = "starting"
    verified: int = 0
    dropped: int = 0
    dropped_events: int = 0
    differences: int = 0
    differing: int = 0
    behind: int = 0
    retries: int = 0

    def shown(self) -> dict[str, int | float | str]:
        """Return them by short metric name."""
        return {
            "verified_events_total": self.verified,
            "dropped_partitions_total": self.dropped,
            "dropped_events_total": self.dropped_events,
            "differences_total": self.differences,
            "differing_partitions": self.differing,
            "behind_partitions": self.behind,
            "retries_total": self.retries,
            "state": self.state,
        }
