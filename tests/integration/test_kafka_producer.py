"""The producer against a real broker: order, whole transactions, and no loss that is not told."""

import asyncio
import hashlib
import itertools
from pathlib import Path

import psutil
import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from kalshibook_core.kafka import admin, topics
from kalshibook_core.kafka.cluster import Cluster, partition_of
from kalshibook_core.kafka.consumer import Consumer, TopicPartition
from kalshibook_core.kafka.errors import Fenced, KafkaFault, ProduceFailed, TopicMismatch
from kalshibook_core.kafka.producer import Producer
from kalshibook_core.kafka.reader import read_partition
from kalshibook_tools.stack import External, local_stack

pytestmark = pytest.mark.stack

ONLY_KAFKA = External(postgres="postgresql://127.0.0.1:1/none", redis="redis://127.0.0.1:1/0")


async def values(cluster: Cluster, topic: topics.Topic, *, read_committed: bool = True) -> list[list[bytes]]:
    """Return the values of a topic, per partition."""
    return [
        [record.value async for record in read_partition(cluster, topic, partition, read_committed=read_committed)]
        for partition in range(cluster.partitions)
    ]


async def every(cluster: Cluster, topic: topics.Topic, *, read_committed: bool = True) -> list[bytes]:
    """Return the values of a topic, partition after partition."""
    return list(itertools.chain(*await values(cluster, topic, read_committed=read_committed)))


async def committed(cluster: Cluster, topic: topics.Topic) -> list[bytes]:
    """Return the committed values once no transaction is open or being completed any more."""
    async with Producer(cluster, cluster.group("tx")):
        pass  # its start completes the last transaction of the id that these tests share
    return await every(cluster, topic)


def noise(number: int, size: int) -> bytes:
    """Return bytes that do not compress, the same for the same number."""
    return hashlib.shake_128(number.to_bytes(8, "big")).digest(size)


async def test_what_is_added_arrives_once_and_in_order(cluster: Cluster) -> None:
    expected: list[list[bytes]] = [[] for _ in range(cluster.partitions)]
    rows: list[list[tuple[bytes, bytes, int]]] = [[] for _ in range(cluster.partitions)]
    async with Producer(cluster, max_batch=10_000) as producer:
        for number in range(4900):
            key = b"K%d" % (number % 50)
            value = number.to_bytes(4, "big") + noise(number, number % 300)
            partition = partition_of(key, cluster.partitions)
            if number % 700 < 300:
                producer.add(topics.RAW, key, value, timestamp_ms=number)
            else:
                rows[partition].append((key, value, number))
            expected[partition].append(value)
            if number % 700 == 699:  # between one by one: more than a batch takes, and less, and nothing
                for each in range(cluster.partitions):
                    producer.extend(topics.RAW, each, rows[each])
                    producer.extend(topics.RAW, each, [])
                    rows[each].clear()
            if number % 500 == 0:
                await asyncio.sleep(0)  # so that batches of all sizes are under way while more is added
        await producer.flush()
        assert (producer.added, producer.acked, producer.buffered) == (4900, 4900, 0)
        assert await values(cluster, topics.RAW) == expected


async def test_a_batch_is_sent_without_being_asked(cluster: Cluster) -> None:
    async with Producer(cluster, linger_ms=1) as producer, Consumer(cluster, [topics.RAW]) as consumer:
        producer.add(topics.RAW, b"K", b"v")
        async with asyncio.timeout(30):
            while not (batch := await consumer.poll()):
                pass
        assert [record.value for records in batch.values() for record in records] == [b"v"]
        assert producer.acked == 1


async def test_a_record_larger_than_a_batch_goes_alone_and_in_its_place(cluster: Cluster) -> None:
    large = noise(1, 4 * 1024 * 1024)
    async with Producer(cluster, max_batch=4096) as producer:
        for value in (b"before", large, b"after"):
            producer.add(topics.RAW, b"K", value)
    assert (await values(cluster, topics.RAW))[partition_of(b"K", cluster.partitions)] == [b"before", large, b"after"]


async def test_leaving_the_block_delivers_what_was_added(cluster: Cluster) -> None:
    with pytest.raises(ZeroDivisionError):
        async with Producer(cluster, linger_ms=60_000) as producer:
            producer.add(topics.RAW, b"K", b"v")
            raise ZeroDivisionError
    assert await every(cluster, topics.RAW) == [b"v"]


async def test_room_keeps_the_buffer_bounded(cluster: Cluster) -> None:
    value, limit, most = bytes(1000), 100_000, 0
    async with Producer(cluster, max_batch=10_000, max_buffered=limit) as producer:
        for _ in range(2000):
            producer.add(topics.RAW, b"K", value)
            most = max(most, producer.buffered)
            await producer.room()
            assert producer.buffered <= limit
    assert limit < most < limit + 2000  # the limit was reached, and one record passed it at most


async def test_a_record_the_broker_refuses_fails_the_producer_for_good(cluster: Cluster) -> None:
    with pytest.raises(ProduceFailed, match="MessageSizeTooLarge"):
        async with Producer(cluster, compression=None) as producer:
            producer.add(topics.RAW, b"K", bytes(9 * 1024 * 1024))
            with pytest.raises(ProduceFailed):
                await producer.flush()
            with pytest.raises(ProduceFailed):
                producer.add(topics.RAW, b"K", b"v")
            with pytest.raises(ProduceFailed):
                await producer.room()


async def test_a_transaction_is_visible_altogether_with_its_offsets(cluster: Cluster) -> None:
    source, group = TopicPartition(cluster.topic(topics.RAW), 0), cluster.group("kb-tested")
    async with Producer(cluster, cluster.group("tx")) as producer, producer.transaction():
        for number in range(100):
            producer.add(topics.BOOK, b"K%d" % number, b"kept")
        await producer.flush()
        assert len(await every(cluster, topics.BOOK, read_committed=False)) == 100
        assert len(await every(cluster, topics.BOOK)) == 0
        await producer.commit_offsets({source: 17}, group)
    assert len(await committed(cluster, topics.BOOK)) == 100
    assert await _committed_offset(cluster, source) == 17


async def test_an_exception_leaves_nothing_of_its_transaction(cluster: Cluster) -> None:
    source, group = TopicPartition(cluster.topic(topics.RAW), 0), cluster.group("kb-tested")
    async with Producer(cluster, cluster.group("tx"), linger_ms=60_000) as producer:
        with pytest.raises(ZeroDivisionError):
            async with producer.transaction():
                producer.add(topics.BOOK, b"K", b"sent, then void")
                await producer.flush()
                await producer.commit_offsets({source: 17}, group)
                producer.add(topics.BOOK, b"K", b"never sent")
                raise ZeroDivisionError
        assert producer.buffered == 0
        async with producer.transaction():
            producer.add(topics.BOOK, b"K", b"kept")
    assert await committed(cluster, topics.BOOK) == [b"kept"]
    assert await every(cluster, topics.BOOK, read_committed=False) == [b"sent, then void", b"kept"]
    assert await _committed_offset(cluster, source) is None


async def test_a_cancelled_transaction_leaves_nothing(cluster: Cluster) -> None:
    async with Producer(cluster, cluster.group("tx")) as producer:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2), producer.transaction():
                producer.add(topics.BOOK, b"K", b"void")
                await asyncio.Event().wait()
        async with producer.transaction():
            producer.add(topics.BOOK, b"K", b"kept")
    assert await committed(cluster, topics.BOOK) == [b"kept"]


async def test_a_zombie_is_fenced_and_writes_nothing(cluster: Cluster) -> None:
    with pytest.raises(Fenced):
        async with Producer(cluster, cluster.group("tx")) as zombie, zombie.transaction():
            zombie.add(topics.BOOK, b"K", b"of the zombie")
            await zombie.flush()
            async with Producer(cluster, cluster.group("tx")) as heir, heir.transaction():
                heir.add(topics.BOOK, b"K", b"of the heir")
            zombie.add(topics.BOOK, b"K", b"too late")
    assert await committed(cluster, topics.BOOK) == [b"of the heir"]


async def test_a_zombie_is_told_that_it_is_fenced_whatever_is_refused_first(cluster: Cluster) -> None:
    for number in range(3):
        name = cluster.group(f"tx{number}")
        with pytest.raises(Fenced):
            async with Producer(cluster, name, linger_ms=0) as zombie, zombie.transaction():
                zombie.add(topics.BOOK, b"K", b"of the zombie")
                await zombie.flush()
                async with Producer(cluster, name):
                    pass
                for key in range(50):
                    for topic in (topics.BOOK, topics.TRADES, topics.TICKERS):
                        zombie.add(topic, b"%d" % key, b"too late")
                    await asyncio.sleep(0.001 * number)  # so that what is refused comes at another point of the sending
                await zombie.flush()


async def test_outside_a_transaction_nothing_is_added(cluster: Cluster) -> None:
    async with Producer(cluster, cluster.group("tx")) as producer:
        with pytest.raises(RuntimeError, match="only within transaction"):
            producer.add(topics.BOOK, b"K", b"v")


async def test_a_broker_that_cannot_be_reached_is_named() -> None:
    with pytest.raises(ProduceFailed, match=r"127\.0\.0\.1:1"):
        async with Producer(Cluster("127.0.0.1:1")):
            pass


async def test_topics_are_made_once_and_a_wrong_count_is_refused(cluster: Cluster) -> None:
    await asyncio.gather(*(admin.ensure_topics(cluster) for _ in range(3)))
    with pytest.raises(TopicMismatch, match="has 4 partitions, KB_KAFKA_PARTITIONS says 5"):
        await admin.ensure_topics(Cluster(cluster.brokers, cluster.prefix, 5))
    client = AIOKafkaAdminClient(bootstrap_servers=cluster.brokers)
    await client.start()
    try:
        asked = [ConfigResource(ConfigResourceType.TOPIC, cluster.topic(each)) for each in (topics.RAW, topics.CHECKPOINTS)]
        answers = [each for answer in await client.describe_configs(asked) for each in answer.resources]
    finally:
        await client.close()
    said = [{entry[0]: entry[1] for entry in answer[4]} for answer in answers]
    assert [each["cleanup.policy"] for each in said] == ["delete", "compact"]
    assert [int(each["segment.bytes"]) for each in said] == [2**30, 2**25]  # of the latter all is read at every start


async def test_topics_of_a_broker_that_stalls_are_waited_for_and_no_longer_than_told(tmp_path: Path) -> None:
    async with local_stack(tmp_path, external=ONLY_KAFKA, kafka_heap="256m") as stack:
        cluster, broker = Cluster(stack.addresses.kafka), psutil.Process(stack.processes["kafka"].pid)
        await admin.cluster_id(cluster)
        asked = asyncio.ensure_future(admin.ensure_topics(cluster))
        broker.suspend()
        try:
            with pytest.raises(KafkaFault, match=r"does not have its topics ready after 0\.5 s: no answer; look at"):
                await admin.ensure_topics(cluster, within=0.5)
        finally:
            broker.resume()
        await asked


async def test_an_outage_is_waited_out_or_told_but_never_silent(tmp_path: Path) -> None:
    async with local_stack(tmp_path, external=ONLY_KAFKA, kafka_heap="256m") as stack:
        cluster, broker = Cluster(stack.addresses.kafka), stack.processes["kafka"]
        await admin.ensure_topics(cluster)

        async with Producer(cluster) as producer:
            producer.add(topics.RAW, b"K", b"before")
            await producer.flush()
            _kill(broker.pid)
            await broker.wait()
            producer.add(topics.RAW, b"K", b"meanwhile")
            flushed = asyncio.ensure_future(producer.flush())
            await broker.start()
            async with asyncio.timeout(60):
                await flushed
        assert await every(cluster, topics.RAW) == [b"before", b"meanwhile"]

        with pytest.raises(ProduceFailed, match="no acknowledgement for"):
            async with Producer(cluster, delivery_seconds=0.5, max_buffered=1000) as producer:
                _kill(broker.pid)
                await broker.wait()
                producer.add(topics.RAW, b"K", bytes(2000))
                with pytest.raises(ProduceFailed):
                    await producer.room()


async def test_offsets_are_never_taken_for_missing_while_a_restarted_broker_loads_them(tmp_path: Path) -> None:
    for start in range(4):
        async with local_stack(tmp_path, external=ONLY_KAFKA, kafka_heap="256m") as stack:
            cluster = Cluster(stack.addresses.kafka)
            where = TopicPartition(cluster.topic(topics.RAW), 0)
            if start:
                assert await _committed_offset(cluster, where) == 7
                continue
            await admin.ensure_topics(cluster)
            async with Producer(cluster, "tested-0") as producer, producer.transaction():
                producer.add(topics.RAW, b"K", b"value")
                await producer.commit_offsets({where: 7}, cluster.group("kb-tested"))


def _kill(pid: int | None) -> None:
    psutil.Process(pid).kill()


async def _committed_offset(cluster: Cluster, partition: TopicPartition) -> int | None:
    async with Consumer(cluster, [topics.RAW], "kb-tested") as consumer:
        return await consumer.committed(partition)
