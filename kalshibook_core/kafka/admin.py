"""Brings the topics into being."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError

from kalshibook_core.kafka.cluster import Cluster
from kalshibook_core.kafka.errors import KafkaFault, TopicMismatch
from kalshibook_core.kafka.topics import ALL, Topic

MAX_RECORD_BYTES: Final = 8 * 1024 * 1024
"""The largest record batch a topic takes; a frame of the exchange has at most 4 MiB here."""

_OK, _EXISTS = 0, 36  # Kafka protocol error codes NONE and TOPIC_ALREADY_EXISTS

_HEARD_WITHIN_TRIES: Final = 200
_RETRY_SECONDS: Final = 0.05


async def ensure_topics(cluster: Cluster, topics: tuple[Topic, ...] = ALL) -> None:
    """Create the topics that are missing. Raises TopicMismatch if one exists with another partition count.

    Any number of processes may do it at once. What exists is left as it is: its policy is its operator's from then on.
    Raises KafkaFault if the brokers cannot be reached.
    """
    async with _client(cluster) as admin:
        answer = await admin.create_topics([_new(cluster, topic) for topic in topics])
        for name, code, *detail in answer.topic_errors:
            if code not in (_OK, _EXISTS):
                raise KafkaFault(f"cannot create topic {name}: error {code} {detail[0] if detail else ''}")
        for name, count in (await _partition_counts(admin, [cluster.topic(topic) for topic in topics])).items():
            if count != cluster.partitions:
                raise TopicMismatch(
                    f"topic {name} has {count} partitions, KB_KAFKA_PARTITIONS says {cluster.partitions}: "
                    "set it to what the topics have; changing their count would send markets to other partitions"
                )


async def cluster_id(cluster: Cluster) -> str:
    """Return what the brokers call their cluster: another one's offsets mean other records. Raises KafkaFault."""
    async with _client(cluster) as admin:
        return str((await admin.describe_cluster())["cluster_id"])


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


async def _partition_counts(admin: Any, names: list[str]) -> dict[str, int]:
    # The controller answers before the brokers have all heard of a new topic, and a producer must not come before that.
    for _ in range(_HEARD_WITHIN_TRIES):
        found = await admin.describe_topics(names)
        if all(topic["error_code"] == _OK for topic in found):
            return {topic["topic"]: len(topic["partitions"]) for topic in found}
        await asyncio.sleep(_RETRY_SECONDS)
    missing = [(topic["topic"], topic["error_code"]) for topic in found if topic["error_code"] != _OK]
    raise KafkaFault(f"the brokers do not know their own topics, by error code: {missing}")


def _new(cluster: Cluster, topic: Topic) -> NewTopic:
    new = NewTopic(
        name=cluster.topic(topic),
        num_partitions=cluster.partitions,
        replication_factor=1,
        topic_configs={
            "cleanup.policy": topic.cleanup,
            "retention.ms": str(topic.retention_ms),
            "max.message.bytes": str(MAX_RECORD_BYTES),
        },
    )
    new.replication_factor = -1  # the broker's default; aiokafka's constructor does not take what Kafka does
    return new
