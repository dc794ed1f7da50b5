"""A small HTTP server that says whether a service lives, is ready, and what it has counted.

Costs nothing while nobody asks: `ready` and `counters` are called per request. Paths: /healthz (200 while the event loop turns),
/readyz (503 until ready), /metrics (Prometheus), /status (JSON {"ready": bool, "pid": …, "counters": {…}}). The
gateway serves the same answers on its own port, through `answer`.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from typing import Final

import orjson

from kalshibook_core.runtime import metrics
from kalshibook_core.runtime.settings import Health

Ready = Callable[[], bool]
ReadCounters = Callable[[], metrics.Counters]

_REQUEST_SECONDS: Final = 5.0
_REQUEST_BYTES: Final = 8192


@asynccontextmanager
async def serve(where: Health, ready: Ready, counters: ReadCounters, *, service: str) -> AsyncIterator[int]:
    """Answer there for as long as the block lasts; yield the port. Port 0: no server.

    Raises metrics.UnknownMetric if `counters` uses a name outside the vocabulary, OSError if the port is taken.
    """
    metrics.check(service, counters())
    if where.port == 0:
        yield 0
        return

    clients = set[asyncio.Task[None]]()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        clients.add(task)
        task.add_done_callback(clients.discard)
        try:
            with suppress(OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                async with asyncio.timeout(_REQUEST_SECONDS):
                    request = await reader.readuntil(b"\r\n\r\n")
                    writer.write(_response(*_requested(request, service, ready, counters)))
                    await writer.drain()
        finally:
            writer.close()

    server = await asyncio.start_server(connected, where.host, where.port, limit=_REQUEST_BYTES)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)


def answer(path: str, service: str, ready: Ready, counters: ReadCounters) -> tuple[HTTPStatus, str, bytes] | None:
    """Return (status, content type, body) of one of the four paths, None for any other."""
    match path:
        case "/healthz":
            return HTTPStatus.OK, "text/plain; charset=utf-8", b"ok\n"
        case "/readyz":
            return (HTTPStatus.OK, "text/plain; charset=utf-8", b"ready\n") if ready() else _NOT_READY
        case "/metrics":
            return HTTPStatus.OK, "text/plain; version=0.0.4; charset=utf-8", metrics.render(service, counters())
        case "/status":
            told = {"ready": ready(), "pid": os.getpid(), "counters": dict(counters())}
            return HTTPStatus.OK, "application/json", orjson.dumps(told)
        case _:
            return None


_NOT_READY: Final = (HTTPStatus.SERVICE_UNAVAILABLE, "text/plain; charset=utf-8", b"not ready\n")
_NOT_FOUND: Final = (HTTPStatus.NOT_FOUND, "text/plain; charset=utf-8", b"/healthz /readyz /metrics /status\n")
_NOT_ALLOWED: Final = (HTTPStatus.METHOD_NOT_ALLOWED, "text/plain; charset=utf-8", b"GET only\n")


def _requested(request: bytes, service: str, ready: Ready, counters: ReadCounters) -> tuple[HTTPStatus, str, bytes]:
    method, _, rest = request.partition(b"\r\n")[0].decode("latin-1").partition(" ")
    if method != "GET":
        return _NOT_ALLOWED
    path = rest.partition(" ")[0].partition("?")[0]
    return answer(path, service, ready, counters) or _NOT_FOUND


def _response(status: HTTPStatus, content_type: str, body: bytes) -> bytes:
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode("latin-1") + body
