"""From the socket to Kafka's acknowledgement: how long a frame takes at 2,000 frames a second, one gatherer, spool on.

A server in a process of its own sends order-book deltas of 200 markets evenly, each with its sending time as the exchange's. A
frame's latency is from there to when the broker has acknowledged its batch (acks=all), both by the machine's one clock; the bare
figure is from there to the arrival in a reader that does nothing else.
"""

import asyncio
import random
import statistics
from typing import Any

import orjson
import uvloop
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection

from benchmarks import Row, exchange
from kalshibook_core.kafka.cluster import partition_of
from kalshibook_core.kalshi import messages
from kalshibook_core.runtime import clock
from kalshibook_tools.stack import Addresses
from services.ingest.outbox import Outbox

NAME = "capture latency"
RATE = 2000
SECONDS = 15
SKIPPED = 2000
"""Frames before the measurement: connections, topics and caches are new."""


def run(addresses: Addresses) -> list[Row]:
    """Measure both, one after the other."""
    with exchange.apart(_pump) as url:
        bare = uvloop.run(_bare(url))
        took = uvloop.run(_gather(url, addresses.kafka))
    of = f"capture latency at {RATE:,} frames/s, socket to acknowledgement"
    return [Row.of(f"{of}, {name}", _at(took, share), "ms", _at(bare, share)) for name, share in (("p50", 0.5), ("p99", 0.99))]


def _at(took: list[int], share: float) -> float:
    return statistics.quantiles(took, n=1000)[round(share * 1000) - 1] / 1000


async def _bare(url: str) -> list[int]:
    took = []
    async with connect(url, compression=None, proxy=None) as socket:
        await socket.send(orjson.dumps({"id": 1, "params": {"channels": ["orderbook_delta"]}}))
        for _ in range(1 + len(exchange.TICKERS) + SKIPPED + RATE * SECONDS):
            frame = await socket.recv(decode=False)
            took.append(clock.now_us() - _sent(frame))
    return took[-RATE * SECONDS :]


class Watched(Outbox):
    """The gatherer's outbox, with the sending time of each record kept until the broker has it."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.sent: list[list[int]] = [[] for _ in range(4)]
        self.took: list[int] = []

    def add(self, key: bytes, value: bytes, timestamp_ms: int) -> None:
        super().add(key, value, timestamp_ms)
        self.sent[partition_of(key, 4)].append(_sent(value))

    def _on_acked(self, partition: int, records: int, next_offset: int) -> None:
        super()._on_acked(partition, records, next_offset)
        now = clock.now_us()
        done, self.sent[partition] = self.sent[partition][:records], self.sent[partition][records:]
        self.took += [now - sent for sent in done if sent]


def _sent(frame: bytes) -> int:
    """Return the time that the frame carries; 0 where there is none."""
    at = frame.find(b'"ts":"') + 6
    return messages.time_us(frame[at : frame.index(b'"', at)].decode()) if at > 5 else 0


async def _gather(url: str, brokers: str) -> list[int]:
    async with exchange.desk(brokers, url, outbox=Watched) as desk, exchange.connected(desk):
        outbox = desk.outbox
        assert isinstance(outbox, Watched)
        while len(outbox.took) < SKIPPED + RATE * SECONDS:  # noqa: ASYNC110  (nothing announces the last one)
            await asyncio.sleep(0.05)
        assert not desk.counts["sequence_gap"] and not desk.counts["unparsable"]
    return outbox.took[-RATE * SECONDS :]


async def _pump(announce: exchange.Announce) -> None:
    """Send every book, then deltas at an even rate."""

    async def connected(socket: ServerConnection) -> None:
        await exchange.acknowledge(socket)
        for frame in exchange.snapshots():
            await socket.send(frame, text=True)
        rng, began = random.Random(1), clock.monotonic()
        for number in range(SKIPPED + RATE * SECONDS):
            early = began + number / RATE - clock.monotonic()
            if early > 0:
                await asyncio.sleep(early)
            await socket.send(exchange.delta(len(exchange.TICKERS) + 1 + number, clock.now_us(), rng), text=True)
        await socket.wait_closed()

    await exchange.listen(announce, connected)
