"""Reads what an archive holds of one market, fast enough to answer a customer: remembers where things lie, and what is proved.

An archive only grows and nothing in it changes, so what is remembered stays true. The caller says what must be there (versions,
or so many rows); where that is not found, or a file is not, the archive is listed anew, once. What is still missing then, or
damaged, raises Damaged: nothing is left out in silence. A file's content is compared with its digest before any of it is used.

What commits and repacks there are is asked for once a partition, since to list them takes the longer the older an archive is;
what repacks stand for is not remembered of it.

Bounds: files of `most_bytes` as they lie, as many bytes of single markets' rows and a quarter of it of their checkpoints; the
names of `_ENTRIES` files and as many commits and repacks, and what files hold of `_MARKETS` markets. Full, what was used longest
ago is forgotten. Every call blocks: call from threads.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from threading import Lock
from typing import Any, Final, Generic, NamedTuple, TypeVar

from kalshibook_core.archive import columns, layout, tables
from kalshibook_core.archive.columns import Books
from kalshibook_core.archive.manifest import Entry
from kalshibook_core.archive.reader import Archive, Damaged
from kalshibook_core.archive.reader import Held as Listed
from kalshibook_core.archive.tables import BOOKS, CHECKPOINTED, Group, Table
from kalshibook_core.wire.events import Checkpoint

MOST_BYTES: Final = 1 << 27
_ENTRIES: Final = 100_000
_MARKETS: Final = 300_000
_TOPIC_OF: Final = {table.name: topic for topic, table in tables.BY_TOPIC.items()}

Content = TypeVar("Content")


class Place(NamedTuple):
    """Where a market's rows of a day are: a partition of the topic, a UTC day as `layout` counts them."""

    partition: int
    day: int
    ticker: str


class Held(NamedTuple):
    """What a file has of a market. Of what is no book, versions are 0."""

    rows: int
    first_us: int
    last_us: int
    first_version: int
    last_version: int


class Part(NamedTuple):
    """A row group that has rows of a market, or may have."""

    entry: Entry
    number: int
    ticker: str


class Past:
    """An archive, as who reads single markets wants it."""

    def __init__(self, archive: Archive, most_bytes: int = MOST_BYTES) -> None:
        """Read from `archive`, and keep at most so many bytes of files, and of rows."""
        self._archive = archive
        self._listed: _Kept[Listed] = _Kept(_ENTRIES)
        self._days: _Kept[Mapping[str, list[Entry]]] = _Kept(_ENTRIES)
        self._markets: _Kept[Mapping[str, Held]] = _Kept(_MARKETS)
        self._files: _Kept[bytes] = _Kept(most_bytes)
        self._groups: _Kept[list[Group]] = _Kept(_ENTRIES)
        self._books: _Kept[Books] = _Kept(most_bytes)
        self._checkpoints: _Kept[tuple[list[tuple[int, int]], Any]] = _Kept(most_bytes // 4)

    def parts(self, place: Place, first: int, last: int, from_us: int, to_us: int) -> list[Part]:
        """Return where a market's book events of [from_us, to_us) are, of a day on which it has versions `first` to `last`.

        In order of version; others are beside them. Raises Damaged unless the archive has all those versions; OSError.
        """

        def read() -> list[Part] | None:
            files = sorted(self._holding(BOOKS, place), key=lambda file: file[1].first_version)
            reached = first - 1
            for _, held in files:
                reached = max(reached, held.last_version) if held.first_version <= reached + 1 else reached
            if reached < last:
                return None
            return [
                Part(entry, number, place.ticker)
                for entry, held in files
                if held.first_us < to_us and held.last_us >= from_us
                for number, group in enumerate(self._spans(entry))
                if group.first_us < to_us and group.last_us >= from_us and group.low <= place.ticker <= group.high
            ]

        return self._sure(BOOKS, place, f"versions {first} to {last}", read)

    def books(self, part: Part) -> Books:
        """Return a market's book events of a row group. Raises Damaged, OSError."""
        entry, number, ticker = part

        def decode() -> Books:
            try:
                return columns.joined([found for _, found in columns.books(self._open(entry), number, [ticker])])
            except ValueError as error:
                raise Damaged(entry.path, str(error)) from error

        return self._books.get((entry.path, number, ticker), decode, _size)

    def present(self) -> None:
        """Raise OSError if there is no archive, or its storage does not answer."""
        if self._archive.log() is None:
            raise FileNotFoundError("there is no archive where KB_ARCHIVE says")

    def forget(self, table: Table, place: Place) -> None:
        """List a day anew when it is asked for again: something of it was not where it had been."""
        self._listed.forget((table.name, place.partition))
        self._days.forget((table.name, place.partition, place.day))

    def checkpoint(self, place: Place, until_us: int, rows: int) -> Checkpoint | None:
        """Return a market's newest checkpoint of a day that is not after an instant. Raises Damaged, OSError.

        `rows` is how many it has on that day at the least, whenever.
        """

        def read() -> list[Checkpoint] | None:
            files = self._holding(CHECKPOINTED, place)
            if sum(held.rows for _, held in files) < rows:
                return None
            best: tuple[int, int] = (-1, -1)
            row: Any = None
            for entry, held in sorted(files, key=lambda file: file[1].last_us, reverse=True):
                if not (held.first_us <= until_us and held.last_us >= best[0]):
                    continue
                for number, group in reversed(list(enumerate(self._spans(entry)))):
                    within = group.first_us <= until_us and group.last_us >= best[0]
                    if within and group.low <= place.ticker <= group.high:
                        load = partial(self._rows, entry, number, place.ticker)
                        keys, found = self._checkpoints.get((entry.path, number, place.ticker), load, _rows_size)
                        for n, key in enumerate(keys):
                            if best < key and key[0] <= until_us:
                                best, row = key, found.slice(n, 1)
            if row is None:
                return []
            return [event for _, event in CHECKPOINTED.events([column.to_pylist() for column in row.columns])]

        found = self._sure(CHECKPOINTED, place, f"{rows} checkpoints", read)
        return found[0] if found else None

    def _sure(self, table: Table, place: Place, what: str, read: Callable[[], Content | None]) -> Content:
        """Return what is read; if that is None, or a file is not there, what is read after looking anew. Raises Damaged."""
        try:
            if (found := read()) is not None:
                return found
        except Damaged:
            pass  # what it was merged into may have taken its place
        self.forget(table, place)
        if (found := read()) is not None:
            return found
        folder = f"{table.name}/day={layout.day_name(place.day)}/series={layout.series_of(place.ticker)}"
        raise Damaged(folder, f"of {place.ticker}, {what} are not all there")

    def _holding(self, table: Table, place: Place) -> list[tuple[Entry, Held]]:
        """Return the files that have rows of a market on a day."""
        key = table.name, place.partition, place.day
        day = self._days.get(key, partial(self._entries, *key), lambda series: sum(map(len, series.values())))
        found = []
        for entry in day.get(layout.series_of(place.ticker), ()):
            held = self._markets.get(entry.path, partial(self._held, entry), len).get(place.ticker)
            if held is not None:
                found.append((entry, held))
        return found

    def _entries(self, table: str, partition: int, day: int) -> Mapping[str, list[Entry]]:
        by_series: dict[str, list[Entry]] = {}
        held = self._listed.get((table, partition), partial(self._list, table, partition), _weight)
        for entry in self._archive.effective(held, range(day, day + 1)):
            by_series.setdefault(entry.series, []).append(entry)
        return by_series

    def _list(self, table: str, partition: int) -> Listed:
        return self._archive.held_of(_TOPIC_OF[table], partition).in_force()

    def _held(self, entry: Entry) -> Mapping[str, Held]:
        return {
            ticker: Held(
                told["rows"], told["first_us"], told["last_us"], told.get("first_version", 0), told.get("last_version", 0)
            )
            for ticker, told in self._archive.manifest(entry)["markets"].items()
        }

    def _rows(self, entry: Entry, number: int, ticker: str) -> tuple[list[tuple[int, int]], Any]:
        """Return (effective_us, version) of a market's rows of a row group, and the rows as an Arrow table, None without any."""
        try:
            found = self._open(entry).read(number, [ticker])
        except ValueError as error:
            raise Damaged(entry.path, str(error)) from error
        if found is None:
            return [], None
        return list(zip(*(found.column(name).to_pylist() for name in ("effective_us", "version")), strict=True)), found

    def _spans(self, entry: Entry) -> list[Group]:
        return self._groups.get(entry.path, lambda: self._open(entry).groups, len)

    def _open(self, entry: Entry) -> tables.File:
        content = self._files.get(entry.path, partial(self._archive.content, entry), len)
        try:
            return tables.File(tables.BY_NAME[entry.table], content)
        except ValueError as error:
            raise Damaged(entry.path, str(error)) from error


def _rows_size(rows: tuple[list[tuple[int, int]], Any]) -> int:
    return 0 if rows[1] is None else int(rows[1].nbytes)


def _weight(listed: Listed) -> int:
    return len(listed.chain.commits) + len(listed.repacks)


def _size(books: Books) -> int:
    return sum(column.nbytes for column in books[:9]) + sum(100 * (len(yes) + len(no)) for yes, no in books.levels.values())


class _Kept(Generic[Content]):
    """What was loaded, by key, of a total weight; full, it forgets what was used longest ago."""

    def __init__(self, most: int) -> None:
        self._most, self._weight = most, 0
        self._kept: OrderedDict[Hashable, tuple[Content, int]] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Hashable, load: Callable[[], Content], weigh: Callable[[Content], int]) -> Content:
        """Return what is kept, or else what `load` returns; two that want the same at once may both load it."""
        with self._lock:
            if (kept := self._kept.get(key)) is not None:
                self._kept.move_to_end(key)
                return kept[0]
        content = load()
        weight = 1 + weigh(content)
        with self._lock:
            if key not in self._kept and weight <= self._most:
                self._kept[key] = content, weight
                self._weight += weight
                while self._weight > self._most:
                    self._weight -= self._kept.popitem(last=False)[1][1]
        return content

    def forget(self, key: Hashable) -> None:
        """Have it loaded anew."""
        with self._lock:
            if (kept := self._kept.pop(key, None)) is not None:
                self._weight -= kept[1]
