"""Settings of the deduplicator.

KB_DEDUPLICATOR_BATCH         raw records a transaction takes at most, over all partitions (10000)
KB_DEDUPLICATOR_LINGER_MS     how long to wait for company after a small batch; less costs more transactions (50)
KB_DEDUPLICATOR_TRADE_WINDOW  trade ids a partition remembers (50000)
KB_DEDUPLICATOR_WINDOW        events a market's log and each source waiting for its place in it remember at most (10000)
KB_DEDUPLICATOR_PATIENCE_SECONDS  how far, in the exchange's time, a gatherer may be behind before it counts as dead (300)
KB_DEDUPLICATOR_SAVE_EVERY    raw records from one savepoint to the next; a restart does them again (50000)
"""

from collections.abc import Mapping
from dataclasses import dataclass

from kalshibook_core.kafka.cluster import Cluster
from kalshibook_core.runtime import settings
from kalshibook_core.runtime.settings import Health


@dataclass(frozen=True, slots=True)
class Settings:
    """What the process is told."""

    cluster: Cluster
    batch: int
    linger_ms: int
    trade_window: int
    window: int
    patience_us: int
    save_every: int
    health: Health


def from_env(env: Mapping[str, str]) -> Settings:
    """Read the settings; raise ConfigurationError."""
    return Settings(
        cluster=settings.cluster(env),
        batch=settings.integer(env, "KB_DEDUPLICATOR_BATCH", 10_000, minimum=1),
        linger_ms=settings.integer(env, "KB_DEDUPLICATOR_LINGER_MS", 50, minimum=0, maximum=10_000),
        trade_window=settings.integer(env, "KB_DEDUPLICATOR_TRADE_WINDOW", 50_000, minimum=1),
        window=settings.integer(env, "KB_DEDUPLICATOR_WINDOW", 10_000, minimum=100),
        patience_us=settings.integer(env, "KB_DEDUPLICATOR_PATIENCE_SECONDS", 300, minimum=1) * 1_000_000,
        save_every=settings.integer(env, "KB_DEDUPLICATOR_SAVE_EVERY", 50_000, minimum=1),
        health=settings.health(env),
    )
