"""What was spooled comes back whole and in order, or as a prefix that is told: never altered, never with a hole."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from services.ingest import segments
from services.ingest.delivered import Delivered
from services.ingest.segments import Damaged, Record
from services.ingest.spool import Segment, Spool, SpoolDamaged, SpoolTaken

records = st.lists(
    st.builds(Record, st.binary(max_size=12), st.binary(max_size=80), st.integers(0, 2**41)), min_size=1, max_size=12
)


def read_all(spool: Spool) -> list[Record]:
    out: list[Record] = []
    while (found := spool.read(64)) is not None:
        out += found[1]
    return out


def write(folder: Path, life: int, batches: list[list[Record]], segment_bytes: int = 100) -> None:
    """One life that writes and is killed: nothing is closed in order."""
    spool = Spool(folder, life, segment_bytes)
    for batch in batches:
        for record in batch:
            spool.append(record)
        spool.write()
    spool.close()


def numbered(count: int, life: int = 0) -> list[Record]:
    return [
        Record(b"KXDOG-%d" % (n % 3), b"life %d frame %d" % (life, n) * (n % 4 + 1), 1_785_901_540_000 + n) for n in range(count)
    ]


@given(records)
def test_records_come_back(written: list[Record]) -> None:
    chain, packed = 0, b""
    for record in written:
        one, chain = segments.pack(record, chain)
        packed += one
    at, read_chain, out = 0, 0, []
    while (found := segments.unpack(packed, at, read_chain)) is not None:
        record, at, read_chain = found
        out.append(record)
    assert (out, at, read_chain) == (written, len(packed), chain)


@given(records, st.data())
def test_no_flipped_bit_and_no_cut_goes_unseen(written: list[Record], data: st.DataObject) -> None:
    """All records before it are read; it itself and what follows are not; a cut between two records is the one end unseen."""
    chain, packed, ends = 0, b"", [0]
    for record in written:
        one, chain = segments.pack(record, chain)
        packed += one
        ends.append(len(packed))
    if data.draw(st.booleans()):
        where = data.draw(st.integers(0, len(packed) - 1))
        damaged = packed[:where] + bytes([packed[where] ^ (1 << data.draw(st.integers(0, 7)))]) + packed[where + 1 :]
    else:
        where = data.draw(st.integers(0, len(packed) - 1))
        damaged = packed[:where]
    at, chain, out, seen = 0, 0, [], False
    try:
        while (found := segments.unpack(damaged, at, chain)) is not None:
            record, at, chain = found
            out.append(record)
        seen = at < len(damaged)
    except Damaged:
        seen = True
    whole = sum(end <= where for end in ends[1:])
    assert out == written[:whole]
    assert seen or damaged == packed[: ends[whole]]


def test_lives_follow_each_other(tmp_path: Path) -> None:
    write(tmp_path, 1, [numbered(9)[:4], numbered(9)[4:]])
    write(tmp_path, 2, [numbered(5, 2)])
    spool = Spool(tmp_path, 2)  # a clock that was set back: its life comes after all the same
    spool.append(Record(b"", b"newest", 0))
    spool.write()
    assert read_all(spool) == [*numbered(9), *numbered(5, 2), Record(b"", b"newest", 0)]
    assert spool.exhausted and not spool.dropped_bytes


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_damage_costs_the_rest_of_its_life_and_no_more(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("spool")
    write(folder, 1, [[record] for record in numbered(12)])
    write(folder, 5, [numbered(4, 5)])
    files = sorted(folder.glob("00000000000000000001-*"))
    assert len(files) > 3
    chosen = data.draw(st.integers(0, len(files) - 1))
    victim = files[chosen]
    body = victim.read_bytes()
    match data.draw(st.sampled_from(["flip", "cut", "gone"])):
        case "flip":
            at = data.draw(st.integers(0, len(body) - 1))
            victim.write_bytes(body[:at] + bytes([body[at] ^ 4]) + body[at + 1 :])
        case "cut":
            victim.write_bytes(body[: data.draw(st.integers(0, len(body) - 1))])
        case "gone" if 0 < chosen < len(files) - 1:
            victim.unlink()
    spool = Spool(folder, 9)
    out = read_all(spool)
    first = [record for record in out if b"life 0" in record.value]
    assert first == numbered(12)[: len(first)]
    assert out[len(first) :] == numbered(4, 5)
    assert spool.exhausted
    spool.close()


def test_a_full_disk_refuses_and_nothing_is_lost_or_altered(tmp_path: Path) -> None:
    """It is full before the first segment, within one, at the turn to the next, and where it is noted what the broker has."""
    spool, frames = Spool(tmp_path, 1, segment_bytes=300), numbered(40)
    for number, frame in enumerate(frames):
        spool.append(frame)
        for room in (0, 20, 200) if number % 3 == 0 else ():
            with structlog.testing.capture_logs(), files_of_at_most(room):
                spool.write()
        spool.write()
        assert not spool.blocked and spool.written == number + 1
    first = spool.read(64)
    assert first is not None
    second = spool.read(64)
    while second is not None and second[0] == first[0]:
        first, second = (first[0], first[1] + second[1]), spool.read(64)
    assert second is not None
    with files_of_at_most(0), pytest.raises(OSError):
        spool.delete(first[0], {0: 7})
    assert (spool.floor, len(list(tmp_path.glob("*.spool")))) == (None, len(spool._segments))
    spool.delete(first[0], {0: 7})
    assert [*first[1], *second[1], *read_all(spool)] == frames
    spool.close()
    again = Spool(tmp_path, 2)
    assert (again.floor, read_all(again)) == ({0: 7}, frames[len(first[1]) :])
    again.close()


def test_what_the_disk_does_not_take_to_itself_is_told_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool, asked = Spool(tmp_path, 1), []

    def full(descriptor: int) -> None:
        asked.append(descriptor)
        raise OSError(28, "No space left on device")

    spool.append(numbered(1)[0])
    spool.write()
    with structlog.testing.capture_logs() as told, monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        spool.sync()
        spool.sync()
    assert len(asked) == 2 and told[0]["event"] == "spool_sync_failed" and "No space" in told[0]["why"]
    assert read_all(spool) == numbered(1)
    spool.close()


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let no file of this process grow past so many bytes, as on a disk that is full by then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_this_process_wrote_is_never_dropped_in_silence(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 1)
    for record in numbered(3):
        spool.append(record)
    spool.write()
    (path,) = tmp_path.glob("*.spool")
    body = path.read_bytes()
    path.write_bytes(body[:-1] + bytes([body[-1] ^ 1]))
    with pytest.raises(SpoolDamaged):
        read_all(spool)


def test_what_the_broker_has_is_deleted_with_its_floor(tmp_path: Path) -> None:
    write(tmp_path, 1, [[record] for record in numbered(12)])
    spool = Spool(tmp_path, 2)
    found = spool.read()
    assert found is not None and spool.floor is None
    following = spool.read()
    assert following is not None and following[0] > found[0]
    spool.delete(found[0], {0: 7, 3: 9})
    spool.close()
    again = Spool(tmp_path, 3)
    assert again.floor == {0: 7, 3: 9}
    assert read_all(again) == numbered(12)[len(found[1]) :]
    again.close()


def test_a_crash_between_the_note_and_the_deletion_repeats_nothing(tmp_path: Path) -> None:
    write(tmp_path, 1, [[record] for record in numbered(12)])
    spool = Spool(tmp_path, 2)
    first, records_of_it = spool.read() or (Segment(0, 0), [])
    spool._note(Segment(first.life, first.number + 1), {})
    spool.close()
    assert read_all(Spool(tmp_path, 3)) == numbered(12)[len(records_of_it) :]


def test_a_damaged_note_is_no_note(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 1)
    spool.remember({0: 5})
    spool.close()
    note = tmp_path / "position"
    note.write_bytes(note.read_bytes().replace(b"5", b"6"))
    assert Spool(tmp_path, 2).floor is None


def test_one_process_at_a_time(tmp_path: Path) -> None:
    first = Spool(tmp_path, 1)
    with pytest.raises(SpoolTaken, match="another gatherer"):
        Spool(tmp_path, 2)
    first.close()
    Spool(tmp_path, 3).close()


def test_a_refused_write_is_tried_again_and_leaves_no_half_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk takes three bytes of a record, then none."""
    spool = Spool(tmp_path, 1)
    spool.append(numbered(2)[0])
    spool.write()
    spool.append(numbered(2)[1])
    real, took = os.write, []

    def full(descriptor: int, content: bytes) -> int:
        if took:
            raise OSError(28, "No space left on device")
        took.append(real(descriptor, bytes(content)[:3]))
        return took[0]

    with monkeypatch.context() as disk:
        disk.setattr(os, "write", full)
        spool.write()
    assert spool.blocked and (spool.written, spool.appended) == (1, 2) and read_all(spool) == numbered(2)[:1]
    spool.write()
    assert not spool.blocked and spool.written == 2 and read_all(spool) == numbered(2)[1:] and spool.exhausted


@given(
    st.lists(st.tuples(st.integers(0, 2), st.binary(max_size=2)), max_size=30),
    st.lists(st.integers(0, 30), min_size=3, max_size=3),
    st.lists(st.tuples(st.integers(0, 2), st.binary(min_size=3, max_size=3)), max_size=10),
    st.randoms(use_true_random=False),
)
def test_what_was_delivered_is_skipped_and_nothing_else(spooled, counts, foreign, rng) -> None:  # type: ignore[no-untyped-def]
    """A first part of each partition stands in the topic, with others' records between: exactly the rest is left, repeats too."""
    delivered = Delivered()
    rest = []
    for partition in range(3):
        mine = [value for p, value in spooled if p == partition]
        there = mine[: counts[partition]]
        rest += [(partition, value) for value in mine[counts[partition] :]]
        for _, value in [each for each in foreign if each[0] == partition]:
            there.insert(rng.randrange(len(there) + 1), value)
        for value in there:
            delivered.found(partition, value)
    left = [(partition, value) for partition, value in spooled if not delivered.has(partition, value)]
    assert sorted(left) == sorted(rest)
