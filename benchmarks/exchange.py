"""The made-up exchange that the gatherer's benchmarks run against, in a process of its own, and what a gatherer needs beside it.

Markets and frames are in the exchange's own key order and length. Frames that are to come fast are made and framed for the
websocket before, so that the other core is the gatherer's and the broker's.
"""

import asyncio
import contextlib
import multiprocessing
import random
import struct
import tempfile
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import uvloop
from cryptography.hazmat.primitives.asymmetric import rsa
from websockets.asyncio.server import ServerConnection, serve

from kalshibook_core.kafka import admin
from kalshibook_core.kafka.cluster import Cluster
from kalshibook_core.kalshi.signing import Credentials
from services.ingest.connection import Connection
from services.ingest.gatherer import Gatherer
from services.ingest.outbox import Outbox
from services.ingest.rest import Rest
from services.ingest.settings import Settings, SpoolSettings

TICKERS = [f"KXBENCH-26NOV21-T{number}.99" for number in range(200)]
START_US = 1_785_901_540_000_000
_EPOCH = datetime(1970, 1, 1)
_MARKET_ID = str(uuid.UUID(int=7))

Announce = Callable[[object], None]


@contextlib.contextmanager
def apart(run: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> Iterator[Any]:
    """Run `run(announce, *args)` in a process of its own; yield the first thing it announces, and end it behind the block."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_run, args=(run, theirs.send, args), daemon=True)
    process.start()
    try:
        theirs.close()
        yield ours.recv()
    finally:
        process.terminate()
        process.join()


def _run(run: Callable[..., Coroutine[Any, Any, None]], announce: Announce, args: tuple[Any, ...]) -> None:
    uvloop.run(run(announce, *args))


async def listen(announce: Announce, connected: Callable[[ServerConnection], Coroutine[Any, Any, None]], **options: Any) -> None:
    """Serve websockets until the process ends; announce the address."""
    async with serve(connected, "127.0.0.1", 0, compression=None, **({"ping_interval": None} | options)) as server:
        announce(f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}")
        await server.serve_forever()


async def say(socket: ServerConnection, message: dict[str, Any]) -> None:
    """Send a message."""
    await socket.send(orjson.dumps(message), text=True)


async def acknowledge(socket: ServerConnection) -> None:
    """Answer the first command: each of its channels has its sid, the order books' is 1."""
    command: dict[str, Any] = orjson.loads(await socket.recv())
    for sid, channel in enumerate(command["params"]["channels"], 1):
        await say(socket, {"type": "subscribed", "id": command["id"], "msg": {"channel": channel, "sid": sid}})


def snapshots() -> list[bytes]:
    """Return a snapshot frame of each market, seq 1 and on, with more in each level than any delta here takes away."""
    rows = [[f"0.{price:02d}00", "100000.00"] for price in range(1, 50)]
    contents = ({"market_ticker": ticker, "market_id": _MARKET_ID, "yes_dollars_fp": rows} for ticker in TICKERS)
    return [_frame("orderbook_snapshot", seq, msg) for seq, msg in enumerate(contents, 1)]


def delta(seq: int, us: int, rng: random.Random) -> bytes:
    """Return a delta frame of some market, of that time."""
    msg = {
        "market_ticker": rng.choice(TICKERS),
        "market_id": _MARKET_ID,
        "price_dollars": f"0.{rng.randrange(1, 50):02d}00",
        "delta_fp": f"{rng.randrange(-500, 5000) / 100:.2f}",
        "side": "yes",
        "ts": (_EPOCH + timedelta(microseconds=us)).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "ts_ms": us // 1000,
    }
    return _frame("orderbook_delta", seq, msg)


def deltas(count: int) -> Iterator[bytes]:
    """Yield so many delta frames that follow the snapshots."""
    rng, us = random.Random(1), START_US
    for seq in range(len(TICKERS) + 1, len(TICKERS) + 1 + count):
        us += rng.randrange(2000)
        yield delta(seq, us, rng)


def _frame(kind: str, seq: int, msg: dict[str, Any]) -> bytes:
    return orjson.dumps({"type": kind, "sid": 1, "seq": seq, "msg": msg}) + b"\n"


def wire(frame: bytes) -> bytes:
    """Return a message of 126 to 65,535 bytes as the websocket carries it (RFC 6455, section 5.2)."""
    return struct.pack(">BBH", 0x81, 126, len(frame)) + frame


@dataclass(frozen=True, slots=True)
class Desk:
    """What a gatherer works with."""

    settings: Settings
    outbox: Outbox
    counts: Counter[str]
    rng: random.Random


@contextlib.asynccontextmanager
async def desk(
    brokers: str, ws_url: str, rest_url: str = "http://127.0.0.1", outbox: type[Outbox] = Outbox, **settings: Any
) -> AsyncIterator[Desk]:
    """Yield it, with topics and a spool of its own; behind the block all that was added is delivered."""
    cluster = Cluster(brokers, f"bench{uuid.uuid4().hex[:8]}.")
    await admin.ensure_topics(cluster)
    credentials = Credentials("none", rsa.generate_private_key(public_exponent=65537, key_size=2048))
    told = Settings(cluster, credentials, ws_url, rest_url, **({"audits_per_minute": 0} | settings))
    with tempfile.TemporaryDirectory() as folder:
        async with outbox(cluster, SpoolSettings(Path(folder)), "g1", told.buffer_bytes) as opened:
            yield Desk(told, opened, Counter(), random.Random(1))


@contextlib.asynccontextmanager
async def connected(at: Desk) -> AsyncIterator[Connection]:
    """Yield a connection that captures all TICKERS."""
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        connection = Connection(0, at.settings, at.outbox, at.counts, at.rng)
        connection.place(dict.fromkeys(TICKERS))
        tasks.create_task(connection.run(stop))
        yield connection
        stop.set()


@contextlib.asynccontextmanager
async def gatherer(at: Desk) -> AsyncIterator[Gatherer]:
    """Yield one that runs, with no limit on its requests."""
    stop = asyncio.Event()
    async with Rest(at.settings.rest_url, at.settings.credentials, 1e6, at.rng, at.counts) as rest, asyncio.TaskGroup() as tasks:
        each = Gatherer(at.settings, at.outbox, rest, at.counts, at.rng)
        tasks.create_task(each.run(stop))
        yield each
        stop.set()


def resident() -> int:
    """Return the most bytes this process ever had in memory; getrusage would count what its parent had as well."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024
