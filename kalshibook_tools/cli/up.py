"""`kb up`: everything on this machine, in the foreground or detached."""

import os
import subprocess
import sys
from pathlib import Path
from time import sleep

import click

from kalshibook_core.runtime import clock
from kalshibook_tools.cli.command import fail, home_option, run

CREDENTIALS = ("KALSHI_API_KEY_ID", "KALSHI_PRIVATE_KEY_PATH")
DETACHED_WITHIN = 300.0


class _Speed(click.ParamType[str]):
    name = "N|max"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            if value != "max" and not 0 < float(value) < float("inf"):
                raise ValueError
        except ValueError:
            self.fail(f"{value!r} is neither `max` nor a number above 0", param, ctx)
        return value


@click.command()
@home_option
@click.option(
    "--recording",
    "recordings",
    multiple=True,
    type=click.Path(exists=True, path_type=Path),
    help="Recorded frames to play: a file, or a folder of them. May be repeated.",
)
@click.option(
    "--speed", type=_Speed(), default="1", show_default=True, help="How many times faster than recorded; `max`: all it can."
)
@click.option("--keep-running", is_flag=True, help="After the recording: print the summary and go on serving.")
@click.option("--detach", is_flag=True, help="Return as soon as it runs; it goes on in the background.")
@click.option("--env", "exchange", type=click.Choice(["demo", "prod"]), help="Which Kalshi, given credentials.  [default: demo]")
@click.option("--gateway-port", type=click.IntRange(1, 65535), help="The API's port.  [default: as before, 8420, or a free one]")
@click.option("--simulator-port", type=click.IntRange(1, 65535), help="The simulator's port.  [default: as before or a free one]")
@click.option("--gatherers", type=click.IntRange(1, 5), default=1, show_default=True, help="How many capture every market.")
@click.option("--faults", type=int, metavar="SEED", help="Have the simulator hurt each gatherer on a schedule of this seed.")
@click.option("--faults-overlap", is_flag=True, help="Hurt several or all of them at once: what all lose must be a gap.")
@click.option("--markets", type=click.IntRange(1), help="How many markets the simulator generates.")
@click.option("--rate", type=_Speed(), help="Their frames a second, all together, or `max`.")
@click.option("--seed", type=int, help="The seed they are generated from.")
@click.option("--kafka", envvar="KB_KAFKA_BROKERS", help="Use this Kafka, HOST:PORT[,…]; else one is started.")
@click.option("--postgres", envvar="KB_POSTGRES_DSN", help="Use this database, postgresql://…; else one is started.")
@click.option("--redis", envvar="KB_REDIS_URL", help="Use this Redis, redis://…; else one is started.")
def up(
    *,
    home: Path,
    recordings: tuple[Path, ...],
    speed: str,
    keep_running: bool,
    detach: bool,
    exchange: str | None,
    gateway_port: int | None,
    simulator_port: int | None,
    gatherers: int,
    faults: int | None,
    faults_overlap: bool,
    markets: int | None,
    rate: str | None,
    seed: int | None,
    kafka: str | None,
    postgres: str | None,
    redis: str | None,
) -> None:
    """Run everything on this machine until Ctrl-C: broker, database, cache, exchange, all services.

    The exchange is a simulator, unless KALSHI_API_KEY_ID and KALSHI_PRIVATE_KEY_PATH are set: then it is Kalshi itself.
    Parts whose address is given (--kafka, --postgres, --redis) are used and not started. All state lies in KB_HOME; the
    next start continues with it.

    \b
    Examples:
      kb up                                          a simulated exchange, until Ctrl-C
      kb up --recording frames/ --speed max          play recorded frames, end when all can be read back
      kb up --recording day.ndjson.gz --speed 60 --keep-running
      kb up --recording frames/ --speed max --gatherers 3 --faults 7     the same books, whatever happens to each
      kb up --detach; kb status; kb down
      KALSHI_API_KEY_ID=… KALSHI_PRIVATE_KEY_PATH=key.pem kb up --env prod
    """
    from kalshibook_tools.stack import External
    from kalshibook_tools.supervisor.home import Home
    from kalshibook_tools.supervisor.serve import serve
    from kalshibook_tools.supervisor.services import Options

    env = dict(os.environ)  # noqa: TID251 - handed on whole to the services
    if detach:
        _detach(Home(home.resolve()), env)
        return
    given = [name for name in CREDENTIALS if env.get(name)]
    if len(given) == 1 and not recordings:
        missing = next(name for name in CREDENTIALS if name not in given)
        fail(f"{given[0]} is set but {missing} is not: set both for the real exchange, neither for the simulator", 2)
    if exchange and (not given or recordings):
        fail("--env needs KALSHI_API_KEY_ID and KALSHI_PRIVATE_KEY_PATH, and no --recording", 2)
    if keep_running and not recordings:
        fail("--keep-running goes with --recording; without one, kb up runs until Ctrl-C anyway", 2)
    if faults is not None and given and not recordings:
        fail("--faults is for the simulator: nobody hurts the real exchange's connections; unset KALSHI_API_KEY_ID", 2)
    if faults_overlap and faults is None:
        fail("--faults-overlap goes with --faults SEED", 2)
    asked = {"markets": markets, "rate": rate, "seed": seed}
    options = Options(
        home=Home(home.resolve()),
        recordings=tuple(path.resolve() for path in recordings),
        speed=speed,
        keep_running=keep_running,
        exchange=(exchange or "demo") if given and not recordings else None,
        gateway_port=gateway_port,
        simulator_port=simulator_port,
        gatherers=gatherers,
        faults=faults,
        faults_overlap=faults_overlap,
        generator={name: value for name, value in asked.items() if value is not None},
        external=External(kafka, postgres, redis),
        env=env,
    )
    raise SystemExit(run(serve(options)))


def _detach(home: "Home", env: dict[str, str]) -> None:  # type: ignore[name-defined]  # noqa: F821
    """Start the same command in a session of its own, pass on what it tells, and return once it runs."""
    arguments = [word for word in sys.argv[1:] if word != "--detach"]
    log = home.log("kb")
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as out:
            begin = out.tell()
            command = [sys.executable, "-m", "kalshibook_tools.cli", *arguments]
            child = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
    except OSError as error:
        fail(f"cannot write {log}: {error.strerror}; make room, or set KB_HOME to another folder")
    deadline = clock.monotonic() + DETACHED_WITHIN
    with log.open(errors="replace") as told:
        told.seek(begin)
        while True:
            code = child.poll()
            state = home.state()
            running = state.get("pid") == child.pid and state["state"] == "running" and state.get("greeted")
            click.echo(told.read(), nl=False)
            if code is not None:
                raise SystemExit(code)
            if running:
                click.echo(f"detached (pid {child.pid}); `kb status` tells how it is, `kb down` stops it; log: {log}")
                return
            if clock.monotonic() > deadline:
                fail(f"kb (pid {child.pid}) is not up after {DETACHED_WITHIN:g} s: see {log}, or `kb down`")
            sleep(0.1)
