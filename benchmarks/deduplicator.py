"""How many raw frames a second one deduplicator process takes, beside the same loop that only passes the bytes on.

Both read the raw topic as a group member and write in a transaction a batch and partition; the bare loop neither decodes, nor
numbers, nor encodes. Frames are made by hand in the exchange's form: nine deltas to a trade, 20 markets.
"""

import asyncio
import random
import uuid
from typing import Any

import orjson

from benchmarks import Row
from kalshibook_core.kafka import admin, topics
from kalshibook_core.kafka.cluster import Cluster
from kalshibook_core.kafka.consumer import Consumer
from kalshibook_core.kafka.producer import Producer
from kalshibook_core.runtime import clock
from kalshibook_core.wire import codec
from kalshibook_core.wire.events import RawFrame
from services.deduplicator.serve import Member
from services.deduplicator.settings import Settings

NAME = "deduplicator"
FRAMES = 200_000
BATCH = 4000
T0 = 1_790_000_000_000_000


def run(addresses: Any) -> list[Row]:
    """Measure on the broker at `addresses.kafka`."""
    ours, bare, commit_ms = asyncio.run(_measure(Cluster(addresses.kafka, f"bench-{uuid.uuid4().hex[:8]}.")))
    return [
        Row("deduplicator: raw frames/s of one process", round(ours), "frames/s", round(bare), round(ours / bare, 3)),
        Row("deduplicator: an empty-handed transaction of one frame", round(commit_ms, 2), "ms", None, None),
    ]


async def _measure(cluster: Cluster) -> tuple[float, float, float]:
    await admin.ensure_topics(cluster)
    async with Producer(cluster) as producer:
        for raw in _frames():
            producer.add(topics.RAW, raw.market_ticker.encode(), codec.encode(raw))
            if producer.added % 5000 == 0:
                await producer.room()
    return await _ours(cluster), await _bare(cluster), await _commit_ms(cluster)


async def _ours(cluster: Cluster) -> float:
    member, stop = Member(Settings(cluster, BATCH, 20, 50_000, "127.0.0.1", 0)), asyncio.Event()

    async def watch() -> float:
        while not member.ready():  # noqa: ASYNC110  (watched from outside, as a supervisor would)
            await asyncio.sleep(0.001)
        begun = clock.monotonic()
        while int(member.counters()["frames_total"]) < FRAMES:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        stop.set()
        return FRAMES / (clock.monotonic() - begun)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(member.run(stop))
        rate = tasks.create_task(watch())
    return rate.result()


async def _bare(cluster: Cluster) -> float:
    group = "bench-bare"
    async with Consumer(cluster, [topics.RAW], group) as consumer, asyncio.TaskGroup() as lifetimes:
        producers = [Producer(cluster, f"{cluster.group(group)}-{n}", linger_ms=0) for n in range(cluster.partitions)]
        opened, done = [asyncio.Event() for _ in producers], asyncio.Event()
        for producer, event in zip(producers, opened, strict=True):
            lifetimes.create_task(_keep_open(producer, event, done))
        for event in opened:
            await event.wait()
        begun, count = 0.0, 0
        while count < FRAMES:
            batch = await consumer.poll(BATCH)
            begun = begun or clock.monotonic()
            async with asyncio.TaskGroup() as tasks:
                for where, records in batch.items():
                    count += len(records)
                    tasks.create_task(_pass_on(producers[where.partition], where, records, cluster.group(group)))
        rate = FRAMES / (clock.monotonic() - begun)
        done.set()
    return rate


async def _keep_open(producer: Producer, opened: asyncio.Event, done: asyncio.Event) -> None:
    async with producer:
        opened.set()
        await done.wait()


async def _pass_on(producer: Producer, where: Any, records: list[Any], group: str) -> None:
    async with producer.transaction():
        for record in records:
            producer.add(topics.BOOK, record.key, record.value, record.timestamp)
        await producer.commit_offsets({where: records[-1].offset + 1}, group)


async def _commit_ms(cluster: Cluster) -> float:
    rounds = 50
    async with Producer(cluster, cluster.group("bench-commit"), linger_ms=0) as producer:
        begun = clock.monotonic()
        for _ in range(rounds):
            async with producer.transaction():
                producer.add(topics.BOOK, b"KXBENCH", b"x" * 130)
    return (clock.monotonic() - begun) * 1000 / rounds


def _frames() -> list[RawFrame]:
    rng = random.Random(1)
    tickers = [f"KXBENCH-26NOV21-{n:02d}" for n in range(20)]
    levels = [[f"0.{cents:02d}00", "10000000.00"] for cents in range(1, 99)]
    frames = []
    for seq in range(FRAMES):
        ticker, at = tickers[seq % 20], T0 + seq * 100
        msg: dict[str, object] = {"market_ticker": ticker, "market_id": "4f5c2e39-5132-4147-ba3f-b3485ad89427"}
        if seq < 20:
            kind, sid = "orderbook_snapshot", 1
            msg |= {"yes_dollars_fp": levels, "no_dollars_fp": levels}
        elif rng.random() < 0.1:
            kind, sid = "trade", 2
            msg |= {"trade_id": str(uuid.UUID(int=seq)), "yes_price_dollars": "0.6800", "no_price_dollars": "0.3200",
                    "count_fp": "46.02", "taker_side": "yes", "ts": at // 1_000_000, "ts_ms": at // 1000}  # fmt: skip
        else:
            kind, sid = "orderbook_delta", 1
            msg |= {"price_dollars": f"0.{rng.randrange(1, 99):02d}00", "delta_fp": f"{rng.randrange(-50, 50)}.{seq % 100:02d}",
                    "side": rng.choice(["yes", "no"]), "ts": f"2026-09-21T13:46:4{seq % 10}.{at % 1_000_000:06d}Z",
                    "ts_ms": at // 1000}  # fmt: skip
        payload = orjson.dumps({"type": kind, "sid": sid, "seq": seq, "msg": msg}) + b"\n"
        channel = "trade" if kind == "trade" else "orderbook_delta"
        frames.append(RawFrame("FRAME", "g1", 0, T0, channel, sid, seq, False, ticker, at, at, "", payload))
    return frames
