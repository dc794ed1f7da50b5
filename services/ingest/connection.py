"""One websocket to the exchange, opened again as often as it ends: the I/O around `kalshibook_core.kalshi.session`.

The socket is read whatever the broker does: the outbox takes every record. Where that is full, the connection says its breaks
(broker_outage) and closes, and opens again when there is room: what came first is kept.
"""

import asyncio
import logging
import random
from collections import Counter, deque
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import urlsplit

import structlog
from websockets.asyncio.client import connect
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI

from kalshibook_core.kalshi import hours
from kalshibook_core.kalshi.markets import DATE_RESOLUTION_US
from kalshibook_core.kalshi.messages import Lifecycle
from kalshibook_core.kalshi.session import Session
from kalshibook_core.runtime import clock, logs
from kalshibook_core.wire import codec
from kalshibook_core.wire.events import Cause
from services.ingest.outbox import Outbox
from services.ingest.pace import LONGEST, Pace, backoff
from services.ingest.rest import date_skew_us, refusal
from services.ingest.settings import Settings
from services.ingest.websocket import Socket

LARGEST_FRAME: Final = 4 * 1024 * 1024
TICK_SECONDS: Final = 0.5
CLOCK_WINDOW_US: Final = 5_000_000
"""How far our clock may be from the exchange's: what was signed before is refused (seen on the wire)."""

_RESTS: Final = (Cause.DISCONNECT, Cause.SILENT_SOCKET)

_log = structlog.get_logger()
_wire_log = logging.getLogger("websockets.ingest")
_wire_log.setLevel(logging.WARNING)  # at debug the library writes every header, the signature among them


class _Handshake(connect):
    """It is led nowhere else: the signature is for this exchange alone, and an address from elsewhere may be none at all."""

    def process_redirect(self, exc: Exception) -> Exception:
        return exc


Raw = tuple[bytes, bytes, int]
"""Key, value and time in milliseconds of a record of the raw topic."""


class Connection:
    """Connection `number` of the gatherer, with the markets placed on it."""

    def __init__(
        self,
        number: int,
        settings: Settings,
        outbox: Outbox,
        counts: Counter[str],
        rng: random.Random,
        *,
        on_lifecycle: Callable[[list[Lifecycle]], None] | None = None,
        on_missed: Callable[[], None] | None = None,
        on_turned_away: Callable[[int, list[str], int], None] | None = None,
        on_overflow: Callable[[int], None] | None = None,
        on_ended: Callable[[int], None] | None = None,
    ) -> None:
        """With `on_lifecycle` it carries the lifecycle channel as well; `on_missed` is called where some of that was lost.

        The others are told their connection's number: `on_turned_away(number, tickers, most)` where the exchange would take only
        `most` markets, and these are released; `on_overflow(number)` where it could not send as fast as things happened;
        `on_ended(number)` where a generation has ended and another is to follow.
        """
        self.number = number
        self.trouble = ""  # why there is no connection, and what to do
        self.markets: dict[str, int | None] = {}
        self._settings = settings
        self._outbox = outbox
        self._counts = counts
        self._rng = rng
        self._on_lifecycle = on_lifecycle
        self._on_missed = on_missed
        self._on_turned_away = on_turned_away
        self._on_overflow = on_overflow
        self._on_ended = on_ended
        self._pace = Pace(settings.commands_per_second)
        self._session: Session[Raw] | None = None
        self._generation = 0
        self._failures = 0
        self._began = 0.0
        self._commands: deque[bytes] = deque()
        self._to_send = asyncio.Event()
        self._ended: asyncio.Future[str] | None = None

    @property
    def connected(self) -> bool:
        """True while a generation lives."""
        return self._session is not None

    @property
    def settled(self) -> bool:
        """True when all that is placed here is subscribed."""
        return self._session is not None and self._session.settled and self._session.markets >= len(self.markets)

    @property
    def age_seconds(self) -> float:
        """How long the generation has lived, 0 without one."""
        return clock.monotonic() - self._began if self._session is not None else 0.0

    def knows(self, ticker: str) -> bool:
        """Return whether the market's book is known here."""
        return self._session is not None and self._session.knows(ticker)

    @property
    def exchange_us(self) -> int:
        """The exchange's clock as the generation knows it, 0 without one."""
        return self._session.exchange_us(clock.now_us()) if self._session is not None else 0

    def place(self, markets: Mapping[str, int | None]) -> None:
        """Capture these markets as well (values: `Session.subscribe`)."""
        self.markets.update(markets)
        if self._session is not None:
            self._session.subscribe(markets, clock.now_us())
            self._hand_over()

    def release(self, tickers: list[str], cause: str) -> None:
        """Capture these markets no longer (`cause`: `Session.unsubscribe`)."""
        for ticker in tickers:
            self.markets.pop(ticker, None)
        if self._session is not None:
            self._session.unsubscribe(tickers, clock.now_us(), cause)
            self._hand_over()

    async def run(self, stop: asyncio.Event) -> None:
        """Stay connected until `stop` is set."""
        while not stop.is_set():
            socket = await self._open()
            if socket is not None:
                await self._live(socket, stop)
                self._counts["reconnects"] += not stop.is_set()
            if not stop.is_set():
                await _either(stop, backoff(self._failures, self._rng))
                self._failures += 1
                while self._outbox.full and not stop.is_set():  # a new generation would only be broken off as well
                    await _either(stop, TICK_SECONDS)

    async def _open(self) -> Socket | None:
        """Shake hands, signing anew; None where that failed, which is told."""
        url = self._settings.ws_url
        headers = self._settings.credentials.headers(clock.now_us() // 1000, "GET", urlsplit(url).path)
        try:
            socket = await _Handshake(
                url,
                additional_headers=headers,
                create_connection=Socket,
                compression=None,
                logger=_wire_log,
                max_size=LARGEST_FRAME,
                ping_interval=None,  # the exchange pings; the watchdog listens
                close_timeout=1,
                proxy=None,
            )
            assert isinstance(socket, Socket)
            return socket
        except InvalidStatus as error:
            self._refused(error.response.status_code, bytes(error.response.body), _date(error.response.headers))
        except (OSError, TimeoutError, EOFError, InvalidHandshake) as error:
            self.trouble = f"no connection to {url}: {type(error).__name__}: {error}"
            self._tell("connect_failed", why=f"{type(error).__name__}: {error}", url=url)
        except InvalidURI as error:
            raise ValueError(f"KB_KALSHI_WS_URL: {error}") from error
        self._counts["handshakes_failed"] += 1
        return None

    def _refused(self, status: int, body: bytes, date: str | None) -> None:
        said = refusal(body)
        hints = {
            "header_timestamp_expired": "set this machine's clock",
            "INCORRECT_API_KEY_SIGNATURE": "KALSHI_PRIVATE_KEY_PATH is not the key of KALSHI_API_KEY_ID",
            "NOT_FOUND": "KALSHI_API_KEY_ID is unknown there; demo and production have keys of their own",
        }
        skew_us = date_skew_us(date, clock.now_us())
        do = next((hint for word, hint in hints.items() if word in said), "")
        if not do and status == HTTPStatus.UNAUTHORIZED and skew_us is not None and abs(skew_us) > CLOCK_WINDOW_US:
            do = "set this machine's clock"
        self.trouble = f"the handshake is refused: HTTP {status} {said}" + (f": {do}" if do else "")
        self._tell(
            "handshake_refused",
            status=status,
            said=said,
            do=do,
            exchange_clock_ahead_seconds=None if skew_us is None else round(skew_us / 1e6, 1),
        )

    async def _live(self, socket: Socket, stop: asyncio.Event) -> None:
        """One generation: from the handshake to the breaks that end it."""
        now_us = clock.now_us()
        skew_us = date_skew_us(_date(socket.response.headers) if socket.response else None, now_us)
        self._generation = max(now_us, self._generation + 1)
        session = Session(_raw, self._settings.gatherer, self.number, self._generation, skew_us=skew_us or 0, counts=self._counts)
        self._session = session
        self._commands.clear()
        self._began = clock.monotonic()
        self._ended = asyncio.get_running_loop().create_future()
        _log.info("connected", connection=self.number, generation=self._generation, skew_seconds=round((skew_us or 0) / 1e6, 1))
        if abs(skew_us or 0) > CLOCK_WINDOW_US + DATE_RESOLUTION_US:
            self._tell(
                "clock_is_wrong", exchange_clock_ahead_seconds=round((skew_us or 0) / 1e6, 1), do="set this machine's clock"
            )
        if self._on_lifecycle is not None:
            session.subscribe_lifecycle(now_us)
        session.subscribe(self.markets, now_us)
        self._hand_over()
        cause: str = Cause.DISCONNECT
        try:
            socket.hand_to(self._receive)
            async with asyncio.TaskGroup() as tasks:
                parts = (self._read(socket), self._write(socket), self._watch(socket), self._until(stop))
                running = [tasks.create_task(part) for part in parts]
                cause = await self._ended
                for task in running:
                    task.cancel()
        finally:
            # Also where the process is about to fail: what the outbox holds is still delivered if Kafka is there.
            if not stop.is_set() and cause in _RESTS and hours.weekly_pause(clock.now_us() + (skew_us or 0)):
                cause = Cause.MAINTENANCE
            session.connection_lost(cause, clock.now_us())
            self._publish(session)
            self._session = None
        if not stop.is_set():
            self.trouble = f"the connection ended: {cause}"
            _log.warning("connection_ended", connection=self.number, cause=cause, markets=len(self.markets))
            if self._on_missed is not None:
                self._on_missed()
            if self._on_ended is not None:
                self._on_ended(self.number)
        await socket.close()

    def _receive(self, frames: list[bytes], received_us: int) -> None:
        """Take what came at once, within the event loop's own call: an error is for `_live` to raise."""
        session, ended = self._session, self._ended
        if session is None or ended is None or ended.done():
            return  # what comes now lies behind the breaks
        try:
            take = session.receive_frame
            for frame in frames:
                take(frame, received_us)
            self._counts["bytes"] += sum(map(len, frames))
            self._publish(session)
            if session.stirred:
                self._hand_over()
            if self._outbox.full:
                self._end(Cause.BROKER_OUTAGE)
        except Exception as error:  # noqa: BLE001
            if not ended.done():
                ended.set_exception(error)

    async def _read(self, socket: Socket) -> None:
        await socket.wait_closed()
        self._end(Cause.DISCONNECT)

    def _publish(self, session: Session[Raw]) -> None:
        add = self._outbox.add
        for record in session.records_to_publish():
            add(*record)

    def _hand_over(self) -> None:
        """Take from the session whatever is not a frame's own record."""
        session = self._session
        assert session is not None
        session.stirred = False
        self._publish(session)
        commands = session.commands_to_send()
        if commands:
            self._commands.extend(commands)
            self._to_send.set()
        heard = session.lifecycle_received()
        if heard and self._on_lifecycle is not None:
            self._on_lifecycle(heard)
        if session.missed_lifecycle and self._on_missed is not None:
            session.missed_lifecycle = False
            self._on_missed()
        if session.too_fast:
            session.too_fast = False
            self._pace.slow()
        if session.overflowed and self._on_overflow is not None:
            session.overflowed = False
            self._on_overflow(self.number)
        if session.turned_away and self._on_turned_away is not None:
            tickers, session.turned_away = session.turned_away, []
            for ticker in tickers:
                self.markets.pop(ticker, None)
            self._on_turned_away(self.number, tickers, session.most_markets or 1)
        for kind, why in session.troubles_seen():
            self._tell(kind, why=why)
        if session.failed is not None:
            self._end(session.failed)

    async def _write(self, socket: Socket) -> None:
        try:
            while True:
                await self._to_send.wait()
                while self._commands:
                    await asyncio.sleep(self._pace.wait(clock.monotonic()))
                    await socket.send(self._commands.popleft(), text=True)
                    self._counts["commands"] += 1
                self._to_send.clear()
        except ConnectionClosed:
            return  # the reader sees it too, after what had arrived before

    async def _watch(self, socket: Socket) -> None:
        """Keep the session's deadlines, and hear silence: a ping comes every 10 s (Kalshi docs, "Connection keep-alive")."""
        assert self._session is not None
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self._session.due(clock.now_us())
            self._hand_over()
            if self._session.settled:
                self.trouble = ""
                if clock.monotonic() - self._began > LONGEST:
                    self._failures = 0  # sooner, and an exchange that cuts everybody at once would be asked again and again
            if clock.monotonic() - socket.heard_at > self._settings.silence_seconds:
                self._end(Cause.SILENT_SOCKET)

    async def _until(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._end(Cause.DISCONNECT)

    def _end(self, cause: str) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(cause)

    def _tell(self, event: str, **fields: Any) -> None:
        if logs.once_a_minute(event):
            _log.warning(event, connection=self.number, **fields)


def _raw(
    kind: str,
    gatherer: str,
    connection: int,
    generation: int,
    channel: str,
    sid: int,
    seq: int,
    yes_price: bool,
    ticker: str,
    recv_us: int,
    clock_us: int,
    detail: str,
    payload: bytes,
) -> Raw:
    return (
        ticker.encode(),
        codec.encode_raw(
            kind, gatherer, connection, generation, channel, sid, seq, yes_price, ticker, recv_us, clock_us, detail, payload
        ),
        recv_us // 1000,
    )


def _date(headers: Headers) -> str | None:
    return next(iter(headers.get_all("Date")), None)


async def _either(stop: asyncio.Event, seconds: float) -> None:
    """Wait for `stop`, at most so long."""
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return
