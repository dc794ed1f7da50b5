"""The whole pipeline under a steady load: everything `kb up` runs, on the frames of generated markets, at a rate it is asked for.

Measured where they leave the deduplicator and where they are in the database; bare is the rate asked for. A lag (records still to
be read, all consumers together) that is no greater at the end than in the middle does not grow. CPU and memory are each process's
own, Postgres' with its backends'; memory as PSS, so that what processes share is counted once.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import psutil

from benchmarks import Row
from kalshibook_tools.supervisor.home import Home

NAME = "sustained load"
RATE, MARKETS = 12_000, 500
WARM, SECONDS = 8.0, 24.0
START_WITHIN: Final = 120.0


def run(addresses: Any) -> list[Row]:
    """Start everything, let it warm up, measure for two halves."""
    del addresses  # the claim is about everything on one machine, so the run brings its own parts
    with tempfile.TemporaryDirectory(prefix="kb-bench-") as folder:
        home = Home(Path(folder))
        inherited = os.environ.items()  # noqa: TID251
        ours = {name: value for name, value in inherited if not name.startswith(("KB_", "KALSHI_")) or name == "KB_CACHE"}
        command = [sys.executable, "-m", "kalshibook_tools.cli", "up", "--rate", str(RATE), "--markets", str(MARKETS)]
        with subprocess.Popen(command, env=ours | {"KB_HOME": folder}, stdout=subprocess.DEVNULL) as up:
            try:
                _until_running(up, home)
                time.sleep(WARM)
                return _rows(*(_look(home, wait) for wait in (0.0, SECONDS / 2, SECONDS / 2)))
            finally:
                up.send_signal(signal.SIGINT)


def _until_running(up: "subprocess.Popen[bytes]", home: Home) -> None:
    began = time.monotonic()
    while not home.state().get("greeted"):
        if up.poll() is not None or time.monotonic() - began > START_WITHIN:
            raise RuntimeError(f"kb up is not up: {home.log('kb')}")
        time.sleep(0.2)


def _look(home: Home, wait: float) -> dict[str, Any]:
    time.sleep(wait)
    services = home.state()["services"]
    counters = {name: service["counters"] for name, service in services.items()}
    seen = {name: _cost(service["pid"]) for name, service in services.items()}
    return {
        "at": time.monotonic(),
        "frames": counters["deduplicator"]["frames_total"],
        "events": counters["persister"]["events_total"],
        "made": sum(
            counters["deduplicator"][f"{kind}_total"] for kind in ("snapshots", "deltas", "trades", "tickers", "lifecycle")
        ),
        "lag": sum(each.get("lag_records", 0) for each in counters.values()),
        "seconds": {name: seconds for name, (seconds, _) in seen.items()},
        "megabytes": {name: megabytes for name, (_, megabytes) in seen.items()},
    }


def _cost(pid: int) -> tuple[float, float]:
    """Return CPU seconds and MB of a process and those it started, the ended ones' CPU included."""
    parent = psutil.Process(pid)
    family = [parent, *parent.children(recursive=True)]
    times = [each.cpu_times() for each in family]
    ended = times[0].children_user + times[0].children_system
    return sum(each.user + each.system for each in times) + ended, sum(each.memory_full_info().pss for each in family) / 1e6


def _rows(first: dict[str, Any], middle: dict[str, Any], last: dict[str, Any]) -> list[Row]:
    seconds, frames = last["at"] - first["at"], last["frames"] - first["frames"]
    stored = frames * (last["events"] - first["events"]) / max(1, last["made"] - first["made"])
    rows = [
        Row.of("sustained: frames numbered", round(frames / seconds), "frames/s", RATE),
        Row.of("sustained: frames in the database", round(stored / seconds), "frames/s", RATE),
        Row.of("sustained: lag at the end (bare: in the middle)", last["lag"], "records", middle["lag"]),
    ]
    for name, spent in last["seconds"].items():
        each = (spent - first["seconds"][name]) / max(1, frames) * 1e6
        rows.append(_only(f"sustained: CPU of {name}", round(each, 1), "µs/frame"))
    rows += [_only(f"sustained: memory of {name}", round(mb), "MB") for name, mb in last["megabytes"].items()]
    return rows


def _only(claim: str, value: float, unit: str) -> Row:
    return Row(claim, value, unit, None, None)  # type: ignore[arg-type]
