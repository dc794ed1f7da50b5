"""The broker goes away under load and the gatherer is killed meanwhile: each frame is in the topic once, or behind a BREAK."""

import asyncio
import os
import resource
import signal
import socket
import uuid
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
import pytest_asyncio

from kalshibook_core.kafka import admin, topics
from kalshibook_core.kafka.cluster import Cluster
from kalshibook_core.kafka.consumer import Consumer, TopicPartition
from kalshibook_core.kafka.reader import read_partition
from kalshibook_core.kalshi import messages
from kalshibook_core.wire import codec
from kalshibook_core.wire.events import RawFrame
from kalshibook_tools import simulator
from kalshibook_tools.stack import External, Process, Stack, local_stack
from kalshibook_tools.stack.probe import kafka_answers
from services.ingest import outbox
from services.ingest.settings import SpoolSettings
from tests.integration.test_ingest_capture import ALWAYS
from tests.integration.test_ingest_process import environment, process
from tests.support.parts import Parts
from tests.support.service import own_port

pytestmark = [pytest.mark.stack, pytest.mark.asyncio(loop_scope="module")]

BOOK, TRADE = "orderbook_delta", "trade"


@dataclass
class Scene:
    """The broker, with topics of this test's own, the simulator, and what a gatherer is told."""

    broker: Process
    cluster: Cluster
    exchange: simulator.Running
    env: dict[str, str]

    async def back(self) -> None:
        """Start the killed broker again."""
        await self.broker.start()
        port = int(self.cluster.brokers.rpartition(":")[2])
        await self.broker.ready(lambda: kafka_answers(port), 60)

    async def until(self, seen: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
        """Wait for a condition on what the gatherer says of itself."""
        last: dict[str, Any] = {}
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.env['KB_HEALTH_PORT']}", trust_env=False) as client:
            try:
                async with asyncio.timeout(60):
                    while True:
                        try:
                            last = (await client.get("/status")).json()["counters"]
                        except httpx.HTTPError:
                            last = {}
                        if last and seen(last):
                            return last
                        await asyncio.sleep(0.05)
            except TimeoutError:
                raise AssertionError(f"never came: {what}; has {last}") from None

    async def delivering(self) -> None:
        """Wait until the topic grows."""
        where = [TopicPartition(self.cluster.topic(topics.RAW), each) for each in range(self.cluster.partitions)]
        async with Consumer(self.cluster, [topics.RAW]) as consumer, asyncio.timeout(60):
            first = await consumer.end_offsets(where)
            while await consumer.end_offsets(where) == first:
                pass

    async def raw(self) -> list[RawFrame]:
        """Return the whole raw topic, each partition in its order."""
        out: list[RawFrame] = []
        for partition in range(self.cluster.partitions):
            async with aclosing(read_partition(self.cluster, topics.RAW, partition)) as records:
                out += [codec.decode(record.value) async for record in records if record.value is not None]
        return out


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def own(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """A broker that these tests may stop and kill."""
    others = External(None, parts.postgres, parts.redis)
    async with local_stack(tmp_path_factory.mktemp("stack"), external=others, kafka_heap="384m") as stack:
        yield stack


@asynccontextmanager
async def scene(own: Stack, folder: Path, **env: str) -> AsyncIterator[Scene]:
    async with simulator.serve(simulator.Config(folder, markets=6, rate=600.0, seed=5, window=ALWAYS)) as exchange:
        cluster = Cluster(own.addresses.kafka, f"t{uuid.uuid4().hex[:8]}.")
        told = environment(cluster, exchange) | {
            "KB_SPOOL": str(folder / "spool"), "KB_HEALTH_PORT": str(own_port()), "KB_SUBSCRIPTIONS_PER_CONNECTION": "3", **env,
        }  # fmt: skip
        now = Scene(own.processes["kafka"], cluster, exchange, told)
        if now.broker.pid is None:  # a test that failed left it so
            await now.back()
        assert now.broker.pid is not None
        os.kill(now.broker.pid, signal.SIGCONT)
        await admin.ensure_topics(cluster)
        yield now


def assert_whole(records: list[RawFrame], killed: Collection[int] = ()) -> None:
    """Every sid's seq runs from 1 without a hole or a repetition; no market has a frame after its BREAK but from a new start.

    Of generations that were `killed` when frames went straight to the broker each market has a first part, by
    `assert_what_was_sent`; so a sid may lack what lies behind the last frame of one of its markets.
    """
    runs: dict[tuple[int, int, int], list[int]] = {}
    last: dict[tuple[str, str, int, int], int] = {}
    broken: set[tuple[str, str, int]] = set()
    for r in records:
        if r.kind == "BREAK":
            broken.add((r.market_ticker, r.channel, r.generation))
        if r.kind != "FRAME" or r.seq < 0:
            continue
        assert (r.market_ticker, r.channel, r.generation) not in broken
        runs.setdefault((r.connection, r.generation, r.sid), []).append(r.seq)
        where = (r.market_ticker, r.channel, r.generation, r.sid)
        assert r.seq > last.get(where, 0)
        last[where] = r.seq
    for (connection, generation, sid), seqs in runs.items():
        assert len(set(seqs)) == len(seqs)
        missing = set(range(1, max(seqs))) - set(seqs)
        ends = [seq for (_, _, *of), seq in last.items() if of == [generation, sid]]
        assert not missing or (generation in killed and min(missing) > min(ends)), (connection, generation, sid, missing)


def assert_what_was_sent(scene: Scene, records: list[RawFrame]) -> None:
    """Each delta of a generation is one the exchange sent, and none between its first and its last is left out."""
    for ticker in {r.market_ticker for r in records if r.channel == BOOK}:
        truth = [
            (e["side"], e["price"], e["delta"], e["ts_us"])
            for e in scene.exchange.truth(ticker)
            if e["type"] == "delta" and e["sent"]
        ]
        for generation in {r.generation for r in records if r.market_ticker == ticker and r.channel == BOOK}:
            frames = [
                r for r in records if (r.kind, r.market_ticker, r.generation, r.channel) == ("FRAME", ticker, generation, BOOK)
            ]
            read = [messages.parse_book(messages.envelope(r.payload), False) for r in frames]
            got = [(("yes", "no")[d.side], d.price, d.delta, d.exchange_us) for d in read if isinstance(d, messages.Delta)]
            starts = [i for i in range(len(truth) - len(got) + 1) if truth[i : i + len(got)] == got]
            assert starts, f"{ticker} of {generation}: {len(got)} deltas are no run of what was sent"


def frames_of(records: list[RawFrame], generation: int) -> list[RawFrame]:
    return [r for r in records if r.kind == "FRAME" and r.generation == generation and r.channel == BOOK]


@pytest.mark.parametrize("away", ["stands still", "is killed"])
async def test_no_frame_is_lost_or_repeated_over_an_outage_and_a_kill(own: Stack, tmp_path: Path, away: str) -> None:
    """The gatherer is killed while it spools, and once more while it delivers what the first life left."""
    async with scene(own, tmp_path) as now:
        async with process(now.env) as first:
            await now.until(lambda c: c["frames_total"] > 300 and c["broker"] == "direct", "traffic")
            pid = now.broker.pid
            assert pid is not None
            os.kill(pid, signal.SIGSTOP if away == "stands still" else signal.SIGKILL)
            if away == "is killed":
                await now.broker.wait()
            await now.until(lambda c: c["broker"] == "spooling" and c["spooled_total"] > 1500, "frames in the spool")
            first.kill()
            await first.wait()
        async with process(now.env) as second:
            await now.until(lambda c: c["broker"] != "direct" and c["spooled_total"] > 600, "frames in the spool again")
            if away == "is killed":
                await now.back()
            else:
                os.kill(pid, signal.SIGCONT)
            await now.delivering()
            second.kill()
            await second.wait()
        async with process(now.env) as third:
            delivered = await now.until(lambda c: c["broker"] == "direct" and c["spool_bytes"] == 0, "everything delivered")
            await now.until(lambda c: c["frames_total"] > delivered["frames_total"] + 300, "books to break")
            now.exchange.pause()
            third.send_signal(signal.SIGTERM)
            async with asyncio.timeout(60):
                assert await third.wait() == 0
        records = await now.raw()
        each = [sorted({r.generation for r in records if r.kind == "FRAME" and r.connection == number}) for number in (0, 1)]
        lives = each[0]
        assert [len(generations) for generations in each] == [3, 3]
        assert_whole(records, killed={generations[1] for generations in each})
        assert_what_was_sent(now, records)
        for life in (0, 1):  # killed: its frames are there though the broker never answered it again
            assert sum(len(frames_of(records, generations[life])) for generations in each) > 200
        assert {r.generation for r in records if r.kind == "BREAK" and r.connection == 0} == {lives[2]}


async def test_stopped_while_the_broker_is_away_it_leaves_its_breaks_for_the_next_life(own: Stack, tmp_path: Path) -> None:
    async with scene(own, tmp_path, KB_SPOOL_SYNC="always") as now:
        async with process(now.env) as first:
            await now.until(lambda c: c["frames_total"] > 300 and c["broker"] == "direct", "traffic")
            assert now.broker.pid is not None
            os.kill(now.broker.pid, signal.SIGKILL)
            await now.broker.wait()
            await now.until(lambda c: c["spooled_total"] > 300, "frames in the spool")
            first.send_signal(signal.SIGTERM)
            async with asyncio.timeout(60):
                assert await first.wait() == 0
        await now.back()
        async with process(now.env) as second:
            await now.until(lambda c: c["broker"] == "direct" and c["spool_bytes"] == 0, "everything delivered")
            second.send_signal(signal.SIGTERM)
            async with asyncio.timeout(60):
                assert await second.wait() == 0
        records = await now.raw()
        assert_whole(records)
        first_life = min(r.generation for r in records if r.kind == "FRAME")
        markets = {r.market_ticker for r in records if r.channel == BOOK and r.generation == first_life}
        said = {r.market_ticker for r in records if (r.kind, r.channel, r.generation) == ("BREAK", BOOK, first_life)}
        assert said == markets


async def test_a_full_spool_breaks_every_market_and_keeps_what_came_first(own: Stack, tmp_path: Path) -> None:
    """Full by its bound; then by its disk, in the midst of an outage and from its beginning on. It goes on when there is room."""
    registry = {"KB_REGISTRY": str(tmp_path / "registry"), "KB_RECONCILE_SECONDS": "1"}
    async with scene(own, tmp_path, KB_SPOOL_BYTES=str(1024 * 1024), **registry) as now:
        async with process(now.env) as running:
            await now.until(lambda c: c["frames_total"] > 300 and c["broker"] == "direct", "traffic")
            assert now.broker.pid is not None
            os.kill(now.broker.pid, signal.SIGSTOP)
            await now.until(lambda c: c["spool_bytes"] > 1024 * 1024 and c["connections"] == 0, "a full spool")
            os.kill(now.broker.pid, signal.SIGCONT)
            await now.until(lambda c: c["broker"] == "direct" and c["connections"] > 1, "everything delivered, and capturing")
            for before_the_outage in (False, True):
                if before_the_outage:
                    disk(running.pid, full=True)
                spooled = (await now.until(lambda c: c["buffered_bytes"] < 1024 * 1024, "its counters"))["spooled_total"]
                os.kill(now.broker.pid, signal.SIGSTOP)
                if not before_the_outage:
                    await now.until(lambda c, spooled=spooled: c["spooled_total"] > spooled, "frames in the spool")  # type: ignore[misc]
                    disk(running.pid, full=True)
                await now.until(lambda c: c["connections"] == 0, "a full disk")
                if not before_the_outage:
                    disk(running.pid, full=False)
                os.kill(now.broker.pid, signal.SIGCONT)
                await now.until(lambda c: c["broker"] == "direct" and c["connections"] > 1, "everything delivered, and capturing")
            running.send_signal(signal.SIGTERM)
            async with asyncio.timeout(60):
                assert await running.wait() == 0
        records = await now.raw()
        assert_whole(records)
        assert_what_was_sent(now, records)
        outage = [r for r in records if r.detail == "broker_outage"]
        markets = {r.market_ticker for r in records if r.kind == "FRAME" and b"orderbook_snapshot" in r.payload}
        assert {r.market_ticker for r in outage if r.channel == BOOK} == {r.market_ticker for r in outage if r.channel == TRADE}
        assert {r.market_ticker for r in outage} >= {
            t for t in markets if len({r.generation for r in records if r.market_ticker == t}) > 1
        }
        assert all(frame["type"] for frame in (orjson.loads(r.payload) for r in records if r.kind == "FRAME"))


def disk(pid: int, full: bool) -> None:
    """Let no file of a process take another byte, as a full disk does."""
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0 if full else hard, hard))


async def test_without_a_spool_memory_is_the_bound(own: Stack, tmp_path: Path) -> None:
    """The broker stands still, the buffer fills: breaks that say broker_outage, and everything before them is delivered."""
    async with scene(own, tmp_path, KB_SPOOL="", KB_BUFFER_BYTES=str(1024 * 1024)) as now:
        async with process(now.env) as running:
            await now.until(lambda c: c["frames_total"] > 300, "traffic")
            assert now.broker.pid is not None
            os.kill(now.broker.pid, signal.SIGSTOP)
            before = (await now.until(lambda c: c["connections"] == 0, "the connections broken off"))["trade_frames_total"]
            os.kill(now.broker.pid, signal.SIGCONT)
            # Frames, since a connection that has subscribed nothing yet has nothing to break.
            await now.until(lambda c: c["connections"] > 1 and c["trade_frames_total"] > before, "capturing again")
            running.send_signal(signal.SIGTERM)
            async with asyncio.timeout(60):
                assert await running.wait() == 0
        records = await now.raw()
        assert_whole(records)
        assert {r.detail for r in records if r.kind == "BREAK" and r.generation} == {"broker_outage", "disconnect"}


@pytest.mark.parametrize(
    ("sync", "each_seconds", "brought"),
    [("never", 0.0, False), ("interval", 0.0, True), ("interval", 1e9, False), ("always", 1e9, True)],
)
async def test_what_is_spooled_is_brought_to_the_disk_as_often_as_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sync: str, each_seconds: float, brought: bool
) -> None:
    """No broker answers here. Closing brings all of it to the disk in any case, and is not looked at."""
    synced: list[str] = []
    fsync = os.fsync

    def noting(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").resolve().suffix)
        fsync(descriptor)

    monkeypatch.setattr(outbox, "CONNECT_SECONDS", 0.1)
    monkeypatch.setattr(outbox, "SYNC_SECONDS", each_seconds)
    monkeypatch.setattr(os, "fsync", noting)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nowhere = Cluster(f"127.0.0.1:{closed.getsockname()[1]}")
        async with outbox.Outbox(nowhere, SpoolSettings(tmp_path, sync=sync), "g1", 1 << 20) as box:
            for number in range(2):  # the second one is written after the turn in which the first was brought to the disk
                box.add(b"KXDOG", b"%d" % number, 0)
                await box.safe()
            assert (".spool" in synced) == brought
