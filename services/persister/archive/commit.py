"""Writes a commit: files first, what makes them count last.

The records are in Kafka and the files in the archive, and nothing else remembers how far it is: the archive's own commits do.
Step by step, and what a crash leaves behind:

    1. make     the files are made in memory. Crash: nothing happened; the next life reads the records again.
    2. files    each Parquet file is put, and its manifest. Crash: some are there, named by no commit, so no reader sees them; the
                next life writes its own, under names of its own. `kb verify` counts what was left.
    3. commit   the commit is put, whole or not at all. Crash before it: as 2. After it: the rows are in the archive, and the next
                life goes on at `next`, which the commit's name says.
    4. forget   the records leave memory. Crash: nothing more happens than after 3.

A put whose answer was lost is repeated, with the same content under the same name. A process that lost its partition without
noticing may put a commit beside those of its successor: of the same records, so of the same rows, and readers take one of them
(`layout.chain`).
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import orjson

from kalshibook_core.archive import layout
from kalshibook_core.archive.store import Store
from services.persister.archive.files import File, Made

AT_ONCE: Final = 8
"""Objects that are put at the same time."""

Attempt = Callable[[Callable[[], Awaitable[None]]], Awaitable[None]]
"""Calls something until it succeeds."""


class OtherLog(Exception):
    """The archive holds the records of another Kafka, whose offsets mean nothing here."""


class Vanished(Exception):
    """The archive has less than was written to it: it is not mounted, it is another one, or commits of it were deleted."""


def claim(store: Store, log: str, reached: Mapping[tuple[str, int], int], anew: bool) -> None:
    """Let the archive be that of a log, by its name, if it is nobody's yet; blocks.

    `reached` are the offsets up to which some archive of this log was written once. Raises Vanished if there was one and here is
    none, unless one is to be begun `anew`; OtherLog if this is another's.
    """
    try:
        whose = orjson.loads(store.get(layout.LOG))["log"]
    except FileNotFoundError:
        if reached and not anew:
            raise Vanished(
                f"{store} is empty, but an archive of this Kafka was written to up to {_far(reached)}: mount it or name its "
                "place; or set KB_ARCHIVE_ANEW=1 to begin another one there with what Kafka still holds"
            ) from None
        store.put(layout.LOG, orjson.dumps({"log": log}))
        return
    if whose != log:
        raise OtherLog(f"{store} is the archive of the Kafka cluster {whose!r}, this is {log!r}: name an empty place instead")


def _far(reached: Mapping[tuple[str, int], int]) -> str:
    (topic, partition), offset = max(reached.items(), key=lambda item: item[1])
    return f"offset {offset:,} of {topic} partition {partition}"


def is_there(store: Store) -> None:
    """Raise OSError where the archive is not in its place any more, as when a mount is gone; blocks."""
    try:
        store.get(layout.LOG)
    except FileNotFoundError:
        raise OSError(f"{store} has no {layout.LOG} any more: is it mounted?") from None


async def write(store: Store, made: Made, patiently: Attempt) -> None:
    """Write a commit and all it names; return when it is durable. Raises what `patiently` raises."""
    free = asyncio.Semaphore(AT_ONCE)

    async def put(path: str, content: bytes) -> None:
        await patiently(lambda: asyncio.to_thread(store.put, path, content))

    async def put_file(file: File) -> None:
        async with free:
            await put(file.entry.path, file.content)
            await put(file.entry.path.removesuffix(layout.ROWS) + layout.MANIFEST, file.manifest)

    async with asyncio.TaskGroup() as tasks:
        for file in made.files:
            tasks.create_task(put_file(file))
    await put(made.commit.path, made.sealed)
