"""What the gatherer is told by its environment.

KALSHI_API_KEY_ID        id of the Kalshi API key (a key of scope "read" is enough)
KALSHI_PRIVATE_KEY_PATH  file of its RSA private key, PEM
KB_KALSHI_ENV            demo or prod: which exchange (demo), unless the two addresses are given:
KB_KALSHI_WS_URL         websocket address
KB_KALSHI_REST_URL       REST address, version included
KB_GATHERER              name of this gatherer in the provenance of its frames (g1)
KB_CONNECTIONS           most websocket connections to open (150)
KB_SUBSCRIPTIONS_PER_CONNECTION  most markets on one connection (7500)
KB_MARKET_STATUSES       REST statuses of the markets to list and capture; those that ended are not (open,unopened,paused,closed)
KB_RECONCILE_SECONDS     how often the list of markets is read anew (300)
KB_REGISTRY              file that keeps the markets known, so that a restart asks only for what changed (none: all is read again)
KB_REQUESTS_PER_SECOND   REST requests a second at most (10)
KB_AUDITS_PER_MINUTE     order books a minute that REST is asked for, to be compared with ours; 0: none (600)
KB_COMMANDS_PER_SECOND   websocket commands a second and connection at most (100)
KB_BUFFER_BYTES          frames kept in memory while Kafka is away or slow (268435456)
KB_SPOOL                 folder for the frames that come while Kafka is away, in one of the gatherer's name (none: memory only)
KB_SPOOL_BYTES           the most it may hold; past that every market is broken (broker_outage) until half is free (4294967296)
KB_SPOOL_SYNC            what a power cut may take of it: never (what the operating system had not written), interval (a second),
                         always (a twentieth of a second) (interval)
KB_RENEW_SECONDS         how old a connection may become: then one takes over that has its books before it lets go of them; 0: as
                         old as it gets (86400)
KB_SILENCE_SECONDS       without a frame or a ping for so long, a connection counts as dead (30)
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kalshibook_core.kafka.cluster import Cluster
from kalshibook_core.kalshi import signing
from kalshibook_core.runtime import settings
from kalshibook_core.runtime.settings import NOWHERE, ConfigurationError, Environment, Health

HOSTS: Final = {
    "demo": ("wss://external-api-ws.demo.kalshi.co/trade-api/ws/v2", "https://external-api.demo.kalshi.co/trade-api/v2"),
    "prod": ("wss://external-api-ws.kalshi.com/trade-api/ws/v2", "https://external-api.kalshi.com/trade-api/v2"),
}
"""Kalshi docs, "API environments"."""

STATUSES: Final = frozenset({"unopened", "open", "paused", "closed", "settled"})
LIVING: Final = ("open", "unopened", "paused", "closed")
"""What has not ended: a paused market trades again, and the book of a closed one is known, and empty, until it is determined."""

SYNCS: Final = ("never", "interval", "always")


@dataclass(frozen=True, slots=True)
class SpoolSettings:
    """Where frames wait for a broker that is away, how many bytes of them, and how they are brought to the disk (SYNCS)."""

    folder: Path
    limit_bytes: int = 4 * 1024**3
    sync: str = "interval"


@dataclass(frozen=True, slots=True)
class Settings:
    """See the module; durations in seconds."""

    cluster: Cluster
    credentials: signing.Credentials
    ws_url: str
    rest_url: str
    gatherer: str = "g1"
    connections: int = 150
    subscriptions_per_connection: int = 7500
    statuses: tuple[str, ...] = LIVING
    reconcile_seconds: float = 300
    requests_per_second: float = 10
    audits_per_minute: int = 600
    commands_per_second: float = 100
    buffer_bytes: int = 256 * 1024 * 1024
    silence_seconds: float = 30
    renew_seconds: float = 86_400
    spool: SpoolSettings | None = None
    registry: Path | None = None
    health: Health = NOWHERE


def from_env(env: Environment) -> Settings:
    """Read the settings; raise ConfigurationError naming the variable that is missing or makes no sense."""
    ws_url, rest_url = HOSTS[settings.one_of(env, "KB_KALSHI_ENV", tuple(HOSTS), "demo")]
    statuses = tuple(word for word in settings.text(env, "KB_MARKET_STATUSES", ",".join(LIVING)).split(",") if word)
    if not set(statuses) <= STATUSES:
        raise ConfigurationError(f"KB_MARKET_STATUSES is {','.join(statuses)!r}; it may name {', '.join(sorted(STATUSES))}")
    return Settings(
        cluster=settings.cluster(env),
        credentials=_credentials(env),
        ws_url=_url(env, "KB_KALSHI_WS_URL", ws_url, ("ws://", "wss://")),
        rest_url=_url(env, "KB_KALSHI_REST_URL", rest_url, ("http://", "https://")),
        gatherer=settings.text(env, "KB_GATHERER", "g1"),
        connections=settings.integer(env, "KB_CONNECTIONS", 150, minimum=1),
        subscriptions_per_connection=settings.integer(env, "KB_SUBSCRIPTIONS_PER_CONNECTION", 7500, minimum=1),
        statuses=statuses,
        reconcile_seconds=settings.seconds(env, "KB_RECONCILE_SECONDS", 300, minimum=1),
        requests_per_second=settings.seconds(env, "KB_REQUESTS_PER_SECOND", 10, minimum=0.1),
        audits_per_minute=settings.integer(env, "KB_AUDITS_PER_MINUTE", 600, minimum=0),
        commands_per_second=settings.seconds(env, "KB_COMMANDS_PER_SECOND", 100, minimum=1),
        buffer_bytes=settings.integer(env, "KB_BUFFER_BYTES", 256 * 1024 * 1024, minimum=1024 * 1024),
        silence_seconds=settings.seconds(env, "KB_SILENCE_SECONDS", 30, minimum=1),
        renew_seconds=settings.seconds(env, "KB_RENEW_SECONDS", 86_400),
        spool=_spool(env),
        registry=_path(env, "KB_REGISTRY"),
        health=settings.health(env),
    )


def _credentials(env: Environment) -> signing.Credentials:
    key_id = settings.required(env, "KALSHI_API_KEY_ID")
    try:
        return signing.Credentials(key_id, signing.load_private_key(settings.file(env, "KALSHI_PRIVATE_KEY_PATH").read_bytes()))
    except (signing.UnusableKey, OSError) as error:
        raise ConfigurationError(f"KALSHI_PRIVATE_KEY_PATH: {error}") from error


def _spool(env: Environment) -> SpoolSettings | None:
    sync = settings.one_of(env, "KB_SPOOL_SYNC", SYNCS, "interval")
    limit = settings.integer(env, "KB_SPOOL_BYTES", 4 * 1024**3, minimum=1024 * 1024)
    folder = _path(env, "KB_SPOOL")
    return SpoolSettings(folder, limit, sync) if folder is not None else None


def _path(env: Environment, name: str) -> Path | None:
    text = settings.text(env, name, "")
    return Path(text).expanduser() if text else None


def _url(env: Environment, name: str, default: str, schemes: tuple[str, ...]) -> str:
    url = settings.text(env, name, default).rstrip("/")
    if not url.startswith(schemes):
        raise ConfigurationError(f"{name} is {url!r}; it must begin with {' or '.join(schemes)}")
    return url
