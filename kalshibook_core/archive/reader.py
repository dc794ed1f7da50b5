"""Reads an archive, and believes nothing in it: a commit's own digest, then by it a manifest's and a file's, then its rows.

What does not agree raises Damaged, which names the object and why; nothing of a damaged file is ever returned. `quarantine` moves
it out of the way of other programs that read the folder. Every call blocks: call from a thread.
"""

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import orjson

from kalshibook_core.archive import layout, manifest, tables
from kalshibook_core.archive.layout import Chain, Commit
from kalshibook_core.archive.manifest import Entry
from kalshibook_core.archive.store import Store
from kalshibook_core.archive.tables import Row

_END_US: Final = 1 << 63


class Damaged(Exception):
    """An object of the archive is missing, or is not what was written."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"{path}: {why}")
        self.path, self.why = path, why


class Held(NamedTuple):
    """What an archive holds of a topic's partition."""

    topic: str
    partition: int
    chain: Chain


class Archive:
    """An archive in a store."""

    def __init__(self, store: Store) -> None:
        """Read from `store`."""
        self._store = store

    def held(self, topic: str) -> list[Held]:
        """Return what there is of a topic, partition by partition."""
        found: dict[int, list[Commit]] = {}
        for path, _ in self._store.listed(f"{layout.COMMITS}/{topic}"):
            commit = layout.commit_of(path)
            if commit is not None:
                found.setdefault(commit.partition, []).append(commit)
        return [Held(topic, number, layout.chain(commits)) for number, commits in sorted(found.items())]

    def next_offset(self, topic: str, partition: int) -> int | None:
        """Return the offset after the last one held, None if none is."""
        commits = (layout.commit_of(path) for path, _ in self._store.listed(f"{layout.COMMITS}/{topic}/{partition}"))
        return layout.chain(commit for commit in commits if commit is not None).next or None

    def files(self, commit: Commit) -> list[Entry]:
        """Return the files of a commit. Raises Damaged."""
        try:
            return manifest.unseal(self._store.get(commit.path), commit)
        except FileNotFoundError:
            raise Damaged(commit.path, "missing") from None
        except (manifest.Broken, KeyError, TypeError) as error:
            raise Damaged(commit.path, str(error)) from error

    def manifest(self, entry: Entry) -> manifest.Json:
        """Return the manifest of a file. Raises Damaged."""
        path = entry.path.removesuffix(layout.ROWS) + layout.MANIFEST
        try:
            return manifest.load(self._store.get(path), entry)
        except FileNotFoundError:
            raise Damaged(path, "missing") from None
        except manifest.Broken as error:
            raise Damaged(path, str(error)) from error

    def content(self, entry: Entry) -> bytes:
        """Return a file as it was written. Raises Damaged."""
        try:
            content = self._store.get(entry.path)
        except FileNotFoundError:
            raise Damaged(entry.path, "missing") from None
        if len(content) != entry.bytes:
            raise Damaged(entry.path, f"{len(content):,} bytes instead of {entry.bytes:,}")
        if manifest.digest(content) != entry.sha256:
            raise Damaged(entry.path, "its content is not what was written")
        return content

    def rows(self, entry: Entry, overlaps: Callable[[int, int], bool] | None = None) -> Iterator[Row]:
        """Yield the rows of a file in the order of their records. Raises Damaged before the first if anything is wrong with it.

        With `overlaps` only those of row groups whose first and last instant it wants.
        """
        content, table = self.content(entry), tables.BY_NAME[entry.table]
        if overlaps is not None:
            yield from table.read(content, overlaps)
            return
        try:
            rows = list(table.read(content))
        except ValueError as error:
            raise Damaged(entry.path, str(error)) from error
        if len(rows) != entry.rows:
            raise Damaged(entry.path, f"{len(rows):,} rows instead of {entry.rows:,}")
        yield from rows

    def market(self, topic: str, ticker: str, from_us: int = 0, to_us: int = _END_US) -> Iterator[Row]:
        """Yield a market's rows of a topic from `from_us` to before `to_us`, by the clock of the topic's table, in order.

        In order of their records, that is of their offsets; a day's rows are together. Raises Damaged, also where a commit is
        missing between two others.
        """
        table, series = tables.BY_TOPIC[topic], layout.series_of(ticker)
        days = range(layout.day_of(from_us), layout.day_of(to_us - 1) + 1 if to_us < _END_US else 1 << 40)
        for held in self.held(topic):
            if held.chain.holes:
                first, after = held.chain.holes[0]
                raise Damaged(f"{layout.COMMITS}/{topic}/{held.partition}", f"no commit holds the offsets {first} to {after}")
            for commit in held.chain.commits:
                if commit.first_day >= days.stop or commit.last_day < days.start:
                    continue
                for entry in sorted(self.files(commit), key=lambda entry: entry.day):
                    if entry.series != series or entry.day not in days or ticker not in self.manifest(entry)["markets"]:
                        continue
                    for row in self.rows(entry, lambda first, last: first < to_us and last >= from_us):
                        if row[1].market_ticker == ticker and from_us <= table.instant(row[1]) < to_us:
                            yield row

    def listed(self, folder: str) -> Iterator[tuple[str, int]]:
        """Yield the path and size of every object below a folder, whether anything names it or not."""
        return self._store.listed(folder)

    def quarantine(self, damaged: Damaged) -> str | None:
        """Move a damaged object out of the way and say beside it why; return where it is now, None if it was missing."""
        to = f"{layout.QUARANTINE}/{damaged.path}"
        try:
            self._store.move(damaged.path, to)
        except FileNotFoundError:
            return None
        self._store.put(f"{to}.why", orjson.dumps({"path": damaged.path, "why": damaged.why}) + b"\n")
        return to
