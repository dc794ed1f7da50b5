"""Puts a finished day together: a file for each commit becomes one or few, in the order in which markets are read.

What a repack has is a function of its name: the rows of one day that the records of offsets [first, next) made. So two processes
that repack the same day write the same rows, readers take one of the two (`layout.in_force`), and nothing is ever edited. Step by
step, and what a crash leaves behind:

    1. read     every file in force of that day, each proved by its commit. Crash: nothing happened.
    2. write    new files, under names of their own. Crash: files that nothing names and no reader sees.
    3. compare  each new file is read back from the storage, row by row. Crash: as 2.
    4. seal     the repack is put, whole or not at all. Crash before it: as 2. After it: readers go by the new files.
    5. sweep    after a time of grace, in which whoever had listed the old files has read them, the new files are proved once
                more, the old ones deleted, and `.swept` is put. Crash: some old files are left, and the next sweep deletes them.

Commits are never deleted: they are what is known of the offsets. Canonical rows stand market by market; raw rows stay in the
order of their offsets, in which alone anybody reads them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from typing import Final, NamedTuple

from kalshibook_core.archive import layout, manifest, tables
from kalshibook_core.archive.coverage import Followed
from kalshibook_core.archive.layout import Repack
from kalshibook_core.archive.manifest import Entry, Repacked
from kalshibook_core.archive.reader import Archive, Damaged, Held
from kalshibook_core.archive.store import Store
from kalshibook_core.archive.tables import Row
from kalshibook_core.kafka import topics

ROWS: Final = 500_000
"""Rows of one file: what is held in memory."""


_BY_BOOK: Final = (tables.TICKED.name, tables.CHECKPOINTED.name)
"""Tables whose files are as whole as the books of their markets."""


class Abandoned(Exception):
    """The process was told to stop; nothing was sealed."""


class Unequal(Exception):
    """What was read back is not what was written: the storage or the machine is not to be trusted. Nothing was sealed."""


class Chunk(NamedTuple):
    """Files of one (channel, series) that become one."""

    channel: str
    series: str
    files: list[Entry]


def due(archive: Archive, held: Held, now_us: int, after_us: int) -> list[int]:
    """Return the days to repack: over for `after_us`, with files that no repack of the last `after_us` stands for."""
    found: set[int] = set()
    for commit in held.chain.commits:
        known = {commit.first_day, commit.last_day}  # each has a row; of the days between, the name does not say which
        if commit.last_day - commit.first_day > 1 and not all(held.supersedes(day, commit) for day in known):
            known = {entry.day for entry in archive.files(commit)}
        found.update(day for day in known if (day + 1) * layout.DAY_US + after_us <= now_us and not held.supersedes(day, commit))
    return [
        day
        for day in sorted(found)
        if (before := held.repacks.get(day)) is None or archive.repacked(before).made_us + after_us <= now_us
    ]


def plan(entries: Iterable[Entry], rows: int = ROWS) -> list[Chunk]:
    """Return which files become one, of a day's in the order of their records."""
    chunks: list[Chunk] = []
    for (channel, series), files in groupby(sorted(entries, key=_place), key=_place):
        held = rows
        for entry in files:
            if held + entry.rows > rows:
                chunks.append(Chunk(channel, series, []))
                held = 0
            chunks[-1].files.append(entry)
            held += entry.rows
    return chunks


def _place(entry: Entry) -> tuple[str, str]:
    return entry.channel, entry.series


def repack(
    store: Store,
    held: Held,
    day: int,
    life: str,
    now_us: int,
    stopping: Callable[[], bool] = lambda: False,
    rows: int = ROWS,
    again: Mapping[str, Sequence[Row]] | None = None,
) -> Repacked | None:
    """Repack a day of a partition; None if there is nothing to do, or offsets are missing. Blocks.

    `again` are the rows of series that were made again from the raw rows, because a file of theirs is damaged: these are taken,
    and their files not read. Raises Damaged, Unequal, Abandoned, OSError.
    """
    archive, table = Archive(store), tables.FORMATS[tables.BY_TOPIC[held.topic].name, tables.REPACKED]
    before = held.repacks.get(day)
    entries = archive.effective(held, range(day, day + 1))
    done = not again and before is not None and entries == archive.repacked(before).files
    if done or not entries or held.chain.holes:
        return None
    made = Repack(held.topic, held.partition, day, held.chain.commits[0].first, held.chain.next, life)
    files: list[Entry] = []

    def write(place: tuple[str, str], of: list[Row]) -> None:
        if stopping():
            raise Abandoned
        books = _books(archive, held.partition, day, place[1]) if table.name in _BY_BOOK else None
        files.append(_write(store, archive, table, made._replace(life=f"{life}x{len(files)}"), place, of, books))

    for chunk in plan((entry for entry in entries if entry.series not in (again or {})), rows):
        write((chunk.channel, chunk.series), [row for entry in chunk.files for row in archive.rows(entry)])
    for series, remade in (again or {}).items():
        for first in range(0, len(remade), rows):
            write(("", series), list(remade[first : first + rows]))
    told = Repacked(now_us, files, entries)
    store.put(made.path, manifest.seal_repack(made, told))
    return told


def _books(archive: Archive, partition: int, day: int, series: str) -> Followed | None:
    """Return how the books of a series were followed on a day, None where what is archived of them does not tell."""
    held = archive.held_of(topics.BOOK.name, partition)
    if held.chain.holes:
        return None
    followed = Followed(day * layout.DAY_US)
    try:
        for entry in archive.effective(held, range(day, day + 1), series):
            followed.learn(archive.manifest(entry))
    except Damaged:
        return None
    if any(commit.last_day > day for commit in held.chain.commits):
        followed.through_us = (day + 1) * layout.DAY_US  # the next day's events have come, so all of this one's have
    return followed


def _write(
    store: Store,
    archive: Archive,
    table: tables.Table,
    made: Repack,
    place: tuple[str, str],
    rows: list[Row],
    books: Followed | None,
) -> Entry:
    rows.sort(key=_offset if table.name == tables.RAW.name else _market)
    channel, series = place
    path = made.file(table.name, channel, series)
    content = table.write(rows)
    told = manifest.dump(manifest.describe(made, path + layout.ROWS, table, (channel, made.day, series), rows, content, books))
    entry = Entry(
        path + layout.ROWS, table.name, channel, made.day, series, len(rows), len(content),
        manifest.digest(content), manifest.digest(told),
    )  # fmt: skip
    store.put(entry.path, content)
    store.put(path + layout.MANIFEST, told)
    archive.manifest(entry)
    back = list(archive.rows(entry))
    if back != rows or list(map(_kind, back)) != list(map(_kind, rows)):
        raise Unequal(entry.path)
    return entry


def _offset(row: Row) -> int:
    return row[0]


def _market(row: Row) -> str:
    ticker: str = row[1].market_ticker
    return ticker


def _kind(row: Row) -> type:
    return type(row[1])


def sweep(store: Store, topic: str, partition: int, now_us: int, grace_us: int) -> int:
    """Delete what the repacks of a partition that are in force for `grace_us` stand for; return how many files. Blocks.

    Raises Damaged, and deletes nothing of that day, where a new file is not what was written.
    """
    archive, count = Archive(store), 0
    repacks, swept = archive.repacks(topic, partition)
    for one in layout.in_force(repacks).values():
        if one in swept or (told := archive.repacked(one)).made_us + grace_us > now_us:
            continue
        for entry in told.files:
            archive.manifest(entry)
            archive.content(entry)
        old = set(told.replaced)
        for other in repacks:  # of a writer beside this one, or before late data came
            if other.day == one.day and other != one:
                with suppress(Damaged):
                    theirs = archive.repacked(other)
                    old.update(theirs.files, theirs.replaced)
        for entry in old - set(told.files):
            store.delete(entry.path)
            store.delete(entry.path.removesuffix(layout.ROWS) + layout.MANIFEST)
            count += 1
        store.put(one.swept, b"{}\n")
    return count
