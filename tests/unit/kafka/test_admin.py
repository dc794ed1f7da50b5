"""Which answers of a broker are worth another question."""

import pytest

from kalshibook_core.kafka.admin import waits_for
from kalshibook_core.kafka.errors import KafkaFault


def test_what_is_not_ready_is_asked_for_again_and_a_refusal_is_not() -> None:
    assert waits_for({"a": 0, "b": 36}) == ""  # made, or there already
    assert waits_for({"a": 36, "b": 7, "c": 41}) == "b: RequestTimedOutError, c: NotControllerError"
    assert waits_for({"a": 3, "b": 5}) == "a: UnknownTopicOrPartitionError, b: LeaderNotAvailableError"
    with pytest.raises(KafkaFault, match="cannot create topic b: InvalidReplicationFactorError"):
        waits_for({"a": 7, "b": 38})
