"""Which Kafka, under which names, and which partition a key belongs to."""

import itertools
from dataclasses import dataclass
from functools import lru_cache

from aiokafka.partitioner import murmur2

from kalshibook_core.kafka.topics import Topic


@dataclass(frozen=True, slots=True)
class Cluster:
    """The brokers, the prefix of every topic and group name (so that tests share a broker), and every topic's partition count."""

    brokers: str  # host:port[,host:port]
    prefix: str = ""
    partitions: int = 4
    instance: str = ""  # our name as a member of consumer groups, one process's at a time; without one Kafka names each life anew

    def topic(self, topic: Topic) -> str:
        """Return the topic's name on this cluster."""
        return self.prefix + topic.name

    def group(self, name: str) -> str:
        """Return the consumer group's name on this cluster; transactional ids are named by it too."""
        return self.prefix + name


@lru_cache(maxsize=1 << 18)
def partition_of(key: bytes, partitions: int) -> int:
    """Return the partition of `key`, as Kafka's own default partitioner chooses it (murmur2).

    The cache holds every ticker of the exchange: the hash in Python takes 5 µs, a hit a tenth of one.
    """
    return int((murmur2(key) & 0x7FFFFFFF) % partitions)


def keys_of_partitions(prefix: str, partitions: int) -> list[str]:
    """Return a key of each partition, all of them `prefix`.number."""
    found: dict[int, str] = {}
    for number in itertools.count():
        key = f"{prefix}.{number}"
        found.setdefault(partition_of(key.encode(), partitions), key)
        if len(found) == partitions:
            return [found[each] for each in range(partitions)]
    raise AssertionError("unreachable")
