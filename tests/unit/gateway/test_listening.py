"""The gateway's port: one that somebody holds is told at once, in a line that says what to do."""

import socket

import pytest

from kalshibook_core.runtime.settings import ConfigurationError
from services.gateway.serve import listening


@pytest.mark.parametrize("listens", [True, False], ids=["listens", "is about to listen"])
def test_of_two_that_want_one_port_one_is_refused(listens: bool) -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        if listens:
            other.listen()
            with pytest.raises(ConfigurationError, match="choose another port"), listening("127.0.0.1", port):
                pass
        else:
            with listening("127.0.0.1", port), pytest.raises(OSError, match="in use"):
                other.listen()
