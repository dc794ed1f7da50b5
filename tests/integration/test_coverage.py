"""What was recorded of each market and hour, measured whatever happens meanwhile, and measured again when more comes."""

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import orjson
import pytest

from kalshibook_core.kafka import topics
from kalshibook_core.kafka.cluster import Cluster
from kalshibook_core.kafka.producer import Producer
from kalshibook_core.postgres import pool
from kalshibook_core.postgres.coverage import covered
from kalshibook_core.wire import codec
from kalshibook_core.wire.coverage import BOUNDS_US, HOUR_US
from kalshibook_core.wire.events import TRADES, Audited, BookDelta, BookSnapshot, Event, Gap, Trade
from services.persister.coverage import FENCE, SETTLE_US
from tests.support.canonical import Market
from tests.support.service import Service, until
from tests.support.written import Written, audit, trade, word

pytestmark = pytest.mark.stack

DAY = 24 * HOUR_US
AT = 1_614_556_800_000_000  # 2021-03-01
NOW = AT + 1_000 * DAY
NEWEST = "SELECT DISTINCT ON (market_id, hour_us) * FROM coverage ORDER BY market_id, hour_us, revision DESC"


@pytest.fixture
async def connection(database: str) -> AsyncIterator["asyncpg.Connection[Any]"]:
    connection = await asyncpg.connect(database)
    yield connection
    await connection.close()


def instant(event: Any) -> int:
    """Return when an event is counted."""
    return int(
        event.exchange_us if isinstance(event, Trade) else event.to_us if isinstance(event, Audited) else event.effective_us
    )


async def covered_in(connection: "asyncpg.Connection[Any]", ticker: str, hour_us: int) -> list[int]:
    """Return the covered microseconds of a market's hour, by revision."""
    query = "SELECT covered_us FROM coverage JOIN markets m ON m.id = market_id WHERE ticker = $1 AND hour_us = $2"
    return [row[0] for row in await connection.fetch(f"{query} ORDER BY revision", ticker, hour_us)]


def day_of_events(seed: int) -> tuple[list[Event], Event]:
    """Return what happened in a few markets over a day, in its order, and an event a day later."""
    chance = random.Random(seed)
    markets = [Market(f"KXCOVER-{n}", AT) for n in range(5)]
    made: list[Event] = []
    for number in range(3_000):
        market = chance.choice(markets)
        event: Any = market.event(chance.randrange(200), chance.randrange(5 * DAY // 3_000))
        if isinstance(event, BookDelta):
            event = event._replace(recv_us=event.effective_us + chance.choice((-500, 900, 1_000, 70_000, 40_000_000)))
        made.append(event)
        if number % 7 == 0:
            made.append(trade(market.ticker, number, market.at, chance.randrange(100_000)))
        if number % 50 == 0:
            made.append(audit(market.ticker, market.at, chance.choice(("match", "mismatch", "unknown"))))
    made.sort(key=instant)
    return made, markets[0].event(2, 2 * DAY)


def counted(events: list[Event]) -> dict[tuple[str, int], Any]:
    """Return what coverage must say of each market's hour, counted event by event."""
    found: dict[tuple[str, int], Any] = defaultdict(
        lambda: {"events": [], "trades": 0, "audits": [0, 0, 0], "latency": [0] * (len(BOUNDS_US) + 1), "gaps": 0}
    )
    spans: dict[str, list[tuple[int, int]]] = defaultdict(list)
    first: dict[str, int] = {}
    for event in events:
        ticker = event.market_ticker
        us = instant(event)
        hour = found[ticker, us - us % HOUR_US]
        if isinstance(event, Trade):
            hour["trades"] += 1
        elif isinstance(event, Audited):
            hour["audits"][("match", "mismatch", "unknown").index(event.outcome)] += 1
        else:
            first.setdefault(ticker, us)
            hour["events"].append(event.version)
            if isinstance(event, Gap):
                spans[ticker].append((event.start_us, NOW))
            elif isinstance(event, BookSnapshot) and event.gap_start_us is not None:
                spans[ticker][-1] = (event.gap_start_us, us)
        if isinstance(event, BookDelta | Trade):
            lag = event.recv_us - event.exchange_us
            hour["latency"][sum(lag > bound for bound in BOUNDS_US)] += 1
    for (ticker, hour_us), hour in found.items():
        early = [(0, first[ticker])]  # when the markets opened is not known
        cut = [(max(start, hour_us), min(max(end, start + 1), hour_us + HOUR_US)) for start, end in early + spans[ticker]]
        hour["gaps"] = sum(max(0, end - start) for start, end in cut)
    return found


async def test_killed_at_random_every_hour_is_measured_as_it_was(
    cluster: Cluster, database: str, connection: "asyncpg.Connection[Any]", tmp_path: Path
) -> None:
    chance = random.Random(8)
    events, last = day_of_events(1)
    async with Producer(cluster) as producer:
        for event in (*events, last):
            topic = topics.TRADES if isinstance(event, Trade) else topics.AUDITED if isinstance(event, Audited) else topics.BOOK
            producer.add(topic, event.market_ticker.encode(), codec.encode(event))
        await producer.flush()
    small = {"KB_PERSISTER_BATCH_ROWS": "40", "KB_PERSISTER_BATCH_SECONDS": "0.01", "KB_PERSISTER_COVERAGE_SECONDS": "0.01"}
    small["KB_INSTANCE"] = "one"  # a successor by name has the partitions at once
    expected = counted(events)

    async def revisions(number: int) -> bool:
        return bool(await connection.fetchval("SELECT count(*) FROM coverage") >= number)

    async def measured() -> bool:
        query = """SELECT (SELECT count(*) FROM coverage_due) = 1 AND EXISTS (SELECT FROM conditions)
                   AND NOT EXISTS (SELECT FROM conditions_due) AND (SELECT sum(next_offset) FROM consumer_offsets) = $1"""
        # What is left is the hour of the last event, and nothing is left to be read that could make another one due.
        return bool(await connection.fetchval(query, len(events) + 1))

    async with Service("persister", cluster, tmp_path / "log", KB_POSTGRES_DSN=database, **small) as service:
        for part in range(3):
            least = part * len(expected) // 4 + chance.randrange(1, len(expected) // 4)
            await until(lambda least=least: revisions(least), within=200)  # type: ignore[misc]
            service.kill()
            service.start()
        await until(measured, within=200)
        assert await service.drain() == 0
    rows = await connection.fetch(f"SELECT m.ticker, c.* FROM ({NEWEST}) c JOIN markets m ON m.id = c.market_id")
    assert {(row["ticker"], row["hour_us"]) for row in rows} == expected.keys()
    for row in rows:
        told = expected[row["ticker"], row["hour_us"]]
        versions = told["events"]
        assert (row["events"], row["trades"], row["latency"]) == (len(versions), told["trades"], told["latency"])
        assert [row["matched"], row["mismatched"], row["unjudged"]] == told["audits"]
        assert (row["first_version"], row["last_version"]) == ((versions[0], versions[-1]) if versions else (None, None))
        assert (row["recordable_us"], row["covered_us"]) == (HOUR_US, HOUR_US - told["gaps"])
        assert sum(orjson.loads(row["gaps"]).values()) == told["gaps"]
    repeated = await connection.fetchval("SELECT count(*) - count(DISTINCT (market_id, hour_us, revision)) FROM coverage")
    assert repeated == 0


async def test_what_comes_late_makes_a_further_revision_and_what_was_said_stays(
    database: str, connection: "asyncpg.Connection[Any]"
) -> None:
    market = Market("KXLATE", AT)
    async with await pool.connect_pool(database, size=3) as connections:
        written = Written(connections, connection, NOW)
        await written.write(*(market.event(roll, 1_000_000) for roll in (1, 2, 3)))
        await written.measure(AT + HOUR_US + SETTLE_US - 1)
        assert await written.revisions(AT) == []  # more of the hour may come
        await written.measure(AT + HOUR_US + SETTLE_US)
        await written.measure(AT + HOUR_US + SETTLE_US)
        assert await written.revisions(AT) == [(1, 3, 0)]
        await written.write(trade("KXLATE", 1, AT + 5_000_000))
        assert not await covered(connection, AT)
        await written.measure(AT + 2 * HOUR_US)
        assert await written.revisions(AT) == [(1, 3, 0), (2, 3, 1)]
        await written.write(trade("KXLATE", 1, AT + 5_000_000))  # a repeat changes nothing
        await written.measure(AT + 2 * HOUR_US)
        assert await written.revisions(AT) == [(1, 3, 0), (2, 3, 1)]
        # The day leaves for the archive; a trade that comes then does not make its events unrecorded.
        await written.measure(AT + DAY + SETTLE_US)
        assert await covered(connection, AT)
        assert not await covered(connection, AT + DAY)
        await connection.execute("DROP TABLE book_events_20210301")
        await written.write(trade("KXLATE", 2, AT + 6_000_000))
        await written.measure(AT + DAY + SETTLE_US)
        assert (await written.revisions(AT))[-1] == (3, 3, 2)


async def test_who_begins_anew_closes_what_was_written_before(database: str, connection: "asyncpg.Connection[Any]") -> None:
    market = Market("KXANEW", AT)
    async with await pool.connect_pool(database, size=3) as connections:
        written = Written(connections, connection, NOW)
        await written.write(market.event(1, 1), market.event(2, 3 * HOUR_US))
        await written.measure(0)  # a process that has written nothing yet
        assert await written.revisions(AT) == [(1, 1, 0)]
        assert await written.revisions(AT + 3 * HOUR_US) == []


async def test_whoever_writes_in_an_open_hour_is_waited_for(database: str, connection: "asyncpg.Connection[Any]") -> None:
    market = Market("KXFENCE", AT)
    async with await pool.connect_pool(database, size=3) as connections:
        written = Written(connections, connection, NOW)
        await written.write(market.event(1, 1))
        writing = connection.transaction()
        await writing.start()  # another persister, which believes the hour open
        await connection.execute("SELECT pg_advisory_xact_lock_shared($1)", FENCE)
        async with asyncio.TaskGroup() as tasks:
            closing = tasks.create_task(written.measure(AT + DAY))

            async def waits() -> bool:
                query = "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND objid::bigint = $1)"
                return bool(await connection.fetchval(query, FENCE))

            await until(waits)
            assert not closing.done()
            assert await written.coverage.closed() == -1
            await writing.rollback()
        assert await written.revisions(AT) == [(1, 1, 0)]


async def test_a_day_is_available_degraded_or_missing(database: str, connection: "asyncpg.Connection[Any]") -> None:
    market = Market("KXDAY", AT)
    async with await pool.connect_pool(database, size=3) as connections:
        written = Written(connections, connection, NOW)
        await written.write(market.event(1, 1))  # day 0
        await written.write(market.event(2, DAY))
        gap = market.event(39, DAY)  # on day 2, and until day 4 nobody records
        assert isinstance(gap, Gap)
        await written.write(gap)
        await written.write(market.event(1, 2 * DAY))
        await written.measure(AT + 5 * DAY + SETTLE_US - 1)
        days = [(0, 1, "available"), (1, 1, "available"), (2, 1, "degraded"), (3, 1, "missing")]
        assert await written.conditions(AT) == days  # the last hour of day 4 is not closed
        await written.measure(AT + 5 * DAY + SETTLE_US)
        assert await written.conditions(AT) == [*days, (4, 1, "degraded")]
        await written.write(audit("KXDAY", AT + 5, "mismatch"), trade("KXDAY", 1, AT + 3 * DAY))
        await written.measure(AT + 5 * DAY + SETTLE_US)
        corrected = [*days, (4, 1, "degraded"), (0, 2, "degraded"), (3, 2, "degraded")]
        assert await written.conditions(AT) == sorted(corrected)
        late = Market("KXUNHEARD", AT + 5 * DAY).event(1, 1)  # it trades since day 1, and nobody knew
        assert isinstance(late, BookSnapshot)
        await written.write(late._replace(gap_start_us=AT + DAY + 5, gap_cause="not_yet_subscribed"))
        await written.measure(AT + 5 * DAY + SETTLE_US)
        assert (1, 2, "degraded") in await written.conditions(AT)


async def test_a_gap_told_late_is_measured_in_every_hour_it_touches(database: str, connection: "asyncpg.Connection[Any]") -> None:
    market = Market("KXGAP", AT)
    async with await pool.connect_pool(database, size=3) as connections:
        written = Written(connections, connection, NOW)
        begun, later = market.event(1, 1), market.event(2, 5 * HOUR_US)
        await written.write(begun, later, trade("KXGAP", 1, AT + HOUR_US), trade("KXGAP", 2, AT + 2 * HOUR_US))
        await written.measure(AT + 5 * HOUR_US)
        assert (await written.revisions(AT + HOUR_US)) == [(1, 0, 1)]
        gap = market.event(39, 0)
        assert isinstance(gap, Gap)
        lost = gap._replace(start_us=AT + HOUR_US, cause="upstream_sequence_gap")
        two_us = AT + 2 * HOUR_US
        quiet = gap._replace(version=0, channel=TRADES, start_us=two_us, end_us=two_us + 7, cause="exchange_maintenance")
        await written.write(lost, quiet)
        await written.measure(AT + 5 * HOUR_US)
        query = "SELECT hour_us, covered_us, recordable_us, gaps, trades_covered_us, trades_recordable_us, trades_gaps FROM"
        rows = {row[0]: tuple(row)[1:] for row in await connection.fetch(f"{query} ({NEWEST}) c")}
        of_trades = (HOUR_US, HOUR_US, "{}")
        assert rows[AT + HOUR_US] == (0, HOUR_US, orjson.dumps({lost.cause: HOUR_US}).decode(), *of_trades)
        assert rows[AT + 2 * HOUR_US] == (
            *(0, HOUR_US, orjson.dumps({lost.cause: HOUR_US}).decode()),
            *(HOUR_US - 7, HOUR_US - 7, orjson.dumps({quiet.cause: 7}).decode()),
        )  # fmt: skip
        assert rows[AT][:2] == (HOUR_US - 1, HOUR_US)


async def test_a_gap_that_nothing_ended_is_measured_up_to_its_markets_end_whenever_that_is_heard(
    database: str, connection: "asyncpg.Connection[Any]"
) -> None:
    gone, calm, late = Market("KXGONE", AT), Market("KXCALM", AT), Market("KXLATE", AT + 4 * DAY)
    told, end_us = Market("KXTOLD", AT), AT + 2 * DAY + HOUR_US

    async with await pool.connect_pool(database, size=3) as connections:
        written = Written(connections, connection, NOW)
        # A market is in a gap since day 1. On days 2 and 3 a trade of it comes, so these hours are measured.
        begun, hole = gone.event(1, 1), gone.event(39, DAY)
        trades = trade("KXGONE", 1, end_us - 5), trade("KXGONE", 2, AT + 3 * DAY)
        await written.write(begun, *(calm.event(2, DAY) for _ in range(4)), hole, *trades)
        of_told = trade("KXTOLD", 4, AT + 2 * DAY), word("KXTOLD", "determined", AT + 3 * DAY + HOUR_US)
        await written.write(told.event(1, 1), *of_told)
        await written.measure(AT + 4 * DAY + SETTLE_US)
        said = [(day, 1, "degraded" if day else "available") for day in range(4)]
        assert await written.conditions(AT) == said
        # Its end is heard late, and the last word first: what was said is corrected. In the table the gap stays as it was told.
        await written.write(word("KXGONE", "settled", end_us + 2 * DAY))
        await written.measure(AT + 4 * DAY + SETTLE_US)
        assert await written.conditions(AT) == said
        await written.write(word("KXGONE", "determined", end_us - 5), word("KXGONE", "settled", end_us + DAY))
        await written.measure(AT + 4 * DAY + SETTLE_US)
        said = [*said[:3], (2, 2, "degraded"), said[3], (3, 2, "available")]
        assert await written.conditions(AT) == said
        assert await covered_in(connection, "KXGONE", end_us - HOUR_US) == [0, 5]
        assert await covered_in(connection, "KXGONE", AT + 3 * DAY) == [0, HOUR_US]
        assert await connection.fetchval("SELECT count(*) FROM gaps WHERE end_us IS NULL") == 1
        # One that is told to begin after the end is of a microsecond. What is heard later of an end changes nothing.
        await written.write(late.event(1, 0), word("KXLATE", "determined", AT + 4 * DAY + HOUR_US))
        await written.write(*(word(ticker, "settled", AT + 7 * DAY) for ticker in ("KXGONE", "KXLATE", "KXTOLD")))
        await written.write(late.event(39, 2 * HOUR_US), trade("KXLATE", 3, AT + 5 * DAY), calm.event(2, DAY), calm.event(2, DAY))
        await written.measure(AT + 6 * DAY + SETTLE_US)
        said += [(4, 1, "degraded"), (5, 1, "available")]
        assert await written.conditions(AT) == said
        assert await covered_in(connection, "KXLATE", AT + 4 * DAY + 2 * HOUR_US) == [HOUR_US - 1]
        # A book that comes after the end ends it as it ends any, and then all of it counts.
        await written.write(late.event(1, DAY))
        await written.measure(AT + 6 * DAY + SETTLE_US)
        assert await written.conditions(AT) == [*said[:-1], (4, 2, "degraded"), said[-1], (5, 2, "degraded")]
        assert await covered_in(connection, "KXLATE", AT + 5 * DAY) == [HOUR_US, 0]
        # One that is told when the end is known already is measured from its beginning up to there.
        await written.write(told.event(39, DAY))
        await written.measure(AT + 6 * DAY + SETTLE_US)
        assert await covered_in(connection, "KXTOLD", AT + 2 * DAY) == [HOUR_US, 0]
        newest = {day: what for day, _, what in await written.conditions(AT)}
        assert newest == {0: "available", **dict.fromkeys(range(1, 6), "degraded")}


async def test_who_writes_a_gap_late_waits_for_who_writes_its_markets_end(
    database: str, connection: "asyncpg.Connection[Any]"
) -> None:
    market, calm = Market("KXRACE", AT), Market("KXCALM", AT)
    async with await pool.connect_pool(database, size=3) as connections:
        written = Written(connections, connection, NOW)
        await written.write(market.event(1, 1), trade("KXRACE", 1, AT + HOUR_US), calm.event(1, 1), calm.event(2, DAY))
        await written.measure(AT + DAY + SETTLE_US)
        writing = connection.transaction()
        await writing.start()  # another persister, which has the market's lifecycle and sees no gap of it
        await connection.execute("UPDATE markets SET ended_us = $1 WHERE ticker = 'KXRACE'", AT + 2 * HOUR_US)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(written.write(market.event(39, 1)))

            async def waits() -> bool:
                query = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
                return bool(await connection.fetchval(f"SELECT EXISTS ({query})"))

            await until(waits)
            await writing.commit()
        await written.measure(AT + DAY + SETTLE_US)
        assert await covered_in(connection, "KXRACE", AT + HOUR_US) == [HOUR_US, 0]
