"""Reads an archive, and believes nothing in it: a commit's own digest, then by it a manifest's and a file's, then its rows.

`held` tells by names alone what there is of a topic; `effective` the files that hold its rows, each row once, whatever was
repacked or written twice: the one way for all readers from (topic, days, series) to files.

What does not agree raises Damaged, which names the object and why; nothing of a damaged file is ever returned. `quarantine` moves
it out of the way of other programs that read the folder. Every call blocks: call from a thread.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Final, NamedTuple

import orjson

from kalshibook_core.archive import layout, manifest, tables
from kalshibook_core.archive.layout import Chain, Commit, Repack
from kalshibook_core.archive.manifest import Entry, Repacked
from kalshibook_core.archive.store import Store
from kalshibook_core.archive.tables import File, Row

_END_US: Final = 1 << 63
_FEW: Final = 400
"""Days that are looked at one by one; a commit of more has a record of a clock that was nowhere near."""


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
    repacks: Mapping[int, Repack]  # in force, by day

    def supersedes(self, day: int, commit: Commit) -> bool:
        """Tell whether a repack stands for what the commit has of a day."""
        repack = self.repacks.get(day)
        return repack is not None and commit.first < repack.next

    def in_force(self) -> "Held":
        """Return the same without the commits whose every day a repack stands for: each day's files are the same."""
        commits = (
            commit
            for commit in self.chain.commits
            if commit.last_day - commit.first_day >= _FEW
            or not all(self.supersedes(day, commit) for day in range(commit.first_day, commit.last_day + 1))
        )
        return self._replace(chain=self.chain._replace(commits=tuple(commits)))


class Archive:
    """An archive in a store."""

    def __init__(self, store: Store) -> None:
        """Read from `store`."""
        self._store = store

    def log(self) -> str | None:
        """Return whose log's records it holds, None if nobody said."""
        try:
            return str(orjson.loads(self._store.get(layout.LOG))["log"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def held(self, topic: str) -> list[Held]:
        """Return what there is of a topic, partition by partition."""
        return self._held(topic, topic)

    def held_of(self, topic: str, partition: int) -> Held:
        """Return what there is of one partition of a topic."""
        found = self._held(topic, f"{topic}/{partition}")
        return found[0] if found else Held(topic, partition, layout.chain(()), {})

    def _held(self, topic: str, folder: str) -> list[Held]:
        # Repacks first: what one of them stands for is committed already when it is seen.
        repacks: dict[int, list[Repack]] = {}
        for repack in self._repacks(folder)[0]:
            repacks.setdefault(repack.partition, []).append(repack)
        found: dict[int, list[Commit]] = {}
        for path, _ in self._store.listed(f"{layout.COMMITS}/{folder}"):
            if (commit := layout.commit_of(path)) is not None:
                found.setdefault(commit.partition, []).append(commit)
        held = []
        for number in sorted(found.keys() | repacks.keys()):
            made = repacks.get(number, ())
            chain = layout.chain(found.get(number, ()), (repack.next for repack in made))
            held.append(Held(topic, number, chain, layout.in_force(made)))
        return held

    def next_offset(self, topic: str, partition: int) -> int | None:
        """Return the offset after the last one held, None if none is."""
        return self.held_of(topic, partition).chain.next or None

    def effective(self, held: Held, days: range, series: str | None = None) -> list[Entry]:
        """Return the files that hold the rows of these days (of a series' folder), each row once. Raises Damaged.

        Day by day; a day's in the order of their records, a repacked file first, in which they stand market by market.
        """
        found: list[Entry] = []
        for day, repack in held.repacks.items():
            if day in days:
                found += self.repacked(repack).files
        for commit in held.chain.commits:
            its = range(max(commit.first_day, days.start), min(commit.last_day + 1, days.stop))
            if its and (len(its) > _FEW or not all(held.supersedes(day, commit) for day in its)):
                found += (each for each in self.files(commit) if each.day in its and not held.supersedes(each.day, commit))
        found.sort(key=lambda entry: entry.day)
        return [entry for entry in found if series in (None, entry.series)]

    def repacks(self, topic: str, partition: int) -> tuple[list[Repack], set[Repack]]:
        """Return the repacks of a partition, in force or not, and those of them whose old files are deleted."""
        return self._repacks(f"{topic}/{partition}")

    def _repacks(self, folder: str) -> tuple[list[Repack], set[Repack]]:
        paths = {path for path, _ in self._store.listed(f"{layout.REPACKS}/{folder}")}
        found = [repack for path in sorted(paths) if (repack := layout.repack_of(path)) is not None]
        return found, {repack for repack in found if repack.swept in paths}

    def repacked(self, repack: Repack) -> Repacked:
        """Return what a repack says. Raises Damaged."""
        try:
            return manifest.unseal_repack(self._store.get(repack.path), repack)
        except FileNotFoundError:
            raise Damaged(repack.path, "missing") from None
        except (manifest.Broken, KeyError, TypeError, ValueError) as error:
            raise Damaged(repack.path, str(error)) from error

    def files(self, commit: Commit) -> list[Entry]:
        """Return the files of a commit. Raises Damaged."""
        try:
            return manifest.unseal(self._store.get(commit.path), commit)
        except FileNotFoundError:
            raise Damaged(commit.path, "missing") from None
        except (manifest.Broken, KeyError, TypeError, ValueError) as error:
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

    def open(self, entry: Entry) -> File:
        """Return a file whose content is what was written. Raises Damaged."""
        try:
            return File(tables.BY_NAME[entry.table], self.content(entry))
        except ValueError as error:
            raise Damaged(entry.path, str(error)) from error

    def rows(self, entry: Entry, overlaps: Callable[[int, int], bool] | None = None, ticker: str | None = None) -> Iterator[Row]:
        """Yield the rows of a file as they stand in it. Raises Damaged before the first if anything is wrong with it.

        With `overlaps` only those of row groups whose first and last instant it wants; with `ticker` only that market's.
        """
        content, table = self.content(entry), tables.BY_NAME[entry.table]
        try:
            rows = list(table.read(content, overlaps or (lambda first, last: True), ticker))
        except ValueError as error:
            raise Damaged(entry.path, str(error)) from error
        if overlaps is None and ticker is None and len(rows) != entry.rows:
            raise Damaged(entry.path, f"{len(rows):,} rows instead of {entry.rows:,}")
        yield from rows

    def stream(self, entry: Entry) -> Iterator[Row]:
        """Yield the rows of a file as they stand in it, row group by row group. Raises Damaged, of their number at the end."""
        content, table, count = self.content(entry), tables.BY_NAME[entry.table], 0
        try:
            for row in table.read(content):
                count += 1
                yield row
        except ValueError as error:
            raise Damaged(entry.path, str(error)) from error
        if count != entry.rows:
            raise Damaged(entry.path, f"{count:,} rows instead of {entry.rows:,}")

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
            for entry in self.effective(held, days, series):
                if ticker not in self.manifest(entry)["markets"]:
                    continue
                for row in self.rows(entry, lambda first, last: first < to_us and last >= from_us, ticker):
                    if from_us <= table.instant(row[1]) < to_us:
                        yield row

    def unproved(self, path: str) -> bytes:
        """Return an object as it lies there, for who has his own proof of it; raise FileNotFoundError."""
        return self._store.get(path)

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
