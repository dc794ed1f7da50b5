"""Makes again what the raw rows make, where a file of it is damaged, or a gap of the database is another; and puts the archived
checkpoint in place of a wrong one.

Only by the code that owns what is written: a damaged canonical file is replaced by a repack of its day (a new version; the
damaged one lies in quarantine), a checkpoint or a gap of the database by the persister's store. Sound, because the canonical
rows of a partition are a function of its raw rows, in the order in which they are made, and the commits say how many the archive
has.

Archived checkpoints are folded again from the archived book events, once these are proved, by the reconstructor's own code. Of
which versions there were some no raw row says: there are again as many of each market, between the instants that the manifest
says, of the versions that the database has and of others at even distances. What nobody knows of them, their offsets, is -1.

Not made again: raw rows, since nothing else has them; commits that are gone, and repacks whose old files are deleted. These are
named, and a copy has to be put back. While the old files are there, a repack that is damaged, or has a damaged file of raw rows
or of checkpoints, is put away, and readers go by the old ones again. A manifest of raw rows is written again from its file, and a
damaged commit from the manifests of its files, since they are functions of these; a digest says that they are what they were.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple, TypeVar

import orjson

from kalshibook_core.archive import layout, manifest, tables
from kalshibook_core.archive.layout import Commit, Repack
from kalshibook_core.archive.manifest import Entry
from kalshibook_core.archive.reader import Archive, Damaged
from kalshibook_core.archive.store import Store
from kalshibook_core.archive.tables import Row
from kalshibook_core.kafka import topics
from kalshibook_core.wire.events import BookEvent, Checkpoint
from kalshibook_tools.verify.archive import Contents, Key, Place, Proof, Result
from kalshibook_tools.verify.gaps import Wrong
from services.persister.archive import repack
from services.persister.store import replace_checkpoint, replace_gap
from services.reconstructor.live_book import Corruption, LiveBook

T = TypeVar("T")

CHECKPOINTS: Final = topics.CHECKPOINTS.name

UNKNOWN: Final = -1
"""The offsets of a checkpoint that was made again."""

_STORED: Final = """
SELECT ticker, version, effective_us FROM checkpoints JOIN markets ON id = market_id
WHERE effective_us >= $1 AND effective_us < $2"""
_DROPPED: Final = """
SELECT ticker, s.rows, s.first_us, s.last_us FROM cold_spans s JOIN markets m ON m.id = s.market_id
WHERE s.table_name = 'checkpoints' AND s.first_us >= $1 AND s.first_us < $2"""


class Impossible(Exception):
    """It cannot be made again without guessing."""


class Some(NamedTuple):
    """Checkpoints of a market: so many, and when the first and the last of them took effect."""

    rows: int
    first_us: int
    last_us: int


class Stored(NamedTuple):
    """What the database says of a day's checkpoints, by market: the versions it has, and all that it has or has dropped."""

    versions: dict[str, set[int]]
    all: dict[str, Some]


async def stored(pool: Any, days: Iterable[int]) -> dict[int, Stored]:
    """Return what the database says of the checkpoints of days."""
    found: dict[int, Stored] = {}
    for day in days:
        of = day * layout.DAY_US, (day + 1) * layout.DAY_US
        versions, some = defaultdict[str, set[int]](set), list[tuple[str, Some]]()
        for ticker, version, at_us in await pool.fetch(_STORED, *of):
            versions[ticker].add(version)
            some.append((ticker, Some(1, at_us, at_us)))
        some += [(ticker, Some(*dropped)) for ticker, *dropped in await pool.fetch(_DROPPED, *of)]
        found[day] = Stored(versions, added(some))
    return found


def added(some: Iterable[tuple[str, Some]]) -> dict[str, Some]:
    """Return all of each market."""
    found: dict[str, Some] = {}
    for ticker, (rows, first_us, last_us) in some:
        before = found.get(ticker, Some(0, first_us, last_us))
        found[ticker] = Some(before.rows + rows, min(before.first_us, first_us), max(before.last_us, last_us))
    return found


def hopeless(archive: Archive, found: Contents, result: Result) -> Iterator[Damaged]:
    """Yield what is damaged and cannot be made again."""
    for damaged in result.damaged:
        made_again = damaged.path in result.hurt or manifest_of(archive, found, damaged) is not None
        if not made_again and standing_for_less(archive, found, damaged) is None:
            yield damaged


def is_lesser(archive: Archive, found: Contents, result: Result, damaged: Damaged) -> bool:
    """Return whether something damaged is put right from what lies beside it; of events that is left to the raw rows."""
    places = result.hurt.get(damaged.path, ())
    if any(topic != CHECKPOINTS for topic, *_ in places):
        return False
    return not places or standing_for_less(archive, found, damaged) is not None


def manifest_of(archive: Archive, found: Contents, damaged: Damaged) -> bytes | None:
    """Return a manifest as it was, made again from its file, or a commit from its manifests; None where these do not give it."""
    if (commit := layout.commit_of(damaged.path)) is not None:
        return _commit(archive, found, commit)
    named: list[tuple[Commit | Repack, list[Entry]]] = [
        *found.files.items(),
        *((of, told.files) for of, told in found.repacked.items()),
    ]
    for of, entries in named:
        for entry in entries:
            if damaged.path == entry.path.removesuffix(layout.ROWS) + layout.MANIFEST:
                try:
                    rows, content = list(archive.rows(entry)), archive.content(entry)
                except Damaged:
                    return None
                where = entry.channel, entry.day, entry.series
                formats = (table for table in tables.FORMATS.values() if table.name == entry.table)
                made = (manifest.dump(manifest.describe(of, entry.path, table, where, rows, content)) for table in formats)
                return next((each for each in made if manifest.digest(each) == entry.manifest_sha256), None)
    return None


def _commit(archive: Archive, found: Contents, commit: Commit) -> bytes | None:
    """Return a damaged commit as it was, from the manifests of its files, which names tell; None if these do not give it."""
    name = f"/{commit.file('', '', 0, '').rpartition('/')[2]}{layout.ROWS}"
    entries = {each.path: each for told in found.repacked.values() for each in told.replaced if each.path.endswith(name)}
    try:
        damaged = archive.unproved(commit.path)
        for path, _ in archive.listed(tables.BY_TOPIC[commit.topic].name):
            if path.endswith(name) and path not in entries:
                content = archive.unproved(path.removesuffix(layout.ROWS) + layout.MANIFEST)
                entries[path] = manifest.entry_of(orjson.loads(content), content)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return manifest.resealed(damaged, commit, list(entries.values()))


def standing_for_less(archive: Archive, found: Contents, damaged: Damaged) -> Repack | None:
    """Return the repack that is damaged, or has what is, if it can be put away because all that it stands for is still there."""
    repack = layout.repack_of(damaged.path)
    if repack is not None:
        return None if repack in archive.repacks(repack.topic, repack.partition)[1] else repack
    named = damaged.path.removesuffix(layout.MANIFEST).removesuffix(layout.ROWS) + layout.ROWS
    for repack, told in found.repacked.items():
        if any(entry.path == named for entry in told.files):
            try:
                for entry in told.replaced:
                    archive.manifest(entry)
                    archive.content(entry)
            except Damaged:
                return None
            return repack
    return None


def rows_again(
    archive: Archive, found: Contents, proof: Proof, wanted: set[Place], result: Result, stored: dict[int, Stored]
) -> dict[Place, list[Row]]:
    """Return the rows of those places of a proof that are wanted. Raises Impossible."""
    made: dict[Place, list[Row]] = {}
    for place in proof.rebuilt.keys() & wanted:
        if place[0] == CHECKPOINTS:
            known = stored.get(place[2], Stored({}, {}))
            made[place] = _checkpoints(archive, found, place, result.wrong_archived.get(place, set()), known)
        else:
            made[place] = _archived(archive, found, place, proof.rebuilt[place])
    return made


def write(store: Store, made: dict[Place, list[Row]], now_us: int) -> Iterator[str]:
    """Write what was made again as repacks; yield the path of each. Raises Impossible, of each repack before it is written."""
    archive = Archive(store)
    days: dict[tuple[str, int, int], dict[str, list[Row]]] = {}
    for (topic, partition, day, series), rows in made.items():
        days.setdefault((topic, partition, day), {})[series] = rows
    for (topic, partition, day), again in days.items():
        held = archive.held_of(topic, partition)
        lives = [each.life for each in archive.repacks(topic, partition)[0] if each.day == day]
        life = f"{max(lives, default='r')}z"  # of two that reach as far, readers take the one that sorts last
        if repack.repack(store, held, day, life, now_us, again=again) is None:
            raise Impossible(f"{topic} partition {partition}: offsets are missing")
        yield archive.held_of(topic, partition).repacks[day].path


def _entries(found: Contents, place: Place) -> Iterator[Entry]:
    """Yield the files of a place."""
    topic, partition, day, series = place
    for held in found.held[topic]:
        if held.partition == partition:
            yield from (entry for entry in found.effective(held) if (entry.day, entry.series) == (day, series))


def _named(place: Place) -> str:
    topic, partition, day, series = place
    return f"{topic} partition {partition}, {layout.day_name(day)}, {series}"


def _archived(archive: Archive, found: Contents, place: Place, rows: list[Row]) -> list[Row]:
    """Return those of the rows that the archive had: the first, as many as the commits say. Each sound file must have its own."""
    count, sound = 0, Counter[Any]()
    for entry in _entries(found, place):
        count += entry.rows
        try:
            sound.update(map(repr, archive.rows(entry)))
        except Damaged:
            continue
    what = _named(place)
    if len(rows) < count:
        raise Impossible(f"{what}: {count:,} rows were archived, the raw rows make {len(rows):,}")
    if sound - Counter(map(repr, rows[:count])):
        raise Impossible(f"{what}: a sound file has rows that the raw rows do not make")
    return rows[:count]


def _checkpoints(archive: Archive, found: Contents, place: Place, wrong: set[Key], stored: Stored) -> list[Row]:
    """Return the checkpoints of a place: those of sound files that are not `wrong`, and as many others as there were."""
    day_us = place[2] * layout.DAY_US
    right, gone, missing = list[Row](), list[tuple[str, Some]](), 0
    for entry in _entries(found, place):
        try:
            for row in archive.rows(entry):
                if (row[1].market_ticker, row[1].version) in wrong:
                    gone.append((row[1].market_ticker, Some(1, day_us, day_us + layout.DAY_US)))
                else:
                    right.append(row)
        except Damaged:
            try:
                told = archive.manifest(entry)["markets"].items()
                gone += ((ticker, Some(its["rows"], its["first_us"], its["last_us"])) for ticker, its in told)
            except Damaged:
                missing += entry.rows
    has = Counter(event.market_ticker for _, event in right)
    has.update({ticker: some.rows for ticker, some in added(gone).items()})
    for ticker, some in stored.all.items():  # of a file whose manifest is lost too, that is all that is known
        if layout.series_of(ticker) == place[3] and (more := min(missing, some.rows - has[ticker])) > 0:
            gone.append((ticker, some._replace(rows=more)))
            missing -= more
    lost = added(gone)
    if not lost and not missing:
        return right
    day = _Day(archive, found, place, None if missing else lost.keys())
    again = Counter[Key](_evenly([(e.market_ticker, e.version) for of in day.events.values() for e in of], missing, place))
    for ticker, (count, first_us, last_us) in lost.items():
        versions = [event.version for event in day.events[ticker] if first_us <= event.effective_us <= last_us]
        known = stored.versions.get(ticker, set()) | {version for each, version in wrong if each == ticker}
        known -= {event.version for _, event in right if event.market_ticker == ticker}
        taken = sorted(known.intersection(versions))[:count]
        again.update((ticker, version) for version in (*taken, *_evenly(versions, count - len(taken), place)))
    return [*right, *day.checkpoints(again)]


def _evenly(each: Sequence[T], count: int, place: Place) -> list[T]:
    """Return so many of them, the first one and others at even distances."""
    if count and not each:
        raise Impossible(f"{_named(place)}: there were {count:,} checkpoints where no book event is")
    return [each[n * len(each) // count] for n in range(count)]


class _Day:
    """The books of a series' markets as a day begins, and its events; of some markets, or of all. Raises Impossible."""

    def __init__(self, archive: Archive, found: Contents, place: Place, tickers: Collection[str] | None) -> None:
        _, number, day, series = place
        self._place, self._books = place, dict[str, LiveBook]()
        self.events: dict[str, list[BookEvent]] = defaultdict(list)
        held = next(held for held in found.held[topics.BOOK.name] if held.partition == number)
        for entry in archive.effective(held, range(day, day + 1), series):
            for _, event in archive.stream(entry):
                if tickers is None or event.market_ticker in tickers:
                    self.events[event.market_ticker].append(event)
        for entry in archive.effective(held, range(day), series):
            if not self.events.keys().isdisjoint(archive.manifest(entry)["markets"]):
                for _, event in archive.stream(entry):
                    if event.market_ticker in self.events:
                        self._fold(event)

    def _fold(self, event: BookEvent) -> LiveBook:
        live = self._books.setdefault(event.market_ticker, LiveBook(event.market_ticker))
        try:
            live.apply(event, UNKNOWN)
        except Corruption as why:
            raise Impossible(f"{_named(self._place)}: {why}") from why
        return live

    def checkpoints(self, times: Counter[Key]) -> Iterator[Row]:
        """Yield the checkpoints of these versions of the day, each as often as it is wanted; once."""
        for event in (event for events in self.events.values() for event in events):
            live = self._fold(event)
            for _ in range(times[event.market_ticker, event.version]):
                yield UNKNOWN, tables.bare(live.checkpoint(UNKNOWN))


async def checkpoints(pool: Any, archive: Archive, found: Contents, wrong: Iterable[Key]) -> list[str]:
    """Put the archived checkpoint in place of each wrong one of the database, or nothing where none is archived; say which."""
    left, said = set(wrong), []
    archived: dict[Key, Checkpoint] = {}
    series = {layout.series_of(ticker) for ticker, _ in left}
    for held in found.held[topics.CHECKPOINTS.name]:
        for entry in found.effective(held):
            if entry.series in series:
                for _, event in archive.stream(entry):
                    if (event.market_ticker, event.version) in left:
                        archived[event.market_ticker, event.version] = event
    for ticker, version in sorted(left):
        right = archived.get((ticker, version))
        await replace_checkpoint(pool, ticker, version, right)
        said.append(f"{ticker} version {version}: {'the archived one' if right else 'none; books begin at the one before'}")
    return said


async def gaps(pool: Any, wrong: Iterable[Wrong]) -> list[str]:
    """Put in place of each wrong gap what the events tell; say which, and of which the row was another by then."""
    said = []
    for ticker, channel, stored, told in wrong:
        right = None if told is None else (told.start_us, told.end_us, told.cause, told.version, min(told.filled, default=None))
        done = await replace_gap(pool, ticker, channel, stored, right)
        said.append(f"{ticker}, {channel}: {(told or 'taken away') if done else 'its row has changed meanwhile, and was left'}")
    return said


def places(result: Result) -> set[Place]:
    """Return what has to be made again."""
    return {place for of in result.hurt.values() for place in of if place[0] in tables.BY_TOPIC}
