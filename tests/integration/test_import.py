"""Recorded frames that are imported: the same books as playing them gives, once, whatever is killed."""

import asyncio
import os
import sys
from pathlib import Path

import asyncpg
import pytest

from kalshibook_core.kafka import topics
from kalshibook_core.kafka.cluster import Cluster
from kalshibook_core.kafka.reader import read_partition
from kalshibook_core.postgres import runs
from kalshibook_core.wire import codec
from kalshibook_core.wire.events import BookDelta, BookSnapshot, Gap
from kalshibook_tools import simulator
from services.deduplicator.partition import Partition
from services.ingest.recordings import Recording
from tests.support import recordings
from tests.support.service import Service, still, until

pytestmark = pytest.mark.stack

BAD = b'{"recv_ms":1,"event":{"type":"orderbook_delta","sid":1,"seq":\n'


async def test_a_recording_makes_the_books_that_playing_it_makes(cluster: Cluster, database: str, tmp_path: Path) -> None:
    written = recordings.write(tmp_path / "recorded", seed=4, markets=4, seconds=16, rate=60, window=5, deaths=[8.0])
    played = await play(Cluster(cluster.brokers, cluster.prefix + "played.", 1), written, tmp_path)
    broken = written.events / "broken.ndjson"
    broken.write_bytes(BAD)
    env = {
        "PATH": os.defpath, "KB_KAFKA_BROKERS": cluster.brokers, "KB_TOPIC_PREFIX": cluster.prefix, "KB_POSTGRES_DSN": database,
        "KB_KAFKA_PARTITIONS": str(cluster.partitions),
    }  # fmt: skip

    async def kb(home: str, *command: str) -> tuple[int | None, str]:
        arguments = ("-m", *command, str(written.events), "--origin", "gold", "--home", str(tmp_path / home))
        process = await asyncio.create_subprocess_exec(sys.executable, *arguments, env=env, stdout=-1, stderr=-2)
        said = (await process.communicate())[0].decode()
        return process.returncode, said

    connection = await asyncpg.connect(database)
    services = (Service(name, cluster, tmp_path / f"{name}.log", **env) for name in ("deduplicator", "persister"))
    deduplicator, persister = services
    known = min(written.settled)
    later = "INSERT INTO markets (ticker, title, status, result, updated_us) VALUES ($1, 'Known', 'finalized', 'no', 4e15)"
    await connection.execute(later, known)
    async with deduplicator, persister:
        assert (await kb("home", "tests.support.dying_import", "400"))[0] == -9
        code, said = await kb("home", "kalshibook_tools.cli", "import")
        assert code == 1 and f"{broken}:1: " in said and "were there already" in said
        raw = await records(cluster)
        source = Recording((written.events,), "import-gold", cluster.partitions)
        left = {ticker: extent.frames for ticker, extent in source.survey().markets.items()}
        assert raw == len(list(source.records(left)))
        assert f"{written.frames:,} frames of {len(written.lines):,} markets imported" in said

        trades = {frame for lines in written.lines.values() for _, frame in lines if b'"type":"trade"' in frame}
        books = written.frames - len(trades)

        async def stored() -> bool:
            rows = await connection.fetchval("SELECT coalesce(sum(events), 0) FROM book_events WHERE kind <> 3")
            return rows >= books and await connection.fetchval("SELECT count(*) FROM trades") >= len(trades)

        await until(stored)
        assert dict(await connection.fetch("SELECT origin, count(*) FROM trades GROUP BY 1")) == {"import-gold": len(trades)}
        for ticker in written.lines:
            assert same(await rows(connection, ticker), played[ticker]), ticker

        async def settled() -> bool:  # by other topics, which are read in their turn
            found = await connection.fetch("SELECT ticker FROM markets WHERE status = 'finalized' AND result <> ''")
            return {row[0] for row in found} == written.settled

        await until(settled)
        await until(lambda: still(connection, deduplicator, persister))
        assert await connection.fetchval("SELECT title FROM markets WHERE ticker = $1", known) == "Known"  # it is of later
        died = await connection.fetchval("SELECT count(*) FROM gaps WHERE channel = 'orderbook_delta' AND end_us IS NOT NULL")
        assert died == len(written.known_at_death[0])

        before = await contents(connection)
        code, said = await kb("home", "kalshibook_tools.cli", "import")
        assert "imported before: nothing to do" in said
        code, said = await kb("another", "kalshibook_tools.cli", "import")
        assert code == 1 and "0 frames of 0 markets imported" in said and "frames are not taken" in said
        assert await records(cluster) == raw
        assert await contents(connection) == before
    await connection.close()


async def play(cluster: Cluster, written: recordings.Written, tmp_path: Path) -> dict[str, list[tuple]]:
    """Play it to a gatherer; return each market's canonical book events, without what is of the moment they were made."""
    config = simulator.Config(key_dir=tmp_path, recordings=(written.events,), speed=None)
    async with simulator.serve(config) as exchange:
        env = {
            "KB_KALSHI_WS_URL": exchange.ws_url, "KB_KALSHI_REST_URL": exchange.rest_url, "KALSHI_API_KEY_ID": exchange.key_id,
            "KALSHI_PRIVATE_KEY_PATH": str(exchange.private_key_path), "KB_REQUESTS_PER_SECOND": "1000",
        }  # fmt: skip
        async with Service("ingest", cluster, tmp_path / "played.log", **env) as ingest:

            async def done() -> bool:
                await ingest.status()
                return exchange.exchange.done

            await until(done)
            assert await ingest.drain() == 0
    partition, made = Partition(), dict[str, list[tuple]]()
    async for record in read_partition(cluster, topics.RAW, 0):
        for event in partition.receive(codec.decode(record.value), record.offset):
            if isinstance(event, BookDelta):
                what = (runs.DELTA, event.exchange_us, event.side, event.price, event.delta)
            elif isinstance(event, BookSnapshot):
                what = (runs.SNAPSHOT, 0, 0, 0, 0)
            elif isinstance(event, Gap) and event.version:
                what = (runs.GAP, 0, 0, 0, 0)
            else:
                continue
            made.setdefault(event.market_ticker, []).append((event.version, *what, event.checksum))
    return made


async def rows(connection: asyncpg.Connection, ticker: str) -> list[tuple]:
    """The same of the database."""
    found = await connection.fetch(
        f"SELECT {', '.join(runs.COLUMNS)} FROM book_events JOIN markets ON id = market_id WHERE ticker = $1 ORDER BY version",
        ticker,
    )
    events = [runs.Event._make(event) for row in found for event in runs.unpack(*row)]
    return [(e.version, e.kind, e.exchange_us, e.side, e.price, e.delta, e.checksum) for e in events]


def same(imported: list[tuple], played: list[tuple]) -> bool:
    """An import knows nothing past the end of a market's files; who played them stayed subscribed, and nothing happened."""
    known = imported[:-1] if imported[-1][1] == runs.GAP else imported
    return known == played[: len(known)] and {event[-1] for event in played[len(known) :]} <= {known[-1][-1]}


async def records(cluster: Cluster) -> int:
    """How many raw records there are."""
    return sum([1 for number in range(cluster.partitions) async for _ in read_partition(cluster, topics.RAW, number)])


async def contents(connection: asyncpg.Connection) -> list[list[tuple]]:
    tables = ("book_events", "trades", "gaps", "lifecycle", "markets", "trade_differences")
    return [[tuple(row) for row in await connection.fetch(f"SELECT * FROM {table} ORDER BY 1, 2, 3")] for table in tables]
