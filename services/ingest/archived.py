"""The raw rows of an archive as records of the raw topic once more, of gatherers under names of their own. Reads only.

A market's records come in the order of their days of receipt and, within a day, of their offsets: for each market that is the
order in which they were captured. What ended its sources there ends them here: BREAKs as they stand, and one in place of a START,
of a damaged file (its markets may lack anything from there on) and of the archive's end. Left out are rows of no market, books
that REST had (what they were compared with is long past), and definitions of events and series, of which there may be newer ones.

The same archive gives the same records. Memory holds one file of each channel, and a few words a market.
"""

import hashlib
import heapq
from collections.abc import Iterator
from itertools import chain, groupby
from typing import Final

from kalshibook_core.archive import layout
from kalshibook_core.archive.manifest import Entry
from kalshibook_core.archive.reader import Archive, Damaged
from kalshibook_core.archive.store import Store
from kalshibook_core.archive.tables import Row
from kalshibook_core.kafka import topics
from kalshibook_core.kafka.cluster import keys_of_partitions
from kalshibook_core.wire.events import BOOK, TRADES, Cause, RawFrame, RawKind
from services.ingest.recordings import Extent, NotRecorded, Step, Survey

_ALL_DAYS: Final = range(1 << 40)
_OURS: Final = frozenset({RawKind.FRAME, RawKind.STALE, RawKind.BREAK, RawKind.RESUME})
_READ: Final = ("", TRADES)
"""Channels of what REST said that is taken: definitions of markets, and trades."""

Standing = dict[tuple[str, str, str, int], RawFrame]
"""The last record of each source that was not broken since: by market, channel, gatherer and connection."""


def is_archive(store: Store) -> bool:
    """Return whether there is an archive. Raises OSError."""
    return next(store.listed(layout.COMMITS), None) is not None


class Archived:
    """An archive in a folder or in S3."""

    def __init__(self, store: Store, name: str, partitions: int) -> None:
        """`name` is what its gatherers are imported under. Raises NotRecorded, OSError."""
        self._archive = Archive(store)
        self._name, self._partitions, self._prefix = name, partitions, ""
        self._damaged: set[str] = set()
        self._entries: list[list[Entry]] = []  # by partition of the archive
        for held in self._archive.held(topics.RAW.name):
            if held.chain.holes:
                first, after = held.chain.holes[0]
                raise NotRecorded(f"{store}: no commit holds the offsets {first} to {after} of partition {held.partition}")
            try:
                self._entries.append(self._archive.effective(held, _ALL_DAYS))
            except Damaged as error:
                raise NotRecorded(f"{store}: {error}") from error
        if not self._entries:
            raise NotRecorded(f"{store}: an archive without raw records")

    @property
    def size(self) -> int:
        """How many bytes the files have."""
        return sum(entry.bytes for entries in self._entries for entry in entries)

    def survey(self, step: Step = lambda _: None) -> Survey:
        """Prove every file and see what is in it; `step` is told of bytes. To be called before `records`."""
        digest, found = hashlib.sha256(), Survey("")
        for entry in chain.from_iterable(self._entries):
            digest.update(f"{entry.path} {entry.sha256}\n".encode())
            try:
                self._archive.content(entry)
                told = self._archive.manifest(entry)["markets"]
            except Damaged as error:
                self._damaged.add(entry.path)
                found.refuse(str(error))
                continue
            for ticker, about in told.items():
                if ticker and not ticker.startswith("@") and entry.channel in (BOOK, TRADES):
                    extent = found.markets.setdefault(ticker, Extent(0, about["first_us"]))
                    extent.frames += about["rows"]
                    extent.first_us = min(extent.first_us, about["first_us"])
            step(entry.bytes)
        found.id = digest.hexdigest()
        self._prefix = f"{self._name}.{found.id[:8]}."
        return found

    def owns(self, raw: RawFrame) -> bool:
        """Return whether a record of the raw topic is one of these."""
        return raw.gatherer.startswith(self._prefix)

    def records(self, left: dict[str, int]) -> Iterator[RawFrame]:
        """Yield the records of those markets that `left` has."""
        met: set[str] = set()
        for entries in self._entries:
            starts = self._starts(entries)
            series_of = sorted({entry.series for entry in entries if not entry.series.startswith("@")})
            for series in series_of:
                standing: Standing = {}
                for raw in self._ordered([entry for entry in entries if entry.series == series], starts, standing):
                    if raw.market_ticker in left and raw.gatherer not in met:
                        met.add(raw.gatherer)
                        yield from self._started(raw)
                    if raw.market_ticker in left:
                        yield raw
                yield from (broken for broken in _breaks(standing) if broken.market_ticker in left)

    def _ordered(self, entries: list[Entry], starts: dict[int, list[Row]], standing: Standing) -> Iterator[RawFrame]:
        """Yield a series' records, and say which sources stand."""
        for day, of_day in groupby(entries, key=lambda entry: entry.day):
            channels: dict[str, list[Entry]] = {}
            for entry in of_day:
                channels.setdefault(entry.channel, []).append(entry)
            for _, raw in heapq.merge(*map(self._rows, channels.values()), starts.get(day, []), key=lambda row: row[0]):
                if raw is None:
                    yield from _breaks(standing)
                elif raw.kind == RawKind.START:
                    yield from _breaks(standing, self._renamed(raw.gatherer))
                elif raw.kind in _OURS or (raw.kind == RawKind.REST and raw.channel in _READ):
                    imported = raw._replace(gatherer=self._renamed(raw.gatherer))
                    where = raw.market_ticker, raw.channel, imported.gatherer, raw.connection
                    if raw.kind == RawKind.BREAK:
                        standing.pop(where, None)
                    elif raw.channel in (BOOK, TRADES) and raw.kind in (RawKind.FRAME, RawKind.RESUME):
                        standing[where] = imported
                    yield imported

    def _rows(self, entries: list[Entry]) -> Iterator[Row]:
        """Yield the rows of a day and channel, and None in place of those of a damaged file."""
        last = -1
        for entry in entries:
            if entry.path in self._damaged:
                yield last, None
                continue
            for row in self._archive.stream(entry):
                last = row[0]
                yield row

    def _starts(self, entries: list[Entry]) -> dict[int, list[Row]]:
        """Return the STARTs of a partition, by day."""
        found: dict[int, list[Row]] = {}
        for entry in entries:
            if entry.series.startswith("@") and entry.path not in self._damaged:
                of_day = found.setdefault(entry.day, [])
                of_day += (row for row in self._archive.stream(entry) if row[1].kind == RawKind.START)
                of_day.sort(key=lambda row: row[0])
        return found

    def _started(self, raw: RawFrame) -> Iterator[RawFrame]:
        for key in keys_of_partitions(f"@{raw.gatherer}", self._partitions):
            nowhere = (-1, 0, "", -1, -1, False)
            yield RawFrame(RawKind.START, raw.gatherer, *nowhere, key, raw.recv_us, raw.clock_us, "", b"")

    def _renamed(self, gatherer: str) -> str:
        return self._prefix + gatherer


def _breaks(standing: Standing, gatherer: str = "") -> Iterator[RawFrame]:
    """End the sources that stand (of one gatherer, or all). Up to when they had delivered everything nobody says."""
    for where in [where for where in standing if gatherer in ("", where[2])]:
        last = standing.pop(where)
        yield last._replace(kind=RawKind.BREAK, clock_us=0, detail=str(Cause.DISCONNECT), payload=b"")
