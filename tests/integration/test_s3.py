"""The archive in S3-compatible storage: whole objects or none, however many, through lines that are cut; imports from there."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from kalshibook_core.archive import layout
from kalshibook_core.archive.past import Past
from kalshibook_core.archive.reader import Archive, Damaged
from kalshibook_core.archive.store import Folder
from kalshibook_core.kafka.cluster import Cluster
from kalshibook_core.kafka.reader import read_partition
from kalshibook_core.kafka.topics import RAW
from kalshibook_core.postgres import pool
from kalshibook_core.wire import codec
from kalshibook_core.wire.events import RawFrame
from kalshibook_tools.cli.command import kb as command_line
from services.gateway.history.cold import Cold
from services.gateway.history.fold import CorruptHistory
from services.gateway.history.store import Store as History
from services.ingest.archived import Archived
from services.ingest.recordings import Recording
from services.persister.archive import commit, files, repack
from tests.integration.test_archive_verify import log, write
from tests.integration.test_archive_verify import store as store_rows
from tests.support import archive as made
from tests.support import past, recordings
from tests.support import s3 as servers
from tests.support.s3 import S3
from tests.unit.ingest.test_archived import archive, captured

TOPIC = "kalshi.book.v1"


def test_an_object_is_there_whole_is_read_moved_and_deleted(s3: S3) -> None:
    store = s3.bucket("one/place")
    for content in (b"", b"a", bytes(range(256)) * 60_000):  # 15 MB: uploaded in parts
        store.put("a/b.gz", content)
        assert store.get("a/b.gz") == content
        assert list(store.listed("a")) == [("a/b.gz", len(content))]
    store.move("a/b.gz", "quarantine/a/b.gz")
    assert list(store.listed("a")) == []
    assert [path for path, _ in store.listed("quarantine")] == ["quarantine/a/b.gz"]
    for missing in (lambda: store.get("a/b.gz"), lambda: store.move("a/b.gz", "x")):
        with pytest.raises(FileNotFoundError):
            missing()
    for _ in range(2):
        store.delete("quarantine/a/b.gz")
        assert list(store.listed("quarantine")) == []
    assert list(store.listed("nowhere")) == []


def test_more_objects_than_one_listing_answers_are_all_seen(s3: S3) -> None:
    if s3.program == "moto":
        pytest.skip("moto takes half a minute for a thousand objects; `make setup` builds MinIO where Go is")
    store = s3.bucket("many")
    paths = {f"commits/t/{n % 2}/{n:05}.json" for n in range(1_010)}
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda path: store.put(path, b"{}"), sorted(paths)))
    assert {path for path, _ in store.listed("commits")} == paths
    assert sum(1 for _ in store.listed("commits/t/1")) == 505


def test_what_a_cut_line_left_half_is_not_there(s3: S3) -> None:
    store, line = s3.bucket("cut"), servers.Line(s3.endpoint)
    behind = s3.bucket("cut", line.endpoint)
    content = bytes(range(256)) * 60_000
    behind.put("whole", content)
    line.left["there"] = 12_000_000
    with pytest.raises(OSError, match=r".+"):
        behind.put("half", content)
    assert [path for path, _ in store.listed("")] == ["whole"]
    line.left = {"back": 12_000_000}
    with pytest.raises(OSError, match=r".+"):
        behind.get("whole")
    line.left = {}
    assert behind.get("whole") == content
    line.close()


def test_an_archive_is_put_together_and_put_away_there(s3: S3) -> None:
    store = s3.bucket("archive")
    left, at = made.records(events := made.book(1, 400)), 0
    while left:
        batch, left = left[:50], left[50:]
        after = batch[-1].offset + 1
        asyncio.run(commit.write(store, files.make(TOPIC, 0, at, after, "a", batch), lambda attempt: attempt()))
        at = after
    held = Archive(store).held_of(TOPIC, 0)
    before = sum(1 for path, _ in store.listed("book") if path.endswith(layout.ROWS))
    days = repack.due(Archive(store), held, now := 300 * layout.DAY_US, 0)
    for day in days:
        assert repack.repack(store, held, day, "r1", now) is not None
    assert repack.sweep(store, TOPIC, 0, now + 9, 5) == before > len(days) * 2
    rows = made.everything(Archive(store), TOPIC)[0]
    assert sorted(offset for offset, _ in rows) == list(range(len(events)))
    hurt = next(path for path, _ in store.listed("book") if path.endswith(layout.ROWS))
    store.put(hurt, store.get(hurt)[:-1])
    with pytest.raises(Damaged) as told:
        made.everything(Archive(store), TOPIC)
    assert Archive(store).quarantine(told.value) == f"quarantine/{hurt}"


@pytest.mark.stack
async def test_what_is_damaged_there_is_refused_until_it_is_made_again_from_the_raw_rows(
    database: str, s3: S3, tmp_path: Path
) -> None:
    written, place = log(1_000, pace=2_000), s3.bucket("proved")
    await asyncio.to_thread(write, place, written)
    commit.claim(place, "a test's", {}, False)
    await store_rows(database, written)
    books = [codec.decode(each.value or b"") for each in written[TOPIC]]
    asked = [books[n] for n in range(50, len(books), len(books) // 12)]
    env = {"KB_POSTGRES_DSN": database, "AWS_ENDPOINT_URL": s3.endpoint, "KB_ARCHIVE": f"s3://{servers.BUCKET}/proved"}

    async def verify(*arguments: str) -> Result:
        command = ["verify", "--home", str(tmp_path), *arguments]
        return await asyncio.to_thread(CliRunner(env=env).invoke, command_line, command)

    async with await pool.connect_pool(database, size=2) as connections:

        async def answers(of: History) -> list[tuple[int, list[tuple[int, int]], list[tuple[int, int]]]]:
            found = [await of.book_at(await of.market_id(each.market_ticker) or 0, each.effective_us) for each in asked]
            return [(each.version, list(each.book.yes), list(each.book.no)) for each in found if each is not None]

        hot = await answers(History(connections))
        assert len(hot) == len(asked)
        assert {name.rpartition("_")[0] for name in await past.retire(database, place, 1 << 60)} > {"book_events", "checkpoints"}
        history = History(connections, Cold(connections, Past(Archive(place))))
        assert await answers(history) == hot
        files = sorted(path for path, _ in place.listed("book") if path.endswith(layout.ROWS))
        hurt, gone = files[0], files[-1]
        whole = place.get(hurt)
        place.put(hurt, whole[: len(whole) // 2] + b"?" + whole[len(whole) // 2 + 1 :])
        place.delete(gone)
        checkpoints = sorted(path for path, _ in place.listed("checkpoints") if path.endswith(layout.ROWS))
        for path in (checkpoints[0], checkpoints[-1], checkpoints[-1].replace(layout.ROWS, layout.MANIFEST)):
            place.delete(path)
        history = History(connections, Cold(connections, Past(Archive(place))))
        with pytest.raises(CorruptHistory, match=hurt):
            await answers(history)
        found = await verify("--keep")
        assert found.exit_code == 1 and hurt in found.stderr and gone in found.stderr
        repaired = await verify("--repair")
        assert repaired.exit_code == 0, repaired.output
        assert {path for path, _ in place.listed("quarantine")} == {f"quarantine/{hurt}", f"quarantine/{hurt}.why"}
        assert await answers(history) == hot  # who was refused asks again


@pytest.mark.stack
async def test_recordings_and_archives_are_imported_from_there(cluster: Cluster, database: str, s3: S3, tmp_path: Path) -> None:
    written = recordings.write(tmp_path / "recorded", markets=3, seconds=4)
    bad = written.events / "bad.ndjson"
    bad.write_bytes(b"{\n")
    here, old = s3.bucket("recorded"), s3.bucket("old/archive")
    for file in filter(Path.is_file, written.folder.rglob("*")):
        here.put(file.relative_to(written.folder).as_posix(), file.read_bytes())
    await asyncio.to_thread(archive, old, captured())
    env = {
        "KB_KAFKA_BROKERS": cluster.brokers, "KB_TOPIC_PREFIX": cluster.prefix, "KB_POSTGRES_DSN": database,
        "KB_KAFKA_PARTITIONS": str(cluster.partitions), "AWS_ENDPOINT_URL": s3.endpoint,
    }  # fmt: skip

    async def kb(*paths: str) -> Result:
        command = ["import", "--home", str(tmp_path), *paths]
        return await asyncio.to_thread(CliRunner(env=env).invoke, command_line, command)

    def bucket(prefix: str) -> str:
        return f"s3://{servers.BUCKET}/{prefix}"

    local = Recording((written.folder,), "import-recorded", cluster.partitions)
    survey = local.survey()
    expected = list(local.records({ticker: extent.frames for ticker, extent in survey.markets.items()}))
    told = await kb(bucket("recorded/"))
    assert told.exit_code == 1 and f"{bucket('recorded')}/events/bad.ndjson:1: " in told.stderr
    assert f"{written.frames:,} frames of {len(written.lines)} markets imported" in told.stdout
    assert sorted(await raw(cluster)) == sorted(expected)
    assert "imported before: nothing to do" in (await kb(str(written.folder), "--origin", "recorded")).stdout  # the same files

    await asyncio.to_thread(archive, beside := Folder(tmp_path / "old"), captured())
    source = Archived(beside, "import-archive", cluster.partitions)
    expected += source.records(dict.fromkeys(source.survey().markets, 1))
    assert (await kb(bucket("old/archive"))).exit_code == 0
    assert sorted(await raw(cluster)) == sorted(expected)
    assert not list((tmp_path / "imports").glob("*.fetched"))
    for place, code in (("nothing", 1), ("old/archive", 2)):
        assert (await kb(bucket(place), bucket("recorded"), "--origin", "x")).exit_code == code
    line = servers.Line(s3.endpoint)
    line.left = {"there": 0}
    gone = await kb(bucket("recorded"), "--endpoint", line.endpoint)
    line.close()
    assert gone.exit_code == 1 and gone.stderr.startswith("error: ")


async def raw(cluster: Cluster) -> list[RawFrame]:
    """Return all raw records."""
    found = [codec.decode(each.value or b"") for n in range(cluster.partitions) async for each in read_partition(cluster, RAW, n)]
    return [each for each in found if isinstance(each, RawFrame)]
