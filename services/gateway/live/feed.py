"""Every book event as it is committed to Kafka, handed to the streams that follow its market.

One consumer without a group reads all partitions, from a little before their end, so that the rings are warm at once; until it
has come to that end nothing is said of any market, since an outdated book in Redis could not be told from the latest. An event
is decoded only when somebody follows its market, and its JSON is made once for all who do.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

import orjson
import structlog

from kalshibook_core.kafka import topics
from kalshibook_core.kafka.cluster import Cluster, partition_of
from kalshibook_core.kafka.consumer import Batch, Consumer, TopicPartition
from kalshibook_core.kafka.errors import KafkaFault, OffsetLost
from kalshibook_core.postgres.pool import UNREACHABLE
from kalshibook_core.wire import codec
from kalshibook_core.wire.events import BOOK, TRADES, BookDelta, BookEvent, BookSnapshot, Gap
from services.gateway import completeness, forms
from services.gateway.live import store
from services.gateway.live.coverage import Coverage
from services.gateway.live.rings import Rings

TAIL: Final = 10_000
"""Records read again in each partition at start: more than the reconstructor's books in Redis lag behind."""
TOGETHER: Final = 500
"""Events handed on between two turns of the sockets: a tenth of what may wait for one, so that only who does not read is cut."""
RETRY_SECONDS: Final = 1.0
COVERAGE_SECONDS: Final = 1.0

FREE: Final = b'{"type":"quality"'
"""What a message that tells of quality begins with; no credit is taken for it."""

TOPICS: Final = {BOOK: topics.BOOK, TRADES: topics.TRADES}
"""By channel."""

log = structlog.get_logger()


class Follower(Protocol):
    """A stream. What it does with an event must not wait."""

    def event(self, ticker: str, version: int, messages: Sequence[bytes]) -> None:
        """Take the next event of a market it follows."""

    def lost(self, ticker: str) -> None:
        """Take note that events of the market may be missing from here on."""


class Feed:
    """The consumer, the rings and who follows what."""

    def __init__(self, cluster: Cluster, ring_events: int, monotonic: Callable[[], float]) -> None:
        self._cluster, self._monotonic = cluster, monotonic
        self._looked = -COVERAGE_SECONDS
        self._rings = Rings(ring_events)
        self._coverage = {channel: Coverage(cluster.partitions) for channel in TOPICS}
        self._latest: dict[int, int] = {}  # by partition, the effective time of the last book event seen
        self._followers: dict[str, set[Follower]] = {}
        self._next: dict[TopicPartition, int] = {}
        self.ready = False
        self.events = 0
        self.unreadable = 0

    def through(self, ticker: str, channel: str = BOOK) -> int:
        """Return the instant up to which what was received for the ticker's partition is in the database (0: unknown)."""
        return self._coverage[channel].through(partition_of(ticker.encode(), self._cluster.partitions))

    def since(self, ticker: str, version: int) -> list[tuple[int, list[bytes]]] | None:
        """Return (version, messages) of the market's events after `version`; None if they are not all remembered, or not yet."""
        if not self.ready:
            return None
        try:
            events = self._rings.since(ticker, version, codec.decode)
        except codec.Undecodable:
            return None
        return None if events is None else [(event.version, messages(event)) for event in events]

    def follow(self, ticker: str, follower: Follower) -> None:
        """Hand the market's events to a stream from now on."""
        self._followers.setdefault(ticker, set()).add(follower)

    def unfollow(self, ticker: str, follower: Follower) -> None:
        """Undo `follow`."""
        if (followers := self._followers.get(ticker)) is not None:
            followers.discard(follower)
            if not followers:
                del self._followers[ticker]

    async def consume(self, stop: asyncio.Event) -> None:
        """Read until `stop` is set. Kafka away is waited out; what retention took meanwhile makes every stream start over."""
        while not stop.is_set():
            try:
                await self._read(stop)
            except OffsetLost as error:
                log.error("gateway.feed.lost", why=str(error), effect="streams begin again from the latest books")
                self._next.clear()
                self._rings.clear()
                self.ready = False
                for ticker, followers in list(self._followers.items()):
                    for follower in list(followers):
                        follower.lost(ticker)
            except KafkaFault as error:
                log.warning("gateway.feed.kafka_away", why=str(error))
                await asyncio.sleep(RETRY_SECONDS)

    async def _read(self, stop: asyncio.Event) -> None:
        behind: dict[TopicPartition, int] = {}

        async def start(assigned: set[TopicPartition]) -> Mapping[TopicPartition, int]:
            behind.update(await consumer.end_offsets(assigned))
            begins = await consumer.begin_offsets(assigned)
            return {each: self._next.get(each, max(begins[each], end - TAIL)) for each, end in behind.items()}

        async with Consumer(self._cluster, [topics.BOOK], on_assigned=start) as consumer:
            while not stop.is_set():
                self._take(await consumer.poll(max_records=TOGETHER, timeout_ms=100))
                await asyncio.sleep(0)  # a poll that finds records waiting does not yield, and the sockets want their turn
                await self._look_at_trades(consumer)
                if not self.ready:
                    for partition, end in list(behind.items()):
                        if await consumer.position(partition) >= end:
                            del behind[partition]
                    self.ready = not behind

    def _take(self, batch: Batch) -> None:
        add, followed = self._rings.add, self._followers
        for partition, records in batch.items():
            for record in records:
                ticker = record.key.decode()
                add(ticker, record.value)
                if ticker in followed and (event := self._decoded(record.value)) is not None:
                    told = messages(event)
                    for follower in tuple(followed[ticker]):
                        follower.event(ticker, event.version, told)
            last = records[-1]
            self._next[partition] = last.offset + 1
            self.events += len(records)
            if (event := self._decoded(last.value)) is not None:
                self._coverage[BOOK].seen(partition.partition, last.offset, event.effective_us)
                self._latest[partition.partition] = event.effective_us

    async def _look_at_trades(self, consumer: Consumer) -> None:
        """See where the trades end that came with the book events seen so far: both are committed together."""
        now = self._monotonic()
        if now - self._looked < COVERAGE_SECONDS:
            return
        self._looked, latest = now, dict(self._latest)
        topic = self._cluster.topic(topics.TRADES)
        ends = await consumer.end_offsets(TopicPartition(topic, partition) for partition in latest)
        for where, end in ends.items():
            # All that stands there was written in transactions, so the last offset is the marker of one, which nobody stores.
            self._coverage[TRADES].seen(where.partition, end - 2, latest[where.partition])

    def _decoded(self, value: bytes) -> BookEvent | None:
        try:
            event = codec.decode(value)
        except codec.Undecodable as error:
            self.unreadable += 1
            log.error("gateway.feed.unreadable", why=str(error))
            return None
        return event if isinstance(event, BookSnapshot | BookDelta | Gap) else None

    async def watch_coverage(self, pool: "store.Pool", stop: asyncio.Event) -> None:
        """Keep asking how far the persister is, until `stop` is set."""
        while not stop.is_set():
            try:
                for channel, topic in TOPICS.items():
                    for partition, next_offset in await store.stored_offsets(pool, self._cluster.topic(topic)):
                        self._coverage[channel].stored(partition, next_offset)
            except UNREACHABLE as error:
                log.warning("gateway.coverage.unknown", why=type(error).__name__, effect="recorded_through stands still")
            try:
                async with asyncio.timeout(COVERAGE_SECONDS):
                    await stop.wait()
            except TimeoutError:
                pass


def messages(event: BookEvent) -> list[bytes]:
    """Return an event as streams carry it: the row of /v1/deltas and its market.

    After it, where a gap opens or ends or the book begins, comes the quality.
    """
    told = [orjson.dumps({"market_ticker": event.market_ticker, **forms.of_event(event)})]
    if isinstance(event, Gap):
        told.append(quality(event.market_ticker, event.version, event.effective_us, (event.start_us, None, event.cause)))
    elif isinstance(event, BookSnapshot) and (event.gap_start_us is not None or event.version == 1):
        told.append(quality(event.market_ticker, event.version, event.effective_us, None))
    return told


def quality(ticker: str, version: int, effective_us: int, gap: tuple[int, int | None, str] | None) -> bytes:
    """Return what is to be said of a market's book from a version on, until it is said anew."""
    told = completeness.block(completeness.at_instant(effective_us, effective_us, gap))
    return orjson.dumps({"type": "quality", "market_ticker": ticker, "version": version, "quality": told})
