"""Brings the topics into being."""

from typing import Final

from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from kalshibook_core.kafka.cluster import Cluster
from kalshibook_core.kafka.errors import KafkaFault, TopicMismatch
from kalshibook_core.kafka.topics import ALL, Topic

MAX_RECORD_BYTES: Final = 8 * 1024 * 1024
"""The largest record batch a topic takes; a frame of the exchange has at most 4 MiB here."""

_OK, _EXISTS = 0, 36  # Kafka protocol error codes NONE and TOPIC_ALREADY_EXISTS


async def ensure_topics(cluster: Cluster, topics: tuple[Topic, ...] = ALL) -> None:
    """Create the topics that are missing. Raises TopicMismatch if one exists with another partition count.

    Any number of processes may do it at once. What exists is left as it is: its policy is its operator's from then on.
    """
    admin = AIOKafkaAdminClient(bootstrap_servers=cluster.brokers)
    await admin.start()
    try:
        answer = await admin.create_topics([_new(cluster, topic) for topic in topics])
        for name, code, *detail in answer.topic_errors:
            if code not in (_OK, _EXISTS):
                raise KafkaFault(f"cannot create topic {name}: error {code} {detail[0] if detail else ''}")
        for found in await admin.describe_topics([cluster.topic(topic) for topic in topics]):
            count = len(found["partitions"])
            if found["error_code"] == _OK and count != cluster.partitions:
                raise TopicMismatch(
                    f"topic {found['topic']} has {count} partitions, KB_KAFKA_PARTITIONS says {cluster.partitions}: "
                    "set it to what the topics have; changing their count would send markets to other partitions"
                )
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
        },
    )
    new.replication_factor = -1  # the broker's default; aiokafka's constructor does not take what Kafka does
    return new
