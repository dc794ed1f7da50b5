"""A log that has lost records and an archive that is not in its place are told, and nothing goes on as if they had not been."""

import asyncio
import resource
import signal
from pathlib import Path

import asyncpg
import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

from kalshibook_core.archive.reader import Archive
from kalshibook_core.archive.store import Folder
from kalshibook_core.kafka import admin, topics
from kalshibook_core.kafka.cluster import partition_of
from kalshibook_core.kafka.producer import Producer
from kalshibook_core.wire import codec
from services.persister.archive import commit, files
from tests.support import archive as made
from tests.support.service import Service, until

pytestmark = pytest.mark.stack


async def produce(cluster, topic, events) -> None:
    async with Producer(cluster) as producer:
        for event in events:
            producer.add(topic, event.market_ticker.encode(), codec.encode(event))
        await producer.flush()


async def forget(cluster, topic, before: int) -> TopicPartition:
    """Have the broker delete the first records of the partition that the first market is in, as retention does."""
    where = TopicPartition(cluster.topic(topic), partition_of(b"KXTEST0-0", cluster.partitions))
    client = AIOKafkaAdminClient(bootstrap_servers=cluster.brokers)
    await client.start()
    try:
        await client.delete_records({where: RecordsToDelete(before_offset=before)})
    finally:
        await client.close()
    return where


def halted(service: Service, *words: str):
    async def says() -> bool:
        status = await service.status()
        told = status.get("counters", {}).get("halted", "")
        return bool(told) and not status["ready"] and all(word in told for word in words)

    return says


async def test_the_persister_halts_where_records_are_gone_and_goes_on_in_no_other_log(cluster, database, tmp_path: Path):
    frames = [event._replace(market_ticker="KXTEST0-0") for event in made.book(1, 60, markets=1)]
    await produce(cluster, topics.BOOK, frames[:30])
    where = await forget(cluster, topics.BOOK, 10)
    connection = await asyncpg.connect(database)
    position = "SELECT coalesce(max(next_offset), 0) FROM consumer_offsets WHERE topic = $1"

    def reached(offset: int):
        async def there() -> bool:
            return await connection.fetchval(position, where.topic) == offset

        return there

    async with Service("persister", cluster, tmp_path / "persister.log", KB_POSTGRES_DSN=database) as service:
        await until(reached(30))  # an empty database begins with what there is
        assert await service.drain() == 0
        await produce(cluster, topics.BOOK, frames[30:])
        await forget(cluster, topics.BOOK, 40)
        service.start()
        await until(halted(service, "retention took 10 unread"))
        assert await service.counter("lost_records") == 10
        assert await service.drain() == 0
        assert await reached(30)()
        await connection.execute(
            "UPDATE consumer_offsets SET next_offset = 100 WHERE topic = $1 AND next_offset > 0", where.topic
        )
        service.start()
        await until(halted(service, "the log ends at 60"))
        assert await service.drain() == 0
        await connection.execute("UPDATE consumed_log SET log = 'another/'")
        service.start()
        assert await asyncio.to_thread(service.process.wait, 60) == 2
        assert "name an empty database" in service.log.read_text()
    await connection.close()


async def test_the_archive_halts_where_records_or_it_itself_are_gone(cluster, tmp_path: Path):
    frames = [frame._replace(market_ticker="KXTEST0-0") for frame in made.raw(1, 90)]
    await produce(cluster, topics.RAW, frames[:30])
    place, away = tmp_path / "archive", tmp_path / "away"
    number = partition_of(b"KXTEST0-0", cluster.partitions)
    env = {"KB_ARCHIVE": str(place), "KB_ARCHIVE_SECONDS": "0.1", "KB_INSTANCE": "a"}

    def archived(offset: int):
        async def there() -> bool:
            return await asyncio.to_thread(Archive(Folder(place)).next_offset, topics.RAW.name, number) == offset

        return there

    async def waits() -> bool:
        return await service.counter("store") == "away"

    async with Service("persister.archive", cluster, tmp_path / "archive.log", **env) as service:
        await until(archived(30))
        place.rename(away)  # the mount goes: what comes is written to no other place
        place.mkdir()
        await produce(cluster, topics.RAW, frames[30:60])

        await until(waits)
        assert not list(place.iterdir())
        service.kill()
        service.start()  # nor does a new process begin another archive there
        assert await asyncio.to_thread(service.process.wait, 60) == 2
        assert "mount it or name its place" in service.log.read_text()
        place.rmdir()
        away.rename(place)
        service.start()
        await until(archived(60))
        assert await service.drain() == 0
        rows = [row for of in made.everything(Archive(Folder(place)), topics.RAW.name).values() for row in of]
        assert [row[1] for row in rows] == frames[:60]

        last = sorted((place / "commits" / topics.RAW.name / str(number)).glob("*.json"))[-1]
        kept = last.read_bytes()
        last.unlink()
        service.start()
        await until(halted(service, "commits of it are gone"))
        assert await service.drain() == 0
        last.write_bytes(kept)

        await produce(cluster, topics.RAW, frames[60:])
        await forget(cluster, topics.RAW, 75)
        service.start()
        await until(halted(service, "retention took 15 unread"))
        assert await service.drain() == 0
        ahead = files.make(topics.RAW.name, number, 60, 500, "x", made.records(frames[:1]))
        await commit.write(Folder(place), ahead, lambda attempt: attempt())
        service.start()
        await until(halted(service, "the log ends at 90"))
        assert await service.drain() == 0

    # And while it runs: the topic is made anew behind its back. It reads none of it, so that it has to look.
    place = tmp_path / "another"
    async with Service(
        "persister.archive", cluster, tmp_path / "2.log", **env | {"KB_ARCHIVE": str(place), "KB_ARCHIVE_ANEW": "1"}
    ) as service:
        await until(archived(90))
        limit = resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE, (0, limit[1]))  # as on a full disk
        await produce(cluster, topics.RAW, frames[:30])
        await until(waits)
        assert await archived(90)()
        resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE, limit)
        await until(archived(120))
        service.send(signal.SIGSTOP)
        client = AIOKafkaAdminClient(bootstrap_servers=cluster.brokers)
        await client.start()
        try:
            await client.delete_topics([cluster.topic(topics.RAW)])
            while cluster.topic(topics.RAW) in await client.list_topics():  # noqa: ASYNC110  (a broker is late to hear of it)
                await asyncio.sleep(0.05)
        finally:
            await client.close()
        await admin.ensure_topics(cluster)
        service.send(signal.SIGCONT)
        await until(halted(service, "the log ends at 0"))
        assert await service.counter("lost_records") == 120
        assert await archived(120)()
        assert await service.drain() == 0
