"""Makes again what the raw rows make, where a file of it is damaged, or a gap of the database is another; and puts the archived
checkpoint in place of a wrong one.

Only by the code that owns what is written: a damaged canonical file is replaced by a repack of its day (a new version; the
damaged one lies in quarantine), a checkpoint or a gap of the database by the persister's store. Sound, because the canonical
rows of a partition are a function of its raw rows, in the order in which they are made, and the commits say how many the archive
has.

Not made again: raw rows, since nothing else has them; archived checkpoints, since no raw row says which there are; commits, and
repacks whose old files are deleted. These are named, and a copy has to be put back. While the old files are there, a repack that
is damaged, or has a damaged file of these kinds, is put away, and readers go by the old ones again. A manifest of raw
rows is written again from its file, since it is a function of that; the commit's digest says that it is what it was.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from kalshibook_core.archive import layout, manifest, tables
from kalshibook_core.archive.layout import Commit, Repack
from kalshibook_core.archive.manifest import Entry
from kalshibook_core.archive.reader import Archive, Damaged, Held
from kalshibook_core.archive.store import Store
from kalshibook_core.archive.tables import Row
from kalshibook_core.kafka import topics
from kalshibook_core.wire.events import Checkpoint
from kalshibook_tools.verify.archive import Contents, Key, Place, Proof, Result
from kalshibook_tools.verify.gaps import Wrong
from services.persister.archive import repack
from services.persister.store import replace_checkpoint, replace_gap


class Impossible(Exception):
    """It cannot be made again without guessing."""


def hopeless(archive: Archive, found: Contents, result: Result) -> Iterator[Damaged]:
    """Yield what is damaged and cannot be made again."""
    for damaged in result.damaged:
        made_again = damaged.path in result.hurt or manifest_of(archive, found, damaged) is not None
        if not made_again and standing_for_less(archive, found, damaged) is None:
            yield damaged


def manifest_of(archive: Archive, found: Contents, damaged: Damaged) -> bytes | None:
    """Return a manifest as it was, made again from its file; None where that does not give it."""
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


def write(store: Store, found: Contents, proof: Proof, now_us: int) -> list[str]:
    """Write what a proof made again as repacks; return their paths. Raises Impossible before anything is written."""
    archive = Archive(store)
    days: dict[tuple[str, int, int], dict[str, list[Row]]] = {}
    for (topic, partition, day, series), rows in proof.rebuilt.items():
        held = next(held for held in found.held[topic] if held.partition == partition)
        days.setdefault((topic, partition, day), {})[series] = _archived(archive, found, held, day, series, rows)
    written = []
    for (topic, partition, day), again in days.items():
        held = archive.held_of(topic, partition)
        lives = [each.life for each in archive.repacks(topic, partition)[0] if each.day == day]
        life = f"{max(lives, default='r')}z"  # of two that reach as far, readers take the one that sorts last
        if repack.repack(store, held, day, life, now_us, again=again) is None:
            raise Impossible(f"{topic} partition {partition}: offsets are missing")
        written.append(archive.held_of(topic, partition).repacks[day].path)
    return written


def _archived(archive: Archive, found: Contents, held: Held, day: int, series: str, rows: list[Row]) -> list[Row]:
    """Return those of the rows that the archive had: the first, as many as the commits say. Each sound file must have its own."""
    count, sound = 0, Counter[Any]()
    for entry in found.effective(held):
        if (entry.day, entry.series) == (day, series):
            count += entry.rows
            try:
                sound.update(map(repr, archive.rows(entry)))
            except Damaged:
                continue
    what = f"{held.topic} partition {held.partition}, {layout.day_name(day)}, {series}"
    if len(rows) < count:
        raise Impossible(f"{what}: {count:,} rows were archived, the raw rows make {len(rows):,}")
    if sound - Counter(map(repr, rows[:count])):
        raise Impossible(f"{what}: a sound file has rows that the raw rows do not make")
    return rows[:count]


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
