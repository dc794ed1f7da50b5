"""`kb import ARG…` that is killed (SIGKILL) at its record N: `python -m tests.support.dying_import N ARG…`."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

from kalshibook_tools.cli.command import kb
from services.ingest import imports, recordings


def _dying(records: Any, after: int) -> Any:
    def some(*arguments: Any) -> Iterator[Any]:
        for number, record in enumerate(records(*arguments)):
            time.sleep(0.002)  # so that the broker has some of them
            if number == after:
                os.kill(os.getpid(), signal.SIGKILL)
            yield record

    return some


if __name__ == "__main__":
    imports.BATCH = 16  # type: ignore[misc]
    original = recordings.Recording.records
    recordings.Recording.records = _dying(original, int(sys.argv[1]))  # type: ignore[method-assign]
    kb(["import", *sys.argv[2:]], prog_name="kb")
