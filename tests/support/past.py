"""Some days of a few markets, in the tables and in an archive as the persister's sinks write them, and what retention does."""

import asyncio
import random
from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any

from kalshibook_core.archive.reader import Archive
from kalshibook_core.archive.store import Store as Place
from kalshibook_core.kafka import topics
from kalshibook_core.orderbook import Book
from kalshibook_core.postgres import pool
from kalshibook_core.postgres.partitions import DAY_US
from kalshibook_core.wire import codec
from kalshibook_core.wire.events import BookDelta, BookEvent, BookSnapshot, Checkpoint, Gap, Ticker
from services.persister.archive import commit, files
from services.persister.archive import repack as repacking
from services.persister.archive.held import Record
from services.persister.batch import Batch
from services.persister.retention import verify
from services.persister.retention.store import Store as Retention
from services.persister.store import Store as Tables
from tests.support.canonical import Market

DAY0 = 20_400  # 2025-11-08, which is over
EVERY = 60
"""Events between two checkpoints of a market."""
NOW_US = (DAY0 + 40) * DAY_US
"""Long after all of it."""

Events = dict[str, list[Any]]
"""By topic, in the order of their records."""


def busy(ticker: str, seed: int, events: int, days: int, first_day: int = DAY0) -> list[BookEvent]:
    """Return the events of a market that moves on all of these days, several in one microsecond now and then."""
    dice = random.Random(seed)
    market, step = Market(ticker, first_day * DAY_US + 5_000_000), days * DAY_US // events
    return [market.event(11 if n == 0 else dice.randrange(1, 200), dice.choice((0, 1, step, 2 * step))) for n in range(events)]


def quiet(ticker: str, seed: int, days: Iterable[int]) -> list[BookEvent]:
    """Return a few events of a market on each of these days, counted from the first one."""
    dice, market = random.Random(seed), Market(ticker, 0)
    made: list[BookEvent] = []
    for day in days:
        market.at = (DAY0 + day) * DAY_US + dice.randrange(DAY_US // 2)
        made += [market.event(dice.randrange(1, 200) if made else 11, dice.randrange(1_000_000)) for _ in range(5)]
    return made


def topics_of(*markets: list[BookEvent], whole: Sequence[list[BookEvent]] | None = None) -> Events:
    """Return all topics' events of markets, or of parts of `whole` ones: books, a checkpoint after every so many, tickers."""
    known = {events[0].market_ticker: events for events in whole or markets}
    parts = {events[0].market_ticker: range(events[0].version, events[-1].version + 1) for events in markets if events}
    books = [each for ticker, part in parts.items() for each in checkpoints(known[ticker]) if each.version in part]
    return {
        topics.BOOK.name: sorted((event for events in markets for event in events), key=lambda e: (e.effective_us, e.version)),
        topics.CHECKPOINTS.name: sorted(books, key=lambda each: each.effective_us),
        topics.TICKERS.name: [
            Ticker(e.market_ticker, e.effective_us, e.recv_us, e.version % 100, None, None, *[None] * 7, raw_offset=n)
            for events in markets
            for n, e in enumerate(events)
            if e.version % 7 == 0
        ],
    }


def checkpoints(events: list[BookEvent], every: int = EVERY) -> list[Checkpoint]:
    """Return the checkpoints of a market."""
    made, book, gap = list[Checkpoint](), Book(), None
    for event in events:
        match event:
            case BookSnapshot():
                book, gap = Book(event.yes, event.no), None
            case BookDelta():
                book.apply(event.side, event.price, event.delta)
            case Gap():
                gap = (event.start_us, event.cause)
        if event.version % every == 0:
            told = (event.market_ticker, event.version, event.effective_us, list(book.yes), list(book.no), event.checksum)
            made.append(Checkpoint(*told, *(gap or (None, None)), "g1", 0, 1, 0, 0))
    return made


async def store(tables: Tables, events: Events, at_once: int = 97) -> None:
    """Write them to the tables as the persister does, some of a topic at a time."""
    for topic, made in events.items():
        for first in range(0, len(made), at_once):
            batch, source = Batch(), (topic, 0)
            before = (await tables.positions([source]))[source]
            some = made[first : first + at_once]
            batch.add(source, [SimpleNamespace(offset=before + n, value=codec.encode(event)) for n, event in enumerate(some)])
            await tables.write(batch, {source: before})


async def archive(place: Place, events: Events, at_once: int = 400) -> None:
    """Write them to an archive, in commits of so many records, behind what it has."""
    commit.claim(place, "a test's", {}, False)
    for topic, made in events.items():
        at = await asyncio.to_thread(Archive(place).next_offset, topic, 0) or 0
        for first in range(0, len(made), at_once):
            some = made[first : first + at_once]
            values = [Record(at + n, e.market_ticker.encode(), codec.encode(e)) for n, e in enumerate(some)]
            life = files.make(topic, 0, at, at + len(values), "a", values)
            await commit.write(place, life, lambda attempt: attempt())
            at += len(values)


def repack(place: Place) -> None:
    """Put every day together, and delete what was put together."""
    for topic in (topics.BOOK, topics.CHECKPOINTS, topics.TICKERS):
        for held in Archive(place).held(topic.name):
            for day in repacking.due(Archive(place), held, NOW_US, 0):
                assert repacking.repack(place, held, day, f"r{day}", NOW_US)
        repacking.sweep(place, topic.name, 0, NOW_US + 1, 1)


async def retire(dsn: str, place: Place, before_us: int = NOW_US) -> list[str]:
    """Drop what may go; return the partitions' names."""
    connection = await pool.connect(dsn)
    try:
        tables, held = Retention(connection), Archive(place)
        await tables.house(before_us)
        names = []
        for partition in await tables.over(before_us):
            proved = await verify.verify(tables, held, partition, NOW_US, lambda _: None)
            await tables.drop(proved, str(place), NOW_US)
            names.append(partition.name)
        return names
    finally:
        await connection.close()
