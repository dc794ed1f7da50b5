"""RawFrames read at half of fastavro's cost or less, for who reads every one of them.

What the frames of one sid have in common stands at the front of each: read once, it is known by its bytes. What follows is taken
apart only where it has the form that frames have: times of today (eight bytes each), no detail, a ticker and a payload of usual
length. Anything else goes to `codec.decode`, and what is read here is what that would have read.
"""

from typing import Final, NamedTuple

from kalshibook_core.wire import codec
from kalshibook_core.wire.events import BOOK, RawFrame, RawKind
from kalshibook_core.wire.varint import long, text

KNOWN: Final = 1 << 14
"""Fronts that are remembered; then they are learned anew."""

_HEADER: Final = codec.encode(RawFrame("", "", 0, 0, "", 0, 0, False, "", 0, 0, "", b""))[:5]

# Two varints of eight bytes (seven that go on, one that does not) of positive numbers, an empty string, a varint of two bytes:
# which bits, and how.
_FORM: Final = int.from_bytes(b"\x81\x80\x80\x80\x80\x80\x80\x80" * 2 + b"\xff\x81\x80", "little")
_TIMES: Final = int.from_bytes(b"\x80\x80\x80\x80\x80\x80\x80\x00" * 2 + b"\0\x80\0", "little")
_LOW_7: Final = int.from_bytes(b"\x7f\x00" * 8, "little")
_LOW_14: Final = int.from_bytes(b"\xff\x3f\x00\x00" * 4, "little")
_LOW_28: Final = int.from_bytes(b"\xff\xff\xff\x0f\x00\x00\x00\x00" * 2, "little")
_HIGH_7, _HIGH_14, _HIGH_28 = _LOW_7 << 7, _LOW_14 << 14, _LOW_28 << 28
_LOW_64: Final = (1 << 64) - 1

_new: Final = tuple.__new__  # `RawFrame._make` without counting the fields


class Front(NamedTuple):
    """The first fields of a RawFrame, and what is asked of them for every one."""

    fields: tuple[str, str, int, int, str, int]
    where: tuple[str, int]  # gatherer and connection
    generation: int
    sid: int
    of_book: bool  # a frame of the book's channel
    counted: tuple[str, str]  # gatherer and kind


Peek = tuple[Front, int, bool, bytes, int, int]
"""What can be told of a RawFrame at once: front, seq, yes_price, market_ticker, and where its times and its payload begin."""


class RawReader:
    """Reads RawFrames; remembers their fronts."""

    def __init__(self) -> None:
        """Make a reader that has seen none."""
        self._fronts: dict[bytes, Front] = {}
        self._lengths: list[int] = []

    def peek(self, value: bytes) -> Peek | None:
        """Return what a value of the usual form and a known front says, else None."""
        fronts = self._fronts
        for at in self._lengths:
            front = fronts.get(value[:at])
            if front is not None:
                break
        else:
            return None
        try:
            seq = value[at]
            if seq > 0x7F:
                seq = seq & 0x7F | value[at + 1] << 7
                at += 1
                if seq > 0x3FFF:
                    seq = seq & 0x3FFF | value[at + 1] << 14
                    at += 1
                    if seq > 0x1FFFFF:
                        seq = seq & 0x1FFFFF | value[at + 1] << 21
                        at += 1
                        if seq > 0xFFFFFFF:
                            return None
            yes_price, size = value[at + 1], value[at + 2]
            times = at + 3 + (size >> 1)
            form = int.from_bytes(value[times : times + 19], "little")
            length = form >> 136
            if (
                form & _FORM != _TIMES or times + 19 + ((length & 0x7F | length >> 1 & 0x3F80) >> 1) != len(value)
                or seq & 1 or yes_price > 1 or size > 0x7F or size & 1
            ):  # fmt: skip
                return None
        except IndexError:
            return None
        return front, seq >> 1, yes_price == 1, value[at + 3 : times], times, times + 19

    def read(self, value: bytes, found: Peek | None = None) -> RawFrame:
        """Return what `codec.decode` does; `found` is its peek. Raises what that raises, UnknownSchema also for other events."""
        found = found or self.peek(value)
        if found is None:
            return self._learn(value)
        front, seq, yes_price, ticker, times, payload = found
        try:
            market_ticker = str(ticker, "utf-8")
        except UnicodeDecodeError:
            return self._learn(value)  # which says what is wrong with it
        both = int.from_bytes(value[times : times + 16], "little")  # their groups of seven bits pushed together, in both at once
        both = (both & _LOW_7) | (both >> 1 & _HIGH_7)
        both = (both & _LOW_14) | (both >> 2 & _HIGH_14)
        both = (both & _LOW_28) | (both >> 4 & _HIGH_28)
        recv_us, clock_us = (both & _LOW_64) >> 1, both >> 65
        return _new(RawFrame, (*front[0], seq, yes_price, market_ticker, recv_us, clock_us, "", value[payload:]))

    def _learn(self, value: bytes) -> RawFrame:
        raw = codec.decode(value)
        if type(raw) is not RawFrame:
            raise codec.UnknownSchema(f"a {type(raw).__name__}, not a RawFrame")
        kind, gatherer, connection, generation, channel, sid = raw[:6]
        known = _HEADER + text(kind) + text(gatherer) + long(connection) + long(generation) + text(channel) + long(sid)
        if value.startswith(known):
            if len(self._fronts) >= KNOWN:
                self._fronts.clear()
                self._lengths.clear()
            of_book = kind == RawKind.FRAME and channel == BOOK
            self._fronts[known] = Front(raw[:6], (gatherer, connection), generation, sid, of_book, (gatherer, kind))
            if len(known) not in self._lengths:
                self._lengths.append(len(known))
        return raw
