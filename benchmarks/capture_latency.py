"""From the socket to Kafka's acknowledgement: how long a frame takes at 2,000 frames a second, one gatherer, spool on.

A server in a process of its own sends order-book deltas of 200 markets evenly, each with its sending time. A frame's latency is
from there to when the broker has acknowledged its batch (acks=all), both by the machine's one monotonic clock; the bare figure is
from there to the arrival in a reader that does nothing else.
"""

import asyncio
import multiprocessing
import random
import statistics
import tempfile
import uuid
from collections import Counter
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
from kalshibook_core.kafka.cluster import Cluster, partition_of
from kalshibook_core.kalshi.signing import Credentials
from kalshibook_core.runtime import clock
from kalshibook_tools.stack import Addresses
from services.ingest.connection import Connection
from services.ingest.outbox import Outbox
from services.ingest.settings import Settings, SpoolSettings

NAME = "capture latency"
RATE = 2000
SECONDS = 15
MARKETS = 200
SKIPPED = 2000
"""Frames before the measurement: connections, topics and caches are new."""


def run(addresses: Addresses) -> list[Row]:
    """Measure both, one after the other."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=_pump, args=(theirs,), daemon=True)
    server.start()
    try:
        url = f"ws://127.0.0.1:{ours.recv()}"
        bare = uvloop.run(_bare(url))
        took = uvloop.run(_gather(url, addresses.kafka))
    finally:
        server.terminate()
        server.join()
    of = f"capture latency at {RATE:,} frames/s, socket to acknowledgement"
    return [Row.of(f"{of}, {name}", _at(took, share), "ms", _at(bare, share)) for name, share in (("p50", 0.5), ("p99", 0.99))]


def _at(took: list[float], share: float) -> float:
    return 1000 * statistics.quantiles(took, n=1000)[round(share * 1000) - 1]


async def _bare(url: str) -> list[float]:
    took = []
    async with connect(url, compression=None, proxy=None) as socket:
        await socket.send(orjson.dumps({"id": 1, "params": {"channels": ["orderbook_delta"]}}))
        for _ in range(1 + MARKETS + SKIPPED + RATE * SECONDS):
            frame = await socket.recv(decode=False)
            took.append(clock.monotonic() - _sent(frame))
    return took[-RATE * SECONDS :]


class Watched(Outbox):
    """The gatherer's outbox, with the sending time of each record kept until the broker has it."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.sent: list[list[float]] = [[] for _ in range(4)]
        self.took: list[float] = []

    def add(self, key: bytes, value: bytes, timestamp_ms: int) -> None:
        super().add(key, value, timestamp_ms)
        self.sent[partition_of(key, 4)].append(_sent(value))

    def _on_acked(self, partition: int, records: int, next_offset: int) -> None:
        super()._on_acked(partition, records, next_offset)
        now = clock.monotonic()
        done, self.sent[partition] = self.sent[partition][:records], self.sent[partition][records:]
        self.took += [now - sent for sent in done if sent]


def _sent(frame: bytes) -> float:
    at = frame.find(b'"sent":')
    return float(frame[at + 7 : at + 24]) if at >= 0 else 0.0


async def _gather(url: str, brokers: str) -> list[float]:
    cluster = Cluster(brokers, f"bench{uuid.uuid4().hex[:8]}.", 4)
    await admin.ensure_topics(cluster)
    credentials = Credentials("none", rsa.generate_private_key(public_exponent=65537, key_size=2048))
    settings = Settings(cluster, credentials, url, "http://127.0.0.1")
    counts: Counter[str] = Counter()
    stop = asyncio.Event()
    with tempfile.TemporaryDirectory() as folder:
        async with (
            Watched(cluster, SpoolSettings(Path(folder)), "g1", settings.buffer_bytes) as outbox,
            asyncio.TaskGroup() as tasks,
        ):
            connection = Connection(0, settings, outbox, counts, random.Random(1))
            connection.place(dict.fromkeys(_tickers()))
            tasks.create_task(connection.run(stop))
            while len(outbox.took) < SKIPPED + RATE * SECONDS:  # noqa: ASYNC110  (nothing announces the last one)
                await asyncio.sleep(0.05)
            stop.set()
    assert not counts["sequence_gap"] and not counts["unparsable"]
    return outbox.took[-RATE * SECONDS :]


def _tickers() -> list[str]:
    return [f"KXBENCH-26NOV21-T{number}.99" for number in range(MARKETS)]


def _pump(pipe: Pipe) -> None:
    """Serve: acknowledge whatever is subscribed, send every book, then deltas at an even rate."""

    async def connected(socket: ServerConnection) -> None:
        command: dict[str, Any] = orjson.loads(await socket.recv())
        for sid, channel in enumerate(command["params"]["channels"], 1):
            ack = {"type": "subscribed", "id": command["id"], "msg": {"channel": channel, "sid": sid}}
            await socket.send(orjson.dumps(ack), text=True)
        rng, us = random.Random(1), 1_785_901_540_000_000
        rows = [[f"0.{price:02d}00", "100000.00"] for price in range(1, 50)]
        for seq, ticker in enumerate(_tickers(), 1):
            msg: dict[str, Any] = {"market_ticker": ticker, "yes_dollars_fp": rows}
            await socket.send(orjson.dumps({"type": "orderbook_snapshot", "sid": 1, "seq": seq, "msg": msg}), text=True)
        began = clock.monotonic()
        for n in range(SKIPPED + RATE * SECONDS):
            early = began + n / RATE - clock.monotonic()
            if early > 0:
                await asyncio.sleep(early)
            us += 500
            msg = {
                "market_ticker": f"KXBENCH-26NOV21-T{rng.randrange(MARKETS)}.99",
                "price_dollars": f"0.{rng.randrange(1, 50):02d}00",
                "delta_fp": "1.00",
                "side": "yes",
                "ts_ms": us // 1000,
            }
            frame = orjson.dumps({"type": "orderbook_delta", "sid": 1, "seq": MARKETS + 1 + n, "msg": msg})
            await socket.send(frame[:-1] + b',"sent":%017.6f}' % clock.monotonic(), text=True)
        await socket.wait_closed()

    async def listen() -> None:
        async with serve(connected, "127.0.0.1", 0, compression=None, ping_interval=None) as server:
            pipe.send(next(iter(server.sockets)).getsockname()[1])
            await server.serve_forever()

    uvloop.run(listen())
