"""What backfill is told by its environment: the exchange and its key as a gatherer is, and

KB_POSTGRES_DSN          the database, postgresql://user:password@host:port/name
KB_BACKFILL              seconds from one look for what was missed to the next, or off (60)
KB_BACKFILL_AGE_SECONDS  how long ago a gap has ended, or a market closed, until REST is asked for it: it lags (60)
KB_BACKFILL_DAYS         how many days back it looks; what is older is left to `kb backfill` (30)
KB_BACKFILL_REQUESTS_PER_SECOND  REST requests a second at most, besides the gatherers' (2)
"""

import dataclasses
from dataclasses import dataclass, field

from kalshibook_core.runtime import settings
from services.ingest import settings as capture


@dataclass(frozen=True, slots=True)
class Settings:
    """See the module; durations in seconds."""

    exchange: capture.Settings
    postgres_dsn: str = field(repr=False)
    every_seconds: float | None = 60.0  # None: off
    age_seconds: float = 60.0
    days: int = 30


def from_env(env: settings.Environment) -> Settings:
    """Read the settings; raise ConfigurationError that names what is missing or wrong."""
    rate = settings.seconds(env, "KB_BACKFILL_REQUESTS_PER_SECOND", 2, minimum=0.1)
    off = settings.text(env, "KB_BACKFILL", "") == "off"
    return Settings(
        exchange=dataclasses.replace(capture.from_env(env), requests_per_second=rate),
        postgres_dsn=settings.required(env, "KB_POSTGRES_DSN"),
        every_seconds=None if off else settings.seconds(env, "KB_BACKFILL", 60, minimum=0.1, maximum=86_400),
        age_seconds=settings.seconds(env, "KB_BACKFILL_AGE_SECONDS", 60, maximum=86_400 * 365),
        days=settings.integer(env, "KB_BACKFILL_DAYS", 30, minimum=1, maximum=36_500),
    )
