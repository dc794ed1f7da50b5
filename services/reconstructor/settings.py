"""Settings of the reconstructor, from the environment.

KB_REDIS_URL           where the latest books go, redis://host:port/number
KB_CHECKPOINT_EVENTS   a market is written down after so many events (1000)
KB_CHECKPOINT_SECONDS  or after so long, by its own clock and by ours (300)
"""

from dataclasses import dataclass, field

from kalshibook_core.kafka.cluster import Cluster
from kalshibook_core.runtime import settings
from kalshibook_core.runtime.settings import NOWHERE, Health
from services.reconstructor.checkpointing import Policy


@dataclass(frozen=True, slots=True)
class Settings:
    """What the reconstructor needs to know."""

    cluster: Cluster
    redis_url: str = field(repr=False)  # may hold a password
    policy: Policy = field(default_factory=Policy)
    health: Health = NOWHERE


def from_env(env: settings.Environment) -> Settings:
    """Read the settings; raise ConfigurationError that names what is missing or wrong."""
    return Settings(
        cluster=settings.cluster(env),
        redis_url=settings.required(env, "KB_REDIS_URL"),
        policy=Policy(
            events=settings.integer(env, "KB_CHECKPOINT_EVENTS", 1_000, minimum=1),
            interval_us=settings.integer(env, "KB_CHECKPOINT_SECONDS", 300, minimum=1) * 1_000_000,
        ),
        health=settings.health(env),
    )
