"""What a reader of single markets remembers stays true, whatever is put together meanwhile; and it lists an archive once."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

from kalshibook_core.archive.past import Past, Place
from kalshibook_core.archive.reader import Archive
from kalshibook_core.archive.store import Folder
from kalshibook_core.kafka import topics
from kalshibook_core.postgres.partitions import DAY_US
from kalshibook_core.wire.events import BookEvent
from tests.support import past

DAYS = 5


class Watched(Folder):
    """A folder that notes what is listed of it."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.lists: list[str] = []

    def listed(self, folder: str) -> Iterator[tuple[str, int]]:
        self.lists.append(folder)
        return super().listed(folder)


def versions(reader: Past, market: list[BookEvent], day: int) -> list[int]:
    """Return what the reader has of a market's day."""
    number = past.DAY0 + day
    known = [each.version for each in market if each.effective_us // DAY_US == number]
    place = Place(0, number, market[0].market_ticker)
    parts = reader.parts(place, known[0], known[-1], number * DAY_US, (number + 1) * DAY_US)
    found = [int(version) for part in parts for version in reader.books(part).version]
    assert found == known
    return found


def test_an_archive_is_listed_once_and_again_when_what_was_known_is_gone(tmp_path: Path) -> None:
    market, store = past.quiet("KXA-1", 1, range(DAYS)), Watched(tmp_path)
    first, late = market[:-5], market[-5:]
    asyncio.run(past.archive(store, {topics.BOOK.name: first}, at_once=4))
    knows, fresh = Past(Archive(store)), Past(Archive(store))
    store.lists.clear()
    before = [versions(knows, market, day) for day in range(DAYS - 1)]
    assert len(store.lists) == 2  # repacks and commits
    past.repack(store)  # and what was before is deleted
    asyncio.run(past.archive(store, {topics.BOOK.name: late}, at_once=4))
    store.lists.clear()
    after = [*before, [each.version for each in late]]
    assert [versions(fresh, market, day) for day in range(DAYS)] == after
    assert len(store.lists) == 2
    assert [versions(knows, market, day) for day in range(DAYS)] == after
