"""Unit tests talk to nobody: a connection to anything but a local socket pair is an error."""

import socket
from typing import Any

import pytest


class NetworkUsed(AssertionError):
    """A unit test tried to connect to an address."""


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    connect = socket.socket.connect

    def refused(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX:
            raise NetworkUsed(f"a unit test connects to {address}: it belongs in tests/integration")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket.socket, "connect_ex", refused)
