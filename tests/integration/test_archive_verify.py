"""`kb verify` finds whatever was done to an archive or to the database, names it, and says nothing where nothing was done."""

import asyncio
import random
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import asyncpg
import pytest
from click.testing import CliRunner, Result

from kalshibook_core.archive.reader import Archive
from kalshibook_core.archive.store import Folder
from kalshibook_core.kafka import topics
from kalshibook_core.postgres import pool
from kalshibook_core.wire import codec
from kalshibook_core.wire.events import BookDelta, Checkpoint, RawFrame
from kalshibook_tools.cli.command import kb
from kalshibook_tools.verify import copies, truth
from kalshibook_tools.verify.archive import topic_of
from services.deduplicator.partition import Partition
from services.persister.archive import commit, files
from services.persister.archive.held import Record
from services.persister.batch import Batch
from services.persister.store import Store
from tests.support.archive import records

pytestmark = pytest.mark.stack

Log = dict[str, list[Record]]


def log(events: int, change: Callable[[int, RawFrame], RawFrame] = lambda _, raw: raw) -> Log:
    """Return what the topics of a partition hold: hurt copies of a truth, and what the deduplicator makes of them."""
    told = copies.publish(truth.generate(events, 5), ["g1", "g2"], 5, copies.Hurts())
    raws = records([change(n, each.raw) for n, each in enumerate(told)])
    partition, made = Partition(), defaultdict(list)
    for offset, _, value in raws:
        for event in partition.receive(codec.decode(value), offset):
            if not isinstance(event, RawFrame):
                made[topic_of(event)].append(event)
    books = [event for event in made[topics.BOOK.name] if isinstance(event, BookDelta)]
    made[topics.CHECKPOINTS.name] = [
        Checkpoint(e.market_ticker, e.version, e.effective_us, [], [], e.checksum, None, None, "g1", 0, 1, 0, 0)
        for e in books[::500]
    ]
    return {topics.RAW.name: raws} | {topic: records(of) for topic, of in made.items()}


def write(folder: Path, written: Log) -> None:
    """Archive it, in commits of other lengths for each topic."""
    chance = random.Random(1)

    async def work() -> None:
        for topic, all_of_it in written.items():
            first, left = 0, all_of_it
            while left:
                count = chance.randrange(300, 1_500)
                batch, left = left[:count], left[count:]
                after = batch[-1].offset + 1
                await commit.write(Folder(folder), files.make(topic, 2, first, after, "a", batch), lambda attempt: attempt())
                first = after

    asyncio.run(work())


async def store(dsn: str, written: Log) -> None:
    """Write it to the database, as the persister does."""
    async with await pool.connect_pool(dsn) as connections:
        tables = Store(connections)
        batch = Batch()
        for topic in (topics.BOOK.name, topics.CHECKPOINTS.name):
            batch.add((topic, 2), [SimpleNamespace(offset=each.offset, value=each.value) for each in written[topic]])
        await tables.write(batch, await tables.positions(sorted(batch.next)))


async def verify(folder: Path, dsn: str = "", *arguments: str) -> Result:
    command = ["verify", "--home", str(folder.parent / "none"), "--archive", str(folder), *arguments]
    return await asyncio.to_thread(CliRunner(env={"KB_POSTGRES_DSN": dsn}).invoke, kb, command)


def figure(result: Result, words: str) -> int:
    return next(int(line.split()[0].replace(",", "")) for line in result.stdout.splitlines() if words in line)


async def test_what_was_recorded_proves_itself_and_the_database(database, tmp_path: Path):
    written = log(6_000)
    await asyncio.to_thread(write, tmp_path / "archive", written)
    await store(database, written)
    result = await verify(tmp_path / "archive", database)
    assert result.exit_code == 0, result.output
    canonical = sum(len(of) for topic, of in written.items() if topic not in (topics.RAW.name, topics.CHECKPOINTS.name))
    assert figure(result, "archived events that the raw rows make") == canonical > 5_000
    assert figure(result, "rows of the database that are the events") == len(written[topics.BOOK.name])
    assert figure(result, "checkpoints that equal") == 2 * len(written[topics.CHECKPOINTS.name]) > 10
    middle = codec.decode(written[topics.BOOK.name][3_000].value)
    at = truth.rfc3339(middle.effective_us)
    some = await verify(tmp_path / "archive", database, "--market", middle.market_ticker, "--from", at)
    assert some.exit_code == 0, some.output
    left = [codec.decode(each.value) for each in written[topics.BOOK.name]]
    wanted = sum(e.market_ticker == middle.market_ticker and e.effective_us >= middle.effective_us for e in left)
    assert figure(some, "rows of the database that are the events") == wanted > 100

    connection = await asyncpg.connect(database)
    for change, kind in (
        ("UPDATE book_events SET packed = set_byte(packed, 9, get_byte(packed, 9) # 1) WHERE version < 100", "DATABASE"),
        ("DELETE FROM book_events WHERE version BETWEEN 200 AND 300", "DATABASE"),
        (
            "INSERT INTO book_events SELECT effective_us + 1, market_id, version, events, kind, packed FROM book_events",
            "DATABASE",
        ),
        ("UPDATE checkpoints SET checksum = checksum + 1", "CHECKPOINTS"),
    ):
        before = figure(await verify(tmp_path / "archive", database), kind)
        await connection.execute(change)
        found = await verify(tmp_path / "archive", database)
        assert found.exit_code == 1
        assert figure(found, kind) > before, change
    await connection.close()


async def test_raw_rows_that_make_something_else_are_found(tmp_path: Path):
    written = log(2_000)

    def one_contract_more(n: int, raw: RawFrame) -> RawFrame:
        return raw._replace(payload=raw.payload.replace(b'"delta_fp":"1.00"', b'"delta_fp":"2.00"')) if n % 400 > 390 else raw

    await asyncio.to_thread(write, tmp_path / "a", log(2_000, one_contract_more) | {topics.BOOK.name: written[topics.BOOK.name]})
    result = await verify(tmp_path / "a")
    assert result.exit_code == 1 and figure(result, "EVENTS") > 0 and "the raw rows make" in result.stderr


@pytest.mark.parametrize("topic", [topics.BOOK, topics.TRADES], ids=lambda topic: topic.name)
async def test_an_event_that_is_missing_or_from_nowhere_is_found(tmp_path: Path, topic):
    written = log(2_000)
    events = written[topic.name]
    await asyncio.to_thread(write, tmp_path / "a", written | {topic.name: [*events[:50], *events[51:]]})
    assert (await verify(tmp_path / "a")).exit_code == 1
    await asyncio.to_thread(write, tmp_path / "b", written | {topic.name: [*events[:51], events[50]._replace(offset=9**9)]})
    assert (await verify(tmp_path / "b")).exit_code == 1
    await asyncio.to_thread(write, tmp_path / "c", written | {topic.name: events[:-50]})  # it has only yet to come so far
    result = await verify(tmp_path / "c")
    assert (result.exit_code, figure(result, "only one side has yet")) == (0, 50), result.output


async def test_a_damaged_file_is_named_and_put_away(tmp_path: Path):
    await asyncio.to_thread(write, tmp_path / "a", log(1_000))
    hurt = sorted((tmp_path / "a" / "book").rglob("*.parquet"))[0]
    content = bytearray(hurt.read_bytes())
    content[len(content) // 2] ^= 4
    hurt.write_bytes(bytes(content))
    name = hurt.relative_to(tmp_path / "a").as_posix()
    kept = await verify(tmp_path / "a", "", "--keep")
    assert (kept.exit_code, figure(kept, "OBJECTS")) == (1, 1) and name in kept.stderr and hurt.exists()
    moved = await verify(tmp_path / "a")
    assert moved.exit_code == 1 and f"quarantine/{name}" in moved.stderr and not hurt.exists()
    assert f"{name}: missing" in (await verify(tmp_path / "a")).stderr
    assert Archive(Folder(tmp_path / "a")).held(topics.BOOK.name)[0].chain.commits


async def test_without_an_archive_it_says_so(tmp_path: Path):
    result = await verify(tmp_path / "a")
    assert result.exit_code == 1 and "there is no archive" in result.stderr
    assert (await verify(tmp_path / "a", "", "--archive", "gs://x")).exit_code == 2
