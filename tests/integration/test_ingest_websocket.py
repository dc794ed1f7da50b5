"""The gatherer's socket in a real event loop: all that came before the end is handed on, in order, and memory is bounded."""

import asyncio
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import uvloop
from cryptography.hazmat.primitives.asymmetric import rsa
from websockets.asyncio.client import connect
from websockets.frames import Frame, Opcode
from websockets.utils import accept_key

from kalshibook_core.kafka.cluster import Cluster
from kalshibook_core.kalshi.signing import SIGNATURE, Credentials
from services.ingest import websocket
from services.ingest.connection import Connection
from services.ingest.outbox import Outbox
from services.ingest.settings import Settings
from services.ingest.websocket import Socket

CHUNK = 256 * 1024  # the most an event loop reads at once
LOOPS = [asyncio.run, uvloop.run]


@contextmanager
def exchange(after: bytes, again: bool = False) -> Iterator[str]:
    """A server that shakes hands, says `after` in the same breath, for ever if `again`, and hangs up."""

    def talk() -> None:
        peer, _ = listening.accept()
        request = b""
        while b"\r\n\r\n" not in request:
            request += peer.recv(4096)
        (key,) = [line[19:].decode() for line in request.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key: ")]
        head = ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade"]
        head += [f"Sec-WebSocket-Accept: {accept_key(key)}", "", ""]
        peer.settimeout(60)
        with suppress(OSError):
            peer.sendall("\r\n".join(head).encode() + after)
            while again:
                peer.sendall(after)
        peer.close()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        talking = threading.Thread(target=talk)
        talking.start()
        try:
            yield f"ws://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            talking.join()


@pytest.mark.parametrize("run", LOOPS, ids=["asyncio", "uvloop"])
def test_a_burst_is_read_ahead_so_far_and_handed_on_to_the_last(
    run: Callable[[Coroutine[Any, Any, Any]], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that takes is slow, and the exchange is gone while much of what it said still waits."""
    monkeypatch.setattr(websocket, "AHEAD_BYTES", 4 * CHUNK)
    sent = [b"%d " % number * 60 for number in range(40_000)]
    stream = b"".join(Frame(Opcode.TEXT, message).serialize(mask=False) for message in sent)
    taken: list[bytes] = []
    ahead, times = [], []

    def take(messages: list[bytes], received_us: int) -> None:
        taken.extend(messages)
        ahead.append(Socket.ahead)
        times.append(received_us)
        time.sleep(0.002)

    async def listen(url: str) -> None:
        reader = await connect(url, create_connection=Socket, compression=None, ping_interval=None, proxy=None)
        assert isinstance(reader, Socket)
        while not Socket.ahead:  # what comes before there is somebody to take it waits  # noqa: ASYNC110
            await asyncio.sleep(0)
        reader.hand_to(take)
        await reader.wait_closed()

    with exchange(stream) as url:
        run(asyncio.wait_for(listen(url), 60))
    assert taken == sent
    assert max(ahead) <= 5 * CHUNK and Socket.ahead == 0
    assert times == sorted(times)


@pytest.mark.parametrize("run", LOOPS, ids=["asyncio", "uvloop"])
def test_other_work_is_done_in_the_midst_of_a_burst(run: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
    stream = Frame(Opcode.TEXT, b"x" * 250).serialize(mask=False) * 40_000
    turns = 0

    async def listen(url: str) -> None:
        nonlocal turns
        reader = await connect(url, create_connection=Socket, compression=None, ping_interval=None, proxy=None)
        assert isinstance(reader, Socket)
        reader.hand_to(lambda messages, _: time.sleep(0.002))
        closed = asyncio.ensure_future(reader.wait_closed())
        while not closed.done():
            turns += 1
            await asyncio.sleep(0)

    with exchange(stream) as url:
        run(asyncio.wait_for(listen(url), 60))
    assert turns > 20  # of the 40 that 10 MB take, a quarter of a megabyte each


def test_who_pings_without_end_and_reads_no_answer_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "UNREAD_BYTES", CHUNK)
    pings = Frame(Opcode.PING, b"x" * 125).serialize(mask=False) * 1000

    async def listen(url: str) -> None:
        reader = await connect(url, create_connection=Socket, compression=None, ping_interval=None, proxy=None)
        assert isinstance(reader, Socket)
        reader.hand_to(lambda messages, _: None)
        await reader.wait_closed()

    with exchange(pings, again=True) as url:
        asyncio.run(asyncio.wait_for(listen(url), 60))


async def test_an_odd_answer_to_the_handshake_is_told_and_leads_nowhere_else() -> None:
    """Also a redirection to where the signature does not belong, or to what is no address of a websocket."""
    came: list[str] = []
    signatures: set[str] = set()  # each attempt has one of its own
    answer = b""

    async def elsewhere(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.append("elsewhere")
        writer.close()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = (await reader.readuntil(b"\r\n\r\n")).decode()
        signatures.update(line for line in request.splitlines() if line.startswith(SIGNATURE))
        writer.write(b"HTTP/1.1 " + answer + b"Content-Length: 0\r\n\r\n")
        writer.close()

    async with (
        await asyncio.start_server(elsewhere, "127.0.0.1", 0) as other,
        await asyncio.start_server(talk, "127.0.0.1") as one,
    ):
        there, here = (server.sockets[0].getsockname()[1] for server in (other, one))
        credentials = Credentials("k", rsa.generate_private_key(public_exponent=65537, key_size=2048))
        settings = Settings(Cluster("nowhere"), credentials, f"ws://127.0.0.1:{here}/ws", "http://127.0.0.1:1")
        counts: Counter[str] = Counter()
        outbox = Outbox(settings.cluster, None, "g1", 1)
        connection = Connection(0, settings, outbox, counts, random.Random(1))
        for said, why in {
            b"302 Found\r\nLocation: ws://127.0.0.1:%d/\r\n" % there: "HTTP 302",
            b"302 Found\r\nLocation: https://127.0.0.1:%d/\r\n" % there: "HTTP 302",
            b"301 Moved\r\nLocation: ws://[::1/\r\n": "HTTP 301",
            b"503 Away\r\nDate: Mon, 01 Jan 2024 00:00:00 GMT\r\nDate: yesterday\r\n": "HTTP 503",
            b"401 No\r\nDate: Mon, 01 Jan 2024 00:00:00 GMT\r\n": "HTTP 401 : set this machine's clock",
            b"200 OK\r\n": "HTTP 200",
            b"2 OK\r\n": "InvalidMessage",
        }.items():
            answer = said
            assert await connection._open() is None
            assert why in connection.trouble
    assert not came and counts["handshakes_failed"] == len(signatures) == 7
