"""Whatever happens to the reconstructor, its books, its checkpoints and what Redis shows are those of the book topic."""

import random
import signal
from pathlib import Path

import pytest
import redis.asyncio

from kalshibook_core.kafka import topics
from kalshibook_core.kafka.cluster import Cluster, partition_of
from kalshibook_core.kafka.producer import Producer
from kalshibook_core.kafka.reader import read_partition
from kalshibook_core.orderbook import Book
from kalshibook_core.orderbook.checksum import to_signed
from kalshibook_core.wire import codec
from kalshibook_core.wire.events import BookEvent, Checkpoint
from kalshibook_tools.stack import External, local_stack, probe
from services.reconstructor.checkpointing import PartitionBooks, Policy
from tests.support.canonical import Market, rest_book
from tests.support.service import Service, until

pytestmark = pytest.mark.stack


def history(markets: list[Market], seed: int, events: int) -> list[BookEvent]:
    chance = random.Random(seed)
    return [chance.choice(markets).event(chance.randrange(200), chance.randrange(1_000_000)) for _ in range(events)]


async def produce(cluster: Cluster, events: list[BookEvent]) -> None:
    async with Producer(cluster) as producer:
        for event in events:
            producer.add(topics.BOOK, event.market_ticker.encode(), codec.encode(event))
        await producer.flush()


async def checkpoints(cluster: Cluster) -> dict[int, list[Checkpoint]]:
    """Read the checkpoint topic, by partition, when nobody writes to it any more."""
    for number in range(cluster.partitions):
        async with Producer(cluster, f"{cluster.group('kb-reconstructor')}-{number}"):
            pass  # the broker answers a commit before it lets readers see it; its start completes the last of the partition
    return {
        n: [codec.decode(record.value) async for record in read_partition(cluster, topics.CHECKPOINTS, n)]
        for n in range(cluster.partitions)
    }


async def shown(client: redis.asyncio.Redis, cluster: Cluster, market: Market) -> Checkpoint | None:
    value = await client.get(f"{cluster.prefix}kb:book:{market.ticker}")
    return codec.decode(value) if value else None


@pytest.fixture
async def client(redis_url):
    client = redis.asyncio.from_url(redis_url)
    yield client
    await client.aclose()


@pytest.fixture
def reconstructor(cluster, redis_url, tmp_path: Path):
    def make(name: str = "a", **env: str) -> Service:
        return Service("reconstructor", cluster, tmp_path / f"{name}.log", **{"KB_REDIS_URL": redis_url, **env})

    return make


def all_shown(client, cluster, markets):
    async def reached() -> bool:
        books = [await shown(client, cluster, market) for market in markets]
        return all(book and book.version == market.version for book, market in zip(books, markets, strict=True))

    return reached


def same(book: Checkpoint, market: Market) -> bool:
    return (tuple(book.yes), tuple(book.no), book.version, book.gap_start_us) == (
        market.book.yes,
        market.book.no,
        market.version,
        market.gap,
    )


async def test_kill_9_gives_the_same_books_and_the_same_checkpoints(cluster, client, reconstructor):
    markets = [Market(f"KXTEST-{n}", 1_700_000_000_000_000) for n in range(30)]
    chance = random.Random(9)
    events: list[BookEvent] = []
    async with reconstructor(KB_CHECKPOINT_EVENTS="50", KB_INSTANCE="one") as service:
        for round_ in range(3):
            fresh = history(markets, round_, 4_000)
            events += fresh
            await produce(cluster, fresh)
            await service.ready()
            if round_:
                await client.flushdb()  # Redis holds no truth

            async def some() -> bool:
                return (await service.counter("events_total") or 0) >= chance.randrange(1, 2_000)

            await until(some)
            service.kill()
            service.start()
        await service.ready()  # the life before may have shown every book already: this one has to fold them before it drains
        await until(all_shown(client, cluster, markets))
        for market in markets:
            assert same(await shown(client, cluster, market), market)
        assert await service.drain() == 0

    # All that one reconstructor that never died would have written, and what the drain and each hand-over of a partition added:
    # nothing but books as they were.
    truth = {n: PartitionBooks(policy=Policy(events=50)) for n in range(cluster.partitions)}
    should: set[tuple[str, int, int]] = set()
    may: set[tuple[str, int, int]] = set()
    for offset, event in enumerate(events):
        books = truth[partition_of(event.market_ticker.encode(), cluster.partitions)]
        books.apply(event, offset, 0)
        now = books.books[event.market_ticker].checkpoint(offset)
        may.add((now.market_ticker, now.version, now.checksum))
        should |= {(c.market_ticker, c.version, c.checksum) for c in books.due(0)}
    should |= {(c.market_ticker, c.version, c.checksum) for books in truth.values() for c in books.rest()}

    written = await checkpoints(cluster)
    assert should <= {(c.market_ticker, c.version, c.checksum) for part in written.values() for c in part} <= may

    for n, part in written.items():  # a drain leaves nothing to fold
        restored = PartitionBooks(part)
        ends = [live.offset for live in restored.books.values()]
        assert not ends or restored.next_offset > max(ends)
        for live in restored.books.values():
            market = next(market for market in markets if market.ticker == live.ticker)
            assert (live.version, live.book) == (market.version, market.book), n


async def test_a_book_that_does_not_verify_is_taken_away_and_told(cluster, client, reconstructor):
    good, bad = Market("KXTEST-GOOD", 1_700_000_000_000_000), Market("KXTEST-BAD", 1_700_000_000_000_000)
    async with reconstructor() as service:
        await produce(cluster, history([good, bad], 1, 50))
        await until(all_shown(client, cluster, [good, bad]))
        broken = bad.event(8, 5)
        await produce(cluster, [broken._replace(checksum=broken.checksum ^ 1), good.event(8, 5)])

        async def told() -> bool:
            return await service.counter("corrupt_count") == 1 and await shown(client, cluster, bad) is None

        await until(told)
        await until(all_shown(client, cluster, [good]))
        assert "KXTEST-BAD" in service.log.read_text()
        assert await service.drain() == 0
    written = [c.market_ticker for part in (await checkpoints(cluster)).values() for c in part]
    assert written == ["KXTEST-GOOD"]


async def test_two_share_the_partitions_and_one_takes_over(cluster, client, reconstructor):
    markets = [Market(f"KXTEST-{n}", 1_700_000_000_000_000) for n in range(12)]
    async with reconstructor("one", KB_CHECKPOINT_EVENTS="20") as one, reconstructor("two", KB_CHECKPOINT_EVENTS="20") as two:
        await produce(cluster, history(markets, 1, 1_000))

        async def shared() -> bool:
            counts = [await service.counter("markets_count") for service in (one, two)]
            return all(counts) and sum(counts) == len(markets)

        await until(shared)
        await produce(cluster, history(markets, 2, 1_000))
        await until(all_shown(client, cluster, markets))
        assert await one.drain() == 0
        await produce(cluster, history(markets, 3, 1_000))
        await until(all_shown(client, cluster, markets))
        await two.ready()  # what it had shown before it took over as well, it has folded again
        assert await two.counter("corrupt_count") == 0
        assert await two.drain() == 0
    for part in (await checkpoints(cluster)).values():
        for live in PartitionBooks(part).books.values():
            market = next(market for market in markets if market.ticker == live.ticker)
            assert (live.version, live.book) == (market.version, market.book)


async def test_while_redis_is_away_folding_goes_on_and_the_books_follow(cluster, parts, reconstructor, tmp_path):
    markets = [Market(f"KXTEST-{n}", 1_700_000_000_000_000) for n in range(12)]
    async with local_stack(tmp_path / "stack", external=External(kafka=parts.kafka, postgres=parts.postgres)) as own:
        server = own.processes["redis"]
        client = redis.asyncio.from_url(own.addresses.redis)
        async with reconstructor(KB_REDIS_URL=own.addresses.redis, KB_CHECKPOINT_EVENTS="20") as service:
            await produce(cluster, history(markets, 1, 500))
            await until(all_shown(client, cluster, markets))
            await server.stop()
            await produce(cluster, history(markets, 2, 500))

            async def folded() -> bool:
                return (await service.counter("events_total"), await service.counter("redis")) == (1_000, "away")

            await until(folded)
            await server.start()

            async def answers() -> bool:
                return await probe.redis_answers(int(own.addresses.redis.rpartition(":")[2].partition("/")[0]))

            await until(answers)
            await client.connection_pool.disconnect()
            await until(all_shown(client, cluster, markets))
            assert await service.drain() == 0
        await client.aclose()


async def test_a_zombie_that_wakes_after_the_rebalance_cannot_write_an_older_checkpoint(cluster, client, reconstructor):
    markets = [Market(f"KXTEST-{n}", 1_700_000_000_000_000) for n in range(12)]
    async with reconstructor("zombie", KB_CHECKPOINT_EVENTS="30") as zombie:
        await produce(cluster, history(markets, 1, 1_000))
        await until(all_shown(client, cluster, markets))
        joined = zombie.log.read_text().count('"assigned"')
        zombie.send(signal.SIGSTOP)  # with checkpoints not yet written and books not yet due
        await produce(cluster, history(markets, 2, 1_000))
        async with reconstructor("heir", KB_CHECKPOINT_EVENTS="30") as heir:
            await until(all_shown(client, cluster, markets))
            zombie.send(signal.SIGCONT)
            await produce(cluster, history(markets, 3, 1_000))
            await until(all_shown(client, cluster, markets))
            assert await heir.drain() == 0

        async def heard() -> bool:
            return zombie.log.read_text().count('"assigned"') > joined

        await until(heard)
        await produce(cluster, history(markets, 4, 1_000))
        await until(all_shown(client, cluster, markets))
        await zombie.ready()  # the only member, it has folded all before it drains
        assert await zombie.drain() == 0
    for part in (await checkpoints(cluster)).values():
        last: dict[str, Checkpoint] = {}
        for checkpoint in part:
            before = last.get(checkpoint.market_ticker)
            assert before is None or before.version <= checkpoint.version
            last[checkpoint.market_ticker] = checkpoint
        for live in PartitionBooks(part).books.values():
            market = next(market for market in markets if market.ticker == live.ticker)
            assert (live.version, live.book) == (market.version, market.book)


async def test_a_falsified_book_is_found(cluster, client, reconstructor):
    """Of two markets REST has the true book and one with a level that never was."""
    good, bad = Market("KXTEST-GOOD", 1_700_000_000_000_000), Market("KXTEST-BAD", 1_700_000_000_000_000)
    async with reconstructor() as service:
        await produce(cluster, [market.event(roll, 5_000_000) for roll in (3, 4, 5) for market in (good, bad)])
        await until(all_shown(client, cluster, [good, bad]))
        books = [rest_book(good, good.at, good.at), rest_book(bad, bad.at, bad.at, Book([(9_000, 100)]))]
        # Later events, so that both have come to the end of their windows; then REST's books, until somebody listens.
        await produce(cluster, [market.event(6, 20_000_000) for market in (good, bad)])
        await until(all_shown(client, cluster, [good, bad]))

        async def told() -> bool:
            async with Producer(cluster) as producer:
                for raw in books:
                    producer.add(topics.AUDITS, raw.market_ticker.encode(), codec.encode(raw))
                await producer.flush()
            counted = [await service.counter(f"audits_{outcome}_total") for outcome in ("matched", "mismatched")]
            return all(counted)

        await until(told)
        assert await service.counter("audits_unknown_total") == 0
        assert await service.drain() == 0
        log = service.log.read_text()
    outcomes = {
        event.market_ticker: event
        for n in range(cluster.partitions)
        async for record in read_partition(cluster, topics.AUDITED, n)
        for event in [codec.decode(record.value)]
    }
    assert {ticker: event.outcome for ticker, event in outcomes.items()} == {"KXTEST-GOOD": "match", "KXTEST-BAD": "mismatch"}
    assert outcomes["KXTEST-BAD"].rest_checksum == to_signed(Book([(9_000, 100)]).checksum)
    assert outcomes["KXTEST-BAD"].version == bad.version
    assert (
        "audit_mismatch" in log
        and "KXTEST-BAD" in log
        and not any("KXTEST-GOOD" in line for line in log.splitlines() if "audit_mismatch" in line)
    )
