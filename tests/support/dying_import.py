"""`kb import ARG…` that is killed (SIGKILL) at its record N, or the first after it that finds some of them at the broker.

`python -m tests.support.dying_import N ARG…`.
"""

import os
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

from kalshibook_tools.cli.command import kb
from services.ingest import imports, recordings
from services.ingest.outbox import Outbox

acked: list[int] = []


class Heard(Outbox):
    """An outbox that tells what the broker acknowledged."""

    def _on_acked(self, partition: int, records: int, next_offset: int) -> None:
        acked.append(records)
        super()._on_acked(partition, records, next_offset)


def _dying(records: Any, after: int) -> Any:
    def some(*arguments: Any) -> Iterator[Any]:
        for number, record in enumerate(records(*arguments)):
            time.sleep(0.002)  # so that the broker has some of them
            if number >= after and acked:
                os.kill(os.getpid(), signal.SIGKILL)
            yield record

    return some


if __name__ == "__main__":
    imports.BATCH = 16  # type: ignore[misc]
    imports.Outbox = Heard  # type: ignore[misc, attr-defined]
    original = recordings.Recording.records
    recordings.Recording.records = _dying(original, int(sys.argv[1]))  # type: ignore[method-assign]
    kb(["import", *sys.argv[2:]], prog_name="kb")
