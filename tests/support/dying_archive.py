"""An archive's writer that is killed at its n-th step on the disk, for n = 1, 2, 3, …, life after life, until all is written.

`python -m tests.support.dying_archive FOLDER RECORDS`. Each life is a process that begins as the service does, where the archive
ends, and writes commits of ten records. A step is a file's content half on the disk, or whole, or a rename, done or not.
"""

import asyncio
import os
import secrets
import signal
import stat
import sys
from pathlib import Path

from kalshibook_core.archive.reader import Archive
from kalshibook_core.archive.store import Folder
from services.persister.archive import commit, files
from tests.support import archive as made

TOPIC = "kalshi.book.v1"
AT_A_TIME = 10


class Death:
    """Comes at the n-th step."""

    def __init__(self, n: int) -> None:
        self._left = n
        rename = Path.replace

        def replace(path: Path, to: Path) -> Path:
            self.step()
            done = rename(path, to)
            self.step()
            return done

        os.fsync = self.fsync  # type: ignore[assignment]
        Path.replace = replace  # type: ignore[method-assign, assignment]

    def step(self) -> None:
        self._left -= 1
        if not self._left:
            os.kill(os.getpid(), signal.SIGKILL)

    def fsync(self, number: int) -> None:
        # Nothing is sent to the disk, since the machine does not die; a content that was under way to it is cut in half.
        told = os.fstat(number)
        if self._left == 1 and stat.S_ISREG(told.st_mode):
            os.ftruncate(number, told.st_size // 2)
        self.step()
        self.step()


async def once(attempt):
    await attempt()


async def life(store: Folder, records: list) -> None:
    name, at = secrets.token_hex(4), Archive(store).next_offset(TOPIC, 0) or 0
    left = [record for record in records if record.offset >= at]
    while left:
        batch, left = left[:AT_A_TIME], left[AT_A_TIME:]
        await commit.write(store, files.make(TOPIC, 0, at, batch[-1].offset + 1, name, batch), once)
        at = batch[-1].offset + 1


def main() -> int:
    """Return how many lives were cut short."""
    store, records = Folder(Path(sys.argv[1])), made.records(made.book(1, int(sys.argv[2])))
    commit.AT_ONCE = 1  # type: ignore[misc]
    killed = 0
    while True:
        child = os.fork()
        if not child:
            Death(killed + 1)
            asyncio.run(life(store, records))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            return killed if os.WEXITSTATUS(status) == 0 else -1
        killed += 1


if __name__ == "__main__":
    sys.stdout.write(str(main()))
