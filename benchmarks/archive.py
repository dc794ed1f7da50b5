"""What the archive takes: bytes a row on disk and rows a second, on generated order flow, from Kafka's bytes to durable files.

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
from services.persister.archive import commit, files
from services.persister.archive.held import Record

NAME = "archive"

_FRAMES = 280_000
_RATE = 2_000.0
_START_US = 1_790_000_000_000_000


def run(addresses: Any) -> list[Row]:
    """Measure in a temporary folder; needs no addresses."""
    del addresses
    raw, book = _flow()
    rows = []
    for topic, what, records in (("kalshi.book.v1", "a book event", book), ("kalshi.raw.v1", "a raw frame", raw)):
        with tempfile.TemporaryDirectory(prefix="kb-bench-") as folder:
            rows += _measure(Path(folder), topic, what, records)
    return rows


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


def _flow() -> tuple[list[Record], list[Record]]:
    flow, partition, rng = Flow(seed=1, markets=200, start_us=_START_US), Partition(), random.Random(1)
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
    while len(raw) < _FRAMES:
        now += 1_000_000
        for at_us, happening in flow.advance(now, _RATE):
            hear(at_us, happening)
    return raw, book
