"""Variables of the gateway:

KB_POSTGRES_DSN         the database, postgresql://user:password@host:port/name
KB_REDIS_URL            the cache, redis://host:port/0
KB_GATEWAY_HOST         address to listen on (127.0.0.1)
KB_GATEWAY_PORT         port to listen on; 0: a free one (8080)
KB_GATEWAY_PORT_FILE    file the chosen port is written to once it listens (none)
KB_GATEWAY_POOL         connections to the database at most (16)
KB_ARCHIVE              where the archive is, for what retention dropped: a folder, or s3://bucket/prefix (none)
KB_ARCHIVE_MEMORY       bytes of memory that its files may take, and as many its rows, decoded (134217728)
KB_STREAM_QUEUE         messages that may wait for one stream before it is closed as too slow (5000)
KB_STREAM_RING_EVENTS   recent book events kept in memory for streams, over all markets (100000)
"""

from dataclasses import dataclass, field
from pathlib import Path

from kalshibook_core.archive.past import MOST_BYTES
from kalshibook_core.archive.store import Store
from kalshibook_core.kafka.cluster import Cluster
from kalshibook_core.runtime import settings


@dataclass(frozen=True, slots=True)
class Settings:
    """What the gateway needs to know."""

    cluster: Cluster
    postgres_dsn: str = field(repr=False)
    redis_url: str = field(repr=False)
    host: str
    port: int
    port_file: Path | None
    pool: int
    archive: Store | None
    archive_bytes: int
    stream_queue: int
    ring_events: int


def from_env(env: settings.Environment) -> Settings:
    """Read the variables; raise ConfigurationError naming the one that is missing or wrong."""
    port_file = settings.text(env, "KB_GATEWAY_PORT_FILE", "")
    return Settings(
        cluster=settings.cluster(env),
        postgres_dsn=settings.required(env, "KB_POSTGRES_DSN"),
        redis_url=settings.required(env, "KB_REDIS_URL"),
        host=settings.text(env, "KB_GATEWAY_HOST", "127.0.0.1"),
        port=settings.integer(env, "KB_GATEWAY_PORT", 8080, minimum=0, maximum=65535),
        port_file=Path(port_file) if port_file else None,
        pool=settings.integer(env, "KB_GATEWAY_POOL", 16, minimum=2),
        archive=settings.archive(env) if settings.text(env, "KB_ARCHIVE", "") else None,
        archive_bytes=settings.integer(env, "KB_ARCHIVE_MEMORY", MOST_BYTES, minimum=1 << 20),
        stream_queue=settings.integer(env, "KB_STREAM_QUEUE", 5_000, minimum=16),
        ring_events=settings.integer(env, "KB_STREAM_RING_EVENTS", 100_000, minimum=1),
    )
