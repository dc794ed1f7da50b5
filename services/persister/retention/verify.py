"""One partition against the archive: its days one after the other, in each its series, in each some markets at a time."""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Final, NamedTuple

from kalshibook_core.archive import columns, layout, tables
from kalshibook_core.archive.manifest import Entry
from kalshibook_core.archive.reader import Archive, Held
from kalshibook_core.kafka import topics
from kalshibook_core.kafka.topics import Topic
from kalshibook_core.postgres.partitions import DAY_US, Partition
from kalshibook_core.postgres.runs import DamagedRow
from services.persister.retention import compare
from services.persister.retention.compare import Archived, BookEvents, Rows, Span
from services.persister.retention.store import Market, Proved, Store

TOPICS: Final[Mapping[str, Topic]] = {
    "book_events": topics.BOOK, "checkpoints": topics.CHECKPOINTS, "tickers": topics.TICKERS,
}  # fmt: skip
"""The topic whose rows a table has."""

AT_ONCE: Final = {"book_events": 400_000, "checkpoints": 4_000, "tickers": 50_000}
"""Rows of the archive that are held at a time, if a market has no more by itself: about 50 MB."""


class Differs(Exception):
    """A partition's rows are not those of the archive. `ticker` is the first market of which that is so."""

    def __init__(self, ticker: str, why: str) -> None:
        super().__init__(f"{ticker}: {why}")
        self.ticker, self.why = ticker, why


class File(NamedTuple):
    """A file of a day, and what it has of each market."""

    partition: int
    entry: Entry
    rows: Mapping[str, int]


async def verify(store: Store, archive: Archive, partition: Partition, now_us: int, progress: Callable[[int], None]) -> Proved:
    """Return a partition whose every row is in the archive. Raises Differs, reader.Damaged, OSError.

    `progress` hears of the events compared.
    """
    spans: list[tuple[Span, int, int]] = []
    rows = 0
    # Once for all its days: to list takes the longer the older an archive is, and what is listed stays for the grace of a repack.
    held = await asyncio.to_thread(lambda: [each.in_force() for each in archive.held(TOPICS[partition.table].name)])
    for day in range(partition.start_us // DAY_US, partition.end_us // DAY_US):
        made = _Day(store, archive, held, partition, day, progress)
        rows += await made.run()
        spans += made.spans
    return Proved(partition, rows, now_us, spans)


class _Day:
    def __init__(
        self, store: Store, archive: Archive, held: list[Held], partition: Partition, day: int, progress: Callable[[int], None]
    ) -> None:
        self._store, self._archive, self._held, self._partition, self._progress = store, archive, held, partition, progress
        self._number = day
        self._from_us, self._to_us = day * DAY_US, (day + 1) * DAY_US
        self.spans: list[tuple[Span, int, int]] = []

    async def run(self) -> int:
        """Compare everything; return how many rows the table has."""
        table, within = self._partition.table, (self._from_us, self._to_us)
        hot: dict[str, list[Market]] = {}
        for market in await self._store.markets(self._partition, *within):
            hot.setdefault(layout.series_of(market.ticker), []).append(market)
        before = await self._store.dropped_before(table, *within)
        entries = await asyncio.to_thread(self._entries)
        for series in sorted(hot.keys() | entries.keys()):
            files = await asyncio.to_thread(self._files, entries.get(series, ()))
            archived: dict[str, int] = {}
            where: dict[str, int] = {}
            for file in files:
                for ticker, count in file.rows.items():
                    archived[ticker] = archived.get(ticker, 0) + count
                    where[ticker] = file.partition
            ids = {market.ticker: market.id for market in hot.get(series, ())}
            for ticker in ids.keys() - archived.keys():
                raise Differs(ticker, f"nothing of {layout.day_name(self._number)} is in the archive")
            if table != "checkpoints":
                for ticker in sorted(archived.keys() - ids.keys()):
                    if archived[ticker] != before.get(ticker, 0):
                        told = f"the archive has {archived[ticker]:,} rows of {layout.day_name(self._number)}, the table none"
                        raise Differs(ticker, f"{told}, and {before.get(ticker, 0):,} were dropped before")
            for some in _batches(sorted(ids), archived, AT_ONCE[table]):
                await self._compare({ticker: ids[ticker] for ticker in some}, files, where, before)
        return sum(market.rows for markets in hot.values() for market in markets)

    def _entries(self) -> dict[str, list[tuple[int, Entry]]]:
        found: dict[str, list[tuple[int, Entry]]] = {}
        for held in self._held:
            for entry in self._archive.effective(held, range(self._number, self._number + 1)):
                found.setdefault(entry.series, []).append((held.partition, entry))
        return found

    def _files(self, entries: Iterable[tuple[int, Entry]]) -> list[File]:
        return [
            File(number, entry, {ticker: told["rows"] for ticker, told in self._archive.manifest(entry)["markets"].items()})
            for number, entry in entries
        ]

    async def _compare(
        self, ids: Mapping[str, int], files: Sequence[File], where: Mapping[str, int], before: Mapping[str, int]
    ) -> None:
        archived = await asyncio.to_thread(self._archived, files, ids.keys())
        tickers = {number: ticker for ticker, number in ids.items()}
        spans: dict[str, Span] = {}
        try:
            async for market_id, rows in self._store.rows(self._partition, list(tickers), self._from_us, self._to_us):
                ticker = tickers[market_id]
                if (why := await asyncio.to_thread(archived[ticker].take, rows)) is not None:
                    raise Differs(ticker, why)
                span = compare.span(self._partition.table, rows)
                spans[ticker] = spans[ticker].wider(span) if ticker in spans else span
                self._progress(len(rows))
        except DamagedRow as damaged:
            raise Differs(next(iter(ids)), str(damaged)) from damaged
        for ticker, market_id in ids.items():
            if (why := archived[ticker].left(before.get(ticker, 0))) is not None:
                raise Differs(ticker, why)
            self.spans.append((spans[ticker], market_id, where[ticker]))

    def _archived(self, files: Sequence[File], tickers: Iterable[str]) -> dict[str, Archived]:
        wanted = set(tickers)
        read = [file.entry for file in files if not wanted.isdisjoint(file.rows)]
        if self._partition.table == "book_events":
            parts: dict[str, list[columns.Books]] = {ticker: [] for ticker in wanted}
            for file, number in self._groups(read, wanted):
                for ticker, part in columns.books(file, number, wanted):
                    parts[ticker].append(part)
            return {ticker: BookEvents(columns.joined(found)) for ticker, found in parts.items()}
        checkpoints = self._partition.table == "checkpoints"
        form = compare.checkpoint if checkpoints else compare.ticker
        rows: dict[str, list[compare.Row]] = {ticker: [] for ticker in wanted}
        for file, number in self._groups(read, wanted):
            group = file.read(number, wanted)
            if group is not None:
                for _, event in file.table.events([column.to_pylist() for column in group.columns]):
                    rows[event.market_ticker].append(form(event))
        return {ticker: Rows(found, repeats=checkpoints) for ticker, found in rows.items()}

    def _groups(self, entries: Sequence[Entry], tickers: set[str]) -> Iterator[tuple[tables.File, int]]:
        low, high = min(tickers), max(tickers)
        for entry in entries:
            file = self._archive.open(entry)
            for number, group in enumerate(file.groups):
                if group.low <= high and group.high >= low:
                    yield file, number


def _batches(tickers: Sequence[str], rows: Mapping[str, int], most: int) -> Iterator[list[str]]:
    """Yield the tickers, so many at a time that they have no more rows together, if one alone has not."""
    batch: list[str] = []
    total = 0
    for ticker in tickers:
        if batch and total + rows[ticker] > most:
            yield batch
            batch, total = [], 0
        batch.append(ticker)
        total += rows[ticker]
    if batch:
        yield batch


class Pending:
    """Whether what the archive lacks of a partition may still be on its way there.

    The archive writes when enough has come together, so while records come it is always somewhat behind the tables. What counts
    is whether it has come as far as the tables had when the partition, with the rows it has, was first looked at.
    """

    def __init__(self) -> None:
        self._noted: dict[str, tuple[int, Mapping[int, int]]] = {}  # rows, offsets that the tables had reached

    async def is_behind(self, store: Store, archive: Archive, partition: Partition, name: str) -> bool:
        """Return whether that may be so of what is compared after this call; `name` is its topic's in Kafka."""
        rows = await store.count(partition)
        if self._noted.get(partition.name, (None,))[0] != rows:
            self._noted[partition.name] = rows, await store.positions(name)
        for number, reached in self._noted[partition.name][1].items():
            ask = partial(archive.next_offset, TOPICS[partition.table].name, number)
            if (await asyncio.to_thread(ask) or 0) < reached:
                return True
        return False
