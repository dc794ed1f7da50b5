"""What stands before every route: limits of a request, the key, the charge for the answer, one log line without secrets.

An answer with status 2xx leaves only after it was charged; if it cannot be charged the refusal leaves instead. Queries and
headers are never logged: a key may stand in either.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kalshibook_core.postgres.pool import UNREACHABLE
from kalshibook_core.runtime import health
from kalshibook_core.runtime.logs import once_a_minute
from services.gateway.accounts import Caller, Receipt
from services.gateway.errors import ApiError, storage_unavailable

MAX_TARGET: Final = 8_192
"""Bytes of path and query."""
MAX_AT_ONCE: Final = 1_000
"""Requests under way; when full, further ones get a 503 at once instead of a place in a growing queue."""
MAX_BODY: Final = 65_536
"""Bytes a request body may announce; no route reads one."""
LARGE: Final = 2**20
"""Bytes from which an answer counts as large."""
MAX_HELD: Final = 256 * 2**20
"""Bytes of large answers made and not sent yet; one more on top of them is refused with a 503, and is free."""
PIECE: Final = 2**16
"""Bytes handed on at once, so that an answer goes as fast as its reader and no faster."""
SEND_SECONDS: Final = 120.0
"""In which an answer must be taken, or it is cut off: who reads slowly must not keep others from large answers."""

log = structlog.get_logger()


Authenticate = Callable[[Iterable[tuple[bytes, bytes]]], Awaitable[Caller]]
Charge = Callable[[Caller, str, int, int], Awaitable[Receipt | None]]
"""(caller, endpoint, rows, status) -> receipt, None where the answer is free; raises ApiError where it cannot be charged."""


class Admission:
    """ASGI around the application."""

    def __init__(
        self,
        app: ASGIApp,
        authenticate: Authenticate,
        charge: Charge,
        ready: health.Ready,
        counters: health.ReadCounters,
        monotonic: Callable[[], float],
    ) -> None:
        self._app, self._authenticate, self._charge = app, authenticate, charge
        self._ready, self._counters, self._monotonic = ready, counters, monotonic
        self._under_way = self._held = 0
        self.requests = 0
        self.failed = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or websocket."""
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        probe = health.answer(scope["path"], "gateway", self._ready, self._counters) if scope["method"] == "GET" else None
        if probe is not None:
            status, content_type, content = probe
            await _respond(send, status, [(b"content-type", content_type.encode())], content)
            return
        began, reply = self._monotonic(), _Reply(send)
        state: dict[str, Any] = scope.setdefault("state", {})
        self._under_way += 1
        try:
            _check_size(scope)
            if self._under_way > MAX_AT_ONCE:
                raise ApiError(503, "overloaded", "Too many requests are under way; try again in a second.")
            if scope["path"].startswith("/v1/"):
                state["caller"] = await self._authenticate(scope["headers"])
                await self._app(scope, receive, reply.hold)
                self._make_room(reply)
                await self._settle(scope, state, reply)
            else:
                await self._app(scope, receive, reply.hold)
                self._make_room(reply)
            await reply.release()
        except ApiError as error:
            await reply.replace(error)
        except UNREACHABLE as error:
            if once_a_minute("gateway.storage.away"):
                log.error("gateway.storage.away", why=type(error).__name__)
            await reply.replace(storage_unavailable())
        except Exception as error:
            # The application's own handler has turned it into an answer where it could; this is the log line.
            log.exception("gateway.request.failed", path=scope["path"], why=type(error).__name__)
            await reply.replace(ApiError(500, "internal", "This should not have happened. We have been told."))
        finally:
            self._under_way -= 1
            self._held -= reply.held
        self.requests += 1
        self.failed += reply.status >= 500
        took_us = round((self._monotonic() - began) * 1e6)
        caller = state.get("caller")
        account = None if caller is None else caller.account_id
        log.info(
            "gateway.request", method=scope["method"], path=scope["path"], status=reply.status, took_us=took_us, account=account
        )

    def _make_room(self, reply: "_Reply") -> None:
        if reply.size < LARGE:
            return
        if self._held and self._held + reply.size > MAX_HELD:
            message = "Too many large answers are on their way to their readers: ask for a smaller page, or again in a while."
            raise ApiError(503, "overloaded", message)
        reply.held = reply.size
        self._held += reply.held

    async def _settle(self, scope: Scope, state: dict[str, Any], reply: "_Reply") -> None:
        if not 200 <= reply.status < 300:
            return
        endpoint = state.get("endpoint") or scope["route"].name
        receipt = await self._charge(state["caller"], endpoint, state.get("rows", 0), reply.status)
        if receipt is not None:
            reply.headers.append((b"x-request-id", receipt.usage_id.encode()))
            reply.headers.append((b"x-credits-charged", b"%d" % receipt.credits))
            if receipt.remaining is not None:
                reply.headers.append((b"x-credits-remaining", b"%d" % receipt.remaining))

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            _check_size(scope)
            scope.setdefault("state", {})["caller"] = await self._authenticate(scope["headers"])
        except (ApiError, *UNREACHABLE) as refusal:
            error = refusal if isinstance(refusal, ApiError) else storage_unavailable()
            await receive()  # websocket.connect: a refusal answers it
            start, body = _messages(error)
            await send({**start, "type": "websocket.http.response.start"})
            await send({**body, "type": "websocket.http.response.body"})
        else:
            await self._app(scope, receive, send)


class _Reply:
    """An answer held back until it is paid for."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._messages: list[Message] = []
        self.size = self.held = 0
        self.status = 500
        self.headers: list[tuple[bytes, bytes]] = []

    async def hold(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        self.size += len(message.get("body", b""))
        self._messages.append(message)

    async def release(self) -> None:
        messages, self._messages = self._messages, []
        try:
            async with asyncio.timeout(SEND_SECONDS):
                for message in messages:
                    if message["type"] == "http.response.start":
                        message["headers"] = [*message.get("headers", []), *self.headers]
                    body = message.get("body", b"")
                    for end in range(PIECE, len(body), PIECE):
                        await self._send({**message, "body": body[end - PIECE : end], "more_body": True})
                    await self._send({**message, "body": body[-(len(body) % PIECE or PIECE) :]} if len(body) > PIECE else message)
        except TimeoutError:
            log.warning("gateway.answer.cut", size=self.size, why=f"not taken in {SEND_SECONDS:.0f} s")

    async def replace(self, error: ApiError) -> None:
        self.status, self.headers, self._messages = error.status, [], list(_messages(error))
        await self.release()


def _check_size(scope: Scope) -> None:
    if len(scope.get("raw_path") or b"") + len(scope["query_string"]) > MAX_TARGET:
        raise ApiError(414, "uri_too_long", f"Path and query may have {MAX_TARGET} bytes together.")
    for name, value in scope["headers"]:
        if name == b"content-length" and (not value.isdigit() or int(value) > MAX_BODY):
            raise ApiError(413, "body_too_large", f"A body may have {MAX_BODY} bytes; none is needed here.")


def _messages(error: ApiError) -> tuple[Message, Message]:
    response = error.response()
    start = {"type": "http.response.start", "status": response.status_code, "headers": list(response.raw_headers)}
    return start, {"type": "http.response.body", "body": bytes(response.body)}


async def _respond(send: Send, status: int, headers: list[tuple[bytes, bytes]], content: bytes) -> None:
    length = (b"content-length", b"%d" % len(content))
    await send({"type": "http.response.start", "status": int(status), "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": content})
