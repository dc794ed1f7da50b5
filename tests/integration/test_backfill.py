"""What was missed comes back from the exchange's history: real processes against the simulator's truth."""

import asyncio
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import pytest

from kalshibook_core.kafka import topics
from kalshibook_core.kafka.cluster import Cluster
from kalshibook_core.kafka.reader import read_partition
from kalshibook_core.postgres import pool
from kalshibook_core.wire import codec
from kalshibook_core.wire.events import Trade
from kalshibook_tools import simulator
from kalshibook_tools.verify.archive import Result
from kalshibook_tools.verify.database import Comparison
from tests.support import service
from tests.support.service import Service, until

pytestmark = pytest.mark.stack

HOUR = 3_600_000_000
_UNFILLED = "SELECT count(*) FROM gaps WHERE channel = 'trade' AND end_us IS NOT NULL AND filled_us IS NULL"
_OLD = "INSERT INTO gaps (market_id, channel, start_us, end_us, cause, opened_version) VALUES (1, 'trade', 1, 2, 'disconnect', 0)"
_GAPS = "SELECT ticker, start_us, end_us FROM gaps JOIN markets ON id = market_id WHERE channel = 'trade'"
_SETTLED = "SELECT count(*) FROM markets WHERE ticker = ANY($1) AND status = 'finalized' AND result <> '' AND body IS NOT NULL"


async def test_what_was_missed_is_there_once_and_says_so(cluster: Cluster, database: str, tmp_path: Path) -> None:
    """Trades dropped, a gatherer killed and away while markets are born and settled; backfills killed and done again.

    Gaps are filled and markets resolved by themselves, though what does it is killed; a command reads a span of all trades.
    In the end the table has every trade of the exchange once, as it was, but for one that REST tells otherwise: that is told.
    """
    config = simulator.Config(key_dir=tmp_path, markets=8, rate=300.0, seed=3, window=2.0, live=15.0)
    async with simulator.serve(config) as exchange:
        env = {
            "KB_KALSHI_WS_URL": exchange.ws_url, "KB_KALSHI_REST_URL": exchange.rest_url, "KALSHI_API_KEY_ID": exchange.key_id,
            "KALSHI_PRIVATE_KEY_PATH": str(exchange.private_key_path), "KB_POSTGRES_DSN": database,
        }  # fmt: skip
        ingest, deduplicator, persister = (
            Service(name, cluster, tmp_path / f"{name}.log", **env) for name in ("ingest", "deduplicator", "persister")
        )
        by_itself = {"KB_BACKFILL": "0.2", "KB_BACKFILL_AGE_SECONDS": "0", "KB_BACKFILL_REQUESTS_PER_SECOND": "3"}
        filler = Service("ingest.backfill", cluster, tmp_path / "backfill.log", **env, **by_itself)
        home, happened = tmp_path / "home", exchange.exchange
        connection = await asyncpg.connect(database)

        async def start(*arguments: str) -> asyncio.subprocess.Process:
            where = {"PATH": os.defpath, "KB_HOME": str(home), "KB_KAFKA_BROKERS": cluster.brokers}
            topics = {"KB_TOPIC_PREFIX": cluster.prefix, "KB_KAFKA_PARTITIONS": str(cluster.partitions)}
            command = (sys.executable, "-m", "kalshibook_tools.cli", "backfill", *arguments)
            return await asyncio.create_subprocess_exec(*command, env=env | where | topics, stdout=-1, stderr=-2)

        async def backfill(*arguments: str) -> str:
            process = await start(*arguments, "--rate", "100")
            said = (await process.communicate())[0].decode()
            assert process.returncode == 0, said
            return said

        async def count(statement: str, *arguments: object) -> int:
            return await connection.fetchval(statement, *arguments)

        async def none(statement: str, *arguments: object) -> bool:
            return await count(statement, *arguments) == 0

        async def still() -> bool:
            """Whether all that was sent is in the topics, and all that is there in the tables."""
            return await ingest.counter("buffered_bytes") == 0 and await service.still(connection, deduplicator, persister)

        async def unseen() -> list[str]:
            """Markets that ended while nobody listened, once there is one whose end the table does not have."""
            met = {row[0] for row in await connection.fetch("SELECT ticker FROM markets")}
            traded = {row[0] for row in truth(exchange)}
            ended = {ticker for ticker, market in happened.markets.items() if market.body["status"] == "finalized"}
            found = sorted(ended & (met | (traded - known)))
            return found if ended - known and await count(_SETTLED, found) < len(found) else []

        async def more(read: int | None) -> bool:
            """Whether more was read of the exchange's history, or there is nothing left to read."""
            return (await deduplicator.counter("rest_trades_total") or 0) > (read or 0) or await none(
                f"{_UNFILLED} AND start_us > 1"
            )

        async with ingest, deduplicator, persister:
            await until(lambda: count("SELECT greatest(0, count(*) - 30) FROM trades"))
            exchange.inject(kind="drop", channel="trade", count=3)
            await until(lambda: count(_UNFILLED))
            ingest.kill()
            ingest.start()
            await until(lambda: count(f"{_UNFILLED} AND cause = 'disconnect'"))
            ingest.kill()
            known = set(happened.markets)
            ended: list[str] = await until(unseen)
            back_us = happened.clock_us()
            ingest.start()
            await until(lambda: count(f"{_UNFILLED} AND end_us > {back_us}"))  # by this life, and not late by one before
            exchange.pause()
            await exchange._server.read_by_all()
            await until(still)

            missed = truth(exchange) - set(await stored(connection))
            assert missed
            falsified = await connection.fetchval("SELECT trade_id FROM trades ORDER BY trade_id LIMIT 1")
            await connection.execute("UPDATE trades SET count = count + 1 WHERE trade_id = $1", falsified)
            captured = set(await stored(connection))

            await connection.execute(_OLD)
            async with filler:
                for _ in range(2):
                    read = await deduplicator.counter("rest_trades_total")
                    await until(lambda read=read: more(read))
                    filler.kill()
                    filler.start()
                await until(lambda: none(f"{_UNFILLED} AND start_us > 1"))
                await until(lambda: none(f"SELECT {len(ended)} - ({_SETTLED})", ended))
                assert await filler.drain() == 0
            assert await count(_UNFILLED) == 1  # what is that old is left to the command
            assert "1 gaps are marked" in await backfill("trades", "--age", "0")
            await until(lambda: none(_UNFILLED))
            gaps = [tuple(row) for row in await connection.fetch(_GAPS)]
            lost = {
                row for row in missed if any(ticker == row[0] and start <= row[5] * 1000 < end for ticker, start, end in gaps)
            }
            assert lost and lost <= set(await stored(connection))

            first_us, last_us = min(row[5] for row in truth(exchange)) * 1000, happened.clock_us()
            span = ("trades", "--from", text(first_us - HOUR), "--to", text(last_us))
            filling = await start(*span, "--rate", "4")
            await until(lambda: _there(home / "backfill.json"))
            filling.kill()
            await filling.communicate()
            assert "going on where a run before was interrupted" in await backfill(*span)
            assert not (home / "backfill.json").exists()
            await until(still)

            true, rows = truth(exchange), await stored(connection)
            assert len(rows) == len(true)
            assert {row for row in true if row[1] != falsified} <= set(rows) >= captured
            by_rest = await connection.fetch("SELECT trade_id FROM trades WHERE origin = 'rest'")
            assert {row[0] for row in by_rest} == {row[1] for row in true - captured if row[1] != falsified}
            told = await connection.fetch("SELECT trade_id, origin FROM trade_differences")
            assert [tuple(row) for row in told] == [(falsified, "rest")]
            assert await persister.counter("trades_different_total") == 1

            result = Result()
            async with await pool.connect_pool(database) as connections:
                comparison = Comparison(connections, result)
                await comparison.begin()
                await comparison.compare(list(enumerate(await told_trades(cluster))))
            assert result.counts["database"] == 1 and falsified in result.told[0], result.told  # what was altered, and no other

            read = await backfill("markets", "--from", text(first_us - HOUR), "--to", text(last_us))
            assert int(read.split("read ")[1].split()[0]) >= len(ended)
        await connection.close()


def truth(exchange: simulator.Running) -> set[tuple]:
    """Every trade there was: market, id, price, count, taker's side, milliseconds."""
    return {
        (ticker, row["trade_id"], row["yes_price"], row["count"], row["taker_side"], row["ts_us"] // 1000)
        for ticker in exchange.exchange.markets
        for row in exchange.truth(ticker)
        if row["type"] == "trade"
    }


async def stored(connection: asyncpg.Connection) -> list[tuple]:
    """The same of every row of trades."""
    rows = await connection.fetch(
        "SELECT ticker, trade_id, yes_price, count, taker_side, exchange_us / 1000 FROM trades JOIN markets ON id = market_id"
    )
    return [(*row[:4], ("yes", "no")[row[4]], row[5]) for row in map(tuple, rows)]


async def told_trades(cluster: Cluster) -> list[Trade]:
    """Every trade in kalshi.trades.v1, by whomever it was told."""
    return [
        event
        for number in range(cluster.partitions)
        async for record in read_partition(cluster, topics.TRADES, number)
        if isinstance(event := codec.decode(record.value), Trade)
    ]


def text(us: int) -> str:
    return datetime.fromtimestamp(us / 1e6, UTC).isoformat()


async def _there(path: Path) -> bool:
    return path.exists()
