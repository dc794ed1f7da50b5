"""Reads settings out of an environment mapping, for the frozen dataclasses that services keep them in.

Every function names the variable in its error, so that the one line an operator sees says what to set. A service's
`settings.py` describes its variables in its module docstring: that text is what `--help` prints.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from kalshibook_core.archive.store import Store, open_store
from kalshibook_core.kafka.cluster import Cluster

Environment = Mapping[str, str]


COMMON = """\
  KB_KAFKA_BROKERS     Kafka's addresses, host:port[,host:port]
  KB_KAFKA_PARTITIONS  partitions of every topic (4)
  KB_TOPIC_PREFIX      put before every topic and group name (nothing)
  KB_INSTANCE          this process's name in its consumer groups: its next life takes over at once (nothing: after 10 s)
  KB_HEALTH_PORT       port of /healthz /readyz /metrics /status; 0: none (0)
  KB_HEALTH_HOST       address it listens on (127.0.0.1)
  KB_LOG_LEVEL         debug, info, warning or error (info)
  KB_DRAIN_SECONDS     how long a stop may take until it is cut short with exit code 1 (30)
"""
"""The variables that mean the same to every service, as `--help` prints them."""


class ConfigurationError(ValueError):
    """A setting is missing or makes no sense; the message names it. `lifecycle.run` prints it and exits 2."""


def required(env: Environment, name: str) -> str:
    """Return the variable; raise ConfigurationError if it is not set or empty."""
    value = env.get(name, "").strip()
    if not value:
        raise ConfigurationError(f"{name} is not set")
    return value


def text(env: Environment, name: str, default: str) -> str:
    """Return the variable, `default` if it is not set or empty."""
    return env.get(name, "").strip() or default


def one_of(env: Environment, name: str, allowed: tuple[str, ...], default: str) -> str:
    """Return the variable, which must be one of `allowed`."""
    value = text(env, name, default)
    if value not in allowed:
        raise ConfigurationError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")
    return value


def integer(env: Environment, name: str, default: int, minimum: int | None = None, maximum: int | None = None) -> int:
    """Return the variable as an integer within [minimum, maximum]."""
    value = text(env, name, str(default))
    try:
        number = int(value)
    except ValueError:
        raise ConfigurationError(f"{name} is {value!r}; it must be a whole number") from None
    _within(name, number, minimum, maximum)
    return number


def seconds(env: Environment, name: str, default: float, minimum: float | None = 0, maximum: float | None = None) -> float:
    """Return the variable as a duration in seconds, such as 30 or 0.5."""
    value = text(env, name, str(default))
    try:
        number = float(value)
    except ValueError:
        raise ConfigurationError(f"{name} is {value!r}; it must be a number of seconds") from None
    if not math.isfinite(number):
        raise ConfigurationError(f"{name} is {value!r}; it must be a number of seconds")
    _within(name, number, minimum, maximum)
    return number


def file(env: Environment, name: str) -> Path:
    """Return the variable as the path of a file that exists."""
    path = Path(required(env, name)).expanduser()
    if not path.is_file():
        raise ConfigurationError(f"{name} is {str(path)!r}, where there is no file")
    return path


def cluster(env: Environment) -> Cluster:
    """Return the Kafka cluster that KB_KAFKA_BROKERS, KB_TOPIC_PREFIX, KB_KAFKA_PARTITIONS and KB_INSTANCE describe."""
    return Cluster(
        brokers=required(env, "KB_KAFKA_BROKERS"),
        prefix=text(env, "KB_TOPIC_PREFIX", ""),
        partitions=integer(env, "KB_KAFKA_PARTITIONS", 4, minimum=1),
        instance=_instance(env),
    )


def archive(env: Environment) -> Store:
    """Return the archive that KB_ARCHIVE names, in S3 by the usual AWS variables."""
    try:
        endpoint = text(env, "AWS_ENDPOINT_URL_S3", text(env, "AWS_ENDPOINT_URL", ""))
        return open_store(required(env, "KB_ARCHIVE"), endpoint)
    except ValueError as error:
        raise ConfigurationError(f"KB_ARCHIVE: {error}") from None


class Health(NamedTuple):
    """Where a process says how it is; port 0: nowhere."""

    port: int = 0
    host: str = "127.0.0.1"


NOWHERE: Final = Health()


def health(env: Environment) -> Health:
    """Return what KB_HEALTH_PORT and KB_HEALTH_HOST say."""
    return Health(integer(env, "KB_HEALTH_PORT", 0, minimum=0, maximum=65535), text(env, "KB_HEALTH_HOST", NOWHERE.host))


def _instance(env: Environment) -> str:
    name = text(env, "KB_INSTANCE", "")
    if name and not re.fullmatch(r"[a-zA-Z0-9._-]{1,249}", name):
        raise ConfigurationError(f"KB_INSTANCE is {name!r}; it may have letters, digits, dots, underscores and dashes")
    return name


def _within(name: str, number: float, minimum: float | None, maximum: float | None) -> None:
    if minimum is not None and number < minimum:
        raise ConfigurationError(f"{name} is {number}; it must be at least {minimum}")
    if maximum is not None and number > maximum:
        raise ConfigurationError(f"{name} is {number}; it must be at most {maximum}")
