"""What retention drops from the tables the archive answers, the same; and nothing goes that the archive does not have."""

import asyncio
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import httpx
import pytest

from kalshibook_core.archive.layout import ROWS
from kalshibook_core.archive.past import Past
from kalshibook_core.archive.reader import Archive, Damaged
from kalshibook_core.archive.store import Folder
from kalshibook_core.archive.store import Store as Place
from kalshibook_core.kafka import topics
from kalshibook_core.kafka.cluster import Cluster
from kalshibook_core.kafka.producer import Producer
from kalshibook_core.postgres import pool
from kalshibook_core.postgres.partitions import DAY_US
from kalshibook_core.wire import codec
from kalshibook_core.wire.events import BookEvent
from services.gateway import instants
from services.gateway.errors import ApiError
from services.gateway.history import points
from services.gateway.history.cold import Cold
from services.gateway.history.fold import CorruptHistory, State
from services.gateway.history.store import Store
from services.gateway.history.walk import Walk
from services.persister.retention.store import BUSY, Changed, Proved
from services.persister.retention.store import Store as Retention
from services.persister.retention.verify import Differs, Pending
from services.persister.store import Store as Tables
from tests.support import gateway, past
from tests.support import s3 as servers
from tests.support.parts import Session
from tests.support.service import Service, until

pytestmark = pytest.mark.stack

Change: TypeAlias = Callable[[past.Events], past.Events]


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


async def test_a_day_leaves_the_database_and_every_answer_stays(
    cluster: Cluster, database: str, redis_url: str, s3: servers.S3, tmp_path: Path
) -> None:
    """All of it as processes: what came by Kafka is asked of the gateway before and after retention dropped it, to S3."""
    markets = [past.busy("KXA-1", 1, 600, 3), past.quiet("KXB-1", 3, [0, 2])]
    later = past.quiet("KXC-1", 4, [5])  # by which the hours before are known to be over
    events = past.topics_of(*markets, later)
    async with Producer(cluster) as producer:
        for topic in (topics.BOOK, topics.CHECKPOINTS, topics.TICKERS):
            for event in events[topic.name]:
                producer.add(topic, event.market_ticker.encode(), codec.encode(event))
        await producer.flush()
    archive = servers.KEYS | {"KB_ARCHIVE": f"s3://{servers.BUCKET}/processes", "AWS_ENDPOINT_URL": s3.endpoint}
    env = archive | {"KB_POSTGRES_DSN": database, "KB_ARCHIVE_SECONDS": "0.2"}
    env["KB_PERSISTER_COVERAGE_SECONDS"] = "0.2"
    dice = random.Random(2)
    asked: list[str] = []
    for market in markets:
        # Before a market's last day its record is whole, however far the gateway has read Kafka.
        ticker, until_us = market[0].market_ticker, market[-1].effective_us // DAY_US * DAY_US
        span = f"from={market[0].effective_us}&to={until_us}"
        asked += [f"/v1/deltas/{ticker}?{span}&limit=1000", f"/v1/orderbooks/{ticker}?{span}&interval=1h"]
        some = dice.choices([event for event in market if event.version > 1 and event.effective_us < until_us], k=12)
        asked += [f"/v1/orderbook/{ticker}?at={event.effective_us + step}" for event in some for step in (-1, 0)]
        asked += [f"/v1/orderbook/{ticker}?version={event.version}" for event in some[:3]]
    async with (
        Service("persister", cluster, tmp_path / "persister.log", **env),
        Service("persister.archive", cluster, tmp_path / "archive.log", **env),
        gateway.running(cluster, database, redis_url, tmp_path, **archive) as served,
        httpx.AsyncClient(base_url=served.url, headers={"X-API-Key": await gateway.key(database)}, timeout=30) as client,
    ):

        async def answered() -> list[dict[str, Any]]:
            found = [await client.get(path) for path in asked]
            assert {answer.status_code for answer in found} == {200}
            bodies: list[dict[str, Any]] = [answer.json() for answer in found]
            for body in bodies:  # how far all is known moves on with what the gateway reads of Kafka
                for block in ("proof", "quality"):
                    body.get(block, {}).pop("recorded_through", None)
            return bodies

        connection = await pool.connect(database)
        count = "SELECT (SELECT sum(events) FROM book_events) + (SELECT count(*) FROM checkpoints)"

        async def stored() -> bool:
            return await connection.fetchval(count) == sum(len(events[each.name]) for each in (topics.BOOK, topics.CHECKPOINTS))

        await until(stored)
        hot = await answered()
        retention = env | {"KB_HOT_DAYS": "1", "KB_RETENTION_SECONDS": "0.2"}
        async with Service("persister.retention", cluster, tmp_path / "retention.log", **retention) as process:

            async def gone() -> bool:
                return (await process.counter("dropped_partitions_total") or 0) == 7

            await until(gone, within=200)
            assert await process.drain() == 0
        assert await connection.fetchval(count) == len(later)
        await connection.close()
        assert await answered() == hot


def reader(connections: Any, place: Place) -> Store:
    """Return a reader of both."""
    return Store(connections, Cold(connections, Past(Archive(place))))


async def test_what_was_dropped_is_answered_the_same(database: str, s3: servers.S3) -> None:
    place = s3.bucket("dropped")
    markets = [past.busy("KXA-1", 1, 1_500, 5), past.quiet("KXA-2", 2, [0, 3]), past.quiet("KXB-1", 3, [1, 2])]
    events = past.topics_of(*markets)
    await past.archive(place, events)
    async with await pool.connect_pool(database, size=2, reset=False) as connections:
        await past.store(Tables(connections), events)
        hot = await answers(Store(connections), markets)
        dropped = await past.retire(database, place, (past.DAY0 + 3) * DAY_US)
        assert {name.rpartition("_")[0] for name in dropped} == {"book_events", "tickers"}
        assert len(dropped) == 6
        store = reader(connections, place)
        assert await answers(store, markets) == hot
        with pytest.raises(ApiError, match="archive"):
            await answers(Store(connections), markets)
        files = sum(1 for _ in place.listed("book"))
        await asyncio.to_thread(past.repack, place)
        assert sum(1 for _ in place.listed("book")) < files
        assert await answers(store, markets) == hot  # the files that this reader knew of are gone
        await past.retire(database, place)
        for table in ("book_events", "tickers", "checkpoints"):
            assert await connections.fetchval(f"SELECT count(*) FROM {table}") == 0
        assert await answers(store, markets) == hot
        query = "SELECT sum(rows) FROM cold_days WHERE table_name = 'book_events'"
        assert await connections.fetchval(query) == sum(map(len, markets))


async def test_what_comes_late_for_a_dropped_day_is_answered_and_dropped_too(session: Session, tmp_path: Path) -> None:
    markets = [past.busy("KXA-1", 1, 900, 4), past.busy("KXA-2", 2, 300, 4)]
    whole, plain = await session.fresh_database(), await session.fresh_database()
    async with (
        await pool.connect_pool(plain, size=2, reset=False) as others,
        await pool.connect_pool(whole, size=2, reset=False) as connections,
    ):
        await past.store(Tables(others), past.topics_of(*markets))
        hot = await answers(Store(others), markets)
        tables, store = Tables(connections), reader(connections, Folder(tmp_path))
        for part in ([events[:480] for events in markets], [events[480:520] for events in markets], [e[520:] for e in markets]):
            late = past.topics_of(*part, whole=markets)
            await past.store(tables, late)  # by a process that knows of no drop: into the default partition
            await past.archive(Folder(tmp_path), late)
            await past.retire(whole, Folder(tmp_path), (past.DAY0 + 4) * DAY_US)
        assert await answers(store, markets) == hot
        rows = await connections.fetch(
            "SELECT start_us, count(*) FROM cold_days WHERE table_name = 'book_events' GROUP BY start_us"
        )
        assert max(row[1] for row in rows) > 1
        assert await connections.fetchval("SELECT count(*) FROM book_events_default") == 0
        await past.retire(whole, Folder(tmp_path))
        assert await answers(store, markets) == hot
    await session.drop_database(whole)
    await session.drop_database(plain)


@pytest.mark.parametrize("gone_by", [2, 40])
async def test_what_is_dropped_while_it_is_read_is_read_to_its_end(database: str, tmp_path: Path, gone_by: int) -> None:
    market = past.busy("KXA-1", 1, 600, 5)
    await past.archive(Folder(tmp_path), past.topics_of(market))
    async with await pool.connect_pool(database, size=2, reset=False) as connections:
        await past.store(Tables(connections), past.topics_of(market))
        store = reader(connections, Folder(tmp_path))
        number = await store.market_id("KXA-1")
        assert number is not None
        state, pieces = await store.scan(number, market[0].effective_us - 1, market[-1].effective_us)
        walk, dropped = Walk(state), False
        async for piece in pieces:
            if not dropped:
                dropped = bool(await past.retire(database, Folder(tmp_path), (past.DAY0 + gone_by) * DAY_US))
            walk.take(piece)  # refuses a version that does not follow
            walk.until(len(piece.version))
        assert dropped
        assert walk.version == len(market)


def altered(topic: str, number: int, **change: Any) -> Change:
    """Return what falsifies one record on its way into the archive."""

    def change_it(events: past.Events) -> past.Events:
        made = list(events[topic])
        made[number] = made[number]._replace(**change)
        return events | {topic: made}

    return change_it


def without(topic: str, number: int) -> Change:
    """Return what keeps a record from the archive."""
    return lambda events: events | {topic: events[topic][:number] + events[topic][number + 1 :]}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (altered(topics.BOOK.name, 77, recv_us=1), "KXA-1: version 78: the table has .* the archive"),
        (without(topics.BOOK.name, 99), "KXA-1: version 100"),
        (altered(topics.TICKERS.name, 3, volume=9), "KXA-1: .* is not in the archive"),
        (without(topics.TICKERS.name, 3), "KXA-1: .* is not in the archive"),
        (altered(topics.CHECKPOINTS.name, 1, version=121), "KXA-1: .* is not in the archive"),
        (lambda events: events | {topics.BOOK.name: []}, "KXA-1: nothing of 2025-11-08 is in the archive"),
    ],
)
async def test_what_the_archive_has_otherwise_is_not_dropped(database: str, tmp_path: Path, change: Change, named: str) -> None:
    events = past.topics_of(past.busy("KXA-1", 1, 200, 1))
    await past.archive(Folder(tmp_path), change(events))
    async with await pool.connect_pool(database, size=2, reset=False) as connections:
        await past.store(Tables(connections), events)
        with pytest.raises(Differs, match=named):
            await past.retire(database, Folder(tmp_path))


async def test_what_is_still_on_its_way_into_the_archive_is_waited_for(database: str, tmp_path: Path) -> None:
    market = past.busy("KXA-1", 1, 100, 1)
    books = {topics.BOOK.name: market}
    async with await pool.connect_pool(database, size=2, reset=False) as connections:
        await past.store(Tables(connections), books)
        async with connections.acquire() as connection:
            store, held, pending = Retention(connection), Archive(Folder(tmp_path)), Pending()
            (partition,) = await store.over(past.NOW_US)
            assert await pending.is_behind(store, held, partition, topics.BOOK.name)
            await past.archive(Folder(tmp_path), books, at_once=60)
            await past.store(
                Tables(connections), {topics.BOOK.name: past.quiet("KXA-2", 2, [1])}
            )  # of a day that is not looked at
            assert not await pending.is_behind(store, held, partition, topics.BOOK.name)
            await past.store(Tables(connections), {topics.BOOK.name: past.quiet("KXA-3", 3, [0])})  # of this one, late
            assert await pending.is_behind(store, held, partition, topics.BOOK.name)


async def test_what_the_table_lacks_or_gets_meanwhile_is_not_dropped(database: str, tmp_path: Path) -> None:
    market = past.busy("KXA-1", 1, 200, 1)
    await past.archive(Folder(tmp_path), past.topics_of(market))
    async with await pool.connect_pool(database, size=2, reset=False) as connections:
        tables = Tables(connections)
        await past.store(tables, past.topics_of(market[:190], whole=[market]))
        with pytest.raises(Differs, match="KXA-1: the archive has 10 rows that the table does not have"):
            await past.retire(database, Folder(tmp_path))
        await past.store(tables, {topics.BOOK.name: market[190:198]})
        async with connections.acquire() as connection:
            partition = next(each for each in await Retention(connection).over(past.NOW_US) if each.table == "book_events")
            proved = Proved(partition, await connection.fetchval(f"SELECT count(*) FROM {partition.name}"), 0, [])
            await past.store(tables, {topics.BOOK.name: market[198:]})
            with pytest.raises(Changed):
                await Retention(connection).drop(proved, "", 0)
            async with connections.acquire() as other, other.transaction():
                await other.execute("SELECT 1 FROM book_events LIMIT 1")  # a reader that stays for long
                with pytest.raises(BUSY):
                    await Retention(connection).drop(proved._replace(rows=proved.rows + 1), "", 0)
        assert await connections.fetchval("SELECT sum(events) FROM book_events") == 200
        assert await connections.fetchval("SELECT count(*) FROM cold_days") == 0


async def test_killed_at_every_statement_each_row_is_there_or_noted(database: str, tmp_path: Path) -> None:
    markets = [past.busy("KXA-1", 1, 300, 1), past.quiet("KXA-2", 2, [0])]
    events = past.topics_of(*markets) | {topics.TICKERS.name: [], topics.CHECKPOINTS.name: []}
    await past.archive(Folder(tmp_path), events)
    async with await pool.connect_pool(database, size=2, reset=False) as connections:
        await past.store(Tables(connections), events)
        hot = await answers(Store(connections), markets)
        command = [sys.executable, "-m", "tests.support.dying_retention", database, str(tmp_path)]
        told = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=120, check=False)
        assert told.returncode == 0, told.stderr
        assert int(told.stdout) >= 8  # as many as a drop has
        assert await connections.fetchval("SELECT count(*) FROM book_events") == 0
        assert await answers(reader(connections, Folder(tmp_path)), markets) == hot


async def test_a_damaged_file_is_never_served_and_nothing_dropped_for_it(database: str, place: Place) -> None:
    markets = [past.busy("KXA-1", 1, 200, 1), past.busy("KXB-1", 2, 200, 1)]
    events = past.topics_of(*markets)
    await past.archive(place, events, at_once=10_000)
    async with await pool.connect_pool(database, size=2, reset=False) as connections:
        await past.store(Tables(connections), events)
        hot, at_us = await answers(Store(connections), markets), markets[0][150].effective_us
        dice = random.Random(5)
        first, second = [await Store(connections).market_id(market[0].market_ticker) for market in markets]
        assert first is not None and second is not None
        other = told(await Store(connections).book_at(second, at_us))
        (hurt,) = [path for path, _ in place.listed("book/day=2025-11-08/series=KXA") if path.endswith(ROWS)]
        content = place.get(hurt)
        place.put(hurt, content[:-1])
        with pytest.raises(Damaged, match=hurt):
            await past.retire(database, place)
        assert await connections.fetchval("SELECT sum(events) FROM book_events") == 400
        place.put(hurt, content)
        await past.retire(database, place)
        for table in ("book", "checkpoints"):
            paths = [path for path, _ in place.listed(f"{table}/day=2025-11-08/series=KXA")]
            assert len(paths) == 2  # a file and its manifest
            for path in paths:
                whole = place.get(path)
                at = dice.randrange(len(whole))
                for damaged in (whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :], whole[:at], None):
                    place.delete(path)
                    if damaged is not None:
                        place.put(path, damaged)
                    store = reader(connections, place)
                    with pytest.raises(CorruptHistory, match="KXA"):
                        await store.book_at(first, at_us)
                    assert told(await store.book_at(second, at_us)) == other
                    place.put(path, whole)
        assert await answers(reader(connections, place), markets) == hot
        for gone, error in (("commits", CorruptHistory), ("log.json", ApiError)):  # the latter: there is no archive at all
            for path in [path for path, _ in place.listed("") if path.startswith(gone)]:
                place.delete(path)
            with pytest.raises(error, match="archive"):
                await reader(connections, place).book_at(first, at_us)
