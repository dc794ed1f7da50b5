"""Keys find the partition Kafka's own clients would choose, and names carry the prefix."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kalshibook_core.kafka import topics
from kalshibook_core.kafka.cluster import Cluster, partition_of


@pytest.mark.parametrize(
    ("key", "hashed"),
    # Kafka's own test vectors (clients, UtilsTest.testMurmur2).
    [(b"21", -973932308), (b"foobar", -790332482), (b"a-little-bit-long-string", -985981536), (b"abc", 479470107)],
)
def test_the_partition_is_that_of_kafkas_default_partitioner(key: bytes, hashed: int) -> None:
    for partitions in (1, 4, 7, 64):
        assert partition_of(key, partitions) == (hashed & 0x7FFFFFFF) % partitions


@given(st.binary(min_size=1, max_size=60), st.integers(1, 100))
def test_the_partition_exists(key: bytes, partitions: int) -> None:
    assert 0 <= partition_of(key, partitions) < partitions


def test_names_carry_the_prefix() -> None:
    cluster = Cluster("localhost:9092", "test1.")
    assert cluster.topic(topics.RAW) == "test1.kalshi.raw.v1"
    assert cluster.group("kb-persister") == "test1.kb-persister"


def test_every_topic_is_listed_once() -> None:
    assert len({topic.name for topic in topics.ALL}) == len(topics.ALL)
