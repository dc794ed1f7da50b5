"""The archive in S3-compatible storage: whole objects or none, however many, through lines that are cut."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest

from kalshibook_core.archive import layout
from kalshibook_core.archive.reader import Archive, Damaged
from services.persister.archive import commit, files, repack
from tests.support import archive as made
from tests.support import s3 as servers
from tests.support.s3 import S3

TOPIC = "kalshi.book.v1"


def test_an_object_is_there_whole_is_read_moved_and_deleted(s3: S3) -> None:
    store = s3.bucket("one/place")
    for content in (b"", b"a", bytes(range(256)) * 60_000):  # 15 MB: uploaded in parts
        store.put("a/b.parquet", content)
        assert store.get("a/b.parquet") == content
        assert list(store.listed("a")) == [("a/b.parquet", len(content))]
    store.move("a/b.parquet", "quarantine/a/b.parquet")
    assert list(store.listed("a")) == []
    assert [path for path, _ in store.listed("quarantine")] == ["quarantine/a/b.parquet"]
    for missing in (lambda: store.get("a/b.parquet"), lambda: store.move("a/b.parquet", "x")):
        with pytest.raises(FileNotFoundError):
            missing()
    for _ in range(2):
        store.delete("quarantine/a/b.parquet")
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
    line.left = 12_000_000
    with pytest.raises(OSError, match=r".+"):
        behind.put("half", content)
    assert [path for path, _ in store.listed("")] == ["whole"]
    line.left = None
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
