"""Brings the topics into being."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import structlog
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError, for_code

from kalshibook_core.kafka.cluster import Cluster
from kalshibook_core.kafka.errors import KafkaFault, TopicMismatch
from kalshibook_core.kafka.topics import ALL, Topic

MAX_RECORD_BYTES: Final = 8 * 1024 * 1024
"""The largest record batch a topic takes; a frame of the exchange has at most 4 MiB here."""

COMPACTED_BYTES: Final = 32 * 1024 * 1024
"""A segment of a compacted topic. The last one is never compacted, and a restore reads all of it: Kafka makes it 1 GiB."""

_OK, _EXISTS = 0, 36  # Kafka protocol error codes NONE and TOPIC_ALREADY_EXISTS

WITHIN_SECONDS: Final = 60.0
_RETRY_SECONDS: Final = 0.1

_log = structlog.get_logger()


async def ensure_topics(cluster: Cluster, topics: tuple[Topic, ...] = ALL, within: float = WITHIN_SECONDS) -> None:
    """Create the topics that are missing. Raises TopicMismatch if one exists with another partition count.

    Any number of processes may do it at once. What exists is left as it is: its policy is its operator's from then on.
    Brokers that answer, but are slow or not ready, are asked again for so many seconds. Raises KafkaFault where that was not
    enough, where they refuse, or where none can be reached.
    """
    why = "no answer"
    try:
        async with asyncio.timeout(within), _client(cluster) as admin:
            while isinstance(counts := await _attempt(cluster, admin, topics), str):
                if counts != why:
                    _log.info("topics_not_ready", why=counts, then="asking again")
                why = counts
                await asyncio.sleep(_RETRY_SECONDS)
    except TimeoutError:
        raise KafkaFault(
            f"Kafka at {cluster.brokers} does not have its topics ready after {within:g} s: {why}; "
            "look at the brokers' load, disks and controller, and start again"
        ) from None
    for name, count in counts.items():
        if count != cluster.partitions:
            raise TopicMismatch(
                f"topic {name} has {count} partitions, KB_KAFKA_PARTITIONS says {cluster.partitions}: "
                "set it to what the topics have; changing their count would send markets to other partitions"
            )


async def _attempt(cluster: Cluster, admin: Any, topics: tuple[Topic, ...]) -> dict[str, int] | str:
    """Return the partition count of each topic, or why another attempt is needed."""
    try:
        answer = await admin.create_topics([_new(cluster, topic) for topic in topics])
        if why := waits_for({name: code for name, code, *_ in answer.topic_errors}):
            return why
        # The controller answers before the brokers have all heard of a new topic, and a producer must not come before that.
        found = await admin.describe_topics([cluster.topic(topic) for topic in topics])
        return waits_for({topic["topic"]: topic["error_code"] for topic in found}) or {
            topic["topic"]: len(topic["partitions"]) for topic in found
        }
    except (KafkaError, TimeoutError) as error:
        return repr(error)
    except AttributeError as error:
        return f"no controller is known: {error}"  # aiokafka looks into what it has none of


def waits_for(codes: Mapping[str, int]) -> str:
    """Return what is not ready, by the protocol's error codes of topics; "" where nothing is amiss. Raises KafkaFault where a
    broker refuses."""
    amiss = {name: for_code(code) for name, code in codes.items() if code not in (_OK, _EXISTS)}
    for name, error in amiss.items():
        if not error.retriable:
            raise KafkaFault(f"cannot create topic {name}: {error.__name__}: {error.description}")
    return ", ".join(f"{name}: {error.__name__}" for name, error in amiss.items())


async def cluster_id(cluster: Cluster) -> str:
    """Return what the brokers call their cluster: another one's offsets mean other records. Raises KafkaFault."""
    async with _client(cluster) as admin:
        return str((await admin.describe_cluster())["cluster_id"])


async def reached(cluster: Cluster, group: str, within: float = WITHIN_SECONDS) -> dict[tuple[str, int], int]:
    """Return the offsets that a group has committed, by (full name of the topic, partition).

    A cluster that has had no group yet makes itself a coordinator first, and is asked again meanwhile. Raises KafkaFault where it
    does not within so many seconds.
    """
    why: KafkaError | None = None
    try:
        async with asyncio.timeout(within), _client(cluster) as admin:
            while True:
                try:
                    found = await admin.list_consumer_group_offsets(cluster.group(group))
                    break
                except KafkaError as error:
                    why = error
                    if not error.retriable:
                        raise
                await asyncio.sleep(_RETRY_SECONDS)
    except (KafkaError, TimeoutError) as error:
        raise KafkaFault(f"cannot ask for the offsets of group {group}: {why!r}") from error
    return {(where.topic, where.partition): each.offset for where, each in found.items() if each.offset >= 0}


@asynccontextmanager
async def _client(cluster: Cluster) -> AsyncIterator[Any]:
    admin = AIOKafkaAdminClient(bootstrap_servers=cluster.brokers)
    try:
        await admin.start()
    except BaseException as error:
        await admin.close()
        if isinstance(error, KafkaError):
            raise KafkaFault(f"cannot connect to Kafka at {cluster.brokers}: {error!r}") from error
        raise
    try:
        yield admin
    finally:
        await admin.close()


def _new(cluster: Cluster, topic: Topic) -> NewTopic:
    new = NewTopic(
        name=cluster.topic(topic),
        num_partitions=cluster.partitions,
        replication_factor=1,
        topic_configs={
            "cleanup.policy": topic.cleanup,
            "retention.ms": str(topic.retention_ms),
            "max.message.bytes": str(MAX_RECORD_BYTES),
            **({"segment.bytes": str(COMPACTED_BYTES)} if topic.cleanup == "compact" else {}),
        },
    )
    new.replication_factor = -1  # the broker's default; aiokafka's constructor does not take what Kafka does
    return new
