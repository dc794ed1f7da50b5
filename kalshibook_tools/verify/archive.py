"""Whether an archive proves itself: each object is what was written, the raw rows make the canonical ones, the database agrees.

The raw rows of a partition are given to the deduplicator's own core in the order of their offsets, from the first one on or from
a savepoint of a fold before, and each event that comes out is compared with the archived one and with its row in the database.

    objects      a commit, a repack, a manifest or a file is missing or is not what was written; no commit holds some offsets; a
                 repack has not as many rows as the files it stands for; a manifest says of its file what its rows do not
    raw          the raw rows do not begin at the log's first record, so nothing they make can be compared
    events       an archived event is not the one the raw rows make, is missing though later ones are there, or comes from nowhere
    checkpoints  a checkpoint, archived or in the database, whose checksum, time or gap is not that of its version, or whose
                 checksum is not that of its own levels
    database     a row of book_events, trades, tickers or lifecycle differs, is missing, or is there twice; a partition by time is
                 missing or detached
    gaps         a row of the table gaps is not what the events tell, is missing, or is told by none (`verify.gaps`)

An event that only one side has, after the last that both have, is no difference: the other side has yet to come so far.

A day that is put together is held in memory until the fold has passed it, a partition at a time.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from kalshibook_core.archive import layout, manifest, tables
from kalshibook_core.archive.layout import Commit, Repack
from kalshibook_core.archive.manifest import Entry, Repacked
from kalshibook_core.archive.reader import Archive, Damaged, Held
from kalshibook_core.archive.tables import Row, Table
from kalshibook_core.kafka import topics
from kalshibook_core.orderbook import Book, CorruptBook
from kalshibook_core.orderbook.checksum import to_signed
from kalshibook_core.wire.events import BookDelta, BookEvent, BookSnapshot, Gap, Level, Lifecycle, RawFrame, Ticker, Trade
from services.deduplicator.partition import Partition

CLASSES: Final = ("objects", "raw", "events", "checkpoints", "database", "gaps")
_TOLD: Final = 20
_AT_ONCE: Final = 20_000
_TOPIC_OF: Final = {
    BookDelta: topics.BOOK.name,
    BookSnapshot: topics.BOOK.name,
    Trade: topics.TRADES.name,
    Ticker: topics.TICKERS.name,
    Lifecycle: topics.LIFECYCLE.name,
}

_SIDES: Final = tuple(sorted(set(_TOPIC_OF.values())))
_MADE_AGAIN: Final = (*_SIDES, topics.CHECKPOINTS.name)
ARCHIVED: Final = "archived"
IN_DATABASE: Final = "in the database"

END_US: Final = (1 << 63) - 1
"""Later than any event."""

Made = tuple[int, Any]
"""(number, event): what the raw rows make, numbered in the order in which they do."""

DatabaseRows = Callable[[Sequence[Made]], Awaitable[None]]
"""Compares events with the database's rows, in their order, and notes what it finds."""

Key = tuple[str, int]
"""(ticker, version)"""

Place = tuple[str, int, int, str]
"""(topic, partition, day, series): what can be made again from raw rows."""


class Known(NamedTuple):
    """What a checkpoint says."""

    checksum: int
    effective_us: int
    gap_start_us: int | None
    gap_cause: str | None
    where: str  # ARCHIVED or IN_DATABASE

    def contradicts(self, event: BookEvent) -> str | None:
        """Return what it says otherwise than its event, None if nothing."""
        gap = (event.start_us, event.cause) if isinstance(event, Gap) else (None, None)
        told = {"checksum": event.checksum, "time": event.effective_us, "gap": gap}
        mine = {"checksum": self.checksum, "time": self.effective_us, "gap": (self.gap_start_us, self.gap_cause)}
        return next((f"another {name}" for name, each in mine.items() if told[name] != each), None)


class Wanted(NamedTuple):
    """What is compared: a market, or all; events from `from_us` to before `to_us`."""

    ticker: str | None = None
    from_us: int = 0
    to_us: int = END_US

    @property
    def days(self) -> range:
        """Return the days of what is compared, as `layout` counts them."""
        return range(layout.day_of(self.from_us), layout.day_of(self.to_us - 1) + 1 if self.to_us < END_US else 1 << 40)

    def has(self, table: Table, event: Any) -> bool:
        """Tell whether an event is to be compared."""
        if self.ticker is not None and event.market_ticker != self.ticker:
            return False
        return self.from_us <= table.instant(event) < self.to_us


@dataclass(slots=True)
class Result:
    """What was found; no differences if the promise holds."""

    counts: Counter[str] = field(default_factory=Counter)
    told: list[str] = field(default_factory=list)
    damaged: list[Damaged] = field(default_factory=list)
    hurt: dict[str, list[Place]] = field(default_factory=dict)
    """By the path of what is damaged, what it held that can be made again."""

    wrong_checkpoints: list[Key] = field(default_factory=list)
    """Those of the database."""

    wrong_archived: dict[Place, set[Key]] = field(default_factory=dict)
    """Those of the archive, by where they lie."""

    wrong_gaps: list[Any] = field(default_factory=list)
    """Likewise, `gaps.Wrong`."""

    given: list[str] = field(default_factory=list)
    """What was not proved, but taken as it is."""

    def differs(self, kind: str, why: str, count: int = 1) -> None:
        """Note a difference, or several of one cause."""
        self.counts[kind] += count
        if len(self.told) < _TOLD:
            self.told.append(f"{kind}: {why}")

    @property
    def first_class(self) -> str | None:
        """The first class of which there are differences."""
        return next((kind for kind in CLASSES if self.counts[kind]), None)


class Contents(NamedTuple):
    """The commits and repacks of an archive, and their files."""

    held: dict[str, list[Held]]  # by topic
    files: dict[Commit, list[Entry]]
    repacked: dict[Repack, Repacked]  # in force

    def effective(self, held: Held) -> Iterator[Entry]:
        """Yield the files that hold the rows of a partition of a topic, each row once."""
        for day in sorted(held.repacks):
            yield from self.repacked[held.repacks[day]].files
        for commit in held.chain.commits:
            yield from self.left(held, commit)

    def left(self, held: Held, commit: Commit) -> Iterator[Entry]:
        """Yield the files of a commit that no repack stands for."""
        return (entry for entry in self.files[commit] if not held.supersedes(entry.day, commit))

    @property
    def partitions(self) -> Iterator[Held]:
        """Every partition of every topic."""
        return (each for of in self.held.values() for each in of)

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return sum(entry.rows for held in self.partitions for entry in self.effective(held))


def contents(archive: Archive, result: Result) -> Contents:
    """Read every commit and every repack in force, and compare their numbers of rows."""
    found = Contents({topic: archive.held(topic) for topic in tables.BY_TOPIC}, {}, {})
    for each in found.partitions:
        for first, after in each.chain.holes:
            result.differs("objects", f"{each.topic} partition {each.partition}: no commit holds the offsets {first} to {after}")
        for commit in each.chain.commits:
            try:
                found.files[commit] = archive.files(commit)
            except Damaged as damaged:
                _note(result, damaged)
        for repack in each.repacks.values():
            try:
                found.repacked[repack] = archive.repacked(repack)
            except Damaged as damaged:
                _note(result, damaged)
    if not result.first_class:
        for each in found.partitions:
            _count(found, each, result)
    return found


def _count(found: Contents, held: Held, result: Result) -> None:
    standing: dict[int, Counter[tuple[str, str]]] = {day: Counter() for day in held.repacks}
    for commit in held.chain.commits:
        for entry in found.files[commit]:
            if held.supersedes(entry.day, commit):
                standing[entry.day][entry.channel, entry.series] += entry.rows
    for day, repack in held.repacks.items():
        has = Counter[tuple[str, str]]()
        for entry in found.repacked[repack].files:
            has[entry.channel, entry.series] += entry.rows
        if has != standing[day]:
            result.differs("objects", f"{repack.path}: {has.total():,} rows for {standing[day].total():,}, or of other series")


def partitions(found: Contents, wanted: Wanted) -> list[int]:
    """Return the partitions that have what is wanted."""
    series = wanted.ticker and layout.series_of(wanted.ticker)
    return [
        held.partition
        for held in found.held[topics.RAW.name]
        if any(series in (None, entry.series) for commit in held.chain.commits for entry in found.files[commit])
    ]


def check_objects(archive: Archive, found: Contents, result: Result, progress: Callable[[int], None]) -> None:
    """Read every manifest and every file against what is said of it; `progress` hears of the rows."""
    for held in found.partitions:
        for entry in found.effective(held):
            for check in (archive.manifest, archive.content):
                try:
                    check(entry)
                except Damaged as damaged:
                    _note_file(result, damaged, held.topic, held.partition, entry)
            result.counts["files"] += 1
            progress(entry.rows)


def _note(result: Result, damaged: Damaged) -> None:
    result.differs("objects", str(damaged))
    result.damaged.append(damaged)


def _note_file(result: Result, damaged: Damaged, topic: str, partition: int, entry: Entry) -> None:
    _note(result, damaged)
    if topic in _MADE_AGAIN:
        result.hurt.setdefault(damaged.path, []).append((topic, partition, entry.day, entry.series))


class Proof:
    """A partition's raw rows, folded from nothing or from a savepoint, against its canonical rows."""

    def __init__(
        self,
        archive: Archive,
        found: Contents,
        number: int,
        partition: Partition,
        wanted: Wanted,
        result: Result,
        start: int = 0,
        again: Iterable[Place] = (),
    ) -> None:
        """Prove partition `number`; `partition` is as the raw records before offset `start` make it.

        The places `again` are not compared, but made again: `rebuilt` has their rows then.
        """
        self._archive, self._found, self._number, self._wanted, self._result = archive, found, number, wanted, result
        self._partition, self._start = partition, start
        self._made = 0
        self._last_us = 0
        self._sides = {topic: _Side(topic, result) for topic in _SIDES}
        self._checkpoints: list[dict[Key, Known]] = []
        self._note: Callable[[Any], None] = lambda event: None
        self.unarchived = Counter[str]()
        """By topic, events at the end that are not archived yet."""
        self.unfolded = Counter[str]()
        """By topic, archived events at the end whose raw rows are not archived yet."""
        self.rebuilt: dict[Place, list[Row]] = {place: [] for place in again if place[1] == number}

    async def run(
        self,
        compare: DatabaseRows | None,
        stored: dict[Key, Known],
        progress: Callable[[int], None],
        save: Callable[[int, int], None] = lambda offset, until_us: None,
        note: Callable[[Any], None] = lambda event: None,
    ) -> None:
        """Fold and compare everything; `stored` are the database's checkpoints, those that are met are taken out.

        `note` hears of every event, whether it is wanted or not. `save` is called with (offset, latest instant of any event so
        far) where the partition is worth a savepoint.
        """
        raw = self._held(topics.RAW.name)
        if raw is None or not raw.chain.commits:
            return
        if raw.chain.commits[0].first and not self._start:
            self._result.differs("raw", f"partition {self._number} begins at offset {raw.chain.commits[0].first}")
            return
        self._checkpoints, self._note = [stored, self._archived_checkpoints()], note
        canonical = {topic: self._canonical(topic, progress) for topic in self._sides}
        given = {ticker: market.book.version for ticker, market in self._partition.markets.items()}
        streams, day = _Streams(self._archive, self._found, raw, self._result), 0
        for commit in raw.chain.commits:
            if commit.next <= self._start:
                continue
            if commit.first_day > self._wanted.days.stop:  # received a day after the last that is wanted
                break
            if day and commit.last_day > day:  # before the first record of a day, so that all of it can be proved from there
                save(commit.first, self._last_us)
            day = max(day, commit.last_day)
            made: list[Made] = []
            for offset, frame in streams.of(commit):
                if offset >= self._start and frame.kind != tables.UNREADABLE:
                    for event in self._partition.receive(frame, offset):
                        self._make(event, made)
                if compare is not None and len(made) >= _AT_ONCE:
                    await compare(made)
                    made = []
            progress(sum(entry.rows for entry in self._found.files[commit]))
            for topic, side in self._sides.items():
                while not side.ahead and (rows := next(canonical[topic], None)) is not None:
                    for row in rows:
                        side.archived(row[1])
            if compare is not None and made:
                await compare(made)
        else:
            save(raw.chain.next, self._last_us)
        for topic, side in self._sides.items():
            for rows in canonical[topic]:
                for row in rows:
                    side.archived(row[1])
            self.unarchived[topic], self.unfolded[topic] = side.end(raw.chain.next)
        self._judge_checkpoints(given)

    def _judge_checkpoints(self, given: dict[str, int]) -> None:
        for known in self._checkpoints:
            for (ticker, version), checkpoint in known.items():
                market = self._partition.markets.get(ticker)
                if market is not None and given.get(ticker, 0) < version <= market.book.version:
                    self._wrong_checkpoint(ticker, version, checkpoint, "no such event is made")

    def _wrong_checkpoint(self, ticker: str, version: int, checkpoint: Known, why: str) -> None:
        self._result.differs("checkpoints", f"{ticker} version {version}, {checkpoint.where}: {why}")
        if checkpoint.where == IN_DATABASE:
            self._result.wrong_checkpoints.append((ticker, version))
        else:
            place = topics.CHECKPOINTS.name, self._number, layout.day_of(checkpoint.effective_us), layout.series_of(ticker)
            self._result.wrong_archived.setdefault(place, set()).add((ticker, version))

    def _make(self, event: Any, made: list[Made]) -> None:
        if isinstance(event, RawFrame):
            return  # a REST answer handed on for an audit: the raw row itself
        self._note(event)
        topic = topic_of(event)
        table = tables.BY_TOPIC[topic]
        self._made += 1
        self._last_us = max(self._last_us, table.instant(event))
        if topic == topics.BOOK.name:
            for known in self._checkpoints:
                checkpoint = known.pop((event.market_ticker, event.version), None) if known else None
                if checkpoint is None:
                    continue
                if (why := checkpoint.contradicts(event)) is None:
                    self._result.counts["checkpoints_proved"] += 1
                else:
                    self._wrong_checkpoint(event.market_ticker, event.version, checkpoint, why)
        if self.rebuilt:
            series, day = layout.series_of(event.market_ticker), layout.day_of(table.instant(event))
            rows = self.rebuilt.get((topic, self._number, day, series))
            if rows is not None:
                rows.append((event.raw_offset, tables.bare(event)))
                return
        if self._wanted.has(table, event):
            self._sides[topic].folded(self._made, tables.bare(event))
            made.append((self._made, event))

    def _archived_checkpoints(self) -> dict[Key, Known]:
        found: dict[Key, Known] = {}
        for rows in self._canonical(topics.CHECKPOINTS.name, lambda _: None):
            for _, event in rows:
                key = event.market_ticker, event.version
                known = Known(event.checksum, event.effective_us, event.gap_start_us, event.gap_cause, ARCHIVED)
                if (why := contradiction(event.checksum, event.yes, event.no)) is not None:
                    self._wrong_checkpoint(*key, known, why)
                elif key not in found or found[key] == known:
                    found[key] = known
                else:
                    self._wrong_checkpoint(*key, known, "another one of this version is archived too")
        return found

    def _held(self, topic: str) -> Held | None:
        return next((held for held in self._found.held[topic] if held.partition == self._number), None)

    def _canonical(self, topic: str, progress: Callable[[int], None]) -> Iterator[list[Row]]:
        """Yield the wanted rows, day by day that is put together, then commit by commit."""
        table, wanted, held = tables.BY_TOPIC[topic], self._wanted, self._held(topic)
        series = wanted.ticker and layout.series_of(wanted.ticker)
        if held is None:
            return

        def wanted_of(entries: Iterable[Entry]) -> Iterator[Row]:
            for entry in entries:
                again = (topic, self._number, entry.day, entry.series) in self.rebuilt
                if entry.day in wanted.days and series in (None, entry.series) and not again:
                    yield from (
                        row for row in _told(self._archive, topic, self._number, entry, self._result) if wanted.has(table, row[1])
                    )
                progress(entry.rows)

        for day in sorted(held.repacks):
            yield list(wanted_of(self._found.repacked[held.repacks[day]].files))
        for commit in held.chain.commits:
            yield list(wanted_of(self._found.left(held, commit)))


def _told(archive: Archive, topic: str, partition: int, entry: Entry, result: Result) -> Iterator[Row]:
    """Yield the rows of a file, and note it if its manifest says something else of them."""
    telling = manifest.Telling(tables.BY_NAME[entry.table])
    for row in archive.stream(entry):
        telling.add(row[1])
        yield row
    if (why := telling.contradicts(archive.manifest(entry))) is not None:
        damaged = Damaged(entry.path.removesuffix(layout.ROWS) + layout.MANIFEST, f"not of its file: {why}")
        _note_file(result, damaged, topic, partition, entry)


class _Streams:
    """The raw rows of a partition, commit by commit in the order of their offsets, wherever they stand now."""

    def __init__(self, archive: Archive, found: Contents, held: Held, result: Result) -> None:
        self._archive, self._found, self._held, self._result = archive, found, held, result
        self._open: dict[tuple[int, str, str], Iterator[Row]] = {}
        self._ahead: dict[tuple[int, str, str], Row] = {}

    def of(self, commit: Commit) -> list[Row]:
        rows: list[Row] = []
        for entry in self._found.files[commit]:
            if self._held.supersedes(entry.day, commit):
                rows += self._before(commit.next, (entry.day, entry.channel, entry.series))
            else:
                rows += self._rows(entry)
        rows.sort(key=lambda row: row[0])
        return rows

    def _before(self, offset: int, place: tuple[int, str, str]) -> Iterator[Row]:
        if place not in self._open:
            day, *where = place
            files = self._found.repacked[self._held.repacks[day]].files
            mine = [entry for entry in files if [entry.channel, entry.series] == where]
            self._open[place] = (row for entry in mine for row in self._rows(entry))
        while (row := self._ahead.pop(place, None) or next(self._open[place], None)) is not None:
            if row[0] >= offset:
                self._ahead[place] = row
                return
            yield row

    def _rows(self, entry: Entry) -> Iterator[Row]:
        return _told(self._archive, self._held.topic, self._held.partition, entry, self._result)


class _Side:
    """What is folded and what is archived of one topic, each waiting for the other."""

    def __init__(self, topic: str, result: Result) -> None:
        self._topic, self._result = topic, result
        self._folded: dict[Key, list[Made]] = {}
        self._archived: dict[Key, list[Any]] = {}
        self._wrong: set[str] = set()
        self._last = 0  # the number of the last event that both have
        self.ahead = 0  # archived events that nothing folded has met yet

    def _key(self, event: Any) -> Key:
        return event.market_ticker, event.version if self._topic == topics.BOOK.name else event.raw_offset

    def folded(self, number: int, event: Any) -> None:
        key = self._key(event)
        waiting = self._archived.get(key)
        if waiting:
            self.ahead -= 1
            self._meet(number, event, waiting.pop(0))
            if not waiting:
                del self._archived[key]
        else:
            self._folded.setdefault(key, []).append((number, event))

    def archived(self, event: Any) -> None:
        key = self._key(event)
        waiting = self._folded.get(key)
        if waiting:
            self._meet(*waiting.pop(0), event)
            if not waiting:
                del self._folded[key]
        else:
            self.ahead += 1
            self._archived.setdefault(key, []).append(event)

    def _meet(self, number: int, folded: Any, archived: Any) -> None:
        self._last = max(self._last, number)
        if folded == archived and type(folded) is type(archived):
            self._result.counts["events_proved"] += 1
        else:
            self._differs(folded.market_ticker, f"the raw rows make {folded}; archived is {archived}")

    def _differs(self, ticker: str, why: str) -> None:
        if ticker not in self._wrong:  # once a market: one cause makes many
            self._wrong.add(ticker)
            self._result.differs("events", f"{self._topic}, {ticker}: {why}")

    def end(self, raw_end: int) -> tuple[int, int]:
        """Judge what nothing met; return how many events are not archived yet, and of how many archived ones the raw rows."""
        for number, event in sorted((made for waiting in self._folded.values() for made in waiting), key=lambda made: made[0]):
            if number < self._last:
                self._differs(event.market_ticker, f"not archived: {event}")
            self._result.counts["events_pending"] += 1
        for waiting in self._archived.values():
            for event in waiting:
                if event.raw_offset < raw_end:
                    self._differs(event.market_ticker, f"no raw row makes {event}")
                self._result.counts["events_pending"] += 1
        return sum(map(len, self._folded.values())), self.ahead


def contradiction(checksum: int, yes: Iterable[Level], no: Iterable[Level]) -> str | None:
    """Return what is wrong with a checkpoint in itself, None if nothing is."""
    try:
        summed = to_signed(Book(yes, no).checksum)
    except CorruptBook as error:
        return str(error)
    return None if summed == checksum else "its levels have another checksum"


def topic_of(event: Any) -> str:
    """Return the topic that the deduplicator writes an event to."""
    if isinstance(event, Gap):
        return topics.BOOK.name if event.version else topics.TRADES.name
    return _TOPIC_OF[type(event)]


def unnamed(archive: Archive, found: Contents) -> Iterator[str]:
    """Yield the files that nothing in force names: of a writer that was killed, or whose place another had taken.

    Files that a repack stands for are not among them: they are deleted when its time of grace is over.
    """
    named = {entry.path for entries in found.files.values() for entry in entries}
    named.update(entry.path for told in found.repacked.values() for entry in (*told.files, *told.replaced))
    for table in tables.BY_NAME:
        yield from (path for path, _ in archive.listed(table) if path.endswith(layout.ROWS) and path not in named)
