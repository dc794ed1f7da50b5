"""The websocket /v1/stream: per market a snapshot, then every version after it, without a hole.

A client sends {"action": "subscribe", "tickers": ["…", …]} or {"action": "unsubscribe", …}. For each ticker it gets a message of
type "snapshot" (the latest book: with `quality`, which says if it lies in a gap) and then the rows of /v1/deltas, each with the
next version. A message of type "quality" says at the beginning, and after each event that opens or ends a gap, what is to be
said of the market's book from that version on. Where the stream cannot go on without a hole, it sends a new such snapshot and
goes on from there.

A client that does not read fast enough is closed with 1008 "too slow" once `queue` messages wait for it; nobody else waits
for it. 1001 means this gateway is stopping: connect again. 1008 "out_of_credits" and 1013 speak for themselves.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Final

import orjson
import structlog
from fastapi import APIRouter, WebSocket
from starlette.websockets import WebSocketDisconnect, WebSocketState

from kalshibook_core.orderbook.checksum import to_hex
from kalshibook_core.wire.events import Checkpoint
from services.gateway import completeness, forms, instants
from services.gateway.errors import ApiError, unknown_market
from services.gateway.live.feed import FREE, Feed, quality

MAX_TICKERS: Final = 1_000
"""Markets one socket may follow."""
START_SECONDS: Final = 10.0
"""How long a market's beginning is tried before the client is told that it is not available."""
RETRY_SECONDS: Final = 0.05
CLOSE_SECONDS: Final = 10.0

Newest = Callable[[str, bool], Awaitable[Checkpoint | None]]
log = structlog.get_logger()


class _Closed(Exception):
    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


class Socket:
    """One client: what it follows, what waits to be sent to it."""

    def __init__(self, feed: Feed, queue: int) -> None:
        self._feed, self._queue = feed, queue
        self._outgoing: deque[bytes] = deque()
        self._wake = asyncio.Event()  # something waits to be sent
        self._drained = asyncio.Event()  # half of the queue is free
        self._drained.set()
        self._expected: dict[str, int | None] = {}  # ticker -> its next version, None until its snapshot is sent
        self._starting: deque[tuple[str, float | None]] = deque()  # tickers whose snapshot is due, and until when to try
        self._begin = asyncio.Event()
        self._ended = asyncio.Event()
        self._why = (1001, "going away")

    def push(self, message: bytes) -> None:
        """Queue a message; past the bound the client is cut, and gets nothing that comes after what it missed."""
        if self._ended.is_set():
            return
        if len(self._outgoing) >= self._queue:
            self.end(1008, "too slow")
            return
        self._outgoing.append(message)
        self._wake.set()
        if len(self._outgoing) > self._queue // 2:
            self._drained.clear()

    def end(self, code: int, reason: str) -> None:
        """Close the socket; the first reason stands."""
        if not self._ended.is_set():
            self._why = (code, reason)
            self._ended.set()

    def event(self, ticker: str, version: int, messages: Sequence[bytes]) -> None:
        """Take the next event of a market."""
        expected = self._expected.get(ticker)
        if expected is None or version < expected:
            return
        if version > expected:
            self.lost(ticker)
            return
        self._expected[ticker] = version + 1
        for message in messages:
            self.push(message)

    def lost(self, ticker: str) -> None:
        """Begin the market again from its latest book."""
        self._feed.unfollow(ticker, self)
        if self._expected.get(ticker) is not None:
            self._start(ticker)

    def subscribe(self, tickers: list[str]) -> None:
        """Follow markets; those already followed go on as they are. Raise the 422 past MAX_TICKERS."""
        new = [ticker for ticker in dict.fromkeys(tickers) if ticker not in self._expected]
        if len(self._expected) + len(new) > MAX_TICKERS:
            raise ApiError(422, "too_many_tickers", f"One socket follows at most {MAX_TICKERS} markets; open another.")
        if len(self._starting) > 2 * MAX_TICKERS:
            raise ApiError(429, "too_many_commands", "Subscriptions come faster than books can be sent; wait for the snapshots.")
        for ticker in new:
            self._start(ticker)

    def unsubscribe(self, tickers: list[str]) -> None:
        """Follow markets no longer."""
        for ticker in tickers:
            self._expected.pop(ticker, None)
            self._feed.unfollow(ticker, self)

    def _start(self, ticker: str) -> None:
        self._expected[ticker] = None
        self._starting.append((ticker, None))
        self._begin.set()

    def leave(self) -> None:
        """Follow nothing any more."""
        self.unsubscribe(list(self._expected))

    async def wait_ended(self) -> None:
        """Raise _Closed once the socket is to be closed."""
        await self._ended.wait()
        raise _Closed(*self._why)

    async def start_markets(
        self, newest: Newest, known: Callable[[str], Awaitable[bool]], monotonic: Callable[[], float]
    ) -> None:
        """Send each market's snapshot and what came after it, and let the feed go on from there."""
        while True:
            self._begin.clear()
            while self._starting:
                await self._drained.wait()  # our own snapshots never make a client too slow
                ticker, until = self._starting.popleft()
                if ticker not in self._expected or self._expected[ticker] is not None:
                    continue
                if until is None and not await known(ticker):
                    self._refuse(unknown_market(ticker), ticker)
                elif await self._started(ticker, newest, again=until is not None):
                    continue
                elif until is not None and monotonic() > until:
                    text = "The market's book is not available at the moment; subscribe again later."
                    self._refuse(ApiError(503, "not_available", text, market_ticker=ticker), ticker)
                else:
                    self._starting.append((ticker, until or monotonic() + START_SECONDS))
                    await asyncio.sleep(RETRY_SECONDS)
            await self._begin.wait()

    async def _started(self, ticker: str, newest: Newest, again: bool) -> bool:
        try:
            book = await newest(ticker, again)
        except ApiError as error:
            self._refuse(error, ticker)
            return True
        if self._expected.get(ticker, 0) is not None:
            return True  # unsubscribed meanwhile
        # From here to `follow` nothing is awaited, so no event can come between.
        events = self._feed.since(ticker, 0 if book is None else book.version)
        if events is None or len(events) > self._queue // 2:
            return False
        if book is not None:
            self.push(snapshot(book))
            self.push(quality(book.market_ticker, book.version, book.effective_us, gap_of(book)))
        version = 0 if book is None else book.version
        for version, messages in events:  # noqa: B007 (the last one stays)
            for message in messages:
                self.push(message)
        self._expected[ticker] = version + 1
        self._feed.follow(ticker, self)
        return True

    def _refuse(self, error: ApiError, ticker: str) -> None:
        self.unsubscribe([ticker])
        self.push(problem(error))

    async def send(self, websocket: WebSocket, per_credit: int, charge: Callable[[], Awaitable[None]]) -> None:
        """Send what waits, taking a credit before the first of every `per_credit` messages; what tells of quality is free."""
        sent = 0
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._outgoing:
                free = self._outgoing[0].startswith(FREE)
                if sent % per_credit == 0 and not free:
                    try:
                        await charge()
                    except ApiError as error:
                        raise _Closed(1008 if error.status == 402 else 1013, error.code) from error
                message = self._outgoing.popleft()
                if len(self._outgoing) <= self._queue // 2:
                    self._drained.set()
                await websocket.send({"type": "websocket.send", "text": message.decode()})
                sent += not free

    async def receive(self, websocket: WebSocket) -> None:
        """Do what the client asks; what cannot be read is answered with an error and changes nothing."""
        while True:
            try:
                action, tickers = command(await websocket.receive_text())
                if action == "subscribe":
                    self.subscribe(tickers)
                else:
                    self.unsubscribe(tickers)
            except ApiError as error:
                self.push(problem(error))
            except KeyError:
                raise _Closed(1003, "text frames only") from None
            else:
                self.push(orjson.dumps({"type": f"{action}d", "tickers": tickers}))


class Streams:
    """All sockets of this gateway."""

    def __init__(
        self, feed: Feed, newest: Newest, known: Callable[[str], Awaitable[bool]], queue: int, monotonic: Callable[[], float]
    ) -> None:
        """`newest(ticker, again)` gives the latest book (asked `again`, the newer of all sources), `known` if a market exists."""
        self._feed, self._newest, self._known, self._queue, self._monotonic = feed, newest, known, queue, monotonic
        self._sockets: set[Socket] = set()
        self._closing = False
        self._empty = asyncio.Event()
        self._empty.set()
        self.cut = 0

    def __len__(self) -> int:
        return len(self._sockets)

    async def close(self) -> None:
        """Close every socket with 1001, and refuse new ones."""
        self._closing = True
        for socket in self._sockets:
            socket.end(1001, "going away")
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS / 2):
                await self._empty.wait()

    async def serve(self, websocket: WebSocket, per_credit: int, charge: Callable[[], Awaitable[None]]) -> None:
        """Serve one client until it leaves or is cut."""
        if self._closing:
            await websocket.send_denial_response(ApiError(503, "stopping", "This gateway is stopping; connect again.").response())
            return
        await websocket.accept()
        socket = Socket(self._feed, self._queue)
        self._sockets.add(socket)
        self._empty.clear()
        code, reason = 1000, ""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(socket.wait_ended())
                tasks.create_task(socket.receive(websocket))
                tasks.create_task(socket.send(websocket, per_credit, charge))
                tasks.create_task(socket.start_markets(self._newest, self._known, self._monotonic))
        except* _Closed as closed:
            why = closed.exceptions[0]
            assert isinstance(why, _Closed)
            code, reason = why.code, why.reason
        except* WebSocketDisconnect:
            pass
        finally:
            socket.leave()
            try:
                self.cut += reason == "too slow"
                if code != 1000 and websocket.application_state is not WebSocketState.DISCONNECTED:
                    log.info("gateway.stream.closed", code=code, reason=reason)
                    with suppress(TimeoutError, RuntimeError, WebSocketDisconnect):
                        async with asyncio.timeout(CLOSE_SECONDS):
                            await websocket.close(code, reason)
            finally:
                self._sockets.discard(socket)
                if not self._sockets:
                    self._empty.set()


def routes(serve: Callable[[WebSocket], Awaitable[None]]) -> APIRouter:
    """Return the room's one route."""
    router = APIRouter(prefix="/v1")

    @router.websocket("/stream", name="stream")
    async def stream(websocket: WebSocket) -> None:
        await serve(websocket)

    return router


def command(text: str) -> tuple[str, list[str]]:
    """Return (action, tickers) of a client's message; raise the 422 that says what is expected."""
    try:
        message: Any = orjson.loads(text)
        action, tickers = message["action"], message["tickers"]
    except (ValueError, TypeError, KeyError):
        action, tickers = None, None
    good = action in ("subscribe", "unsubscribe") and isinstance(tickers, list) and 0 < len(tickers) <= MAX_TICKERS
    if not good or not all(isinstance(ticker, str) and 0 < len(ticker) <= 200 for ticker in tickers):
        expected = f'expected {{"action": "subscribe" or "unsubscribe", "tickers": [1 to {MAX_TICKERS} tickers]}}'
        raise ApiError(422, "invalid_command", expected)
    return str(action), list(tickers)


def problem(error: ApiError) -> bytes:
    """Return an error as a stream carries it: the envelope with a type."""
    return orjson.dumps({"type": "error", **orjson.loads(error.body())})


def gap_of(book: Checkpoint) -> tuple[int, None, str] | None:
    """Return the gap that the latest book lies in."""
    return None if book.gap_start_us is None else (book.gap_start_us, None, book.gap_cause or "")


def snapshot(book: Checkpoint) -> bytes:
    """Return the latest book as the message that begins a market."""
    told = completeness.block(completeness.at_instant(book.effective_us, book.effective_us, gap_of(book)))
    return orjson.dumps({
        "type": "snapshot", "market_ticker": book.market_ticker, "version": book.version,
        "effective_at": instants.text(book.effective_us), "exchange_at": None, "recv_at": None,
        "yes": forms.levels(book.yes), "no": forms.levels(book.no), "checksum": to_hex(book.checksum), "gap": None,
        "quality": told,
    })  # fmt: skip
