"""`make bench [ARGS="pipeline gatherer"]`: run the benchmarks, print one table, write benchmarks/latest.json.

With `--document` among the arguments the table also becomes docs/benchmarks.md, with the date and the machine it is of.
The addresses come from KB_KAFKA_BROKERS, KB_POSTGRES_DSN and KB_REDIS_URL, as `kalshibook_tools.stack exec` sets them. One
that fails is told, the others run, and the exit code is 1.
"""

import importlib
import json
import os
import platform
import sys
import traceback
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType

from rich.console import Console
from rich.table import Table

from benchmarks import Row
from kalshibook_core.runtime import clock
from kalshibook_tools.stack import Addresses

HERE = Path(__file__).parent
DOCUMENT = "--document"


def main() -> int:
    """Run those named on the command line, or all."""
    addresses = Addresses(*(os.environ[name] for name in ("KB_KAFKA_BROKERS", "KB_POSTGRES_DSN", "KB_REDIS_URL")))  # noqa: TID251
    wanted = [name for name in sys.argv[1:] if name != DOCUMENT] or sorted(path.stem for path in HERE.glob("[a-z]*.py"))
    rows: list[Row] = []
    failed, busy = 0, os.getloadavg()[0]
    for module in map(_module, wanted):
        if module is None:
            continue
        print(f"measuring: {module.NAME}", file=sys.stderr)
        try:
            rows += module.run(addresses)
        except Exception:
            failed += 1
            traceback.print_exc()
    Console(width=140).print(table(rows))
    if DOCUMENT in sys.argv:
        (HERE.parent / "docs" / "benchmarks.md").write_text(document(rows, busy))
    (HERE / "latest.json").write_text(json.dumps([row(each) for each in rows], indent=1) + "\n")
    return 1 if failed else 0


def row(measured: Row) -> dict[str, object]:
    """Return a row as latest.json has it."""
    return {name: getattr(measured, name) for name in ("claim", "value", "unit", "bare", "ratio")}


def table(rows: list[Row]) -> Table:
    """Return the rows as a table."""
    shown = Table("claim", "unit")
    for name in ("value", "bare", "ratio"):
        shown.add_column(name, justify="right")
    for each in rows:
        shown.add_row(each.claim, each.unit, *(_number(value) for value in (each.value, each.bare, each.ratio)))
    return shown


def document(rows: list[Row], busy: float) -> str:
    """Return the rows as a page; `busy` is the load average when it began."""
    today = datetime.fromtimestamp(clock.now_us() // 1_000_000, UTC)
    machine = f"{os.cpu_count()} cores ({platform.machine()}, {platform.system()}), Python {platform.python_version()}"
    lines = [
        "# Benchmarks",
        "",
        f"Measured on {today:%Y-%m-%d}, {machine}, by `make bench ARGS={DOCUMENT}`,",
        f"which writes this page; the load of other programs was {busy:.1f} when it began. Value is ours; bare is the same work",
        "with nothing around it; ratio is value / bare. What each claim measures, and what its bare is, says the module under",
        "`benchmarks/`.",
        "",
        "| claim | unit | value | bare | ratio |",
        "|---|---|---:|---:|---:|",
    ]
    for each in rows:
        lines.append(f"| {' | '.join((each.claim, each.unit, *map(_number, (each.value, each.bare, each.ratio))))} |")
    return "\n".join(lines) + "\n"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _module(name: str) -> ModuleType | None:
    module = importlib.import_module(f"benchmarks.{name}")
    return module if hasattr(module, "run") else None


if __name__ == "__main__":
    raise SystemExit(main())
