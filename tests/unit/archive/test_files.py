"""Records become files that tell the truth about themselves; one changed byte anywhere is found and never served."""

import asyncio
import random
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace

import pytest

from kalshibook_core.archive import layout, tables
from kalshibook_core.archive.manifest import Telling
from kalshibook_core.archive.reader import Archive, Damaged
from kalshibook_core.archive.store import Folder, open_store
from kalshibook_core.orderbook.checksum import to_hex
from kalshibook_core.wire import codec
from kalshibook_core.wire.events import BookDelta, BookSnapshot, Gap
from services.persister.archive import commit, files
from services.persister.archive.held import Held, Record, Waiting, due
from tests.support import archive as made


async def once(attempt):
    await attempt()


def put(store: Folder, topic: str, records: list[Record], life: str = "a", partition: int = 0, first: int | None = None) -> None:
    start = records[0].offset if first is None else first
    asyncio.run(commit.write(store, files.make(topic, partition, start, records[-1].offset + 1, life, records), once))


def by_market(events):
    return {key: list(of) for key, of in groupby(sorted(events, key=lambda e: e.market_ticker), key=lambda e: e.market_ticker)}


def test_files_lie_by_day_and_series_and_hold_every_row(tmp_path: Path) -> None:
    events = made.book(1, 3_000)
    put(Folder(tmp_path), "kalshi.book.v1", made.records(events))
    held = Archive(Folder(tmp_path))
    [(_, rows)] = made.everything(held, "kalshi.book.v1").items()
    assert by_market(event for _, event in rows) == by_market(map(tables.bare, events))
    folders = {path.parent.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.parquet")}
    assert {folder.partition("series=")[2] for folder in folders} == {"KXTEST0", "KXTEST1"}
    assert len({folder.split("/")[1] for folder in folders}) > 1


def test_a_manifest_says_what_is_in_its_file(tmp_path: Path) -> None:
    events = made.book(4, 3_000)
    put(Folder(tmp_path), "kalshi.book.v1", made.records(events))
    held = Archive(Folder(tmp_path))
    [entries] = [held.files(each) for each in held.held("kalshi.book.v1")[0].chain.commits]
    gaps = 0
    for entry in entries:
        told = held.manifest(entry)
        rows = by_market(event for _, event in held.rows(entry))
        telling = Telling(tables.BOOKS)
        for _, event in held.rows(entry):
            telling.add(event)
        assert telling.contradicts(told) is None
        for ticker, of in told["markets"].items():
            for name in of.keys() - {"quality"} | {"gaps"}:
                wrong = told | {"markets": told["markets"] | {ticker: of | {name: 7}}}
                assert repr(ticker) in str(telling.contradicts(wrong))
        assert telling.contradicts(told | {"time": {"first_us": 7, "last_us": told["time"]["last_us"]}})
        assert telling.contradicts(told | {"markets": {}})
        assert told["markets"].keys() == rows.keys()
        for ticker, of in told["markets"].items():
            these = rows[ticker]
            assert (of["rows"], of["first_version"], of["last_version"]) == (len(these), these[0].version, these[-1].version)
            assert (of["first_us"], of["last_us"]) == (these[0].effective_us, these[-1].effective_us)
            assert of["checksum"] == to_hex(these[-1].checksum)
            known = [each.version for each in these if not isinstance(each, Gap)]
            assert [v for s in of["segments"] for v in range(s["first"], s["last"] + 1)] == known
            for segment in of["segments"]:
                first = next(each for each in these if each.version == segment["first"])
                assert segment["whole"] == isinstance(first, BookSnapshot)
                assert not any(isinstance(e, Gap) for e in these if segment["first"] <= e.version <= segment["last"])
            opened = {(e.start_us, e.cause) for e in these if isinstance(e, Gap)}
            ended = {e.gap_start_us: e.effective_us for e in these if isinstance(e, BookSnapshot) and e.gap_start_us is not None}
            assert {g["start_us"]: g["end_us"] for g in of.get("gaps", []) if g["end_us"] is not None} == ended
            assert opened <= {(g["start_us"], g["cause"]) for g in of.get("gaps", [])}
            gaps += len(of.get("gaps", []))
            lost = 0
            for each, following in zip(these, [*these[1:], None], strict=True):
                if isinstance(each, Gap):
                    until = of["last_us"] + 1 if following is None else following.effective_us
                    lost += max(until, each.start_us + 1) - max(each.start_us, of["first_us"])
            quality = of["quality"]
            assert (quality["from_us"], quality["to_us"]) == (of["first_us"], of["last_us"] + 1)
            length = quality["to_us"] - quality["from_us"]
            assert (quality["uncovered_us"], quality["covered_us"], quality["recordable_us"]) == (lost, length - lost, length)
            assert quality["completeness_ppm"] == 1_000_000 * (length - lost) // length
            assert quality["state"] == ("gap" if lost else "complete")
        of_all = [of["quality"] for of in told["markets"].values()]
        assert told["quality"]["uncovered_us"] == sum(each["uncovered_us"] for each in of_all)
        assert told["quality"]["state"] == max(each["state"] for each in of_all)  # gap > complete
    assert gaps > 10


def test_a_market_is_read_by_time(tmp_path: Path) -> None:
    events = made.book(5, 3_000)
    records = made.records(events)
    for first in range(0, 3_000, 700):
        put(Folder(tmp_path), "kalshi.book.v1", records[first : first + 700], first=records[first - 1].offset + 1 if first else 0)
    held = Archive(Folder(tmp_path))
    rng = random.Random(1)
    for _ in range(10):
        ticker = rng.choice(events).market_ticker
        low, high = sorted(rng.choice(events).effective_us + rng.randrange(2) for _ in range(2))
        want = [tables.bare(e) for e in events if e.market_ticker == ticker and low <= e.effective_us < high]
        assert [event for _, event in held.market("kalshi.book.v1", ticker, low, high)] == want
    first = events[0].market_ticker
    assert len(list(held.market("kalshi.book.v1", first))) == sum(e.market_ticker == first for e in events)
    assert list(held.market("kalshi.book.v1", "KXNONE-1")) == []


def test_raw_records_are_kept_byte_for_byte_and_what_is_none_too(tmp_path: Path) -> None:
    frames = made.raw(1, 500)
    records = made.records(frames)
    records[100] = records[100]._replace(value=b"\x00no frame")
    records[200] = records[200]._replace(key=b"KXOTHER-1")
    records[300] = records[300]._replace(value=codec.encode(frames[300]._replace(clock_us=2**63 - 1, recv_us=-(2**63))))
    put(Folder(tmp_path), "kalshi.raw.v1", records)
    [rows] = made.everything(Archive(Folder(tmp_path)), "kalshi.raw.v1").values()
    found = dict(rows)
    assert len(found) == len(rows) == 500
    for n, record in enumerate(records):
        kept = found[record.offset]
        assert (kept.payload == record.value and kept.kind == tables.UNREADABLE) if n in (100, 200, 300) else kept == frames[n]


def test_canonical_records_that_are_none_are_counted(tmp_path: Path) -> None:
    events = made.book(6, 100)
    records = made.records(events)
    delta = next(n for n, event in enumerate(events) if isinstance(event, BookDelta))
    records[delta] = records[delta]._replace(value=codec.encode(events[delta]._replace(delta=-(2**63))))
    records.append(Record(records[-1].offset + 1, b"x", b"\x00what"))
    records.append(Record(records[-1].offset + 1, b"x", codec.encode(made.raw(1, 1)[0])))
    told = files.make("kalshi.book.v1", 0, 0, records[-1].offset + 1, "a", records)
    assert (told.rows, told.unreadable) == (99, 3)


def test_held_records_know_where_they_begin_end_and_what_they_take() -> None:
    held = Held(None)
    held.add([Record(5, b"k", b"v" * 10), Record(7, b"k", b"w" * 10)])
    held.add([SimpleNamespace(offset=8, key=b"k", value=None)])
    assert (held.first, held.next, [record.offset for record in held.records]) == (5, 9, [5, 7])
    assert held.bytes > 22
    assert Held(3).first == 3


def test_whose_turn_it_is() -> None:
    assert due({}, 100, 60.0, 1e9) is None
    waiting = {"a": Waiting(99, 10.0), "b": Waiting(0, 0.0), "c": Waiting(1, 20.0)}
    assert due(waiting, 100, 60.0, 69.0) is None
    assert due(waiting, 100, 60.0, 90.0) == "a"  # old enough, and older than c
    large = waiting | {"d": Waiting(100, 60.0), "e": Waiting(300, 65.0)}
    assert due(large, 100, 60.0, 69.0) == "e"
    assert due(large, 100, 60.0, 70.0) == "a"  # however much others have


def test_an_archive_is_of_one_log(tmp_path: Path) -> None:
    for _ in range(2):
        commit.claim(Folder(tmp_path), "here/", {}, anew=False)
    with pytest.raises(commit.OtherLog, match="name an empty place"):
        commit.claim(Folder(tmp_path), "elsewhere/", {}, anew=False)


def test_one_changed_byte_anywhere_is_found_named_and_never_served(tmp_path: Path) -> None:
    put(store := Folder(tmp_path), "kalshi.book.v1", made.records(made.book(7, 300)))
    held, rng = Archive(store), random.Random(2)
    objects = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in objects} == {".parquet", ".json"}
    for path in objects:
        content = path.read_bytes()
        at = rng.randrange(len(content))
        hurts = [content[:at] + bytes((content[at] ^ 1 << bit,)) + content[at + 1 :] for bit in range(8)]
        for hurt in (*hurts, content[:at], content + b"\n", b"", None):
            path.unlink() if hurt is None else path.write_bytes(hurt)
            name = path.relative_to(tmp_path).as_posix()
            if hurt is None and name.startswith("commits/"):
                continue  # without its commit nothing counts; `kb verify` sees it by what the raw records make
            with pytest.raises(Damaged) as told:
                made.everything(held, "kalshi.book.v1")
            assert told.value.path == name
        path.write_bytes(content)
    made.everything(held, "kalshi.book.v1")


def test_what_is_damaged_is_moved_out_of_the_way_with_the_reason(tmp_path: Path) -> None:
    put(store := Folder(tmp_path), "kalshi.book.v1", made.records(made.book(8, 300)))
    held = Archive(store)
    hurt = next(tmp_path.rglob("*.parquet"))
    hurt.write_bytes(hurt.read_bytes()[:-7])
    with pytest.raises(Damaged) as told:
        made.everything(held, "kalshi.book.v1")
    moved = held.quarantine(told.value)
    assert moved is not None and moved.startswith("quarantine/book/")
    assert not hurt.exists() and "bytes instead of" in (tmp_path / f"{moved}.why").read_text()
    with pytest.raises(Damaged, match="missing") as missing:
        made.everything(held, "kalshi.book.v1")
    assert held.quarantine(missing.value) is None


def test_a_commit_missing_between_two_others_is_told(tmp_path: Path) -> None:
    records = made.records(made.book(9, 300))
    for first in (0, 100, 200):
        put(Folder(tmp_path), "kalshi.book.v1", records[first : first + 100], first=records[first - 1].offset + 1 if first else 0)
    sorted((tmp_path / layout.COMMITS).rglob("*.json"))[1].unlink()
    with pytest.raises(Damaged, match="no commit holds"):
        list(Archive(Folder(tmp_path)).market("kalshi.book.v1", "KXTEST0-9.0"))


def test_a_store_is_a_folder_or_s3() -> None:
    assert str(open_store("s3://bucket/pre/fix/")) == "s3://bucket/pre/fix"
    for wrong in ("gs://bucket", "s3://"):
        with pytest.raises(ValueError, match="neither a folder nor"):
            open_store(wrong)
