"""The consumer against a real broker: nothing skipped, nothing beside its reader, whatever the group does."""

import asyncio
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.errors import NoOffsetForPartitionError

from kalshibook_core.kafka import topics
from kalshibook_core.kafka.cluster import Cluster, partition_of
from kalshibook_core.kafka.consumer import Consumer, TopicPartition
from kalshibook_core.kafka.errors import Displaced, OffsetBehind, OffsetLost
from kalshibook_core.kafka.producer import Producer
from kalshibook_core.kafka.reader import read_partition

pytestmark = pytest.mark.stack

KEYS = [b"K%d" % number for number in range(40)]


async def fill(cluster: Cluster, count: int, topic: topics.Topic = topics.RAW) -> None:
    """Write the numbers below `count`, spread over the partitions."""
    async with Producer(cluster) as producer:
        for number in range(count):
            producer.add(topic, KEYS[number % len(KEYS)], b"%d" % number)


class Reader:
    """Polls a consumer and keeps what came, committing only when a partition is taken away."""

    def __init__(self, cluster: Cluster, group: str | None = "kb-tested", **more: object) -> None:
        self.consumer = Consumer(
            cluster,
            [topics.RAW],
            group,
            on_assigned=self.assigned,
            on_revoked=self.revoked,
            **more,  # type: ignore[arg-type]
        )
        self.got: list[bytes] = []
        self.next: dict[TopicPartition, int] = {}
        self.told: list[str] = []
        self.polling = False
        self.halved = asyncio.Event()

    async def assigned(self, partitions: set[TopicPartition]) -> None:
        assert self.polling, "told while not polling"
        self.told.append(f"+{len(partitions)}")
        if len(partitions) == 2:
            self.halved.set()

    async def revoked(self, partitions: set[TopicPartition]) -> None:
        assert self.polling, "told while not polling"
        self.told.append(f"-{len(partitions)}")
        await self.consumer.commit(self.next)
        self.next.clear()

    async def until(self, done: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not done():
                self.polling = True
                batch = await self.consumer.poll(max_records=37, timeout_ms=100)
                self.polling = False
                for partition, records in batch.items():
                    self.got += [record.value for record in records]
                    self.next[partition] = records[-1].offset + 1


async def test_a_group_starts_at_the_first_record_and_goes_on_where_it_committed(cluster: Cluster) -> None:
    await fill(cluster, 100)
    first = Reader(cluster)
    async with first.consumer:
        await first.until(lambda: len(first.got) == 100)
        assert sum(first.consumer.lag().values()) == 0
        await first.consumer.commit(first.next)
    await fill(cluster, 3)
    second = Reader(cluster)
    async with second.consumer:
        await second.until(lambda: len(second.got) == 3)
        assert await second.consumer.poll(timeout_ms=100) == {}
    assert sorted(second.got) == [b"0", b"1", b"2"]


async def test_lag_is_what_is_left_to_read(cluster: Cluster) -> None:
    await fill(cluster, 100)
    reader = Reader(cluster)
    async with reader.consumer as consumer:
        await reader.until(lambda: len(reader.got) > 0)
        ends = await consumer.end_offsets(consumer.assignment())
        left = {partition: ends[partition] - await consumer.position(partition) for partition in reader.next}
        assert {partition: consumer.lag()[partition] for partition in reader.next} == left


async def test_the_offsets_on_assigned_gives_win_over_the_committed_ones(cluster: Cluster) -> None:
    await fill(cluster, 100)
    partition = TopicPartition(cluster.topic(topics.RAW), partition_of(KEYS[0], cluster.partitions))

    async def restored(assigned: set[TopicPartition]) -> dict[TopicPartition, int]:
        return {partition: 3}

    async with Consumer(cluster, [topics.RAW], "kb-tested", on_assigned=restored) as consumer:
        seen: dict[TopicPartition, int] = {}
        async with asyncio.timeout(60):
            while len(seen) < len({partition_of(key, cluster.partitions) for key in KEYS}):
                for where, records in (await consumer.poll(timeout_ms=100)).items():
                    seen.setdefault(where, records[0].offset)
        assert seen.pop(partition) == 3
        assert set(seen.values()) == {0}


async def test_an_exception_of_a_callback_is_one_of_poll(cluster: Cluster) -> None:
    async def broken(assigned: set[TopicPartition]) -> None:
        raise ZeroDivisionError

    async with Consumer(cluster, [topics.RAW], "kb-tested", on_assigned=broken) as consumer, asyncio.timeout(60):
        with pytest.raises(ZeroDivisionError):
            while True:
                await consumer.poll(timeout_ms=100)


async def test_a_second_member_takes_over_without_loss_or_repeat(cluster: Cluster) -> None:
    await fill(cluster, 4000)
    first, second = Reader(cluster), Reader(cluster)

    def all_read() -> bool:
        return len(first.got) + len(second.got) >= 4100

    async with first.consumer:
        await first.until(lambda: len(first.got) >= 200)
        async with second.consumer, asyncio.TaskGroup() as group:
            group.create_task(first.until(lambda: "+2" in first.told and all_read()))
            group.create_task(second.until(lambda: "+2" in second.told and all_read()))
            async with asyncio.timeout(60):
                await first.halved.wait()
                await second.halved.wait()
            await fill(cluster, 100)
        assert first.told == ["+4", "-4", "+2"]
        assert second.told == ["+2"]
        await first.until(lambda: True)
    assert Counter(first.got + second.got) == Counter(b"%d" % n for n in range(4000)) + Counter(b"%d" % n for n in range(100))


async def test_a_member_that_leaves_hands_back(cluster: Cluster) -> None:
    first, second = Reader(cluster), Reader(cluster)
    async with first.consumer:
        async with second.consumer, asyncio.TaskGroup() as group:
            group.create_task(first.until(lambda: "+2" in first.told))
            group.create_task(second.until(lambda: "+2" in second.told))
        await first.until(lambda: first.told[-1] == "+4" and len(first.told) > 1)


async def test_an_offset_that_is_gone_is_told_and_not_jumped_over(cluster: Cluster) -> None:
    await fill(cluster, 100)
    partition = TopicPartition(cluster.topic(topics.RAW), partition_of(KEYS[0], cluster.partitions))
    admin = AIOKafkaAdminClient(bootstrap_servers=cluster.brokers)
    await admin.start()
    try:
        await admin.delete_records({partition: RecordsToDelete(before_offset=5)})
    finally:
        await admin.close()

    async def committed(assigned: set[TopicPartition]) -> dict[TopicPartition, int]:
        return {partition: 2}

    async with Consumer(cluster, [topics.RAW], "kb-tested", on_assigned=committed) as consumer, asyncio.timeout(60):
        with pytest.raises(OffsetBehind, match=f"partition {partition.partition}: .*retention took 3 unread"):
            while True:
                await consumer.poll(timeout_ms=100)
    with pytest.raises(OffsetLost):
        async for _ in read_partition(cluster, topics.RAW, partition.partition, 2):
            pass


async def test_without_a_group_every_partition_is_read_from_the_start_or_the_end(cluster: Cluster) -> None:
    await fill(cluster, 100)
    reader, late = Reader(cluster, None), Reader(cluster, None, from_end=True)
    async with reader.consumer, late.consumer:
        await reader.until(lambda: len(reader.got) == 100)
        await late.until(lambda: late.told == ["+4"])
        await fill(cluster, 1)
        await late.until(lambda: len(late.got) > 0)
    assert late.got == [b"0"]


async def test_a_paused_partition_keeps_its_records_until_resumed(cluster: Cluster) -> None:
    reader = Reader(cluster, None)
    partition = TopicPartition(cluster.topic(topics.RAW), partition_of(KEYS[0], cluster.partitions))
    async with reader.consumer as consumer:
        await reader.until(lambda: reader.told == ["+4"])
        consumer.pause(partition)
        await fill(cluster, 100)
        others = sum(partition_of(key, cluster.partitions) != partition.partition for key in KEYS) * 100 // len(KEYS)
        await reader.until(lambda: len(reader.got) >= others - 40)
        assert partition not in reader.next
        consumer.resume(partition)
        await reader.until(lambda: len(reader.got) == 100)


async def test_a_bounded_read_gives_its_range_and_ends(cluster: Cluster) -> None:
    await fill(cluster, 100)
    where = partition_of(KEYS[0], cluster.partitions)
    every = [record.offset async for record in read_partition(cluster, topics.RAW, where)]
    assert every == list(range(len(every)))
    assert len(every) > 5
    assert [r.offset async for r in read_partition(cluster, topics.RAW, where, 2, 5)] == [2, 3, 4]
    assert [r.offset async for r in read_partition(cluster, topics.RAW, where, 5, 5)] == []
    assert [r.offset async for r in read_partition(cluster, topics.RAW, where, len(every))] == []
    assert [r.offset async for r in read_partition(cluster, topics.RAW, where, 3, 10**9)] == every[3:]


async def test_a_bounded_read_ends_behind_transaction_markers_and_aborted_records(cluster: Cluster) -> None:
    async with Producer(cluster, cluster.group("tx")) as producer:
        for number in range(3):
            async with producer.transaction():
                producer.add(topics.BOOK, b"K", b"%d" % number)
        with pytest.raises(ZeroDivisionError):
            async with producer.transaction():
                producer.add(topics.BOOK, b"K", b"void")
                await producer.flush()
                raise ZeroDivisionError
    where = partition_of(b"K", cluster.partitions)
    async with asyncio.timeout(60):
        assert [r.value async for r in read_partition(cluster, topics.BOOK, where)] == [b"0", b"1", b"2"]
        assert [r.value async for r in read_partition(cluster, topics.BOOK, where, 3, 6)] == [b"2"]


async def test_a_place_that_an_assignment_lacked_when_it_ended_ends_nobody(cluster: Cluster) -> None:
    """aiokafka still says it when the next assignment has begun and we have not heard of it; so it is put there."""
    await fill(cluster, 100)
    reader = Reader(cluster)
    async with reader.consumer:
        await reader.until(lambda: len(reader.got) == 100)
        where = next(iter(reader.consumer.assignment()))
        reader.consumer._kafka._fetcher._set_error(where, NoOffsetForPartitionError(where))
        await fill(cluster, 100)
        await reader.until(lambda: len(reader.got) == 200)


MEMBER = """
import asyncio, sys
from kalshibook_core.kafka import consumer, topics
from kalshibook_core.kafka.cluster import Cluster
consumer._SESSION_MS = 240_000
async def main():
    async def assigned(partitions): print(len(partitions), flush=True)
    cluster = Cluster(*sys.argv[1:3], int(sys.argv[3]), sys.argv[4])
    async with consumer.Consumer(cluster, [topics.RAW], "kb-tested", on_assigned=assigned) as member:
        while True: await member.poll()
asyncio.run(main())
"""
"""A process that is a static member whose session lasts four minutes, and tells how many partitions it was given."""


async def test_who_succeeds_a_killed_process_by_its_name_does_not_wait_for_its_session(cluster: Cluster) -> None:
    await fill(cluster, 100)
    named = replace(cluster, instance="one")
    arguments = (named.brokers, named.prefix, str(named.partitions), named.instance)
    killed = await asyncio.create_subprocess_exec(sys.executable, "-c", MEMBER, *arguments, stdout=asyncio.subprocess.PIPE)
    assert killed.stdout is not None
    async with asyncio.timeout(60):
        assert await killed.stdout.readline() == b"4\n"
    killed.kill()
    await killed.wait()
    successor = Reader(named)
    async with successor.consumer, asyncio.timeout(60):
        await successor.until(lambda: len(successor.got) == 100)
    assert successor.told == ["+4"]


async def test_the_older_of_two_of_one_name_ends_and_the_newer_is_not_disturbed(cluster: Cluster) -> None:
    named = replace(cluster, instance="one")
    older, newer = Reader(named), Reader(named)
    async with older.consumer, newer.consumer:
        await older.until(lambda: older.told == ["+4"])
        await newer.until(lambda: newer.told == ["+4"])
        with pytest.raises(Displaced, match="another process is 'one'"):
            await older.until(lambda: False)
        await fill(cluster, 100)
        await newer.until(lambda: len(newer.got) == 100)
        await newer.consumer.commit(newer.next)
    assert newer.told == ["+4"]


async def test_an_offset_committed_by_a_displaced_member_is_refused(cluster: Cluster) -> None:
    await fill(cluster, 100)
    named = replace(cluster, instance="one")
    older, newer = Reader(named), Reader(named)
    async with older.consumer, newer.consumer:
        await older.until(lambda: len(older.got) == 100)
        await newer.until(lambda: newer.told == ["+4"])
        with pytest.raises(Displaced):
            await older.consumer.commit(older.next)
        assert [await newer.consumer.committed(partition) for partition in older.next] == [None] * len(older.next)
