"""Settings of the persister, from the environment.

KB_POSTGRES_DSN             the database, postgresql://user:password@host:port/name
KB_PERSISTER_BATCH_ROWS     rows after which a batch is written (20000)
KB_PERSISTER_BATCH_SECONDS  how long the first row of a batch waits for company (0.1)
KB_PERSISTER_COVERAGE_SECONDS  how often to look for hours whose coverage is to be measured (5)
"""

from dataclasses import dataclass, field

from kalshibook_core.kafka.cluster import Cluster
from kalshibook_core.runtime import settings
from kalshibook_core.runtime.settings import NOWHERE, Health


@dataclass(frozen=True, slots=True)
class Settings:
    """What the persister needs to know."""

    cluster: Cluster
    postgres_dsn: str = field(repr=False)
    batch_rows: int = 20_000
    batch_seconds: float = 0.1
    coverage_seconds: float = 5.0
    health: Health = NOWHERE


def from_env(env: settings.Environment) -> Settings:
    """Read the settings; raise ConfigurationError that names what is missing or wrong."""
    return Settings(
        cluster=settings.cluster(env),
        postgres_dsn=settings.required(env, "KB_POSTGRES_DSN"),
        batch_rows=settings.integer(env, "KB_PERSISTER_BATCH_ROWS", 20_000, minimum=1, maximum=1_000_000),
        batch_seconds=settings.seconds(env, "KB_PERSISTER_BATCH_SECONDS", 0.1, maximum=60),
        coverage_seconds=settings.seconds(env, "KB_PERSISTER_COVERAGE_SECONDS", 5, minimum=0.01, maximum=3_600),
        health=settings.health(env),
    )
