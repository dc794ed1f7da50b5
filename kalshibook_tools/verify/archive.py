"""Whether an archive proves itself: each object is what was written, the raw rows make the canonical ones, the database agrees.

The raw rows of a partition are given to the deduplicator's own core in the order of their offsets, from the first one on, and
what comes out is compared, market by market and in order, with the canonical rows and with the database.

    objects      a commit, a manifest or a file is missing or is not what was written; no commit holds some offsets
    raw          the raw rows do not begin at the log's first record, so nothing they make can be compared
    events       an archived event is not the one the raw rows make, is missing though later ones are there, or comes from nowhere
    checkpoints  a checkpoint, archived or in the database, whose checksum is not that of its version
    database     a row of book_events differs, is missing, or is there twice

An event that only one side has, after the last that both have, is no difference: the other side has yet to come so far.
"""

from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from kalshibook_core.archive import layout, tables
from kalshibook_core.archive.layout import Commit
from kalshibook_core.archive.manifest import Entry
from kalshibook_core.archive.reader import Archive, Damaged, Held
from kalshibook_core.archive.tables import Row, Table
from kalshibook_core.kafka import topics
from kalshibook_core.wire.events import BookDelta, BookEvent, BookSnapshot, Gap, Lifecycle, RawFrame, Ticker, Trade
from services.deduplicator.partition import Partition

CLASSES: Final = ("objects", "raw", "events", "checkpoints", "database")
_TOLD: Final = 20
_AT_ONCE: Final = 20_000
_TOPIC_OF: Final = {
    BookDelta: topics.BOOK.name,
    BookSnapshot: topics.BOOK.name,
    Trade: topics.TRADES.name,
    Ticker: topics.TICKERS.name,
    Lifecycle: topics.LIFECYCLE.name,
}

END_US: Final = 1 << 63
"""Later than any event."""

DatabaseRows = Callable[[Sequence[BookEvent]], Awaitable[Counter[str]]]
"""Compares book events with the database's rows; returns differences and what is pending, by what to say."""


Checkpoints = dict[tuple[str, int], int]
"""Checksums by (ticker, version)."""


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

    def differs(self, kind: str, why: str) -> None:
        """Note a difference."""
        self.counts[kind] += 1
        if len(self.told) < _TOLD:
            self.told.append(f"{kind}: {why}")

    @property
    def first_class(self) -> str | None:
        """The first class of which there are differences."""
        return next((kind for kind in CLASSES if self.counts[kind]), None)


class Contents(NamedTuple):
    """The commits of an archive and their files."""

    held: dict[str, list[Held]]  # by topic
    files: dict[Commit, list[Entry]]

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return sum(entry.rows for entries in self.files.values() for entry in entries)


def contents(archive: Archive, result: Result) -> Contents:
    """Read every commit."""
    held = {topic: archive.held(topic) for topic in tables.BY_TOPIC}
    files: dict[Commit, list[Entry]] = {}
    for each in (each for of in held.values() for each in of):
        for first, after in each.chain.holes:
            result.differs("objects", f"{each.topic} partition {each.partition}: no commit holds the offsets {first} to {after}")
        for commit in each.chain.commits:
            try:
                files[commit] = archive.files(commit)
            except Damaged as damaged:
                _note(result, damaged)
    return Contents(held, files)


def partitions(found: Contents, wanted: Wanted) -> list[int]:
    """Return the partitions that have what is wanted."""
    series = wanted.ticker and layout.series_of(wanted.ticker)
    return [
        held.partition
        for held in found.held[topics.RAW.name]
        if any(series in (None, entry.series) for commit in held.chain.commits for entry in found.files[commit])
    ]


def check_objects(archive: Archive, found: Contents, result: Result, progress: Callable[[int], None]) -> None:
    """Read every manifest and every file against what its commit says; `progress` hears of the rows."""
    for entries in found.files.values():
        for entry in entries:
            for check in (archive.manifest, archive.content):
                try:
                    check(entry)
                except Damaged as damaged:
                    _note(result, damaged)
            result.counts["files"] += 1
            progress(entry.rows)


def _note(result: Result, damaged: Damaged) -> None:
    result.differs("objects", str(damaged))
    result.damaged.append(damaged)


class Proof:
    """A partition's raw rows, folded from nothing, against its canonical rows."""

    def __init__(
        self, archive: Archive, found: Contents, number: int, partition: Partition, wanted: Wanted, result: Result
    ) -> None:
        """Prove partition `number`; `partition` is new."""
        self._archive, self._found, self._number, self._wanted, self._result = archive, found, number, wanted, result
        self._partition = partition
        self._made = 0
        self._sides = {topic: _Side(topic, result) for topic in sorted(set(_TOPIC_OF.values()))}
        self._checkpoints: list[Checkpoints] = []

    async def run(self, compare: DatabaseRows | None, stored: Checkpoints, progress: Callable[[int], None]) -> None:
        """Fold and compare everything; `stored` are the database's checkpoints, those that are met are taken out."""
        raw = self._commits(topics.RAW.name)
        if not raw:
            return
        if raw[0].first:
            self._result.differs("raw", f"partition {self._number} begins at offset {raw[0].first}")
            return
        self._checkpoints = [stored, self._archived_checkpoints()]
        canonical = {topic: self._canonical(topic, progress) for topic in self._sides}
        for commit in raw:
            if commit.first_day > self._wanted.days.stop:  # received a day after the last that is wanted
                break
            books: list[BookEvent] = []
            for offset, frame in self._raw(commit):
                if frame.kind != tables.UNREADABLE:
                    for event in self._partition.receive(frame, offset):
                        self._make(event, books)
                if compare is not None and len(books) >= _AT_ONCE:
                    self._result.counts.update(await compare(books))
                    books = []
            progress(sum(entry.rows for entry in self._found.files[commit]))
            for topic, side in self._sides.items():
                while not side.ahead and (rows := next(canonical[topic], None)) is not None:
                    for row in rows:
                        side.archived(row[1])
            if compare is not None and books:
                self._result.counts.update(await compare(books))
        for topic, side in self._sides.items():
            for rows in canonical[topic]:
                for row in rows:
                    side.archived(row[1])
            side.end(raw[-1].next)
        for ticker, version in (key for known in self._checkpoints for key in known):
            market = self._partition.markets.get(ticker)
            if market is not None and version <= market.book.version:
                self._result.differs("checkpoints", f"{ticker} version {version}: no such event is made")

    def _make(self, event: Any, books: list[BookEvent]) -> None:
        if isinstance(event, RawFrame):
            return  # a REST answer handed on for an audit: the raw row itself
        topic = topic_of(event)
        self._made += 1
        if topic == topics.BOOK.name:
            for known in self._checkpoints:
                checksum = known.pop((event.market_ticker, event.version), None) if known else None
                if checksum == event.checksum:
                    self._result.counts["checkpoints_proved"] += 1
                elif checksum is not None:
                    self._result.differs("checkpoints", f"{event.market_ticker} version {event.version}: another checksum")
        if self._wanted.has(tables.BY_TOPIC[topic], event):
            self._sides[topic].folded(self._made, tables.bare(event))
            if topic == topics.BOOK.name:
                books.append(event)

    def _archived_checkpoints(self) -> Checkpoints:
        found = self._canonical(topics.CHECKPOINTS.name, lambda _: None)
        return {(event.market_ticker, event.version): event.checksum for rows in found for _, event in rows}

    def _commits(self, topic: str) -> Sequence[Commit]:
        return next((held.chain.commits for held in self._found.held[topic] if held.partition == self._number), ())

    def _raw(self, commit: Commit) -> Iterator[tuple[int, RawFrame]]:
        rows = [row for entry in self._found.files[commit] for row in self._archive.rows(entry)]
        rows.sort(key=lambda row: row[0])
        return iter(rows)

    def _canonical(self, topic: str, progress: Callable[[int], None]) -> Iterator[list[Row]]:
        """Yield the wanted rows, commit by commit, each market's in their order."""
        table, wanted = tables.BY_TOPIC[topic], self._wanted
        series = wanted.ticker and layout.series_of(wanted.ticker)
        for commit in self._commits(topic):
            rows: list[Row] = []
            for entry in sorted(self._found.files[commit], key=lambda entry: entry.day):
                if entry.day in wanted.days and series in (None, entry.series):
                    rows += (row for row in self._archive.rows(entry) if wanted.has(table, row[1]))
                progress(entry.rows)
            if table not in (tables.BOOKS, tables.CHECKPOINTED):
                rows.sort(key=lambda row: row[0])  # their days may overlap, the records they are made of do not
            yield rows


class _Side:
    """What is folded and what is archived of one topic, each waiting for the other."""

    def __init__(self, topic: str, result: Result) -> None:
        self._topic, self._result = topic, result
        self._folded: dict[str, deque[tuple[int, Any]]] = {}
        self._archived: dict[str, deque[Any]] = {}
        self._wrong: set[str] = set()
        self._last = 0  # the number of the last event that both have
        self.ahead = 0  # archived events that nothing folded has met yet

    def folded(self, number: int, event: Any) -> None:
        waiting = self._archived.get(event.market_ticker)
        if waiting:
            self.ahead -= 1
            self._meet(number, event, waiting.popleft())
        else:
            self._folded.setdefault(event.market_ticker, deque()).append((number, event))

    def archived(self, event: Any) -> None:
        waiting = self._folded.get(event.market_ticker)
        if waiting:
            self._meet(*waiting.popleft(), event)
        else:
            self.ahead += 1
            self._archived.setdefault(event.market_ticker, deque()).append(event)

    def _meet(self, number: int, folded: Any, archived: Any) -> None:
        self._last = max(self._last, number)
        if folded == archived and type(folded) is type(archived):
            self._result.counts["events_proved"] += 1
        else:
            self._differs(folded.market_ticker, f"the raw rows make {folded}; archived is {archived}")

    def _differs(self, ticker: str, why: str) -> None:
        if ticker not in self._wrong:  # once a market: whatever follows stands one place off
            self._wrong.add(ticker)
            self._result.differs("events", f"{self._topic}, {ticker}: {why}")

    def end(self, raw_end: int) -> None:
        """Judge what nothing met."""
        for ticker, waiting in self._folded.items():
            if waiting and waiting[0][0] < self._last:
                self._differs(ticker, f"not archived: {waiting[0][1]}")
            self._result.counts["events_pending"] += len(waiting)
        for ticker, left in self._archived.items():
            if left and left[0].raw_offset < raw_end:
                self._differs(ticker, f"no raw row makes {left[0]}")
            self._result.counts["events_pending"] += len(left)


def topic_of(event: Any) -> str:
    """Return the topic that the deduplicator writes an event to."""
    if isinstance(event, Gap):
        return topics.BOOK.name if event.version else topics.TRADES.name
    return _TOPIC_OF[type(event)]


def unnamed(archive: Archive, found: Contents) -> Iterator[str]:
    """Yield the files that no commit in force names: of a writer that was killed, or whose place another had taken."""
    named = {entry.path for entries in found.files.values() for entry in entries}
    for table in tables.BY_NAME:
        yield from (path for path, _ in archive.listed(table) if path.endswith(layout.ROWS) and path not in named)
