"""The websocket as the gatherer reads it: the `websockets` library, with a short way around it for whole messages.

Almost all that comes is one unfragmented, uncompressed message a frame. Those are cut out of what was received by their headers
alone, all that came at once together, within the event loop's own call: by the library's queue a message costs eight times as
much (benchmarks/gatherer.py). Every other byte goes to the library, which stays the judge of the handshake, of pings, fragments
and closing, and of what a frame may be. Memory is bounded: a message by `max_size`, what waits to be taken by AHEAD_BYTES, what
waits to be sent by UNREAD_BYTES.
"""

import functools
from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar, Final

from websockets.asyncio.client import ClientConnection
from websockets.frames import Frame, Opcode
from websockets.protocol import State

from kalshibook_core.runtime import clock

_DATA: Final = (Opcode.TEXT, Opcode.BINARY, Opcode.CONT)
_WHOLE: Final = frozenset({0x80 | Opcode.TEXT, 0x80 | Opcode.BINARY})
_TWO_BYTES, _EIGHT_BYTES = 126, 127
_ALL: Final = 1 << 64
_TURN_BYTES: Final = 128 * 1024
"""After as much at once the event loop's other work comes first: the socket may have more for a long time."""

AHEAD_BYTES: Final = 64 * 1024 * 1024
UNREAD_BYTES: Final = 4 * 1024 * 1024
"""Who leaves so much of what is said to him unread is cut off: commands wait for room, but pings are answered as they come."""


class Splitter:
    """Frames out of bytes, by RFC 6455, section 5.2: whole messages of up to 65,535 bytes are kept, the rest is passed on."""

    def __init__(self, pass_on: Callable[[bytes], bool]) -> None:
        """Begin where frames begin. `pass_on` takes bytes of frames, and returns whether whole messages may still follow."""
        self.messages: list[bytes] = []  # for the caller to take away; who is passed frames may add to it
        self.within = False  # a fragmented message has begun: for who is passed its frames to say
        self._pass_on = pass_on
        self._rest = b""
        self._owed = 0  # bytes still to come of a frame that is passed on

    def feed(self, data: bytes) -> None:
        """Take the next bytes, cut anywhere."""
        if self._rest:
            data = self._rest + data
        at, end, keep = 0, len(data), self.messages.append
        if self._owed:
            at = self._other(data, 0, self._owed)
        while end - at >= 2:
            length, start = data[at + 1], at + 2
            if length == _TWO_BYTES:
                start = at + 4
                if start > end:
                    break
                length = data[at + 2] << 8 | data[at + 3]
            elif length > _TWO_BYTES:
                start = at + 10
                if start > end:
                    break
                length = int.from_bytes(data[at + 2 : start]) if length == _EIGHT_BYTES else _ALL  # masked: no server may do that
            stop = start + length
            if data[at] in _WHOLE and length < 1 << 16 and not self.within:
                if stop > end:
                    break
                keep(data[start:stop])
                at = stop
                continue
            at = self._other(data, at, stop)
        self._rest = data[at:]

    def _other(self, data: bytes, start: int, stop: int) -> int:
        """Pass on what has come of a frame, and all that follows one after which nothing is believed; return where to go on."""
        if not self._pass_on(data[start:stop]):
            self._pass_on(data[stop:])
            stop = _ALL
        self._owed = max(0, stop - len(data))
        return min(stop, len(data))


class Socket(ClientConnection):
    """A client connection that hands on, in order, what came at once, with the local time it came at.

    A burst is read off the socket faster than it is taken, so that the exchange, which ends the subscription of who is slow, does
    not have to hold it. When all sockets together hold AHEAD_BYTES, they are read no further.
    """

    ahead: ClassVar[int] = 0  # bytes that all sockets of the process have read and not handed on

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """As the library makes it."""
        super().__init__(*args, **kwargs)
        self.heard_at = clock.monotonic()  # when a message or a ping was last whole: bytes without end are silence
        self._take: Callable[[list[bytes], int], None] | None = None
        self._splitter = Splitter(self._judge)
        self._fragments: list[bytes] = []
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._busy = False  # there was so much that the event loop's other work comes first
        self._lost: Callable[[], None] | None = None

    def hand_to(self, take: Callable[[list[bytes], int], None]) -> None:
        """Call `take(messages, received_us)` with what has come already, and what comes; it must not raise."""
        self._take = take
        self._go_on()

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        while data and self.response is None and self.protocol.handshake_exc is None:
            line = data.find(b"\n") + 1 or len(data)  # the first frame may follow right upon the last line of the response
            super().data_received(data[:line])
            data = data[line:]
        if self.response is None:
            super().data_received(data)
        elif self._busy or self._take is None:
            self._waiting.append((clock.now_us(), data))
            Socket.ahead += len(data)
            if Socket.ahead > AHEAD_BYTES or self._take is None:
                self.transport.pause_reading()
        else:
            self._split(data, clock.now_us())
            if len(data) > _TURN_BYTES:
                self._busy = True
                self.loop.call_soon(self._go_on)

    def eof_received(self) -> None:
        """Called by the event loop, and then `connection_lost`."""
        if not self._waiting:
            super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop; the library hears of it when all that came before is handed on."""
        self._lost = functools.partial(super().connection_lost, exc)
        if not self._busy:
            self._go_on()

    def process_event(self, event: Any) -> None:
        """Called by the library."""
        if not isinstance(event, Frame) or event.opcode not in _DATA:
            self.heard_at = clock.monotonic()
            super().process_event(event)
            if self.transport.get_write_buffer_size() > UNREAD_BYTES:  # each ping is answered, whether or not that is read
                self.transport.abort()
            return
        self._fragments.append(bytes(event.data))
        self._splitter.within = not event.fin
        if event.fin:
            self._splitter.messages.append(b"".join(self._fragments))
            self._fragments.clear()

    def _go_on(self) -> None:
        """Hand on what waits, as much as one turn allows, and come back for the rest."""
        done = 0
        while self._waiting and done < _TURN_BYTES:
            received_us, data = self._waiting.popleft()
            Socket.ahead -= len(data)
            done += len(data)
            self._split(data, received_us)
        self._busy = bool(self._waiting)
        if self._busy:
            self.loop.call_soon(self._go_on)
        elif self._lost is not None:
            self._lost()
            self._lost = None
        if (not self._busy or Socket.ahead < AHEAD_BYTES // 2) and not self.transport.is_closing():
            self.transport.resume_reading()

    def _split(self, data: bytes, received_us: int) -> None:
        self._splitter.feed(data)
        messages = self._splitter.messages
        if messages:
            self.heard_at = clock.monotonic()
            self._splitter.messages = []
            if self._take is not None:
                self._take(messages, received_us)

    def _judge(self, data: bytes) -> bool:
        super().data_received(data)
        return self.protocol.state is State.OPEN
