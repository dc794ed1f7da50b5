"""What retention drops from the tables the archive answers, the same; and nothing goes that the archive does not have."""

import random
from pathlib import Path
from typing import Any

import pytest

from kalshibook_core.archive.past import Past
from kalshibook_core.archive.reader import Archive
from kalshibook_core.archive.store import Folder
from kalshibook_core.postgres import pool
from kalshibook_core.postgres.partitions import DAY_US
from kalshibook_core.wire.events import BookEvent
from services.gateway import instants
from services.gateway.history import points
from services.gateway.history.cold import Cold
from services.gateway.history.fold import State
from services.gateway.history.store import Store
from services.gateway.history.walk import Walk
from tests.support import past

pytestmark = pytest.mark.stack


def told(state: State | None) -> Any:
    """Return all that an answer says of a state."""
    if state is None:
        return None
    levels = list(state.book.yes), list(state.book.no)
    return state.start, state.version, state.effective_us, state.recv_us, state.applied, state.in_gap, state.gap, levels


async def answers(store: Store, markets: list[list[BookEvent]]) -> list[Any]:
    """Return what is said of every market: books at many instants, after versions, as received, pages, and what a walk sees."""
    dice = random.Random(1)
    found: list[Any] = []
    for events in markets:
        market = await store.market_id(events[0].market_ticker)
        assert market is not None
        first, last = events[0].effective_us, events[-1].effective_us
        asked = [first - 1, first, last, last + 1, instants.LAST_US]
        asked += [dice.choice(events).effective_us + step for step in (-1, 0, 1) for _ in range(8)]
        asked += [past.DAY0 * DAY_US + day * DAY_US + edge for day in range(6) for edge in (-1, 0)]
        for at in asked:
            state = await store.book_at(market, at)
            later = state and (state.later_us or await store.recorded_later(market, at))  # as the routes ask for it
            assert state is None or later == next((event.effective_us for event in events if event.effective_us > at), None)
            found.append((at, told(state)))
        found.append((await store.first_recorded(market), await store.checkpointed(market)))
        for version in dice.sample(range(1, len(events) + 1), 4):
            found.append(told(await points.after_version(store, market, version)))
        for event in dice.sample(events, 3):
            found.append(told((await points.as_received(store, market, event.recv_us))[0]))
        whole = await store.events(market, 0, instants.LAST_US, 0, 10**6)
        assert [event.version for event in whole] == [event.version for event in events]
        found.append(whole)
        for _ in range(6):
            a, b = sorted(dice.choices(events, k=2), key=lambda event: event.effective_us)
            after, limit = dice.choice((0, a.version)), dice.choice((1, 50, 1000))
            found.append(await store.events(market, a.effective_us, b.effective_us + 1, after, limit))
            state, pieces = await store.scan(market, a.effective_us, b.effective_us)
            walk = Walk(state)
            async for piece in pieces:
                walk.take(piece)
                walk.until(len(piece.version))
            found.append((walk.version, walk.checksum, walk.sides))
    return found


async def test_what_was_dropped_is_answered_the_same(database: str, tmp_path: Path) -> None:
    markets = [past.busy("KXA-1", 1, 1_500, 5), past.quiet("KXA-2", 2, [0, 3]), past.quiet("KXB-1", 3, [1, 2])]
    events = past.topics_of(*markets)
    await past.store(database, events)
    await past.archive(tmp_path, events)
    async with await pool.connect_pool(database, size=2) as connections:
        hot = await answers(Store(connections), markets)
        dropped = await past.retire(database, tmp_path, (past.DAY0 + 3) * DAY_US)
        assert {name.rpartition("_")[0] for name in dropped} == {"book_events", "tickers"}
        assert len(dropped) == 6
        store = Store(connections, Cold(connections, Past(Archive(Folder(tmp_path)))))
        assert await answers(store, markets) == hot
        with pytest.raises(Exception, match="archive"):
            await answers(Store(connections), markets)
        await past.retire(database, tmp_path)
        for table in ("book_events", "tickers", "checkpoints"):
            assert await connections.fetchval(f"SELECT count(*) FROM {table}") == 0
        assert await answers(store, markets) == hot
        assert await connections.fetchval("SELECT sum(rows) FROM cold_days WHERE table_name = 'book_events'") == sum(
            map(len, markets)
        )
