"""Whatever happens to the persister or to Postgres, each event is in its table once."""

import asyncio
import os
import random
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import asyncpg
import pytest

from kalshibook_core.kafka import topics
from kalshibook_core.kafka.cluster import Cluster
from kalshibook_core.kafka.producer import Producer
from kalshibook_core.postgres import levels, migrate, pool, runs
from kalshibook_core.wire import codec
from kalshibook_core.wire.events import (
    BOOK,
    TRADES,
    BookDelta,
    BookEvent,
    BookSnapshot,
    Checkpoint,
    Event,
    Gap,
    Lifecycle,
    Ticker,
    Trade,
)
from kalshibook_tools.stack import External, local_stack, probe
from services.persister.batch import Batch
from services.persister.store import BrokenStream, Store, Superseded
from tests.support.canonical import Market
from tests.support.service import Service, until

pytestmark = pytest.mark.stack

DAY_2021 = 1_614_556_800_000_000  # 2021-03-01, long before any partition made ahead
HOUR = 3_600_000_000
DAY = 24 * HOUR


def history(seed: int, markets: int, events: int) -> list[BookEvent]:
    """Make the book events of some markets, interleaved, over about two days."""
    chance = random.Random(seed)
    all_of_them = [Market(f"KXTEST-{seed}.{n}", DAY_2021 + 22 * HOUR) for n in range(markets)]
    return [
        chance.choice(all_of_them).event(chance.randrange(200), chance.randrange(240 * HOUR // events)) for _ in range(events)
    ]


def topic_of(event: Event) -> topics.Topic:
    if isinstance(event, Gap):
        return topics.TRADES if event.channel == TRADES else topics.BOOK
    return {Trade: topics.TRADES, Ticker: topics.TICKERS, Lifecycle: topics.LIFECYCLE, Checkpoint: topics.CHECKPOINTS}.get(
        type(event), topics.BOOK
    )


async def produce(cluster: Cluster, events: list[Event]) -> None:
    async with Producer(cluster) as producer:
        for event in events:
            producer.add(topic_of(event), event.market_ticker.encode(), codec.encode(event))
        await producer.flush()


def row_of(event: BookEvent) -> tuple:
    """What book_events must hold of an event."""
    head = (event.market_ticker, event.version, event.effective_us, event.recv_us, event.checksum)
    if isinstance(event, BookDelta):
        return (*head, 2, event.exchange_us, event.side, event.price, event.delta, b"")
    packed = levels.pack(event.yes, event.no) if isinstance(event, BookSnapshot) else b""
    return (*head, 1 if isinstance(event, BookSnapshot) else 3, 0, 0, 0, 0, packed)


async def rows(connection: asyncpg.Connection) -> list[tuple]:
    found = await connection.fetch(
        f"SELECT ticker, {', '.join(runs.COLUMNS)} FROM book_events JOIN markets ON id = market_id ORDER BY ticker, version"
    )
    return [
        (ticker, e.version, e.effective_us, e.recv_us, e.checksum, e.kind, e.exchange_us, e.side, e.price, e.delta, e.levels)
        for ticker, *row in found
        for e in map(runs.Event._make, runs.unpack(*row))
    ]


def expected(events: list[BookEvent]) -> list[tuple]:
    return sorted((row_of(event) for event in events), key=lambda row: row[:2])


@pytest.fixture
async def connection(database):
    connection = await asyncpg.connect(database)
    yield connection
    await connection.close()


def stored(connection: asyncpg.Connection, number: int):
    async def reached() -> bool:
        return await connection.fetchval("SELECT coalesce(sum(events), 0) FROM book_events") >= number

    return reached


@pytest.fixture
def persister(cluster, database, tmp_path: Path):
    def make(name: str = "a", **env: str) -> Service:
        return Service("persister", cluster, tmp_path / f"{name}.log", **{"KB_POSTGRES_DSN": database, **env})

    return make


async def test_kill_9_at_random_moments_repeats_and_loses_nothing(cluster, connection, persister):
    chance = random.Random(3)
    events = history(1, markets=40, events=12_000)
    await produce(cluster, events)
    # By name, as `kb up` starts it: a successor has the partitions at once, where one without waits for a session to end.
    service = persister(KB_INSTANCE="one", KB_PERSISTER_BATCH_ROWS="200", KB_PERSISTER_BATCH_SECONDS="0.01")
    kills = 0
    async with service:
        while kills < 5:
            await service.ready()
            before = await connection.fetchval("SELECT coalesce(sum(events), 0) FROM book_events")
            await until(stored(connection, min(before + chance.randrange(1, 2_400), len(events))))
            service.kill()
            kills += 1
            service.start()
        await until(stored(connection, len(events)))
        assert await service.drain() == 0
    assert await rows(connection) == expected(events)
    assert await connection.fetchval("SELECT count(*) FROM book_events_default") == 0


async def test_killed_after_every_statement_the_tables_are_what_came_before_the_offset(database):
    command = [sys.executable, "-m", "tests.support.dying_persister", database]
    told = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=200, check=False)
    assert told.returncode == 0, told.stderr
    assert int(told.stdout) >= 30  # partitions are made, and a transaction


async def test_connections_cut_at_random_moments_repeat_and_lose_nothing(cluster, database, connection, persister):
    chance = random.Random(4)
    events = history(5, markets=40, events=12_000)
    await produce(cluster, events)
    cut, written = 0, stored(connection, len(events))
    others = "pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"

    async def waits() -> bool:
        return await connection.fetchval(f"SELECT count(*) FROM {others} AND wait_event_type = 'Lock'") > 0

    locking = await asyncpg.connect(database)
    await locking.execute("BEGIN; LOCK TABLE book_events IN EXCLUSIVE MODE")
    async with persister(KB_PERSISTER_BATCH_ROWS="200", KB_PERSISTER_BATCH_SECONDS="0.01") as service:
        await until(waits)  # so that one is cut while it writes, and the lock with it
        while cut < 15 and not await written():  # 15: a slow machine gets its rows in after it; written: nobody connects any more
            cut += await connection.fetchval(f"SELECT count(pg_terminate_backend(pid)) FROM {others}")
            await asyncio.sleep(chance.random() / 20)
            await service.status()  # raises once it has ended
        await until(written)
        assert await service.counter("retries_total") > 0
        assert await service.drain() == 0
    locking.terminate()
    assert await rows(connection) == expected(events)


async def test_a_postgres_that_crashes_and_stays_away_costs_nothing(cluster, parts, persister, tmp_path):
    events = history(6, markets=40, events=12_000)
    alone = local_stack(tmp_path / "stack", external=External(kafka=parts.kafka, redis=parts.redis))
    async with alone as own:
        await migrate.migrate(own.addresses.postgres)
        server = own.processes["postgres"]
        await produce(cluster, events[:6_000])
        small = {"KB_PERSISTER_BATCH_ROWS": "200", "KB_PERSISTER_BATCH_SECONDS": "0.01"}
        async with persister(KB_POSTGRES_DSN=own.addresses.postgres, **small) as service:

            async def under_way() -> bool:
                return (await service.counter("events_total") or 0) > 500

            async def away() -> bool:
                return await service.counter("postgres") == "away"

            await until(under_way)
            assert server.pid is not None
            os.kill(server.pid, signal.SIGQUIT)  # an immediate shutdown: what was not committed is gone
            await server.wait()
            await produce(cluster, events[6_000:])
            await until(away)
            await server.start()

            async def answers() -> bool:
                return await probe.postgres_answers(own.addresses.postgres)

            await until(answers)
            connection = await asyncpg.connect(own.addresses.postgres)
            await until(stored(connection, len(events)))
            assert await service.drain() == 0
        assert await rows(connection) == expected(events)
        await connection.close()


async def test_a_batch_from_offsets_that_moved_is_refused_whole(database, connection):
    events = history(7, markets=3, events=30)
    source = ("book", 0)

    def batch(first: int, last: int) -> Batch:
        made = Batch()
        made.add(source, [SimpleNamespace(offset=n, value=codec.encode(events[n])) for n in range(first, last)])
        return made

    async with await pool.connect_pool(database) as connections:
        heir, zombie = Store(connections), Store(connections)
        positions = await zombie.positions([source])
        assert positions == await heir.positions([source]) == {source: 0}
        await heir.write(batch(0, 20), positions)
        for late in (batch(0, 10), batch(0, 20), batch(0, 30)):
            with pytest.raises(Superseded):
                await zombie.write(late, positions)
        assert await rows(connection) == expected(events[:20])
        assert await zombie.positions([source]) == {source: 20}
        await zombie.write(batch(20, 30), {source: 20})  # ids made by the other, none remembered of what was refused
    assert await rows(connection) == expected(events)


async def test_each_gap_is_a_row_however_short_and_however_batches_fall(database, connection):
    at = DAY_2021
    book = Gap("KXTEST-A.B", 2, at, BOOK, at, None, "disconnect", at, 0, "g1", 0, 1, 0)
    ending = BookSnapshot("KXTEST-A.B", 3, at, at, [], [], 0, at, "disconnect", "g1", 0, 1, 1, 1, 0)
    trades = book._replace(version=0, channel=TRADES)
    again, unreadable = trades._replace(cause="silent_socket"), trades._replace(cause="parse_failure")
    events = [
        *(book, ending),  # of no length, and the next begins where it did
        book._replace(version=4, cause="silent_socket"),
        ending._replace(version=5, effective_us=at + 9, gap_cause="silent_socket"),
        *(trades, trades._replace(end_us=at), again, again._replace(end_us=at + 9)),
        *(unreadable, unreadable._replace(end_us=at + 1), book._replace(version=6)),
    ]  # fmt: skip
    async with await pool.connect_pool(database) as connections:
        for cuts in ([], [1], [3], [5], [6, 7], [4, 8, 9], range(1, len(events))):
            source = (f"cut {cuts}", 0)
            store, ends = Store(connections), [0, *cuts, len(events)]
            at_offset = await store.positions([source])
            await connection.execute("TRUNCATE gaps, book_events")
            for first, last in pairwise(ends):
                batch = Batch()
                batch.add(source, [SimpleNamespace(offset=n, value=codec.encode(events[n])) for n in range(first, last)])
                await store.write(batch, at_offset)
                at_offset = batch.next
            found = await connection.fetch(
                "SELECT channel, start_us - $1, end_us - $1, cause FROM gaps ORDER BY opened_version", at
            )
            assert [tuple(row)[1:] for row in found if row[0] == BOOK] == [
                *((0, 0, "disconnect"), (0, 9, "silent_socket"), (0, None, "disconnect"))
            ], cuts
            assert [tuple(row)[1:] for row in found if row[0] == TRADES] == [
                *((0, 0, "disconnect"), (0, 9, "silent_socket"), (0, 1, "parse_failure"))
            ], cuts


async def test_a_version_that_comes_twice_is_told_by_its_market_and_number(database, connection):
    """Wherever it comes again: in its batch, in the next one, to a process that did not write it, beside a run that has it."""
    at, market = DAY_2021, Market("KXTEST-A.B", DAY_2021)
    events = [market.event(roll, 1_000) for roll in (11, *[1] * 20, 22, *[1] * 20)]  # a snapshot, a run, a snapshot, a run
    source = ("book", 0)

    def batch(told: list[BookEvent], first: int) -> Batch:
        made = Batch()
        made.add(source, [SimpleNamespace(offset=n, value=codec.encode(event)) for n, event in enumerate(told, first)])
        return made

    async with await pool.connect_pool(database) as connections:
        writer = Store(connections)
        none = await writer.positions([source])
        for version in (1, 2, 7, 21, 22, 30, 42):
            again = events[version - 1]
            told = rf"KXTEST-A\.B: version {version}, effective_us {again.effective_us}, stands in book_events already"
            for twice in ([*events[:version], again, *events[version:]], [*events, again]):
                with pytest.raises(BrokenStream, match=told):
                    await writer.write(batch(twice, 0), none)
            assert (await rows(connection), await writer.positions([source])) == ([], none)
        await writer.write(batch(events, 0), none)
        for version in (1, 2, 7, 21, 22, 30, 42):
            told = rf"KXTEST-A\.B: version {version}, .*stands in book_events already"
            other = Store(connections)
            stand = await other.positions([source])
            for store in (writer, other):
                with pytest.raises(BrokenStream, match=told):
                    await store.write(batch(events[version - 1 :], 42), stand)
        anew = events[0]._replace(effective_us=at + 40 * DAY, recv_us=at + 40 * DAY)  # who forgot all numbers from 1 again
        with pytest.raises(BrokenStream, match=rf"KXTEST-A\.B: version 1, effective_us {anew.effective_us}, stands"):
            await Store(connections).write(batch([anew], 42), stand)
        assert (await rows(connection), await writer.positions([source])) == (expected(events), {source: 42})


async def test_versions_that_the_stream_passed_over_are_counted(database, connection):
    market = Market("KXTEST-A.B", DAY_2021)
    events = [market.event(roll, 1_000) for roll in (11, *[1] * 20, 22, *[1] * 20)]
    del events[30:33], events[7]
    async with await pool.connect_pool(database) as connections:
        store, missing = Store(connections), []
        at = await store.positions([("book", 0)])
        for first, last in pairwise((0, 20, 32, len(events))):  # a hole in a batch, and one between two
            batch = Batch()
            batch.add(("book", 0), [SimpleNamespace(offset=n, value=codec.encode(events[n])) for n in range(first, last)])
            missing.append((await store.write(batch, at)).get("missing_versions", 0))
            at = batch.next
        assert sum(missing) == 4
        assert sorted(row[1] for row in await rows(connection)) == [event.version for event in events]


async def test_a_zombie_that_wakes_after_the_rebalance_cannot_write(cluster, connection, persister):
    events = history(2, markets=10, events=4_000)
    await produce(cluster, events[:2_000])
    async with persister("zombie", KB_PERSISTER_BATCH_ROWS="1000000", KB_PERSISTER_BATCH_SECONDS="5") as zombie:

        async def holds_a_batch() -> bool:
            return (await zombie.counter("waiting_rows") or 0) > 0

        await until(holds_a_batch)
        zombie.send(signal.SIGSTOP)
        async with persister("heir") as heir:
            await until(stored(connection, 2_000))
            zombie.send(signal.SIGCONT)  # it writes its batch and is refused, or hears of the rebalance first and drops it
            await produce(cluster, events[2_000:])
            assert await heir.drain() == 0
        await until(stored(connection, len(events)))
        assert await zombie.drain() == 0
    assert await rows(connection) == expected(events)


async def test_a_zombie_that_wakes_beside_its_successor_by_name_ends(cluster, connection, persister):
    events = history(3, markets=10, events=4_000)
    await produce(cluster, events[:2_000])
    slow = {"KB_PERSISTER_BATCH_ROWS": "1000000", "KB_PERSISTER_BATCH_SECONDS": "5"}
    async with persister("zombie", KB_INSTANCE="one", **slow) as zombie:

        async def holds_a_batch() -> bool:
            return (await zombie.counter("waiting_rows") or 0) > 0

        await until(holds_a_batch)
        zombie.send(signal.SIGSTOP)
        async with persister("successor", KB_INSTANCE="one") as successor:
            await until(stored(connection, 2_000))
            zombie.send(signal.SIGCONT)  # refused by the offsets, or told by the group: it must not join again either way
            assert await asyncio.to_thread(zombie.process.wait, 60) == 1
            await produce(cluster, events[2_000:])
            await until(stored(connection, len(events)))
            assert await successor.drain() == 0
    assert "Superseded" in (told := zombie.log.read_text()) or "Displaced" in told
    assert await rows(connection) == expected(events)


def lifecycle(ticker: str, event_type: str, at: int, body: bytes) -> Lifecycle:
    return Lifecycle(ticker, event_type, at, at, body, 0)


async def test_every_topic_arrives_in_its_table(cluster, connection, persister):
    at = DAY_2021
    market = Market("KXTEST-A.B", at)
    book = [market.event(roll, 1_000_000) for roll in (3, 8, 26, 4, 7)]  # snapshot, delta, gap, snapshot that ends it, delta
    gap = next(event for event in book if isinstance(event, Gap))
    closing = next(event for event in book if isinstance(event, BookSnapshot) and event.gap_start_us)
    last = book[-1]
    checkpoint = Checkpoint(
        "KXTEST-A.B",
        5,
        last.effective_us,
        list(market.book.yes),
        list(market.book.no),
        last.checksum,
        None,
        None,
        "g1",
        0,
        1,
        4,
        5,
    )
    trade = Trade("KXTEST-ONLY-TRADED", "a-trade", at + 5, at + 9, 4800, 5200, 1200, 1, None, "g1", 0, 1, 2, 3, 4)
    opened = Gap("KXTEST-ONLY-TRADED", 0, at + 7, TRADES, at + 7, None, "disconnect", at + 9, 0, "g1", 0, 1, 0)
    ticker = Ticker("KXTEST-A.B", at + 3, at + 4, 4800, None, 4900, 100, None, None, 7, 8, 9, None, 0)
    rest = (
        b'{"ticker":"KXTEST-A.B","event_ticker":"KXTEST-A","title":"A\\u0000B?","status":"active",'
        b'"open_time":"2021-03-01T00:00:00.5Z"}'
    )
    event = b'{"event_ticker":"KXTEST-A","series_ticker":"KXTEST","title":"New","category":"Tests"}'
    series = b'{"ticker":"KXTEST","title":"A test"}'
    stream: list[Event] = [
        *book,
        checkpoint,
        checkpoint,  # as a reconstructor that died between writing and remembering does
        trade,
        trade._replace(raw_offset=9),
        opened,
        opened._replace(end_us=at + 8),
        ticker,
        lifecycle("KXTEST-A.B", "market", at, rest),
        lifecycle("KXTEST-A.B", "determined", at + 1, b'{"market_ticker":"KXTEST-A.B","event_type":"determined","result":"yes"}'),
        lifecycle(
            "KXTEST-A.B", "settled", at + 2, b'{"market_ticker":"KXTEST-A.B","event_type":"settled","settled_ts":1614556900}'
        ),
        lifecycle("KXTEST-A", "event_lifecycle", at + 3, b'{"event_ticker":"KXTEST-A"}'),
        lifecycle("KXTEST-A.B", "created", at + 4, b"not json"),
        lifecycle("KXTEST-A", "event", at + 5, b'{"event_ticker":"KXTEST-A","series_ticker":"KXTEST","title":"Old"}'),
        lifecycle("KXTEST-A", "event", at + 6, event),
        lifecycle("KXTEST", "series", at + 7, series),
    ]
    await produce(cluster, stream)
    async with Producer(cluster) as producer:
        producer.add(topics.BOOK, b"KXTEST-A.B", b"\x00not ours")
        await producer.flush()
    async with persister() as service:

        async def unread() -> bool:
            return (await service.counter("unreadable_total"), await service.counter("events_total")) == (2, len(stream) - 1)

        await until(unread)
        assert await service.counter("trades_repeated_total") == 1
        assert await service.drain() == 0

    assert await rows(connection) == expected(book)
    ids = dict(await connection.fetch("SELECT ticker, id FROM markets"))
    assert ids.keys() == {"KXTEST-A.B", "KXTEST-ONLY-TRADED"}  # an event is no market
    row = await connection.fetchrow("SELECT * FROM markets WHERE ticker = 'KXTEST-A.B'")
    assert (row["title"], row["status"], row["result"], row["event_ticker"]) == ("AB?", "finalized", "yes", "KXTEST-A")
    assert (row["open_us"], row["settled_us"], row["body"]) == (1_614_556_800_500_000, 1_614_556_900_000_000, rest.decode())
    assert [tuple(r) for r in await connection.fetch("SELECT * FROM gaps ORDER BY channel")] == [
        (gap.start_us, closing.effective_us, ids["KXTEST-A.B"], gap.version, "orderbook_delta", "disconnect", None, None),
        (at + 7, at + 8, ids["KXTEST-ONLY-TRADED"], 0, "trade", "disconnect", None, None),
    ]
    [kept] = await connection.fetch("SELECT * FROM checkpoints")
    assert levels.unpack(kept["levels"]) == (list(market.book.yes), list(market.book.no))
    assert (kept["version"], kept["effective_us"], kept["checksum"]) == (5, last.effective_us, last.checksum)
    assert [tuple(r) for r in await connection.fetch("SELECT * FROM trades")] == [
        (at + 5, at + 9, 1200, ids["KXTEST-ONLY-TRADED"], 4800, 5200, 1, None, "a-trade", "stream")
    ]
    [seen] = await connection.fetch(
        "SELECT market_id, exchange_us, recv_us, price, yes_bid, yes_ask, yes_bid_size, volume FROM tickers"
    )
    assert tuple(seen) == (ids["KXTEST-A.B"], at + 3, at + 4, 4800, None, 4900, 100, 7)
    told = await connection.fetch("SELECT market_id, event_type FROM lifecycle ORDER BY recv_us")
    assert [tuple(r) for r in told] == [
        *[(ids["KXTEST-A.B"], kind) for kind in ("market", "determined", "settled")],
        *[(None, kind) for kind in ("event_lifecycle", "event", "event", "series")],
    ]
    assert [tuple(r) for r in await connection.fetch("SELECT * FROM events")] == [
        (at + 6, "KXTEST-A", "KXTEST", "New", "Tests", event.decode())
    ]
    assert [tuple(r) for r in await connection.fetch("SELECT * FROM series")] == [
        (at + 7, "KXTEST", "A test", None, series.decode())
    ]
    for table in ("book_events", "tickers", "checkpoints"):
        assert await connection.fetchval(f"SELECT count(*) FROM {table}_default") == 0


async def test_a_database_without_tables_is_told(cluster, parts, persister):
    async with persister(KB_POSTGRES_DSN=parts.postgres.rpartition("/")[0] + "/template1") as service:
        assert await asyncio.to_thread(service.process.wait, 60) == 1
        assert "kb migrate" in service.log.read_text()
