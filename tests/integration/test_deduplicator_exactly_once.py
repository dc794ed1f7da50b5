"""The real deduplicator on a real broker, killed, joined and frozen in mid-stream: its topics are those of a quiet run."""

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

from kalshibook_core.kafka import topics
from kalshibook_core.kafka.cluster import Cluster, partition_of
from kalshibook_core.kafka.consumer import Consumer, TopicPartition
from kalshibook_core.kafka.producer import Producer
from kalshibook_core.kafka.reader import read_partition
from kalshibook_core.runtime import metrics
from kalshibook_core.runtime.settings import NOWHERE
from kalshibook_core.wire import codec
from kalshibook_core.wire.events import BookDelta, BookSnapshot, Gap, Lifecycle, RawFrame, Ticker, Trade
from kalshibook_tools.verify import copies, truth
from services.deduplicator.partition import Partition
from services.deduplicator.restore import BrokenLog, restore
from services.deduplicator.serve import Member
from services.deduplicator.settings import Settings
from tests.unit.deduplicator.source import T0, Source

DEADLINE = 120
FRAMES = 4000
WINDOW = 7  # trades; few, so that what a restart reads of them is a tail
WRITTEN = (topics.BOOK, topics.TRADES, topics.TICKERS, topics.LIFECYCLE)
Streams = dict[tuple[str, int], list[object]]
Process = subprocess.Popen[bytes]


def life(seed: int) -> Iterator[RawFrame]:
    """Nine markets of one gatherer: deltas that mostly fit, trades, breaks with and without a word, definitions, junk."""
    rng = random.Random(seed)
    sources = [Source(ticker=f"KXKILL-{n}.5") for n in range(9)]
    for n in range(FRAMES):
        g = rng.choice(sources)
        at = n * 1000
        match rng.choices(range(9), [70, 2, 2, 10, 1, 1, 2, 1, 1])[0]:
            case 0:
                yield g.delta(at, rng.choice(["yes", "no"]), rng.randrange(100, 9900, 100), rng.randrange(-2, 60))
            case 1 | 2 as solicited:
                levels = {rng.randrange(100, 9900, 100): rng.randrange(1, 99) for _ in range(rng.randrange(9))}
                yield g.snapshot(at, levels, {}, solicited == 2)
            case 3:
                yield g.trade(at, f"{g.ticker}-{rng.randrange(200)}")
            case 4:
                yield g.broken(at, rng.choice(["orderbook_delta", "trade"]))
            case 5:
                yield g.resumed(at)
            case 6:
                yield g.lifecycle(at, event_type="metadata_updated", floor_strike=rng.randrange(3))
            case 7:
                g.generation = T0 + at
                yield g.snapshot(at, {5000: 1}, {})
            case 8:
                yield g.raw("FRAME", "orderbook_delta", at, b"\xff not a message")


async def publish(cluster: Cluster, seed: int, raws: Iterable[RawFrame] = ()) -> None:
    async with Producer(cluster) as producer:
        for raw in raws or life(seed):
            tickers = [raw.market_ticker]
            if raw.kind == "START":
                tickers = list({partition_of(f"@{n}".encode(), cluster.partitions): f"@{n}" for n in range(99)}.values())
            for ticker in tickers:
                producer.add(topics.RAW, ticker.encode(), codec.encode(raw._replace(market_ticker=ticker)))
        producer.add(topics.RAW, b"KXKILL-0.5", b"not ours")
        producer.add(topics.RAW, b"KXKILL-1.5", codec.encode(next(life(seed)))[:-9])


async def quiet(cluster: Cluster) -> Streams:
    """What the pure core makes of the raw topic, uninterrupted."""
    made: Streams = {(topic.name, p): [] for topic in WRITTEN for p in range(cluster.partitions)}
    kinds = {BookSnapshot: "book", BookDelta: "book", Trade: "trades", Ticker: "tickers", Lifecycle: "lifecycle"}
    for number in range(cluster.partitions):
        partition = Partition(WINDOW)
        async for record in read_partition(cluster, topics.RAW, number):
            try:
                raw = codec.decode(record.value)
            except codec.Undecodable:
                continue
            for event in partition.receive(raw, record.offset):
                name = f"kalshi.{kinds.get(type(event)) or ('book' if event.version else 'trades')}.v1"  # type: ignore[union-attr]
                made[name, number].append(event)
    return made


async def written(cluster: Cluster) -> Streams:
    return {
        (topic.name, p): [codec.decode(record.value) async for record in read_partition(cluster, topic, p)]
        for topic in WRITTEN
        for p in range(cluster.partitions)
    }


@contextmanager
def deduplicator(cluster: Cluster, log: Path, instance: str = "") -> Iterator[Process]:
    env = {
        **os.environ,  # noqa: TID251
        "KB_KAFKA_BROKERS": cluster.brokers,
        "KB_TOPIC_PREFIX": cluster.prefix,
        "KB_KAFKA_PARTITIONS": str(cluster.partitions),
        "KB_INSTANCE": instance,
        "KB_DEDUPLICATOR_BATCH": "40",
        "KB_DEDUPLICATOR_LINGER_MS": "0",
        "KB_DEDUPLICATOR_TRADE_WINDOW": str(WINDOW),
        "KB_DEDUPLICATOR_SAVE_EVERY": "150",  # so that a restart has savepoints behind it, and something to do again
    }
    with log.open("ab") as out:
        process = subprocess.Popen([sys.executable, "-m", "services.deduplicator"], env=env, stderr=out)
    try:
        yield process
    finally:
        if process.poll():
            sys.stdout.write(log.read_text()[-5000:])  # why it ended by itself
        process.kill()
        process.wait()


class Progress:
    """How many canonical book events are committed, as a reader sees it."""

    def __init__(self, consumer: Consumer, processes: list[Process]) -> None:
        self._consumer = consumer
        self.processes = processes
        self.count = 0

    async def reach(self, count: int) -> None:
        async with asyncio.timeout(DEADLINE):
            while self.count < count:
                assert all(process.poll() is None for process in self.processes), "a deduplicator ended by itself"
                self.count += sum(map(len, (await self._consumer.poll(timeout_ms=100)).values()))


def book_events(streams: Streams) -> int:
    return sum(len(events) for (name, _), events in streams.items() if name == topics.BOOK.name)


async def expect(cluster: Cluster, expected: Streams, progress: Progress) -> None:
    await progress.reach(book_events(expected))
    async with asyncio.timeout(DEADLINE):
        while (shown := await written(cluster)) != expected:  # the last transactions of other topics may be under way
            assert all(events == expected[where][: len(events)] for where, events in shown.items())


@asynccontextmanager
async def joined(cluster: Cluster, logs: Path, alone: int, both: int) -> AsyncIterator[tuple[Process, Process, Progress]]:
    """One process until so many events are there, then a second beside it: in the midst of the rebalance, or just after it."""
    async with Consumer(cluster, [topics.BOOK]) as reader:
        progress = Progress(reader, [])
        with deduplicator(cluster, logs / "a") as a:
            progress.processes = [a]
            await progress.reach(alone)
            with deduplicator(cluster, logs / "b") as b:
                await progress.reach(both)
                yield a, b, progress


async def killed_at_random_points(cluster: Cluster, log: Path, expected: Streams, seed: int) -> None:
    """One process after another, each killed in mid-stream, the last stopped: together they write what is expected."""
    # By one name, so that each has the partitions at once, and with them what the killed one left of a transaction.
    rng = random.Random(seed)
    total = book_events(expected)
    async with Consumer(cluster, [topics.BOOK]) as reader:
        progress, reached = Progress(reader, []), list[int]()
        for part in range(1, 5):
            with deduplicator(cluster, log, "one") as process:
                progress.processes = [process]
                goal = max(progress.count + 1, total * part // 6 + rng.randrange(-50, 50))
                await progress.reach(min(goal, total))  # it may have come to the end while this process had no turn
                process.kill()
            progress.processes = []
            reached.append(progress.count)
        assert reached[0] < total  # it was killed in mid-stream
        restored = log.read_text().count('"event": "restored"')
        with deduplicator(cluster, log, "one") as process:
            progress.processes = [process]
            await expect(cluster, expected, progress)
            async with asyncio.timeout(DEADLINE):  # until it listens for a signal: the lives before may have written all
                while log.read_text().count('"event": "restored"') == restored:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(process.wait, DEADLINE) == 0, log.read_text()


async def test_killed_at_random_points_it_writes_what_it_would_have_written(cluster: Cluster, tmp_path: Path) -> None:
    await publish(cluster, seed=3)
    expected = await quiet(cluster)
    assert any(isinstance(event, Gap) for events in expected.values() for event in events)
    await killed_at_random_points(cluster, tmp_path / "log", expected, seed=3)


def hurt(seed: int) -> list[RawFrame]:
    """Three gatherers that hand markets over to other connections, and are killed, cut and delayed."""
    happened = truth.generate(4000, seed, tickers=9)
    return [told.raw for told in copies.publish(happened, ["g1", "g2", "g3"], seed, copies.Hurts(move=2000))]


async def test_three_gatherers_and_a_killed_deduplicator_make_the_true_stream(cluster: Cluster, tmp_path: Path) -> None:
    raws = hurt(7)
    assert {"START", "BREAK"} < {raw.kind for raw in raws} and any(raw.detail == "moved" for raw in raws)
    await publish(cluster, 7, raws)
    await killed_at_random_points(cluster, tmp_path / "log", await quiet(cluster), seed=7)


async def test_killed_while_another_joins_three_gatherers_make_the_same_stream(cluster: Cluster, tmp_path: Path) -> None:
    await publish(cluster, 8, hurt(8))
    expected = await quiet(cluster)
    total = book_events(expected)
    async with joined(cluster, tmp_path, total // 4, total // 3) as (a, b, progress):
        a.kill()
        progress.processes = [b]
        await expect(cluster, expected, progress)


async def test_a_gatherer_that_lies_is_told_by_name(cluster: Cluster) -> None:
    a, b, c = (Source(f"g{n}", generation=T0 + n, ticker="KXLIES") for n in (1, 2, 3))
    raws = [source.snapshot(10_000_000, {4800: 1000}, {}) for source in (a, b, c)]
    for at, lie in ((11_000_000, 100), (12_000_000, 100), (13_000_000, 777)):
        raws += [source.delta(at, "yes", 4800, lie if source is b else 100) for source in (a, b, c)]
    await publish(cluster, 0, raws)
    member, stop = Member(Settings(cluster, 100, 0, 100, 1000, 300_000_000, 1000, NOWHERE)), asyncio.Event()
    metrics.check("deduplicator", member.counters())
    async with asyncio.TaskGroup() as tasks, asyncio.timeout(DEADLINE):
        tasks.create_task(member.run(stop))
        while member.counters()["frames_total"] != len(raws) + 2:  # noqa: ASYNC110  (watched from outside)
            await asyncio.sleep(0.05)
        counters = member.counters()
        stop.set()
    assert counters["gatherer_contradictions_total"] == counters["gatherer_excluded_markets"] == {"g1": 0, "g2": 1, "g3": 0}
    assert counters["gatherer_led_total"] == {"g1": 4, "g2": 0, "g3": 0}
    assert counters["gatherer_confirmed_total"] == {"g1": 0, "g2": 2, "g3": 3}
    assert counters["gatherer_records_total"] == {"g1": 4, "g2": 4, "g3": 4}


async def test_a_second_process_joins_and_a_frozen_one_comes_back(cluster: Cluster, tmp_path: Path) -> None:
    await publish(cluster, seed=4)
    expected = await quiet(cluster)
    total = book_events(expected)
    async with joined(cluster, tmp_path, total // 5, total // 3) as (a, b, progress):
        a.send_signal(signal.SIGSTOP)  # holds its state, and maybe a transaction, while b takes over
        progress.processes = [b]
        await progress.reach(total // 2)
        a.send_signal(signal.SIGCONT)
        progress.processes = [a, b]
        await expect(cluster, expected, progress)


async def test_fenced_it_writes_nothing_more_and_begins_anew(cluster: Cluster, tmp_path: Path) -> None:
    await publish(cluster, seed=5)
    async with Consumer(cluster, [topics.BOOK]) as reader:
        with deduplicator(cluster, tmp_path / "log") as process:
            progress = Progress(reader, [process])
            await expect(cluster, await quiet(cluster), progress)
            for number in range(cluster.partitions):
                async with Producer(cluster, f"{cluster.group('kb-deduplicator')}-{number}"):
                    pass  # whoever starts last with a transactional id fences the others
            await publish(cluster, seed=6)
            await expect(cluster, await quiet(cluster), progress)
    assert '"event": "fenced"' in (tmp_path / "log").read_text()


async def test_trades_before_a_savepoint_are_known_though_the_oldest_are_gone(cluster: Cluster) -> None:
    key = b"KXKILL-0.5"
    trades = [Trade(key.decode(), f"t{n}", T0 + n, T0, 1, 9999, 1, 0, None, "g1", 0, T0, 2, n, n) for n in range(100)]
    where = TopicPartition(cluster.topic(topics.TRADES), partition_of(key, cluster.partitions))
    saved = Partition()
    saved.receive(Source(ticker=key.decode()).resumed(1), 89)
    async with Producer(cluster) as producer:
        for trade in trades:
            producer.add(topics.TRADES, key, codec.encode(trade))
        for memory in saved.memories(89):
            producer.add(topics.MEMORY, key, codec.encode(memory))
    client = AIOKafkaAdminClient(bootstrap_servers=cluster.brokers)
    await client.start()
    await client.delete_records({where: RecordsToDelete(before_offset=50)})
    await client.close()

    async def committed() -> int:
        return 90

    for size in (1, 7, 35, 60):
        partition = Partition(size)
        assert await restore(cluster, where.partition, partition, committed) == 90
        assert [f"t{n}" in partition.window for n in range(100)] == [max(50, 90 - size) <= n < 90 for n in range(100)]


async def test_a_log_that_is_not_what_the_raw_records_make_is_not_continued(cluster: Cluster) -> None:
    source = Source(ticker="KXKILL-0.5")
    raws = [source.snapshot(1, {4800: 5}, {}), source.delta(2, "yes", 4800, 1), source.delta(3, "yes", 4800, 1)]
    number = partition_of(b"KXKILL-0.5", cluster.partitions)
    made = Partition()
    events = [event for offset, raw in enumerate(raws) for event in made.receive(raw, offset)]
    await publish(cluster, 0, raws)
    async with Producer(cluster) as producer:
        assert isinstance(events[1], BookDelta)
        for event in (events[0], events[1]._replace(checksum=7)):
            producer.add(topics.BOOK, b"KXKILL-0.5", codec.encode(event))

    async def committed() -> int:
        return 2

    with pytest.raises(BrokenLog, match="checksum 7"):
        await restore(cluster, number, Partition(), committed)
