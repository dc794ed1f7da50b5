"""The gateway as a real process, and history to serve written straight into the tables."""

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import asyncpg
import httpx

from kalshibook_core.kafka.cluster import Cluster
from kalshibook_core.orderbook import Book
from kalshibook_core.postgres import levels, partitions
from kalshibook_core.postgres.pool import connect
from kalshibook_core.wire import codec
from kalshibook_core.wire.events import BOOK, BookDelta, BookEvent, BookSnapshot, Gap
from services.gateway.keys import store as keys
from services.persister.batch import Batch

ROOT = Path(__file__).parents[2]


class Gateway:
    """One gateway process: `url`, a `client` with a demo key, its log."""

    def __init__(self, env: dict[str, str], folder: Path) -> None:
        self._env = env | {"KB_GATEWAY_PORT_FILE": str(folder / "port")}
        self._folder = folder
        self.log_file = folder / "gateway.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.url = ""

    async def start(self) -> None:
        """Start the process and wait until it is ready."""
        (self._folder / "port").unlink(missing_ok=True)
        self._spawn()
        assert self.process is not None
        async with asyncio.timeout(120):
            while not (self._folder / "port").exists():
                assert self.process.poll() is None, self.log()
                await asyncio.sleep(0.02)
            self.url = f"http://127.0.0.1:{(self._folder / 'port').read_text().strip()}"
            async with httpx.AsyncClient(timeout=60) as client:
                while (await client.get(self.url + "/readyz")).status_code != 200:
                    assert self.process.poll() is None, self.log()
                    await asyncio.sleep(0.02)

    def _spawn(self) -> None:
        command = [sys.executable, "-m", "services.gateway"]
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, env=self._env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def log(self) -> str:
        """Return everything logged so far."""
        return self.log_file.read_text()

    def kill(self) -> None:
        """End the process as a power cut would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    async def stop(self) -> int:
        """Ask it to drain; return its exit code."""
        assert self.process is not None
        self.process.terminate()
        return await asyncio.to_thread(self.process.wait, 60)


@contextlib.asynccontextmanager
async def running(cluster: Cluster, database: str, redis_url: str, folder: Path, **more: str) -> AsyncIterator[Gateway]:
    """Run a gateway for as long as the block lasts."""
    env = {
        "PATH": "/usr/bin:/bin",
        "KB_KAFKA_BROKERS": cluster.brokers,
        "KB_TOPIC_PREFIX": cluster.prefix,
        "KB_KAFKA_PARTITIONS": str(cluster.partitions),
        "KB_POSTGRES_DSN": database,
        "KB_REDIS_URL": redis_url,
        "KB_GATEWAY_PORT": "0",
    }
    gateway = Gateway(env | more, folder)
    await gateway.start()
    try:
        yield gateway
    finally:
        if gateway.process is not None and gateway.process.poll() is None:
            gateway.kill()


async def eventually(condition: Callable[[], Awaitable[bool]], seconds: float = 60) -> None:
    """Return once the condition holds; raise TimeoutError if it does not within `seconds`."""
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110  (what is waited for happens in another process)
            await asyncio.sleep(0.02)


async def key(database: str, account: str = "tester", plan: str = "demo") -> str:
    """Return a new key of an account."""
    connection = await connect(database)
    try:
        return (await keys.create_key(connection, await keys.create_account(connection, account, plan, 1), 1)).secret
    finally:
        await connection.close()


async def add_market(connection: "asyncpg.Connection[Any]", ticker: str, **columns: Any) -> int:
    """Insert a market; return its id."""
    names = "".join(f", {name}" for name in columns)
    values = "".join(f", ${i}" for i in range(2, 2 + len(columns)))
    return int(
        await connection.fetchval(
            f"INSERT INTO markets (ticker, updated_us{names}) VALUES ($1, 1{values}) RETURNING id", ticker, *columns.values()
        )
    )


async def write(
    connection: "asyncpg.Connection[Any]", market_id: int, events: Sequence[BookEvent], every: int = 0, flush: int = 23
) -> None:
    """Write a market's events as the persister does in batches of `flush`, and a checkpoint after each `every` (0: none)."""
    rows, checkpoints = [], list[Any]()
    for first in range(0, len(events), flush):
        batch = Batch()
        values = [codec.encode(event) for event in events[first : first + flush]]
        batch.add(("book", 0), [SimpleNamespace(offset=first + n, value=value) for n, value in enumerate(values)])
        rows += batch.book_rows({event.market_ticker: market_id for event in events[:1]})
    folded, gap = Book(), None
    for event in events:
        match event:
            case BookSnapshot():
                folded, gap = Book(event.yes, event.no), None
            case BookDelta():
                folded.apply(event.side, event.price, event.delta)
            case Gap():
                gap = (event.start_us, event.cause)
        if every and event.version % every == 0:
            packed = levels.pack(folded.yes, folded.no)
            checkpoints.append(
                (event.effective_us, event.checksum, gap and gap[0], market_id, event.version, gap and gap[1], packed)
            )
    for table, made in (("book_events", rows), ("checkpoints", checkpoints)):
        for partition in {partitions.containing(table, row[0]) for row in made}:
            assert partition is not None
            await partitions.create(connection, partition)
        await connection.copy_records_to_table(table, records=made)
    if events and events[0].version == 1:
        await connection.execute("UPDATE markets SET recorded_us = $2 WHERE id = $1", market_id, events[0].effective_us)
    for event in events:
        if isinstance(event, Gap):
            await connection.execute(
                "INSERT INTO gaps (start_us, market_id, opened_version, channel, cause) VALUES ($1, $2, $3, $4, $5)",
                event.start_us, market_id, event.version, BOOK, event.cause,
            )  # fmt: skip
        elif isinstance(event, BookSnapshot) and event.gap_start_us is not None:
            await connection.execute(
                "UPDATE gaps SET end_us = $1 WHERE market_id = $2 AND opened_version = $3",
                event.effective_us,
                market_id,
                event.version - 1,
            )


def brute_force(events: Sequence[BookEvent], at_us: int) -> tuple[Book, BookEvent] | None:
    """Return the book after every event not after an instant, and the last of them, the slow and obvious way."""
    book, last = Book(), None
    for event in events:
        if event.effective_us > at_us:
            break
        if isinstance(event, BookSnapshot):
            book = Book(event.yes, event.no)
        elif isinstance(event, BookDelta):
            book.apply(event.side, event.price, event.delta)
        last = event
    return None if last is None else (book, last)
