"""Makes the records of a partition files: decoded, put in order of table, day and series, and written as Parquet. Pure.

A raw record that is no RawFrame under its own key is kept as it is, under the kind UNREADABLE. A canonical record that is none is
counted and passed over: the raw row it was made of is here.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from kalshibook_core.archive import layout, manifest, tables
from kalshibook_core.archive.coverage import Followed
from kalshibook_core.archive.layout import Commit
from kalshibook_core.archive.manifest import Entry
from kalshibook_core.archive.tables import UNREADABLE, Row, Table
from kalshibook_core.wire import codec
from kalshibook_core.wire.events import BOOK, TRADES, BookDelta, Gap, RawFrame
from kalshibook_core.wire.raw import AT_ONCE, RawReader
from services.persister.archive.held import Record

Place = tuple[str, int, str]
"""(channel, day, series)"""


class File(NamedTuple):
    """A file and its manifest, to be put."""

    entry: Entry
    content: bytes
    manifest: bytes


class Made(NamedTuple):
    """All that a commit is of."""

    commit: Commit
    files: list[File]
    sealed: bytes
    rows: int
    unreadable: int


def make(
    topic: str, partition: int, first: int, after: int, life: str, records: Sequence[Record], followed: Followed | None = None
) -> Made:
    """Return the commit of the records of offsets [first, after). Never raises for what a record holds.

    `followed` is how the partition's books were so far; what these records tell of it, it learns.
    """
    table = tables.BY_TOPIC[topic]
    placed: dict[Place, list[Row]] = {}
    unreadable = 0
    for offset, event in _raw(records) if table is tables.RAW else _canonical(table, records):
        if event is None:
            unreadable += 1
            continue
        channel = layout.folder_name(event.channel) if table is tables.RAW else ""
        place = (channel, layout.day_of(table.instant(event)), layout.series_of(event.market_ticker))
        placed.setdefault(place, []).append((offset, event))
    days = [day for _, day, _ in placed] or [0]
    commit = Commit(topic, partition, first, after, min(days), max(days), life)
    files = [_file(commit, table, place, placed[place], followed) for place in sorted(placed)]
    sealed = manifest.seal(commit, [file.entry for file in files])
    return Made(commit, files, sealed, sum(map(len, placed.values())), unreadable)


def _file(commit: Commit, table: Table, place: Place, rows: Sequence[Row], followed: Followed | None) -> File:
    path = commit.file(table.name, *place)
    content = table.write(rows)
    described = manifest.describe(commit, path + layout.ROWS, table, place, rows, content, followed)
    if followed is not None and table is tables.BOOKS:
        followed.learn(described)
    told = manifest.dump(described)
    channel, day, series = place
    digests = manifest.digest(content), manifest.digest(told)
    entry = Entry(path + layout.ROWS, table.name, channel, day, series, len(rows), len(content), *digests)
    return File(entry, content, told)


def _raw(records: Sequence[Record]) -> Iterator[Row]:
    reader = RawReader()
    for begin in range(0, len(records), AT_ONCE):
        some = records[begin : begin + AT_ONCE]
        for (offset, key, value), found in zip(some, reader.peek([value for _, _, value in some]), strict=True):
            raw: RawFrame | None
            try:
                raw = reader.read(value, found)
            except ValueError:
                raw = None
            # Times so far apart that no column holds their difference are nobody's times.
            if raw is None or raw.market_ticker.encode() != key or abs(raw.clock_us - raw.recv_us) >> 63:
                raw = RawFrame(UNREADABLE, "", 0, 0, "", -1, -1, False, "", 0, 0, "", value)
            yield offset, raw


def _canonical(table: Table, records: Iterable[Record]) -> Iterator[Row]:
    kinds = tables.KINDS[table.name]
    for offset, _, value in records:
        try:
            event = codec.decode(value)
        except codec.Undecodable:
            event = None
        if not isinstance(event, kinds) or not _fits(table, event):
            event = None
        yield offset, event


def _fits(table: Table, event: object) -> bool:
    if isinstance(event, Gap):  # what the table's columns do not say of a gap is the same for all of its gaps
        told = event.channel, event.version, event.checksum
        return told[0] == BOOK if table is tables.BOOKS else told == (TRADES, 0, 0)
    return not isinstance(event, BookDelta) or not abs(event.delta) >> 63
