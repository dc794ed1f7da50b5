"""`kb simulator`: the exchange alone, until it is stopped."""

import asyncio
import os
import signal
from pathlib import Path

import click
import orjson

from kalshibook_core.runtime import logs
from kalshibook_tools.simulator import Config, UnreadableRecording, serve
from kalshibook_tools.simulator.exchange import LIVE_SECONDS
from kalshibook_tools.simulator.keys import KEY_IDS


def _new_event_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:  # there is none for Windows
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def _or_max(_ctx: click.Context, parameter: click.Parameter, value: str) -> float | None:
    if value == "max":
        return None
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if number <= 0:
        raise click.BadParameter("give a number above 0, or max", param=parameter)
    return number


@click.command(name="simulator", context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--recording",
    "recordings",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Play this file, or every .ndjson and .ndjson.gz file below this folder. May be given several times.",
)
@click.option(
    "--speed",
    default="1",
    callback=_or_max,
    metavar="N|max",
    help="Replay speed; max: as fast as the clients read.  [default: 1]",
)
@click.option(
    "--gatherers",
    default=1,
    show_default=True,
    type=click.IntRange(1, len(KEY_IDS)),
    help="How many clients, each with its own key id, a recorded market waits for.",
)
@click.option(
    "--faults", type=int, metavar="SEED", help="Hurt each gatherer in its turn: drop, duplicate, reset, error 25, delay."
)
@click.option("--faults-overlap", is_flag=True, help="Hurt several or all of them at once.")
@click.option("--markets", default=200, show_default=True, help="Generated: how many markets.")
@click.option(
    "--rate",
    default="200",
    callback=_or_max,
    metavar="N|max",
    help="Generated: frames a second, all markets together.  [default: 200]",
)
@click.option("--seed", default=1, show_default=True, help="Generated: the same seed gives the same markets and order flow.")
@click.option("--window", default=900.0, show_default=True, help="Generated: seconds that a short-lived market is open.")
@click.option("--duration", default=None, type=float, help="Generated: stop trading after so many seconds (the sockets stay).")
@click.option("--live", default=LIVE_SECONDS, show_default=True, help="Seconds after which trades and results are historical.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=0, help="Port to listen on; 0 takes a free one.  [default: 0]")
@click.option(
    "--key-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".kalshibook/simulator"),
    show_default=True,
    help="Folder of the private key that clients sign with; made there if there is none.",
)
@click.option(
    "--info-file", type=click.Path(dir_okay=False, path_type=Path), help="Also write the addresses to this file, as JSON."
)
def command(
    recordings: tuple[Path, ...],
    speed: float | None,
    gatherers: int,
    faults: int | None,
    faults_overlap: bool,
    markets: int,
    rate: float | None,
    seed: int,
    window: float,
    duration: float | None,
    live: float,
    host: str,
    port: int,
    key_dir: Path,
    info_file: Path | None,
) -> None:
    """Run the exchange simulator: Kalshi's market data, REST and websocket, on one port.

    Without --recording it trades by itself: markets of several series, some that open, close and settle every quarter of an hour,
    with trades, odd sizes and sub-cent prices. With --recording it plays recorded frames byte for byte (only sid and seq are
    renumbered), each as soon as the subscription that it answers is there, so a client misses nothing at any speed.

    It prints one JSON object with ws_url, rest_url, control_url, key_id, key_ids (one a client) and private_key_path, and serves
    until SIGINT or SIGTERM.

    \b
    Try:
      kb simulator --port 8100
      curl -s localhost:8100/trade-api/v2/markets?limit=2
      curl -s localhost:8100/simulator/status
      curl -s localhost:8100/simulator/truth/TICKER            what was true, a JSON event a line
      curl -s localhost:8100/simulator/faults -d '{"kind": "drop", "count": 3}'
      curl -s -X POST localhost:8100/simulator/pause           and .../resume

    \b
    Faults:
      drop, duplicate, reorder                      the next `count` frames of a `channel` (and `market_ticker`)
      malformed, unknown_type, big_frame,
      negative_level, unparsable                    a bad frame in front of the next good one
      reset, close, silence, error_25, error_10,
      error_17                                      every connection, or the one of number `connection`
      delay                                         all frames lag by `seconds`; 0 ends it
      http_502, http_429                            the next `count` handshakes, REST requests
      clock_skew                                    the exchange's clock is off by `seconds`
      resnapshot, off_grid                          of `market_ticker`
    """
    logs.configure("simulator")
    config = Config(
        key_dir=key_dir,
        recordings=recordings,
        speed=speed,
        gatherers=gatherers,
        faults=faults,
        faults_overlap=faults_overlap,
        markets=markets,
        rate=rate,
        seed=seed,
        window=window,
        duration=duration,
        live=live,
        host=host,
        port=port,
    )
    try:
        with asyncio.Runner(loop_factory=_new_event_loop) as runner:
            runner.run(_run(config, info_file))
    except UnreadableRecording as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(f"{error}: choose another --port, --host or --key-dir") from None


async def _run(config: Config, info_file: Path | None) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with serve(config) as exchange:
        info = {
            "ws_url": exchange.ws_url,
            "rest_url": exchange.rest_url,
            "control_url": exchange.control_url,
            "key_id": exchange.key_id,
            "key_ids": exchange.key_ids,
            "private_key_path": str(exchange.private_key_path.absolute()),
            "pid": os.getpid(),
        }
        if info_file is not None:
            info_file.parent.mkdir(parents=True, exist_ok=True)
            fresh = info_file.with_suffix(info_file.suffix + ".new")
            fresh.write_bytes(orjson.dumps(info))
            fresh.rename(info_file)  # whoever waits for the file never reads half of it
        click.echo(orjson.dumps(info, option=orjson.OPT_INDENT_2).decode())
        await stop.wait()


def main() -> None:
    """Run as `kb-simulator`."""
    command()


if __name__ == "__main__":
    main()
