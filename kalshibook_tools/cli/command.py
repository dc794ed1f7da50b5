"""`kb` itself: the list of its commands, and the one way in which a failure is told and turned into an exit code.

Exit codes: 0 done, 1 failed (one line on standard error says what to do), 2 asked wrongly (a missing setting or argument).
"""

import asyncio
import importlib
import json
from collections.abc import Coroutine, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from kalshibook_core.runtime.settings import ConfigurationError

if TYPE_CHECKING:
    from kalshibook_core.kafka.cluster import Cluster

_T = TypeVar("_T")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_COMMANDS = {
    "up": "kalshibook_tools.cli.up:up",
    "status": "kalshibook_tools.cli.state:status",
    "down": "kalshibook_tools.cli.state:down",
    "reset": "kalshibook_tools.cli.state:reset",
    "migrate": "kalshibook_tools.cli.migrate:migrate",
    "keys": "kalshibook_tools.cli.keys:keys",
    "backfill": "kalshibook_tools.cli.backfill:backfill",
    "import": "kalshibook_tools.cli.importing:import_",
    "verify": "kalshibook_tools.cli.verify:verify",
    "verify-merge": "kalshibook_tools.cli.verify_merge:verify_merge",
    "simulator": "kalshibook_tools.simulator.__main__:command",
}


class _Lazy(click.Group):
    """A group whose commands are imported when they are asked for: `kb status` does not load a web server."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        module, _, attribute = _COMMANDS[name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="kalshibook-platform", prog_name="kb")
def kb() -> None:
    """KalshiBook: every order-book change of Kalshi, and the full book of any market at any instant.

    \b
    Try:
      kb up                                     run everything here, with a simulated exchange
      kb up --recording FOLDER --speed max      play recorded frames through all of it, then end
      kb status                                 what runs, how far it is, which gaps there are
      kb keys create --account me --plan demo   a key for the API
      kb backfill trades                        fill gaps of trades from the exchange's history
    """


home_option = click.option(
    "--home",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="KB_HOME",
    default=Path(".kalshibook"),
    show_default=True,
    help="Folder that holds all state: data, logs, ports, keys. Also from KB_HOME.",
)


class Instant(click.ParamType[int]):
    """An instant on the command line, as microseconds since the epoch."""

    name = "instant"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read RFC 3339, or a day; without an offset it is UTC."""
        try:
            at = datetime.fromisoformat(str(value))
        except ValueError:
            self.fail(f"{value!r} is no instant such as 2026-11-21 or 2026-11-21T14:00:00Z", param, ctx)
        return (at.replace(tzinfo=at.tzinfo or UTC) - _EPOCH) // timedelta(microseconds=1)


def fail(message: str, code: int = 1) -> NoReturn:
    """End with one line on standard error."""
    click.echo(f"error: {message}", err=True)
    raise SystemExit(code)


def run(work: Coroutine[Any, Any, _T]) -> _T:
    """Run to the end, and tell in one line what a person must act on."""
    from kalshibook_core.kafka import errors
    from kalshibook_core.postgres import migrate, pool
    from kalshibook_tools.stack import StackError
    from kalshibook_tools.supervisor.home import SupervisorError

    known = (SupervisorError, StackError, migrate.MigrationError, pool.DatabaseUnreachable, errors.KafkaFault, OSError)
    try:
        return asyncio.run(work)
    except ConfigurationError as error:
        click.echo(f"configuration: {error}", err=True)
        raise SystemExit(2) from error
    except known as error:
        fail(str(error))


def capture_environment(home: Path, env: Mapping[str, str], exchange: str | None) -> dict[str, str]:
    """Return the environment of a process that asks the exchange and writes to the broker: of what runs in `home`, where `env`
    names no other broker. Raises ConfigurationError, also where it is not said which exchange: one's trades are not the other's.
    """
    from kalshibook_tools.supervisor.home import Home

    here, found = Home(home.resolve()), _with_addresses(home, env)
    simulated = not env.get("KB_KAFKA_BROKERS") and "simulator" in here.state()["services"]
    if simulated and exchange:
        raise ConfigurationError(f"--env {exchange}, but what runs in {home} records a simulator")
    if simulated:
        try:
            told = json.loads((here.path / "simulator.json").read_text())
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"the simulator of {home} does not say where it is ({error}): `kb up` first") from None
        found |= {"KB_KALSHI_WS_URL": told["ws_url"], "KB_KALSHI_REST_URL": told["rest_url"]}
        found |= {"KALSHI_API_KEY_ID": told["key_ids"][0], "KALSHI_PRIVATE_KEY_PATH": told["private_key_path"]}
    elif exchange:
        found["KB_KALSHI_ENV"] = exchange
    elif not found.get("KB_KALSHI_ENV") and not found.get("KB_KALSHI_REST_URL"):
        raise ConfigurationError("KB_KALSHI_ENV is not set: say --env demo or --env prod, whichever is recorded here")
    return found


def broker(home: Path, env: Mapping[str, str]) -> "Cluster":
    """Return the cluster that `env` names, else the one that runs in `home`. Raises ConfigurationError."""
    from kalshibook_core.runtime import settings

    return settings.cluster(_with_addresses(home, env))


def _with_addresses(home: Path, env: Mapping[str, str]) -> dict[str, str]:
    from kalshibook_tools.supervisor.home import Home

    state = Home(home.resolve()).state()
    found = {**((state.get("addresses") or {}) if state["state"] != "stopped" else {}), **env}
    if not found.get("KB_KAFKA_BROKERS"):
        raise ConfigurationError(f"KB_KAFKA_BROKERS is not set, and nothing runs in {home}: set it, or `kb up` first")
    return found


def database(home: Path, given: str | None) -> str:
    """Return the database to work on: the one given, else the one that runs in `home`. Raises ConfigurationError."""
    from kalshibook_tools.supervisor.home import Home

    if given:
        return given
    state = Home(home.resolve()).state()
    if state["state"] == "stopped" or not state.get("addresses"):
        raise ConfigurationError(f"KB_POSTGRES_DSN is not set, and nothing runs in {home}: set it, or `kb up` first")
    return str(state["addresses"]["KB_POSTGRES_DSN"])


dsn_option = click.option("--dsn", envvar="KB_POSTGRES_DSN", help="The database; by default the one that runs in KB_HOME.")

endpoint_option = click.option(
    "--endpoint", envvar=["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"], default="", help="S3's address, if not Amazon's."
)
