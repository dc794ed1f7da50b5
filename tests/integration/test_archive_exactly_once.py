"""Whatever happens to the archive's writer or to its storage, each record is in the archive once."""

import asyncio
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kalshibook_core.archive.reader import Archive
from kalshibook_core.archive.store import Folder, Store
from kalshibook_core.kafka import topics
from kalshibook_core.kafka.producer import Producer
from kalshibook_core.wire import codec
from kalshibook_core.wire.events import TRADES, Checkpoint, Gap, Lifecycle, Ticker, Trade
from tests.support import archive as made
from tests.support import s3 as servers
from tests.support.service import Service, until

ROOT = Path(__file__).parents[2]


def test_killed_at_every_step_of_a_commit_it_loses_and_repeats_nothing(tmp_path: Path) -> None:
    events = made.book(1, 240)
    command = [sys.executable, "-m", "tests.support.dying_archive", str(tmp_path), str(len(events))]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert told.returncode == 0, told.stderr
    assert int(told.stdout) > 40  # more steps than a commit has, each of them the last one once
    rows = dict(made.everything(Archive(Folder(tmp_path)), "kalshi.book.v1")[0])
    assert len(rows) == len(events)
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.suffix == ".tmp" for path in left)  # torn files there are, and nobody took them for rows
    held = Archive(Folder(tmp_path))
    named = {entry.path for commit in held.held("kalshi.book.v1")[0].chain.commits for entry in held.files(commit)}
    assert any(path.suffix == ".parquet" and path.relative_to(tmp_path).as_posix() not in named for path in left)


async def produce(cluster, topic, events) -> None:
    async with Producer(cluster) as producer:
        for event in events:
            producer.add(topic, event.market_ticker.encode(), codec.encode(event))
        await producer.flush()


def at_least(store: Store, topic: str, number: int):
    async def reached() -> bool:
        def rows() -> int:
            held = Archive(store)
            commits = [commit for each in held.held(topic) for commit in each.chain.commits]
            return sum(entry.rows for commit in commits for entry in held.files(commit))

        return await asyncio.to_thread(rows) >= number

    return reached


@pytest.mark.stack
async def test_kill_9_at_random_moments_and_a_storage_that_goes_away(cluster, tmp_path: Path):
    chance = random.Random(3)
    frames, events = made.raw(1, 5_000), made.book(2, 1_500)
    await produce(cluster, topics.RAW, frames)
    await produce(cluster, topics.BOOK, events)
    place = tmp_path / "archive"
    place.write_text("not a folder yet")
    env = {"KB_ARCHIVE": str(place), "KB_ARCHIVE_ROWS": "200", "KB_ARCHIVE_SECONDS": "0.2", "KB_INSTANCE": "a"}
    async with Service("persister.archive", cluster, tmp_path / "archive.log", **env) as service:

        async def away() -> bool:
            return await service.counter("store") == "away" and (await service.counter("retries_total") or 0) > 0

        await until(away)
        assert not (await service.status())["ready"]
        place.unlink()
        for _ in range(2):
            await service.ready()
            await until(at_least(Folder(place), "kalshi.raw.v1", chance.randrange(4_000)))
            service.kill()
            service.start()
        await until(at_least(Folder(place), "kalshi.raw.v1", len(frames)))
        await until(at_least(Folder(place), "kalshi.book.v1", len(events)))
        await service.ready()  # a SIGTERM before it listens for one would end it undrained
        assert await service.drain() == 0
        (place / "log.json").write_text('{"log": "another/"}')
        service.start()
        assert await asyncio.to_thread(service.process.wait, 60) == 2
        assert "name an empty place" in service.log.read_text()
    held = Archive(Folder(place))
    kept = [raw for rows in made.everything(held, "kalshi.raw.v1").values() for _, raw in rows]
    assert sorted(kept) == sorted(frames)
    assert sorted(raw.raw_offset for rows in made.everything(held, "kalshi.book.v1").values() for _, raw in rows) == list(
        range(len(events))
    )


@pytest.mark.stack
async def test_a_zombie_that_wakes_beside_its_successor_repeats_nothing(cluster, tmp_path: Path):
    frames = made.raw(5, 3_000)
    await produce(cluster, topics.RAW, frames[:2_000])
    place = tmp_path / "a"
    place.mkdir()
    (place / "raw").write_text("not a folder yet")
    env = {"KB_ARCHIVE": str(place), "KB_ARCHIVE_SECONDS": "0.1", "KB_INSTANCE": "one"}
    async with Service("persister.archive", cluster, tmp_path / "zombie.log", **env) as zombie:

        async def holds_a_commit() -> bool:
            return (await zombie.counter("retries_total") or 0) > 0

        await until(holds_a_commit)
        zombie.send(signal.SIGSTOP)
        (place / "raw").unlink()
        quick = env | {"KB_ARCHIVE_ROWS": "77"}
        async with Service("persister.archive", cluster, tmp_path / "heir.log", **quick) as heir:
            await until(at_least(Folder(place), "kalshi.raw.v1", 2_000))
            zombie.send(signal.SIGCONT)  # it writes the commit it holds before it hears that the partitions are another's
            assert await asyncio.to_thread(zombie.process.wait, 60) == 1
            await produce(cluster, topics.RAW, frames[2_000:])
            await until(at_least(Folder(place), "kalshi.raw.v1", 3_000))
            assert await heir.drain() == 0
    taken = {c for each in Archive(Folder(place)).held("kalshi.raw.v1") for c in each.chain.commits}
    assert len(list((place / "commits" / "kalshi.raw.v1").rglob("*.json"))) > len(taken)  # it wrote
    kept = [raw for rows in made.everything(Archive(Folder(tmp_path / "a")), "kalshi.raw.v1").values() for _, raw in rows]
    assert sorted(kept) == sorted(frames)


@pytest.mark.stack
async def test_every_topic_arrives_in_s3(cluster, s3: servers.S3, tmp_path: Path):
    at = 100 * made.DAY_US
    book = made.book(1, 200)
    events = {
        topics.RAW: made.raw(1, 200),
        topics.BOOK: book,
        topics.TRADES: [
            Trade("KXA-1", "t1", at, at + 1, 4800, 5200, 7, 1, None, "g1", 0, 1, 2, 3, 4),
            Gap("KXA-1", 0, at, TRADES, at, None, "disconnect", at, 0, "g1", 0, 1, 5),
        ],
        topics.TICKERS: [Ticker("KXA-1", at, at + 1, 1, None, 3, 4, 5, 6, 7, 8, 9, None, 6)],
        topics.LIFECYCLE: [Lifecycle("KXA-1", "created", at, at, b'{"a":1}', 7)],
        topics.CHECKPOINTS: [Checkpoint("KXA-1", 3, at, [(1, 2)], [], 77, None, None, "g1", 0, 1, 8, 9)],
    }
    for topic, of in events.items():
        await produce(cluster, topic, of)
    async with Producer(cluster) as producer:
        producer.add(topics.CHECKPOINTS, b"KXA-1", None)
        producer.add(topics.RAW, b"KXA-1", b"\x00no frame")
        await producer.flush()
    place = f"s3://{servers.BUCKET}/under/here"
    env = servers.KEYS | {"KB_ARCHIVE": place, "AWS_ENDPOINT_URL": s3.endpoint, "KB_ARCHIVE_SECONDS": "0.2"}
    store = s3.bucket("under/here")
    async with Service("persister.archive", cluster, tmp_path / "archive.log", **env) as service:

        async def all_read() -> bool:
            counted = (await service.status()).get("counters", {})
            return sum(v for name, v in counted.items() if name.endswith("_rows_total")) == sum(map(len, events.values())) + 1

        await until(all_read)
        assert await service.drain() == 0
    held = Archive(store)
    for topic, of in events.items():
        rows = [row for rows in made.everything(held, topic.name).values() for row in rows]
        got = [event for _, event in rows if getattr(event, "kind", "") != "UNREADABLE"]
        assert sorted(map(repr, got)) == sorted(repr(made.bare(event)) for event in of)
    for entry in held.files(held.held("kalshi.trades.v1")[0].chain.commits[0]):
        assert held.quarantine(made.damaged(entry.path)) == f"quarantine/{entry.path}"
        assert held.quarantine(made.damaged(entry.path)) is None
