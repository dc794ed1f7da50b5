"""The whole pipeline on this machine, broker included: a recording at `--speed max`, from its first event to its last read back.

A process of its own for everything, as `kb up` runs it. Bare is one process that reads the same files, parses each frame and
folds the books, with no socket, broker, database or proof around it.
"""

import gzip
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import orjson
import psutil

from benchmarks import Row
from kalshibook_core.kalshi import messages
from kalshibook_core.orderbook import Book
from tests.support import recordings

NAME = "whole pipeline"
SIZES = ((46.0, 500.0), (250.0, 600.0))
"""(seconds, frames a second) as recorded: 23,000 frames as one market has on a busy day, and 150,000 for the sustained rate."""

_SUMMARY = re.compile(r"played ([\d,]+) frames .* \(([\d.]+) s from the first")


def run(addresses: Any) -> list[Row]:
    """Play two generated recordings, each through a stack of its own."""
    del addresses  # the claim is about everything on one machine, so the run brings its own parts
    rows = []
    for seconds, rate in SIZES:
        with tempfile.TemporaryDirectory(prefix="kb-bench-") as folder:
            written = recordings.write(Path(folder) / "recording", markets=40, seconds=seconds, rate=rate, window=900)
            frames, took, memory = _play(Path(folder) / "home", written.events)
            bare = _bare(written.events)
        rows.append(Row(f"pipeline: {frames:,} frames, first event to last read back", took, "s", bare, took / bare))
        rows.append(Row.of(f"pipeline: sustained over {frames:,} frames", frames / took, "frames/s", frames / bare))
        rows.append(Row(f"pipeline: peak memory of all processes over {frames:,} frames", memory, "MB", None, None))  # type: ignore[arg-type]
    return rows


def _play(home: Path, recording: Path) -> tuple[int, float, float]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("KB_", "KALSHI_")) or name == "KB_CACHE"}  # noqa: TID251
    command = [sys.executable, "-m", "kalshibook_tools.cli", "up", "--recording", str(recording), "--speed", "max"]
    with subprocess.Popen(command, env=ours | {"KB_HOME": str(home)}, stdout=subprocess.PIPE, text=True) as process:
        peak = [0.0]
        watch = threading.Thread(target=_watch, args=(process.pid, peak), daemon=True)
        watch.start()
        screen, _ = process.communicate()
    told = _SUMMARY.search(screen)
    if process.returncode or told is None:
        raise RuntimeError(f"kb up ended with {process.returncode}:\n{screen}")
    return int(told[1].replace(",", "")), float(told[2]), peak[0]


def _watch(pid: int, peak: list[float]) -> None:
    while True:
        try:
            processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
            # Postgres' processes share their buffers: what is shared is counted once, by PSS.
            peak[0] = max(peak[0], sum(each.memory_full_info().pss for each in processes) / 1e6)
        except psutil.Error:
            if not psutil.pid_exists(pid):
                return
        time.sleep(0.5)


def _bare(folder: Path) -> float:
    began = time.perf_counter()
    books: dict[str, Book] = {}
    for path in sorted(folder.rglob("*.ndjson.gz")):
        with gzip.open(path) as lines:
            for line in lines:
                message = messages.envelope(orjson.dumps(orjson.loads(line)["event"]))
                if message.type in (messages.SNAPSHOT, messages.DELTA):
                    content = messages.parse_book(message, yes_price=False)
                    if isinstance(content, messages.Snapshot):
                        books[message.market_ticker] = Book(content.yes, content.no)
                    else:
                        books[message.market_ticker].apply(content.side, content.price, content.delta)
    return time.perf_counter() - began
