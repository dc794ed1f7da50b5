"""Canonical and raw records for the archive's tests, and all that an archive holds."""

import random

from kalshibook_core.archive import layout
from kalshibook_core.archive.reader import Archive, Damaged
from kalshibook_core.archive.tables import Row, bare
from kalshibook_core.wire import codec
from kalshibook_core.wire.events import BOOK, BookEvent, RawFrame
from services.persister.archive.held import Record
from tests.support.canonical import Market

__all__ = ["DAY_US", "bare", "book", "damaged", "everything", "raw", "records"]

DAY_US = layout.DAY_US


def book(seed: int, count: int, markets: int = 6, pause_us: int = 60_000_000) -> list[BookEvent]:
    """Return book events of markets of two series, interleaved, each with the offset of a raw record; about two days of them."""
    chance = random.Random(seed)
    all_of_them = [Market(f"KXTEST{n % 2}-{seed}.{n}", 100 * DAY_US + DAY_US // 2) for n in range(markets)]
    made = [chance.choice(all_of_them).event(chance.randrange(200), chance.randrange(pause_us * markets)) for _ in range(count)]
    return [event._replace(raw_offset=n) for n, event in enumerate(made)]


def raw(seed: int, count: int) -> list[RawFrame]:
    """Return raw records with payloads that are no JSON, which is nobody's business here."""
    chance = random.Random(seed)
    at = 100 * DAY_US
    return [
        RawFrame(
            "FRAME", f"g{n % 3}", n % 2, 1, BOOK, 1, n, True, f"KXTEST{n % 2}-{n % 7}", at + n * 1_000_000_000, at + n, "",
            chance.randbytes(chance.randrange(40)),
        )
        for n in range(count)
    ]  # fmt: skip


def records(events: list) -> list[Record]:
    """Return the events as Kafka has them; a transaction's marker takes every tenth offset."""
    return [Record(n + n // 9, event.market_ticker.encode(), codec.encode(event)) for n, event in enumerate(events)]


def everything(archive: Archive, topic: str) -> dict[int, list[Row]]:
    """Return the rows of each partition day by day, every proof asked for. Raises Damaged."""
    found: dict[int, list[Row]] = {}
    for held in archive.held(topic):
        assert not held.chain.holes
        rows = found.setdefault(held.partition, [])
        for entry in archive.effective(held, range(1 << 40)):
            archive.manifest(entry)
            rows += archive.rows(entry)
    return found


def damaged(path: str) -> Damaged:
    """Return a finding about an object."""
    return Damaged(path, "a test says so")
