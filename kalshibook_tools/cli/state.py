"""`kb status`, `kb down`, `kb reset`: look at what runs in a KB_HOME, stop it, forget it."""

import json
import os
import shutil
import signal
from pathlib import Path
from time import sleep
from typing import Any

import click

from kalshibook_core.runtime import clock
from kalshibook_tools.cli.command import fail, home_option, run

DOWN_WITHIN = 240.0
"""Seconds `kb down` waits: longer than every drain deadline together, so it never reports a stop that only takes its time."""


@click.command()
@home_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for scripts.")
def status(home: Path, as_json: bool) -> None:
    """Tell what runs here, how far it is, and which gaps there are.

    \b
    The object of --json:
      state        starting, running or stopped
      gateway.url  where the API answers
      demo_key     a key for it; its plan meters and never refuses
      services     name -> pid, state, restarts, counters
      recording    done, frames, events (null: none is played)
      gaps         list of market_ticker, start, end, cause: where a book is not known; trade_gaps: the same for trades, and
                   `filled`: rest where the exchange's history was read over all of it, else null
      faults       of --faults SEED: injected and labelled by gatherer, gaps and trade_gaps by cause (null: none asked for)
    """
    from kalshibook_tools.supervisor.home import Home

    state = Home(home.resolve()).state()
    for private in ("addresses", "home", "pid", "greeted"):
        state.pop(private, None)
    click.echo(json.dumps(state, indent=2) if as_json else _text(state))


@click.command()
@home_option
def down(home: Path) -> None:
    """Stop what runs here, and wait until it has stopped. What a killed `kb up` left behind is stopped too."""
    from kalshibook_tools.supervisor.home import Home

    here = Home(home.resolve())
    pid = here.supervisor()
    if pid is None:
        if not (left := here.leftovers()):
            click.echo(f"nothing runs in {home}")
            return
        click.echo(f"kb was killed here and left {', '.join(left)}")

        async def clean() -> None:
            with here.alone():
                await here.stop_leftovers(click.echo)

        run(clean())
        return
    os.kill(pid, signal.SIGTERM)
    deadline = clock.monotonic() + DOWN_WITHIN
    while here.supervisor() == pid:
        if clock.monotonic() > deadline:
            fail(f"kb (pid {pid}) does not stop: look into {here.logs}")
        sleep(0.1)
    click.echo("stopped")


@click.command()
@home_option
@click.option("--yes", is_flag=True, help="Do not ask.")
def reset(home: Path, yes: bool) -> None:
    """Remove everything under KB_HOME: recorded history, keys, logs. Refuses while it runs."""
    from kalshibook_tools.supervisor.home import Home

    here = Home(home.resolve())
    if running := here.supervisor():
        fail(f"kb runs in {home} (pid {running}): `kb down` first")
    if left := here.leftovers():
        fail(f"a killed kb left {', '.join(left)} running in {home}: `kb down` first")
    if not here.path.exists():
        click.echo(f"there is no {home}")
        return
    if not here.state_file.exists():
        fail(f"{home} was not made by kb (it has no state.json): remove it yourself if you mean it")
    if not yes:
        click.confirm(f"Remove {here.path} with all that was recorded in it?", abort=True)
    shutil.rmtree(here.path)
    click.echo(f"removed {home}")


def _text(state: dict[str, Any]) -> str:
    from kalshibook_tools.supervisor import faults
    from kalshibook_tools.supervisor.screen import table

    rows, told = [], []
    for name, service in state["services"].items():
        said = {key.removesuffix("_total"): value for key, value in service["counters"].items() if not key.endswith("_us")}
        figures = {key: f"{value:,}" for key, value in said.items() if isinstance(value, int | float) and value}
        words = {key: value for key, value in said.items() if isinstance(value, str) and value}
        counters = "  ".join(f"{key} {value}" for key, value in (figures | words).items() if " " not in value)
        restarts = f"{service['restarts']} restarts  " if service["restarts"] else ""
        rows.append((name, f"{service['state']}{f' (pid {pid})' if (pid := service['pid']) else ''}", restarts + counters))
        told += [f"  {name}: {key}: {value}" for key, value in words.items() if " " in value and service["pid"]]
    lines = [f"{state['state']}  {state['gateway']['url'] or ''}".rstrip(), table(rows), *told]
    if played := state["recording"]:
        lines.append(
            f"recording: {played['frames']:,} frames, {played['events']:,} events, {'done' if played['done'] else 'playing'}"
        )
    if told := state["faults"]:
        lines.append(faults.line(told))
    filled = sum(gap.get("filled") is not None for gap in state["trade_gaps"])
    lines.append(f"gaps: {len(state['gaps'])} of books, {len(state['trade_gaps'])} of trades ({filled} filled by REST)")
    lines += [f"  {gap['market_ticker']}  {gap['start']} - {gap['end'] or 'now'}  {gap['cause']}" for gap in state["gaps"][-10:]]
    return "\n".join(line for line in lines if line)
