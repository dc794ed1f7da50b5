"""Settings of the archive, from the environment.

KB_ARCHIVE          where it is: a folder, or s3://bucket/prefix; then AWS_ENDPOINT_URL, AWS_REGION and AWS_ACCESS_KEY_ID as usual
KB_ARCHIVE_ROWS     records of a partition that make files: when so many wait in Kafka they are read and written (250000)
KB_ARCHIVE_SECONDS  how long the first of them waits for company (900)
KB_ARCHIVE_BYTES    memory that the records of one commit may take; full, it is written as it is (134217728)
KB_ARCHIVE_ANEW     1: begin another archive in an empty place, though there was one of this Kafka (0)
KB_ARCHIVE_REPACK_AFTER  seconds from the end of a UTC day until its files are put together, for what comes late (21600)
KB_ARCHIVE_REPACK_GRACE  seconds for which the files that were put together are kept beside the new ones (86400)
"""

from dataclasses import dataclass

from kalshibook_core.archive.store import Store
from kalshibook_core.kafka.cluster import Cluster
from kalshibook_core.runtime import settings
from kalshibook_core.runtime.settings import NOWHERE, Health


@dataclass(frozen=True, slots=True)
class Settings:
    """What the archive needs to know."""

    cluster: Cluster
    store: Store
    rows: int = 250_000
    seconds: float = 900.0
    bytes: int = 1 << 27
    anew: bool = False
    repack_after: float = 21_600.0
    repack_grace: float = 86_400.0
    health: Health = NOWHERE


def from_env(env: settings.Environment) -> Settings:
    """Read the settings; raise ConfigurationError that names what is missing or wrong."""
    return Settings(
        cluster=settings.cluster(env),
        store=settings.archive(env),
        rows=settings.integer(env, "KB_ARCHIVE_ROWS", 250_000, minimum=1, maximum=10_000_000),
        seconds=settings.seconds(env, "KB_ARCHIVE_SECONDS", 900, minimum=0.1, maximum=86_400),
        bytes=settings.integer(env, "KB_ARCHIVE_BYTES", 1 << 27, minimum=1 << 20),
        anew=settings.one_of(env, "KB_ARCHIVE_ANEW", ("0", "1"), "0") == "1",
        repack_after=settings.seconds(env, "KB_ARCHIVE_REPACK_AFTER", 21_600, minimum=0, maximum=86_400 * 365),
        repack_grace=settings.seconds(env, "KB_ARCHIVE_REPACK_GRACE", 86_400, minimum=0, maximum=86_400 * 365),
        health=settings.health(env),
    )
