"""Settings of retention, from the environment.

KB_POSTGRES_DSN       the database, postgresql://user:password@host:port/name
KB_ARCHIVE            where the archive is: a folder, or s3://bucket/prefix; then the AWS variables as for kb-archive
KB_HOT_DAYS           days that stay in the database after they are over; 0: for ever (0)
KB_RETENTION_SECONDS  pause between two looks for days that may go (3600)
"""

from dataclasses import dataclass, field

from kalshibook_core.archive.store import Store
from kalshibook_core.kafka.cluster import Cluster
from kalshibook_core.runtime import settings
from kalshibook_core.runtime.settings import NOWHERE, Health


@dataclass(frozen=True, slots=True)
class Settings:
    """What retention needs to know."""

    cluster: Cluster
    postgres_dsn: str = field(repr=False)
    store: Store
    hot_days: int = 0
    pause_seconds: float = 3600.0
    health: Health = NOWHERE


def from_env(env: settings.Environment) -> Settings:
    """Read the settings; raise ConfigurationError that names what is missing or wrong."""
    return Settings(
        cluster=settings.cluster(env),
        postgres_dsn=settings.required(env, "KB_POSTGRES_DSN"),
        store=settings.archive(env),
        hot_days=settings.integer(env, "KB_HOT_DAYS", 0, minimum=0, maximum=36_500),
        pause_seconds=settings.seconds(env, "KB_RETENTION_SECONDS", 3600, minimum=0.1, maximum=86_400),
        health=settings.health(env),
    )
