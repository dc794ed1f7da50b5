"""Recorded frames into the raw topic, once: which markets may have them, up to where they are there already, and the rest.

A market's log is final: versions are not renumbered and times never go back. So it takes recorded frames only where it has no
book yet, or stands in a gap that began before them; of other markets nothing is taken, and that is told. The deduplicator looks
again when the frames come (`MarketLog.admits`): the database may lag.

An import is known by the digest of its files. Its records are a function of them, and the broker keeps the order of a partition;
so of a run that was killed each partition has a first part, and the next run, which counts it, goes on behind it.
"""

import asyncio
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Protocol

import orjson

from kalshibook_core.kafka import topics
from kalshibook_core.kafka.cluster import Cluster, partition_of
from kalshibook_core.kafka.consumer import Consumer, TopicPartition
from kalshibook_core.kafka.reader import read_partition
from kalshibook_core.postgres import pool, runs
from kalshibook_core.runtime import clock
from kalshibook_core.wire import codec
from kalshibook_core.wire.events import IMPORTED, RawFrame
from services.ingest.outbox import SETTLE_SECONDS, Outbox
from services.ingest.recordings import Extent, Step, Survey

BUFFER_BYTES: Final = 32 * 1024 * 1024
BATCH: Final = 256
"""Records until the broker's answers are looked at."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

_LOGS: Final = """
SELECT m.ticker, b.kind, b.effective_us FROM markets m
LEFT JOIN LATERAL (SELECT kind, effective_us FROM book_events WHERE market_id = m.id
                   ORDER BY effective_us DESC, version DESC LIMIT 1) b ON true
WHERE m.ticker = ANY($1::text[]) AND m.recorded_us IS NOT NULL"""


class Source(Protocol):
    """What is imported."""

    @property
    def size(self) -> int:
        """How many bytes there are to survey."""

    def survey(self, step: Step) -> Survey:
        """Read everything once; `step` is told of bytes. To be called before the others."""

    def records(self, left: dict[str, int]) -> Iterator[RawFrame]:
        """Yield the records of those markets that `left` has, with the number of their frames; it is used up."""

    def owns(self, raw: RawFrame) -> bool:
        """Return whether a record of the raw topic is one of these."""


class Unfinished(Exception):
    """Another import of this name was interrupted, and its markets wait for the rest of it."""


@dataclass(slots=True)
class Ledger:
    """What is known of the import of a name: its id, the markets it leaves out and why, and where the topic ended before it."""

    path: Path
    id: str = ""
    refused: dict[str, str] = field(default_factory=dict)
    floor: list[int] = field(default_factory=list)
    done: bool = False

    def load(self) -> None:
        """Read it, if there is one. Raises ValueError."""
        try:
            known = orjson.loads(self.path.read_bytes())
            self.id, self.refused, self.floor, self.done = (known[name] for name in ("id", "refused", "floor", "done"))
        except FileNotFoundError:
            pass
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{self.path} is damaged ({error}): remove it, and import under another name") from None

    def save(self) -> None:
        """Write it, whole or not at all."""
        content = {"id": self.id, "refused": self.refused, "floor": self.floor, "done": self.done}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.path.with_name(self.path.name + ".new")
        fresh.write_bytes(orjson.dumps(content))
        fresh.replace(self.path)


@dataclass(slots=True)
class Report:
    """What an import did."""

    survey: Survey
    refused: dict[str, str] = field(default_factory=dict)  # market -> why
    written: int = 0  # records
    there: int = 0  # records that an earlier run had written
    repeated: bool = False  # all of it was there


def gatherer(name: str) -> str:
    """Return the name of the gatherer that an import is in the provenance of what it writes."""
    return IMPORTED + name


async def refusals(dsn: str, markets: dict[str, Extent]) -> dict[str, str]:
    """Return the markets whose log cannot take these frames, each with why. Raises DatabaseUnreachable."""
    connection = await pool.connect(dsn)
    found: dict[str, str] = {}
    try:
        for ticker, kind, effective_us in await connection.fetch(_LOGS, list(markets)):
            if kind == runs.GAP and effective_us <= markets[ticker].first_us:
                continue
            goes = "is not in the database any more" if effective_us is None else f"goes on to {_text(effective_us)} at least"
            found[ticker] = f"its book is recorded already and {goes}; these frames begin at {_text(markets[ticker].first_us)}"
    finally:
        await connection.close()
    return found


def _text(us: int) -> str:
    return (_EPOCH + timedelta(microseconds=us)).isoformat(timespec="milliseconds").replace("+00:00", "Z")


async def bring_in(
    cluster: Cluster, dsn: str, source: Source, survey: Survey, ledger: Ledger, step: Step = lambda _: None
) -> Report:
    """Import what the survey of `source` found; `step` is told of records.

    Step by step, and what a kill leaves behind:

    1. Nothing was done yet. The next run begins anew.
    2. The ledger is written: which markets are left out, and where the topic ends. The next run finds nothing behind that.
    3. Records go to the topic. Each partition has a first part of its own, which the next run counts and passes over.
    4. The broker has them all, and the ledger says so. The next run does nothing.
    """
    report = Report(survey)
    ledger.load()
    if ledger.id and ledger.id != report.survey.id and not ledger.done:
        raise Unfinished(f"another import of this name was interrupted ({ledger.path}): run it again first, or give --origin")
    begun = ledger.id == report.survey.id
    if begun and ledger.done:
        report.refused, report.repeated = ledger.refused, True
        return report
    there = [0] * cluster.partitions
    if begun:
        await asyncio.sleep(SETTLE_SECONDS)  # the broker may still have the killed run's last request in its socket
        there = [await _count(cluster, source, number, floor) for number, floor in enumerate(ledger.floor)]
    else:
        ledger.id, ledger.done, ledger.floor = report.survey.id, False, await _ends(cluster)
        ledger.refused = await refusals(dsn, report.survey.markets)
        ledger.save()
    report.refused = ledger.refused
    left = {ticker: extent.frames for ticker, extent in report.survey.markets.items() if ticker not in ledger.refused}
    if left:
        await _write(cluster, source.records(left), there, report, step)
    ledger.done = True
    ledger.save()
    return report


async def _write(cluster: Cluster, records: Iterable[RawFrame], there: list[int], report: Report, step: Step) -> None:
    async with Outbox(cluster, None, "", BUFFER_BYTES) as outbox:
        for number, raw in enumerate(records, 1):
            key = raw.market_ticker.encode()
            partition = partition_of(key, cluster.partitions)
            if there[partition]:
                there[partition] -= 1
                report.there += 1
            else:
                # The topic keeps a record by when it was written: its own times may be long past what the topic keeps.
                outbox.add(key, codec.encode(raw), clock.now_us() // 1000)
                report.written += 1
            if not number % BATCH:
                step(BATCH)
                await outbox.room()
                await asyncio.sleep(0)
        await outbox.safe()


async def _ends(cluster: Cluster) -> list[int]:
    where = [TopicPartition(cluster.topic(topics.RAW), number) for number in range(cluster.partitions)]
    async with Consumer(cluster, [topics.RAW]) as consumer:
        ends = await consumer.end_offsets(where)
    return [ends[each] for each in where]


async def _count(cluster: Cluster, source: Source, partition: int, floor: int) -> int:
    """Return how many records of the source a partition has. Raises OffsetLost where it does not keep the first of them."""
    found = 0
    async for record in read_partition(cluster, topics.RAW, partition, floor):
        try:
            raw = codec.decode(record.value or b"")
        except codec.Undecodable:
            continue
        found += isinstance(raw, RawFrame) and source.owns(raw)
    return found
