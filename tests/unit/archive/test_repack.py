"""A finished day is put together and says what it said before, whoever else does the same and wherever it is cut."""

import asyncio
import dataclasses
import random
from itertools import count
from pathlib import Path

import pytest

from kalshibook_core.archive import layout, tables
from kalshibook_core.archive.reader import Archive, Damaged, Held
from kalshibook_core.archive.store import Folder
from services.persister.archive import commit, files, repack
from tests.support import archive as made

TOPIC = "kalshi.book.v1"
FIRST = 100
LONG_AFTER = (FIRST + 300) * layout.DAY_US


def put(store: Folder, topic: str, events: list, at_once: int, life: str = "a") -> None:
    left, at = made.records(events), 0
    while left:
        batch, left = left[:at_once], left[at_once:]
        after = batch[-1].offset + 1
        asyncio.run(commit.write(store, files.make(topic, 0, at, after, life, batch), lambda attempt: attempt()))
        at = after


def all_days(store: Folder, topic: str, now_us: int = LONG_AFTER, rows: int = repack.ROWS) -> list[int]:
    archive, done = Archive(store), []
    held = archive.held_of(topic, 0)
    for day in repack.due(archive, held, now_us, 0):
        assert repack.repack(store, held, day, f"r{day}", now_us, rows=rows) is not None
        done.append(day)
    return done


def said(store: Folder, topic: str) -> dict[str, list]:
    """Return what the archive has of each market, in order, every proof asked for."""
    by_market: dict[str, list] = {}
    for row in made.everything(Archive(store), topic)[0]:
        by_market.setdefault(row[1].market_ticker, []).append(row)
    return by_market


def parquet(root: Path) -> set[Path]:
    return set((root / "book").rglob("*.parquet")) | set((root / "raw").rglob("*.parquet"))


@pytest.mark.parametrize("topic", [TOPIC, "kalshi.raw.v1"])
def test_a_day_put_together_says_what_it_said(tmp_path: Path, topic: str) -> None:
    store = Folder(tmp_path)
    events: list = made.book(1, 1_200, pause_us=180_000_000) if topic == TOPIC else made.raw(1, 700)
    put(store, topic, events, 40)
    before, old = said(store, topic), parquet(tmp_path)
    held = Archive(store).held_of(topic, 0)
    days = repack.due(Archive(store), held, LONG_AFTER, 0)
    assert len(days) > 1
    for day in days:  # commits reach over midnight: of each a part is put together, and a part not yet
        assert repack.repack(store, held, day, f"r{day}", LONG_AFTER) is not None
        assert said(store, topic) == before
    assert repack.sweep(store, topic, 0, LONG_AFTER, 1) == 0  # the time of grace is not over
    assert repack.sweep(store, topic, 0, LONG_AFTER + 5, 5) == len(old)
    assert said(store, topic) == before
    new = parquet(tmp_path)
    assert not new & old and len(new) * 2 < len(old)
    assert repack.sweep(store, topic, 0, LONG_AFTER + 5, 5) == 0
    assert Archive(store).next_offset(topic, 0) == made.records(events)[-1].offset + 1
    held = Archive(store).held_of(topic, 0)
    for entry in Archive(store).effective(held, range(1 << 40)):
        rows = list(Archive(store).rows(entry))
        key = (lambda row: row[0]) if topic == "kalshi.raw.v1" else (lambda row: (row[1].market_ticker, row[1].version))
        assert rows == sorted(rows, key=key)
        assert Archive(store).manifest(entry)["format"] == tables.REPACKED


def test_a_market_of_a_day_put_together_is_read_by_time(tmp_path: Path) -> None:
    store, events = Folder(tmp_path), made.book(2, 900)
    put(store, TOPIC, events, 50)
    all_days(store, TOPIC, rows=100)  # files of a hundred rows: several a day
    one = events[500]
    mine = [made.bare(event) for event in events if event.market_ticker == one.market_ticker]
    for from_us, to_us in ((0, 1 << 63), (one.effective_us, 1 << 63), (one.effective_us, one.effective_us + layout.DAY_US // 2)):
        found = [event for _, event in Archive(store).market(TOPIC, one.market_ticker, from_us, to_us)]
        assert found == [event for event in mine if from_us <= event.effective_us < to_us]


def test_a_day_is_put_together_when_it_is_over_and_again_for_what_comes_late(tmp_path: Path) -> None:
    store, archive, events = Folder(tmp_path), Archive(Folder(tmp_path)), made.book(3, 600)
    first, late = events[:400], events[400:]
    records = made.records(events)
    start = records[400].offset
    asyncio.run(commit.write(store, files.make(TOPIC, 0, 0, start, "a", records[:400]), lambda attempt: attempt()))
    day = layout.day_of(first[0].effective_us)
    over = (day + 1) * layout.DAY_US

    def due(now_us: int) -> list[int]:
        return repack.due(archive, archive.held_of(TOPIC, 0), now_us, 1_000)

    assert due(over + 999) == []
    assert due(over + 1_000) == [day]
    repack.repack(store, archive.held_of(TOPIC, 0), day, "r1", over + 1_000)
    assert due(over + 1_000) == []
    mine = [e._replace(effective_us=over - 1, raw_offset=n) for n, e in enumerate(late, len(first))]
    tail = made.records(events)[400:]
    rows = [record._replace(value=made.records([e])[0].value) for record, e in zip(tail, mine, strict=True)]
    asyncio.run(commit.write(store, files.make(TOPIC, 0, start, tail[-1].offset + 1, "b", rows), lambda attempt: attempt()))
    before = said(store, TOPIC)
    assert due(over + 1_999) == [] and due(over + 2_000) == [day]  # not again for each that comes late
    repack.repack(store, archive.held_of(TOPIC, 0), day, "r2", over + 2_000)
    assert said(store, TOPIC) == before
    assert repack.sweep(store, TOPIC, 0, over + 9_000, 1_000) > 0
    assert said(store, TOPIC) == before
    assert all("-r2x" in path.name for path in parquet(tmp_path) if layout.day_name(day) in str(path))


class Cut(Exception):
    """The process was killed."""


class Dying(Folder):
    """A folder whose process is killed before or after its n-th change."""

    def __init__(self, root: Path, steps: int) -> None:
        super().__init__(root)
        self._left = steps

    def _step(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise Cut

    def put(self, path: str, content: bytes) -> None:
        self._step()
        super().put(path, content)
        self._step()

    def delete(self, path: str) -> None:
        self._step()
        super().delete(path)


def test_cut_at_any_step_or_done_by_two_it_says_what_it_said(tmp_path: Path) -> None:
    sound = Folder(tmp_path)
    put(sound, TOPIC, made.book(4, 240), 40)
    before, held = said(sound, TOPIC), Archive(sound).held_of(TOPIC, 0)
    day, now = repack.due(Archive(sound), held, LONG_AFTER, 0)[0], LONG_AFTER
    for steps in count():
        store = Dying(tmp_path, steps)
        try:
            repack.repack(store, held, day, f"r{steps:03}", now)  # each begins from what it once saw, as a zombie does
            now += 10
            repack.sweep(store, TOPIC, 0, now, 5)
        except Cut:
            assert said(sound, TOPIC) == before, steps
        else:
            break
        held = Archive(sound).held_of(TOPIC, 0)
        if random.Random(steps).random() < 0.5:
            break_in = Archive(sound).held_of(TOPIC, 0)
            repack.repack(sound, break_in, day, f"rz{steps:03}", now)
    assert steps > 20
    assert said(sound, TOPIC) == before
    assert Archive(sound).held_of(TOPIC, 0).chain == held.chain


def test_nothing_is_deleted_while_a_new_file_is_not_what_was_written(tmp_path: Path) -> None:
    store = Folder(tmp_path)
    put(store, TOPIC, made.book(5, 240), 40)
    old = parquet(tmp_path)
    all_days(store, TOPIC)
    for hurt in sorted(parquet(tmp_path) - old):
        content = hurt.read_bytes()
        hurt.write_bytes(content[:100] + bytes((content[100] ^ 4,)) + content[101:])
        with pytest.raises(Damaged, match=hurt.name):
            said(store, TOPIC)
        with pytest.raises(Damaged, match=hurt.name):
            repack.sweep(store, TOPIC, 0, LONG_AFTER + 5, 5)
        hurt.write_bytes(content)
    sealed = next((tmp_path / layout.REPACKS).rglob("*.json"))
    sealed.write_bytes(sealed.read_bytes().replace(b'"rows":', b'"rows": '))
    with pytest.raises(Damaged, match="the repack is not what was written"):
        said(store, TOPIC)
    assert old <= parquet(tmp_path)


def test_what_the_storage_gives_back_wrong_is_not_sealed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Lying(Folder):
        def get(self, path: str) -> bytes:
            content = super().get(path)
            return content[::-1] if "-rx" in path and path.endswith(".parquet") else content

    put(Folder(tmp_path), TOPIC, made.book(6, 100), 40)
    held: Held = Archive(Folder(tmp_path)).held_of(TOPIC, 0)
    with pytest.raises(Damaged):
        repack.repack(Lying(tmp_path), held, FIRST, "rx", LONG_AFTER)
    with pytest.raises(repack.Abandoned):
        repack.repack(Folder(tmp_path), held, FIRST, "ry", LONG_AFTER, lambda: True)
    sound = tables.FORMATS[key := ("book", tables.REPACKED)]
    wrong = dataclasses.replace(sound, rows=lambda rows: [(*row[:7], 7, *row[8:]) for row in sound.rows(rows)])
    monkeypatch.setitem(tables.FORMATS, key, wrong)
    with pytest.raises(repack.Unequal):
        repack.repack(Folder(tmp_path), held, FIRST, "rz", LONG_AFTER)
    assert not list(tmp_path.glob("repacks/**/*.json"))
