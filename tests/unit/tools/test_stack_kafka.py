"""The broker's cluster id is one that Kafka's own tool takes."""

import uuid

from hypothesis import given
from hypothesis import strategies as st

from kalshibook_tools.stack.kafka import cluster_id


@given(st.uuids())
def test_a_cluster_id_never_looks_like_an_option(chosen: uuid.UUID) -> None:
    assert len(cluster_id(chosen)) == 22
    assert not cluster_id(chosen).startswith("-")


def test_the_id_that_began_with_a_dash() -> None:
    assert cluster_id(uuid.UUID(int=2**128 - 1))[0] == "f"
