"""What the archive takes: bytes a row on disk and rows a second, on generated order flow, from Kafka's bytes to durable files.

Then the same rows as a day leaves them, a commit for every ten seconds of them, before and after they are put together; and a
quiet day: 40 markets, a commit every quarter of an hour.

A gatherer's frames of 200 markets of two dozen series, heavy-tailed and in bursts, go through the deduplicator; what comes out is
archived as one commit of a partition, into a folder. Frames arrive 8 ms late and more, at random. Bare, for bytes: the same rows
as Kafka has them; for rows a second: only decoding them. Bytes are those of all objects, manifests and commit included.
"""

import asyncio
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import Row
from kalshibook_core.archive.reader import Archive
from kalshibook_core.archive.store import Folder
from kalshibook_core.wire import codec
from kalshibook_core.wire.events import BOOK, TRADES, BookDelta, BookSnapshot, Gap, RawFrame
from kalshibook_tools.simulator.flow import Flow
from kalshibook_tools.simulator.market import Delta, Snapshot, Trade
from services.deduplicator.partition import Partition
from services.persister.archive import commit, files, repack
from services.persister.archive.held import Record

NAME = "archive"

_FRAMES = 280_000
_RATE = 2_000.0
_SECONDS_A_COMMIT = 10
_QUIET_FRAMES = 30_000
_START_US = 1_790_000_000_000_000


def run(addresses: Any) -> list[Row]:
    """Measure in a temporary folder; needs no addresses."""
    del addresses
    raw, book = _flow()
    rows = []
    for topic, what, records in (("kalshi.book.v1", "a book event", book), ("kalshi.raw.v1", "a raw frame", raw)):
        with tempfile.TemporaryDirectory(prefix="kb-bench-") as folder:
            rows += _measure(Path(folder), topic, what, records)
    for topic, what, records in (("kalshi.book.v1", "a book event", book), ("kalshi.raw.v1", "a raw frame", raw)):
        rows += _repacked(topic, what, records, _SECONDS_A_COMMIT * _RATE)
    _, quiet = _flow(frames=_QUIET_FRAMES, rate=_QUIET_FRAMES / 86_400, markets=40, step_us=60_000_000)
    return rows + _repacked("kalshi.book.v1", "a book event of a quiet day", quiet, len(quiet) / 96)


def _repacked(topic: str, what: str, records: list[Record], a_commit: float) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="kb-bench-") as place:
        store, first = Folder(Path(place)), 0
        for start in range(0, len(records), int(a_commit)):
            batch = records[start : start + int(a_commit)]
            made = files.make(topic, 0, first, first := batch[-1].offset + 1, "a", batch)
            asyncio.run(commit.write(store, made, lambda attempt: attempt()))
        before = _taken(Path(place))
        held, archive = Archive(store).held_of(topic, 0), Archive(store)
        long_after = 1 << 60
        began = time.process_time()
        for day in repack.due(archive, held, long_after, 0):
            repack.repack(store, held, day, "r", long_after)
        took = time.process_time() - began
        repack.sweep(store, topic, 0, long_after + 1, 1)
        after = _taken(Path(place))
    count = len(records)
    return [
        Row.of(f"archive: {what}, put together, Parquet alone (bare: before)", *_each(after[2], before[2], count)),
        Row.of(f"archive: {what}, put together, manifests and all (bare: before)", *_each(after[1], before[1], count)),
        Row.of(f"archive: {what}, files put together (bare: before)", after[0], "files", before[0]),
        Row(f"archive: {what}, put together, of its own CPU", round(count / took), "rows/s", None, None),
    ]


def _each(after: int, before: int, count: int) -> tuple[float, str, float]:
    return round(after / count, 2), "bytes", round(before / count, 2)


def _taken(place: Path) -> tuple[int, int, int]:
    """Return how many Parquet files there are, what they take with their manifests, and without. The ledger is beside them."""
    found = [path for path in place.rglob("*") if path.is_file() and path.parts[len(place.parts)] not in ("commits", "repacks")]
    sizes = {path: path.stat().st_size for path in found}
    alone = [size for path, size in sizes.items() if path.suffix == ".parquet"]
    return len(alone), sum(sizes.values()), sum(alone)


def _measure(folder: Path, topic: str, what: str, records: list[Record]) -> list[Row]:
    store, count = Folder(folder), len(records)

    def write() -> None:
        made = files.make(topic, 0, 0, records[-1].offset + 1, "a", records)
        asyncio.run(commit.write(store, made, lambda attempt: attempt()))

    def read() -> None:
        archive = Archive(store)
        for held in archive.held(topic):
            for each in held.chain.commits:
                for entry in archive.files(each):
                    archive.manifest(entry)
                    for _ in archive.rows(entry):
                        pass

    wrote, decoded, readed = _took(write), _took(lambda: [codec.decode(record.value) for record in records]), _took(read)
    parquet = sum(path.stat().st_size for path in folder.rglob("*.parquet")) / count
    everything = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / count
    bare = sum(len(record.key) + len(record.value) for record in records) / count
    return [
        Row.of(f"archive: {what} on disk, Parquet alone", round(parquet, 2), "bytes", round(bare, 1)),
        Row.of(f"archive: {what} on disk, manifests and all", round(everything, 2), "bytes", round(bare, 1)),
        Row.of(f"archive: {what} written", round(count / wrote), "rows/s", round(count / decoded)),
        Row.of(f"archive: {what} read with every proof", round(count / readed), "rows/s", round(count / decoded)),
    ]


def _took(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _flow(
    frames: int = _FRAMES, rate: float = _RATE, markets: int = 200, step_us: int = 1_000_000
) -> tuple[list[Record], list[Record]]:
    flow, partition, rng = Flow(seed=1, markets=markets, start_us=_START_US), Partition(), random.Random(1)
    raw: list[Record] = []
    book: list[Record] = []
    seqs = {1: 0, 2: 0}
    received = now = _START_US

    def hear(at_us: int, event: Any) -> None:
        nonlocal received
        if not isinstance(event, Delta | Snapshot | Trade):
            return
        sid = 2 if isinstance(event, Trade) else 1
        seqs[sid] += 1
        sent_us = at_us if isinstance(event, Snapshot) else event.ts_us
        received = max(received + rng.randrange(3, 30), sent_us + 8_000 + round(rng.expovariate(1 / 3_000)))
        frame = RawFrame(
            "FRAME", "g1", 0, _START_US, TRADES if sid == 2 else BOOK, sid, seqs[sid], True, event.ticker, received,
            received - 500, "", event.frame.render(sid, seqs[sid]),
        )  # fmt: skip
        offset, key = len(raw), event.ticker.encode()
        raw.append(Record(offset, key, codec.encode(frame)))
        for made in partition.receive(frame, offset):
            if isinstance(made, BookDelta | BookSnapshot | Gap):
                book.append(Record(len(book), key, codec.encode(made)))

    for happening in flow.opening():
        hear(now, happening)
    while len(raw) < frames:
        now += step_us
        for at_us, happening in flow.advance(now, rate):
            hear(at_us, happening)
    return raw, book
