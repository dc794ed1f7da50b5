"""Frames a second of a gatherer: socket, session, encoding and a real broker, beside nothing but reading the same socket.

A server in a process of its own pumps made-up order-book frames of 200 markets as fast as they are taken. Both readers use the
same `websockets` client; the gatherer's is `services.ingest.connection.Connection`, done when Kafka has acknowledged everything.
"""

import asyncio
import multiprocessing
import random
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Coroutine
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

import orjson
import uvloop
from cryptography.hazmat.primitives.asymmetric import rsa
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve

from benchmarks import Row
from kalshibook_core.kafka import admin
from kalshibook_core.kafka.cluster import Cluster
from kalshibook_core.kalshi.signing import Credentials
from kalshibook_core.runtime import clock
from kalshibook_tools.stack import Addresses
from services.ingest.connection import Connection
from services.ingest.outbox import Outbox
from services.ingest.settings import Settings, SpoolSettings

NAME = "gatherer"
FRAMES = 200_000
MARKETS = 200
START_US = 1_785_901_540_000_000


def run(addresses: Addresses) -> list[Row]:
    """Measure both, one after the other."""
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    server = multiprocessing.get_context("spawn").Process(target=_pump, args=(theirs,), daemon=True)
    server.start()
    try:
        url = f"ws://127.0.0.1:{ours.recv()}"
        bare, bare_cpu = _best(lambda: _bare(url))
        gatherer, gatherer_cpu = _best(lambda: _gather(url, addresses.kafka))
    finally:
        server.terminate()
        server.join()
    return [
        Row.of("gatherer", gatherer, "frames/s", bare),
        Row.of("gatherer: frames per second of its own CPU", gatherer_cpu, "frames/s", bare_cpu),
    ]


def _best(measured: Callable[[], Coroutine[Any, Any, tuple[float, float]]]) -> tuple[float, float]:
    """Return frames a second by the clock, and by the CPU this process spent, which what else runs here leaves alone."""
    walls, cpus = zip(*(uvloop.run(measured()) for _ in range(2)), strict=True)
    return FRAMES / min(walls), FRAMES / min(cpus)


async def _bare(url: str) -> tuple[float, float]:
    async with connect(url, compression=None, max_size=None, max_queue=256, proxy=None) as socket:
        await socket.send(orjson.dumps({"id": 1, "params": {"channels": ["orderbook_delta"]}}))
        await socket.recv(decode=False)
        began, spent = clock.monotonic(), time.process_time()
        for _ in range(FRAMES):
            await socket.recv(decode=False)
        return clock.monotonic() - began, time.process_time() - spent


async def _gather(url: str, brokers: str) -> tuple[float, float]:
    cluster = Cluster(brokers, f"bench{uuid.uuid4().hex[:8]}.")
    await admin.ensure_topics(cluster)
    credentials = Credentials("none", rsa.generate_private_key(public_exponent=65537, key_size=2048))
    settings = Settings(cluster, credentials, url, "http://127.0.0.1")
    counts: Counter[str] = Counter()
    stop = asyncio.Event()
    with tempfile.TemporaryDirectory() as folder:
        spool = SpoolSettings(Path(folder))
        async with Outbox(cluster, spool, "g1", settings.buffer_bytes) as outbox, asyncio.TaskGroup() as tasks:
            connection = Connection(0, settings, outbox, counts, random.Random(1))
            connection.place(dict.fromkeys(_tickers()))
            tasks.create_task(connection.run(stop))
            while not counts["book_frames"]:  # noqa: ASYNC110  (the connection announces nothing, and must not for this)
                await asyncio.sleep(0)
            began, spent = clock.monotonic(), time.process_time()
            while counts["book_frames"] < FRAMES or outbox.buffered or outbox.spool_bytes:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            took = clock.monotonic() - began, time.process_time() - spent
            assert not counts["breaks"] and not counts["unparsable"]
            stop.set()
    return took


def _tickers() -> list[str]:
    return [f"KXBENCH-26NOV21-T{number}.99" for number in range(MARKETS)]


def _pump(pipe: Pipe) -> None:
    """Serve: acknowledge whatever is subscribed, then send the same frames to everybody as fast as they are read."""
    frames = _frames()

    async def connected(socket: ServerConnection) -> None:
        command: dict[str, Any] = orjson.loads(await socket.recv())
        for sid, channel in enumerate(command["params"]["channels"], 1):
            ack = {"type": "subscribed", "id": command["id"], "msg": {"channel": channel, "sid": sid}}
            await socket.send(orjson.dumps(ack), text=True)
        for frame in frames:
            await socket.send(frame, text=True)
        await socket.wait_closed()

    async def listen() -> None:
        async with serve(connected, "127.0.0.1", 0, compression=None, ping_interval=None) as server:
            pipe.send(next(iter(server.sockets)).getsockname()[1])
            await server.serve_forever()

    uvloop.run(listen())


def _frames() -> list[bytes]:
    """Return snapshots of all markets, then deltas, in the exchange's own key order and length."""
    rng = random.Random(1)
    market_id = str(uuid.UUID(int=7))
    rows = [[f"0.{price:02d}00", "100000.00"] for price in range(1, 50)]
    out: list[dict[str, Any]] = [
        {
            "type": "orderbook_snapshot",
            "sid": 1,
            "seq": seq,
            "msg": {"market_ticker": t, "market_id": market_id, "yes_dollars_fp": rows},
        }
        for seq, t in enumerate(_tickers(), 1)
    ]
    us = START_US
    for seq in range(MARKETS + 1, FRAMES + 1):
        us += rng.randrange(2000)
        msg = {
            "market_ticker": rng.choice(_tickers()),
            "market_id": market_id,
            "price_dollars": f"0.{rng.randrange(1, 50):02d}00",
            "delta_fp": f"{rng.randrange(-500, 5000) / 100:.2f}",
            "side": "yes",
            "ts": f"2026-08-05T03:{us // 60_000_000 % 60:02d}:{us // 1_000_000 % 60:02d}.{us % 1_000_000:06d}Z",
            "ts_ms": us // 1000,
        }
        out.append({"type": "orderbook_delta", "sid": 1, "seq": seq, "msg": msg})
    return [orjson.dumps(frame) + b"\n" for frame in out]
