"""Frames a second of a gatherer (socket, session, encoding, spool, real broker), beside nothing but reading the same socket.

*Sustained*: a server pumps order-book frames of 200 markets as fast as they are taken; done when Kafka has acknowledged all of
them. Bare is the `websockets` client's own `recv`. "Of its own CPU" counts the CPU seconds of the gatherer's process, which what
else runs here (server, broker) leaves alone: what one core would do.

*Burst*: the server writes 200,000 frames evenly over one second, whether they are taken or not; measured is how long after its
end the exchange was rid of them and Kafka had them, and every one is looked for in the topic: there once, and its bytes as sent.
"""

import asyncio
import hashlib
import time
from collections.abc import Callable, Coroutine
from typing import Any

import orjson
import uvloop
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection

from benchmarks import Row, exchange
from kalshibook_core.kafka import topics
from kalshibook_core.kafka.cluster import Cluster
from kalshibook_core.kafka.reader import read_partition
from kalshibook_core.runtime import clock
from kalshibook_core.wire import codec
from kalshibook_tools.stack import Addresses
from services.ingest.websocket import Socket

NAME = "gatherer"
FRAMES = 400_000
BURST = 200_000
SLICES = 200  # of the burst's second
_SOME = 500  # frames a write


def run(addresses: Addresses) -> list[Row]:
    """Measure one after the other."""
    with exchange.apart(_pump) as url:
        bare, bare_cpu = _best(lambda: _bare(url))
        _, socket_cpu = _best(lambda: _read(url))
        gatherer, gatherer_cpu = _best(lambda: _gather(url, addresses.kafka))
    rows = [
        Row.of("gatherer", gatherer, "frames/s", bare),
        Row.of("gatherer: frames per second of its own CPU", gatherer_cpu, "frames/s", bare_cpu),
        Row.of("gatherer: its socket alone, frames per second of its own CPU", socket_cpu, "frames/s", bare_cpu),
    ]
    with exchange.apart(_burst) as url, exchange.apart(_absorb, url, addresses.kafka) as burst:  # so that its memory is its own
        return rows + list(burst)


def _best(measured: Callable[[], Coroutine[Any, Any, tuple[float, float]]]) -> tuple[float, float]:
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


async def _read(url: str) -> tuple[float, float]:
    """Read as `_bare` does, through the gatherer's socket."""
    left = FRAMES

    def take(frames: list[bytes], _: int) -> None:
        nonlocal left
        left -= len(frames)

    async with connect(url, create_connection=Socket, compression=None, proxy=None) as socket:
        assert isinstance(socket, Socket)
        socket.hand_to(take)
        await socket.send(orjson.dumps({"id": 1, "params": {"channels": ["orderbook_delta"]}}))
        began, spent = clock.monotonic(), time.process_time()
        while left > 0:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        return clock.monotonic() - began, time.process_time() - spent


async def _gather(url: str, brokers: str) -> tuple[float, float]:
    async with exchange.desk(brokers, url) as desk, exchange.connected(desk):
        counts, outbox = desk.counts, desk.outbox
        while not counts["book_frames"]:  # noqa: ASYNC110  (the connection announces nothing, and must not for this)
            await asyncio.sleep(0)
        began, spent = clock.monotonic(), time.process_time()
        while counts["book_frames"] < FRAMES or outbox.buffered or outbox.spool_bytes:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        took = clock.monotonic() - began, time.process_time() - spent
        assert not counts["breaks"] and not counts["unparsable"]
    return took


async def _pump(announce: exchange.Announce) -> None:
    """Send the same frames to everybody, as fast as they are read."""
    frames = [exchange.wire(frame) for frame in (*exchange.snapshots(), *exchange.deltas(FRAMES - len(exchange.TICKERS)))]
    writes = [b"".join(frames[at : at + _SOME]) for at in range(0, FRAMES, _SOME)]

    async def connected(socket: ServerConnection) -> None:
        await exchange.acknowledge(socket)
        for each in writes:
            socket.transport.write(each)
            await socket.drain()
        await socket.wait_closed()

    await exchange.listen(announce, connected)


async def _absorb(announce: exchange.Announce, url: str, brokers: str) -> None:
    async with exchange.desk(brokers, url) as desk:
        async with exchange.connected(desk):
            counts, outbox = desk.counts, desk.outbox
            while counts["book_frames"] < len(exchange.TICKERS):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            before = exchange.resident()
            while counts["book_frames"] == len(exchange.TICKERS):  # noqa: ASYNC110
                await asyncio.sleep(0)
            began, spent = clock.monotonic(), time.process_time()
            while counts["book_frames"] < BURST or outbox.buffered or outbox.spool_bytes:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            took, cpu = clock.monotonic() - began, time.process_time() - spent
            resident = exchange.resident()
            assert not counts["breaks"] and not counts["unparsable"]
        async with connect(url, proxy=None) as socket:  # the second one to connect is told how the first one fared
            digest, rid = orjson.loads(await socket.recv())
        assert await _stored(desk.settings.cluster) == digest
    of = f"gatherer: {BURST:,} frames offered in 1 s"
    announce(
        [
            Row.of(f"{of}, all off the socket after", rid, "s", 1.0),
            Row.of(f"{of}, all in Kafka after", took, "s", 1.0),
            Row(f"{of}, own CPU", cpu, "s", None, None),  # type: ignore[arg-type]
            Row.of(f"{of}, peak memory (bare: before)", resident / 1e6, "MB", before / 1e6),
        ]
    )


async def _stored(cluster: Cluster) -> str:
    """Return the digest of all book frames in the topic, in the order of their seq; each is there once."""
    found: dict[int, bytes] = {}
    for partition in range(cluster.partitions):
        async for record in read_partition(cluster, topics.RAW, partition, None, read_committed=False):
            raw = codec.decode(record.value)
            if raw.kind == "FRAME" and raw.seq > 0:
                assert raw.seq not in found
                found[raw.seq] = raw.payload
    assert len(found) == BURST
    return _digest(payload for _, payload in sorted(found.items()))


def _digest(frames: Any) -> str:
    digest = hashlib.sha256()
    for frame in frames:
        digest.update(frame)
    return digest.hexdigest()


async def _burst(announce: exchange.Announce) -> None:
    frames = [*exchange.snapshots(), *exchange.deltas(BURST - len(exchange.TICKERS))]
    digest, rid = _digest(frames), 0.0
    framed = [exchange.wire(frame) for frame in frames]
    first, each = len(exchange.TICKERS), BURST // SLICES
    slices = [b"".join(framed[at : at + each]) for at in range(first, BURST, each)]

    async def connected(socket: ServerConnection) -> None:
        nonlocal rid
        if rid:
            await socket.send(orjson.dumps([digest, rid]))
            return
        await exchange.acknowledge(socket)
        socket.transport.write(b"".join(framed[:first]))
        await asyncio.sleep(1)
        began = clock.monotonic()
        for number, each in enumerate(slices):
            await asyncio.sleep(max(0.0, began + number / SLICES - clock.monotonic()))
            socket.transport.write(each)
        while socket.transport.get_write_buffer_size():  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        rid = clock.monotonic() - began
        await socket.wait_closed()

    await exchange.listen(announce, connected, max_queue=None)
