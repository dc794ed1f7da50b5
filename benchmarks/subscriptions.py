"""150 connections with 7,500 markets each in one gatherer: all subscribed, what it holds, and what it costs when nothing happens.

A server in a process of its own is the exchange: it lists the markets, acknowledges every subscription and sends each market's
first book, then nothing. The process under measure is the gatherer alone (registry, plan, sessions, outbox, spool).
"""

import asyncio
import itertools
import multiprocessing
import random
import tempfile
import time
import uuid
from collections import Counter
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

import orjson
import uvloop
from cryptography.hazmat.primitives.asymmetric import rsa
from websockets.asyncio.server import ServerConnection, serve

from benchmarks import Row, registry
from kalshibook_core.kafka import admin
from kalshibook_core.kafka.cluster import Cluster
from kalshibook_core.kalshi.signing import Credentials
from kalshibook_core.runtime import clock
from kalshibook_tools.stack import Addresses
from services.ingest.gatherer import Gatherer
from services.ingest.outbox import Outbox
from services.ingest.rest import Rest
from services.ingest.settings import Settings, SpoolSettings

NAME = "subscriptions"
CONNECTIONS = 150
EACH = 7500
IDLE_SECONDS = 15


def run(addresses: Addresses) -> list[Row]:
    """Measure in a process of its own, so that its memory is the gatherer's."""
    context = multiprocessing.get_context("spawn")
    pages, pages_end = context.Pipe()
    sockets, sockets_end = context.Pipe()
    servers = [
        context.Process(target=_list, args=(pages_end,), daemon=True),
        context.Process(target=_stream, args=(sockets_end,), daemon=True),
    ]
    for server in servers:
        server.start()
    ours, theirs = context.Pipe()
    urls = (f"ws://127.0.0.1:{sockets.recv()}", f"http://127.0.0.1:{pages.recv()}/v2")
    measured = context.Process(target=_measure, args=(theirs, *urls, addresses.kafka))
    measured.start()
    try:
        rows: list[Row] = ours.recv()
        return rows
    finally:
        measured.join()
        for server in servers:
            server.terminate()
            server.join()


def _measure(pipe: Pipe, ws_url: str, rest_url: str, brokers: str) -> None:
    pipe.send(uvloop.run(_gather(ws_url, rest_url, brokers)))


async def _gather(ws_url: str, rest_url: str, brokers: str) -> list[Row]:
    cluster = Cluster(brokers, f"bench{uuid.uuid4().hex[:8]}.")
    await admin.ensure_topics(cluster)
    credentials = Credentials("none", rsa.generate_private_key(public_exponent=65537, key_size=2048))
    counts: Counter[str] = Counter()
    rng = random.Random(1)
    wanted = CONNECTIONS * EACH
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(
            cluster, credentials, ws_url, rest_url, statuses=("open",), connections=CONNECTIONS, subscriptions_per_connection=EACH
        )
        async with (
            Outbox(cluster, SpoolSettings(Path(folder)), "g1", settings.buffer_bytes) as outbox,
            Rest(rest_url, credentials, 1e6, rng, counts) as rest,
            asyncio.TaskGroup() as tasks,
        ):
            gatherer = Gatherer(settings, outbox, rest, counts, rng)
            stop = asyncio.Event()
            began = clock.monotonic()
            tasks.create_task(gatherer.run(stop))
            while not (gatherer.captured == wanted and gatherer.ready and counts["book_frames"] >= wanted):  # noqa: ASYNC110
                await asyncio.sleep(0.2)
            took = clock.monotonic() - began
            await asyncio.sleep(5)  # what is left to be acknowledged and saved
            cpu = time.process_time()
            await asyncio.sleep(IDLE_SECONDS)
            idle = (time.process_time() - cpu) / IDLE_SECONDS
            resident = registry._resident()
            connections = sum(connection.connected for connection in gatherer.connections.values())
            assert connections == CONNECTIONS and not counts["breaks"] and not counts["reconnects"]
            stop.set()
    of = f"{CONNECTIONS} connections x {EACH:,} markets"
    return [
        Row(f"{of}: listed, subscribed, every book received", took, "s", None, None),  # type: ignore[arg-type]
        Row(f"{of}: peak resident memory", resident / 1e6, "MB", None, None),  # type: ignore[arg-type]
        Row(f"{of}: CPU of a core when nothing happens", 100 * idle, "%", None, None),  # type: ignore[arg-type]
    ]


def _list(pipe: Pipe) -> None:
    registry.MARKETS = CONNECTIONS * EACH
    registry._serve(pipe)


def _stream(pipe: Pipe) -> None:
    """Acknowledge whatever is subscribed, and send its first book."""

    async def connected(socket: ServerConnection) -> None:
        seqs: Counter[int] = Counter()
        channels: dict[int, str] = {}
        sids = itertools.count(1)
        async for text in socket:
            command: dict[str, Any] = orjson.loads(text)
            params = command["params"]
            if command["cmd"] == "subscribe":
                for channel, sid in zip(params["channels"], sids, strict=False):
                    channels[sid] = channel
                    await _say(socket, {"type": "subscribed", "id": command["id"], "msg": {"channel": channel, "sid": sid}})
                    await _books(socket, sid, channel, params.get("market_tickers", []), seqs)
            else:
                (sid,) = params["sids"]
                seqs[sid] += 1
                await _say(socket, {"type": "ok", "id": command["id"], "sid": sid, "seq": seqs[sid], "msg": {}})
                await _books(socket, sid, channels[sid], params["market_tickers"], seqs)

    async def listen() -> None:
        async with serve(connected, "127.0.0.1", 0, compression=None, ping_interval=10, ping_timeout=None) as server:
            pipe.send(next(iter(server.sockets)).getsockname()[1])
            await server.serve_forever()

    uvloop.run(listen())


async def _books(socket: ServerConnection, sid: int, channel: str, tickers: list[str], seqs: Counter[int]) -> None:
    rows = [["0.4800", "12.00"], ["0.4900", "7.00"]]
    for ticker in tickers if channel == "orderbook_delta" else ():
        seqs[sid] += 1
        msg = {"market_ticker": ticker, "yes_dollars_fp": rows, "no_dollars_fp": rows}
        await _say(socket, {"type": "orderbook_snapshot", "sid": sid, "seq": seqs[sid], "msg": msg})


async def _say(socket: ServerConnection, message: dict[str, Any]) -> None:
    await socket.send(orjson.dumps(message), text=True)
