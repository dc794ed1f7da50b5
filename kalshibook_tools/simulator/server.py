"""The exchange's socket: one port for REST, the websocket and, beside the exchange's own paths, /simulator/….

HTTP/1.1 by hand, since it is a request line, headers and a body, and websocket by `websockets`' sans-I/O protocol; market
frames go past it, framed here and written many at a time, which is what makes 60,000 a second cheap. Whoever does not read is
waited for `SLOW_SECONDS`, then its subscriptions end with error 25, as the exchange ends a slow consumer's.
"""

import asyncio
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.utils import formatdate
from typing import Any, cast

import orjson
import structlog
from websockets.frames import Frame as WireFrame
from websockets.frames import Opcode
from websockets.http11 import Request
from websockets.protocol import OPEN
from websockets.server import ServerProtocol

from kalshibook_core.kalshi import signing
from kalshibook_core.runtime import clock
from kalshibook_tools.simulator import control, rest
from kalshibook_tools.simulator.exchange import Exchange
from kalshibook_tools.simulator.faults import Fault
from kalshibook_tools.simulator.keys import ApiKey
from kalshibook_tools.simulator.subscriptions import Subscriptions

WS_PATH = "/trade-api/ws/v2"
TOLERANCE_MS = 5_000
"""How far a signed timestamp may be off (seen on the wire: 5 s passes, 30 s does not)."""

HEARTBEAT_SECONDS = 10.0
SLOW_SECONDS = 20.0
WRITE_BUFFER = 1 << 20
LARGEST_COMMAND = 4 << 20
LARGEST_HEAD = 1 << 16
DELAYED_BYTES = 64 << 20
"""While more than this waits in a delay fault, the market waits too."""

_HEARTBEAT = b"\x89\x09heartbeat"
_REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 405: "Method Not Allowed"}
_REASONS |= {429: "Too Many Requests", 422: "Unprocessable Entity", 502: "Bad Gateway"}
_log = structlog.get_logger()


class Connection(asyncio.Protocol):
    """One client's TCP connection: HTTP requests until one of them upgrades, a websocket from there on."""

    def __init__(self, server: "Server") -> None:
        self.server = server
        self.number = -1
        self.client = 0  # whose it is, by the key it signed with
        self.alive = False
        self.silent = False
        self.subscriptions = Subscriptions(self, server.exchange)
        self.writable = asyncio.Event()
        self.writable.set()
        self.delayed_bytes = 0
        self._held = False
        self._handshake: tuple[bytes, str, dict[str, str]] | None = None  # of a client that is to stay away
        self._transport: asyncio.Transport
        self._websocket: ServerProtocol | None = None
        self._received = b""
        self._fragments: list[bytes] = []
        self._pending: list[bytes] = []
        self._delayed: deque[tuple[float, bytes]] = deque()
        self._barriers: dict[bytes, asyncio.Future[None]] = {}

    # -- asyncio's calls ---------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its type
        self._transport.set_write_buffer_limits(high=WRITE_BUFFER)
        self.server.sockets.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.server.sockets.discard(self)
        self.server.disconnected(self)
        self.writable.set()
        for barrier in self._barriers.values():
            if not barrier.done():
                barrier.set_result(None)

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def data_received(self, data: bytes) -> None:
        if self._websocket is not None:
            self._receive_frames(data)
            return
        self._received += data
        while self._websocket is None and (end := self._received.find(b"\r\n\r\n")) >= 0:
            head = self._received[: end + 4]
            method, target, headers = _parse_head(head)
            if headers.get("upgrade", "").lower() == "websocket":
                self._received = self._received[end + 4 :]
                self._upgrade(head, target, headers)
                return
            length = int(headers["content-length"]) if headers.get("content-length", "").isdigit() else 0
            if len(self._received) < end + 4 + length:
                return
            body, self._received = self._received[end + 4 : end + 4 + length], self._received[end + 4 + length :]
            status, answer = self.server.answer(method, target, headers, body)
            self._transport.write(self.server.response(status, answer))
            if headers.get("connection", "").lower() == "close":
                self._transport.close()
                return
        if len(self._received) > LARGEST_HEAD:
            self._transport.close()

    # -- websocket ---------------------------------------------------------------------------------------------

    def _upgrade(self, head: bytes, target: str, headers: dict[str, str]) -> None:
        refusal = self.server.refuse_handshake(target, headers)
        if refusal is not None:
            self._transport.write(self.server.response(*refusal, close=True))
            self._transport.close()
            return
        if self.server.key.key_ids.index(headers[signing.KEY.lower()]) + 1 in self.server.exchange.away:
            self._handshake = head, target, headers
            return
        websocket = ServerProtocol(max_size=LARGEST_COMMAND)
        websocket.receive_data(head)
        request = websocket.events_received()[0]
        assert isinstance(request, Request)
        response = websocket.accept(request)
        del response.headers["Date"]  # `websockets` wrote the wall clock
        response.headers["Date"] = self.server.date()
        websocket.send_response(response)
        self._transport.writelines(websocket.data_to_send())
        if websocket.state is not OPEN:
            self._transport.close()
            return
        self._websocket = websocket
        self.client = self.server.key.key_ids.index(headers[signing.KEY.lower()]) + 1
        self.alive = True
        self.server.connected(self)
        if self._received:
            data, self._received = self._received, b""
            self._receive_frames(data)

    def _receive_frames(self, data: bytes) -> None:
        websocket = self._websocket
        assert websocket is not None
        websocket.receive_data(data)
        for event in websocket.events_received():
            assert isinstance(event, WireFrame)
            if event.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
                self._fragments.append(bytes(event.data))
                if event.fin:
                    text, self._fragments = b"".join(self._fragments), []
                    for payload in self.subscriptions.receive(text):
                        self.enqueue(payload)
            elif event.opcode is Opcode.PONG and (barrier := self._barriers.pop(bytes(event.data), None)):
                barrier.set_result(None)
            elif event.opcode is Opcode.CLOSE:
                self.alive = False
        closing = False
        for chunk in websocket.data_to_send():
            self._pending.append(chunk)
            closing = closing or not chunk  # an empty chunk is the end of the stream
        self.flush()
        if closing:
            self.server.disconnected(self)
            self._transport.close()

    def enqueue(self, payload: bytes) -> None:
        """Put one text frame after those already there; `flush` sends them."""
        size = len(payload)
        if size < 126:
            self._pending += (b"\x81" + bytes((size,)), payload)
        elif size < 65_536:
            self._pending += (b"\x81\x7e" + size.to_bytes(2, "big"), payload)
        else:
            self._pending += (b"\x81\x7f" + size.to_bytes(8, "big"), payload)

    def flush(self) -> None:
        """Hand what is pending to the socket in one write, or to the delay that is in force."""
        if not self._pending or self._held:
            return
        chunk = b"".join(self._pending)
        self._pending.clear()
        if self.silent:
            return
        loop = asyncio.get_running_loop()
        if not self._delayed and not self.server.delay_seconds:
            self._transport.write(chunk)
            return
        due = loop.time() + self.server.delay_seconds
        self._delayed.append((max(due, self._delayed[-1][0]) if self._delayed else due, chunk))
        self.delayed_bytes += len(chunk)
        if len(self._delayed) == 1:
            loop.call_at(due, self._release)

    def _release(self) -> None:
        loop = asyncio.get_running_loop()
        while self._delayed and self._delayed[0][0] <= loop.time() + 0.001:
            chunk = self._delayed.popleft()[1]
            self.delayed_bytes -= len(chunk)
            if not self._transport.is_closing() and not self.silent:
                self._transport.write(chunk)
        if self._delayed:
            loop.call_at(self._delayed[0][0], self._release)

    def hold(self) -> None:
        """Send nothing until `release`: all of it will come late."""
        self.flush()
        self._held = True

    def release(self) -> None:
        """Send what was held; let in whoever waits for it."""
        self._held = False
        if not self._transport.is_closing():
            self.flush()
            if self._handshake is not None:
                handshake, self._handshake = self._handshake, None
                self._upgrade(*handshake)

    def heartbeat(self) -> None:
        """Send the ping that the exchange sends every 10 seconds."""
        self.flush()
        self._pending.append(_HEARTBEAT)
        self.flush()

    def barrier(self) -> asyncio.Future[None]:
        """Return what is done when the client has read everything sent so far: a pong answers a ping behind it."""
        token = b"barrier %d" % len(self._barriers)
        self._barriers[token] = future = asyncio.get_running_loop().create_future()
        self._pending.append(b"\x89" + bytes((len(token),)) + token)
        self.flush()
        return future

    def end_subscriptions(self, code: int, channel: str | None = None) -> None:
        """End the subscriptions (of this channel) by a terminal error."""
        for subscription in list(self.subscriptions.by_sid.values()):
            if channel is None or subscription.channel == channel:
                self.enqueue(self.subscriptions.end(subscription, code))
        self.flush()

    def close(self) -> None:
        """Close as a server that goes away does: a close frame, 1001."""
        self.flush()
        assert self._websocket is not None
        self._websocket.send_close(1001)
        self._pending += self._websocket.data_to_send()
        self.flush()
        self.alive = False

    def reset(self) -> None:
        """Cut the TCP connection: no close frame, no FIN, a reset."""
        self._delayed.clear()
        raw = self._transport.get_extra_info("socket")
        if raw is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.server.disconnected(self)
        self._transport.abort()


class Server:
    """The listening socket, its connections, and what is done to all of them."""

    def __init__(self, exchange: Exchange, key: ApiKey) -> None:
        self.exchange = exchange
        self.key = key
        self.port = 0
        self.connections: dict[int, Connection] = {}
        self.sockets: set[Connection] = set()
        self.delay_seconds = 0.0
        self.unpaused = asyncio.Event()
        self.unpaused.set()
        self._last_number = 0

    # -- connections -------------------------------------------------------------------------------------------

    def connected(self, connection: Connection) -> None:
        """Count a websocket in; its number is how faults name it."""
        self._last_number += 1
        connection.number = self._last_number
        self.connections[connection.number] = connection
        _log.info("connected", connection=connection.number)

    def disconnected(self, connection: Connection) -> None:
        """Count a websocket out and forget its subscriptions."""
        if self.connections.pop(connection.number, None) is not None:
            connection.alive = False
            self.exchange.gone(connection.subscriptions.by_sid.values())
            _log.info("disconnected", connection=connection.number)

    async def drained(self) -> None:
        """Flush everybody, and wait while somebody's socket is full; who stays full loses its subscriptions."""
        for connection in self.connections.values():
            connection.flush()
        for connection in list(self.connections.values()):
            if not connection.writable.is_set():
                try:
                    await asyncio.wait_for(connection.writable.wait(), SLOW_SECONDS)
                except TimeoutError:
                    _log.warning(
                        "a client did not read: its subscriptions end", connection=connection.number, seconds=SLOW_SECONDS
                    )
                    connection.end_subscriptions(25)
        while any(connection.delayed_bytes > DELAYED_BYTES for connection in self.connections.values()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    async def drop_connections(self) -> None:
        """Reset every connection once its client has read all that was sent, so that nothing is lost that the recorder had."""
        await self.read_by_all()
        for connection in list(self.connections.values()):
            connection.reset()

    def release(self) -> None:
        """Hold back nobody any more."""
        self.exchange.away.clear()
        for connection in list(self.sockets):
            connection.release()

    async def read_by_all(self) -> None:
        """Wait until every client has read all that was sent so far; not for one that answers no ping."""
        self.release()
        barriers = [connection.barrier() for connection in self.connections.values() if not connection.silent]
        if barriers:
            _, unanswered = await asyncio.wait(barriers, timeout=SLOW_SECONDS)
            if unanswered:
                _log.warning("a client did not answer a ping that waited behind its frames", clients=len(unanswered))

    async def heartbeats(self) -> None:
        """Ping every client every 10 seconds, for ever."""
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            for connection in list(self.connections.values()):
                connection.heartbeat()

    # -- requests ----------------------------------------------------------------------------------------------

    def refuse_handshake(self, target: str, headers: dict[str, str]) -> tuple[int, Any] | None:
        """Return the answer to a handshake that fails, None to one that may pass."""
        faults = self.exchange.faults
        if faults.http_502:
            faults.http_502 -= 1
            faults.happened["http_502"] += 1
            return 502, None
        path = target.partition("?")[0]
        if path != WS_PATH:
            return 404, {"error": {"code": "not_found", "message": "not found"}}
        return self.refuse_signature("GET", path, headers)

    def refuse_signature(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, Any] | None:
        """Check a signed request by the wall clock, as today's clients sign; the bodies are those seen on the wire."""
        key_id = headers.get(signing.KEY.lower(), "")
        signature = headers.get(signing.SIGNATURE.lower(), "")
        timestamp = headers.get(signing.TIMESTAMP.lower(), "")
        if not (key_id and signature and timestamp):
            return 401, _refusal("signature_is_missing_from_headers", "signature is missing from headers")
        now_ms = (clock.now_us() + self.exchange.faults.clock_skew_us) // 1000
        if not timestamp.isdigit() or abs(int(timestamp) - now_ms) > TOLERANCE_MS:
            return 401, _refusal("header_timestamp_expired", "header timestamp expired")
        if key_id not in self.key.key_ids:
            return 401, _refusal("authentication_error", "authentication_error", "NOT_FOUND")
        if not signing.verify(self.key.public_key, signature, timestamp, method, path):
            return 401, _refusal("authentication_error", "authentication_error", "INCORRECT_API_KEY_SIGNATURE")
        return None

    def answer(self, method: str, target: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        """Answer one HTTP request."""
        path, _, query = target.partition("?")
        if path.startswith("/simulator/"):
            return control.answer(self, method, path, body)
        if not path.startswith(rest.PREFIX + "/"):
            return 404, {"error": {"code": "not_found", "message": "not found"}}
        if method != "GET":
            return 405, {"error": {"code": "method_not_allowed", "message": "nobody trades here: only GET"}}
        faults = self.exchange.faults
        if faults.http_429:
            faults.http_429 -= 1
            faults.happened["http_429"] += 1
            return 429, {"error": "too many requests"}
        if signing.KEY.lower() in headers and (refusal := self.refuse_signature(method, path, headers)):
            return refusal  # market data is public; a signature is checked where there is one
        return rest.answer(self.exchange, path[len(rest.PREFIX) :], query)

    def response(self, status: int, body: Any, *, close: bool = False) -> bytes:
        """Return an HTTP response; bytes are sent as newline-delimited JSON, None as the empty page of a proxy."""
        kind = "application/json"
        if isinstance(body, bytes):
            kind, content = "application/x-ndjson", body
        elif body is None:
            kind, content = "text/html", b"<html><body><h1>502 Bad Gateway</h1></body></html>"
        else:
            content = orjson.dumps(body)
        head = (
            f"HTTP/1.1 {status} {_REASONS[status]}\r\nDate: {self.date()}\r\nContent-Type: {kind}\r\n"
            f"Content-Length: {len(content)}\r\n{'Connection: close' + chr(13) + chr(10) if close else ''}\r\n"
        )
        return head.encode() + content

    def date(self) -> str:
        """Return the simulated exchange's clock as a Date header tells it: whole seconds."""
        return formatdate((self.exchange.clock_us() + self.exchange.faults.clock_skew_us) // 1_000_000, usegmt=True)

    # -- faults and control ------------------------------------------------------------------------------------

    def inject(self, fault: Fault) -> None:
        """Let a fault happen: at once, or to the next frames it fits."""
        faults = self.exchange.faults
        chosen = [c for c in self.connections.values() if fault.connection in (None, c.number)]
        match fault.kind:
            case "http_502":
                faults.http_502 += fault.count
            case "http_429":
                faults.http_429 += fault.count
            case "clock_skew":
                faults.clock_skew_us = round(fault.seconds * 1_000_000)
            case "delay":
                self.delay_seconds = fault.seconds
            case "silence":
                for connection in chosen:
                    connection.silent = True
            case "reset":
                for connection in chosen:
                    connection.reset()
            case "close":
                for connection in chosen:
                    connection.close()
            case "error_25" | "error_10" | "error_17":
                for connection in chosen:
                    connection.end_subscriptions(int(fault.kind[-2:]), fault.channel)
            case "resnapshot" | "off_grid":
                self.exchange.disturb(fault)
                for connection in list(self.connections.values()):
                    connection.flush()
            case _:
                faults.arm(fault)
                return
        if not fault.kind.startswith("http_"):
            faults.happened[fault.kind] += 1

    def pause(self, paused: bool) -> None:
        """Stop or continue trading; sockets and REST go on."""
        self.exchange.paused = paused
        (self.unpaused.clear if paused else self.unpaused.set)()

    @asynccontextmanager
    async def listening(self, host: str, port: int) -> AsyncIterator[None]:
        """Listen while the context lasts; then close every socket at once."""
        loop = asyncio.get_running_loop()
        listener = await loop.create_server(lambda: Connection(self), host, port)
        self.port = listener.sockets[0].getsockname()[1]
        try:
            yield
        finally:
            listener.close()
            for connection in list(self.sockets):
                connection.reset()
            await asyncio.sleep(0)


def _parse_head(head: bytes) -> tuple[str, str, dict[str, str]]:
    """Return method, target and headers (names in lower case) of an HTTP request; nonsense gives an unknown method."""
    request_line, *lines = head.decode("latin-1").split("\r\n")
    method, _, rest_of_line = request_line.partition(" ")
    pairs = (line.partition(":") for line in lines if ":" in line)
    return method, rest_of_line.partition(" ")[0], {name.strip().lower(): value.strip() for name, _, value in pairs}


def _refusal(code: str, message: str, details: str | None = None) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, **({"details": details} if details else {})}}
