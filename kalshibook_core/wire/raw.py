"""RawFrames read many at once, for who reads every one of them: at a fraction of what reading each by itself takes.

What the frames of one sid have in common stands at the front of each: read once, it is known by its bytes. What follows is taken
apart in numpy, of all together, where it has the form that frames have: no NO price turned, times of today (eight bytes each), no
detail, a ticker and a payload of usual length. Anything else goes to `codec.decode`, and what is read here is what that would
have read.
"""

from collections.abc import Iterator, Sequence
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from kalshibook_core.wire import codec
from kalshibook_core.wire.columns import Longs, Words, sevens, words
from kalshibook_core.wire.events import BOOK, RawFrame, RawKind
from kalshibook_core.wire.varint import long, text

KNOWN: Final = 1 << 14
"""Fronts that are remembered; then they are learned anew."""

AT_ONCE: Final = 10_000
"""As many as are worth peeking at together; of more, only more memory comes."""

_HEADER: Final = codec.header(RawFrame)
_SEQ_BYTES: Final = 4  # so that what follows it up to the ticker lies in one word with it
_TOPS, _EIGHT_BYTES = np.uint64(0x8080_8080_8080_8080), np.uint64(0x0080_8080_8080_8080)
_TAIL, _TAIL_FORM = np.uint64(0x80_80FF), np.uint64(0x00_8000)  # behind the times: an empty string, a varint of two bytes
_BYTE, _SEVEN_BITS, _NEXT_SEVEN_BITS, _8, _9, _1 = (np.uint64(number) for number in (0xFF, 0x7F, 0x3F80, 8, 9, 1))

_new: Final = tuple.__new__  # `RawFrame._make` without counting the fields


class Front:
    """The first fields of a RawFrame, and what is asked of them for every one."""

    __slots__ = ("counted", "fields", "generation", "of_book", "sid", "size", "where")

    def __init__(self, raw: RawFrame, size: int) -> None:
        """Make the front of a frame, of so many bytes."""
        self.fields, self.size = raw[:6], size
        kind, gatherer, connection, self.generation, channel, self.sid = self.fields
        self.where = gatherer, connection
        self.of_book = kind == RawKind.FRAME and channel == BOOK  # a frame of the book's channel
        self.counted = gatherer, kind


Peek: TypeAlias = tuple[Front | None, int, int, int, int, int]
"""What can be told of a RawFrame at once: front, seq, recv_us, clock_us, where its ticker begins, where its payload begins; the
ticker ends `TIMES` bytes before that. Without a front it is not of the usual form, and the rest means nothing."""

TIMES: Final = 19
"""Bytes from a ticker to the payload: two times, no detail, the payload's length."""


class RawReader:
    """Reads RawFrames; remembers their fronts."""

    def __init__(self) -> None:
        """Make a reader that has seen none."""
        self._fronts: dict[bytes, Front] = {}
        self._sizes: list[int] = []  # that fronts have

    def peek(self, values: Sequence[bytes]) -> Iterator[Peek]:
        """Return what can be told of each value at once."""
        known, found = self._fronts, list[Front | None]()
        for value in values:
            for size in self._sizes:
                front = known.get(value[:size])
                if front is not None:
                    break
            else:
                front = self._learn(value)
            found.append(front)
        usual, *columns = _taken_apart(values, [0 if front is None else front.size for front in found])
        for unusual in np.flatnonzero(~usual).tolist():
            found[unusual] = None
        return zip(found, *(column.tolist() for column in columns), strict=True)

    def read(self, value: bytes, found: Peek) -> RawFrame:
        """Return what `codec.decode` does; `found` is its peek. Raises what that raises, UnknownSchema also for other events."""
        front, seq, recv_us, clock_us, ticker, payload = found
        if front is not None:
            try:
                market_ticker = str(value[ticker : payload - TIMES], "utf-8")
            except UnicodeDecodeError:
                front = None  # the codec says what is wrong with it
        if front is None:
            return _decoded(value)
        return _new(RawFrame, (*front.fields, seq, False, market_ticker, recv_us, clock_us, "", value[payload:]))

    def _learn(self, value: bytes) -> Front | None:
        try:
            raw = _decoded(value)
        except codec.Undecodable:
            return None
        kind, gatherer, connection, generation, channel, sid = raw[:6]
        known = _HEADER + text(kind) + text(gatherer) + long(connection) + long(generation) + text(channel) + long(sid)
        if not value.startswith(known):
            return None
        if len(self._fronts) >= KNOWN:
            self._fronts.clear()
            self._sizes.clear()
        front = self._fronts[known] = Front(raw, len(known))
        if len(known) not in self._sizes:
            self._sizes.append(len(known))
        return front


def _decoded(value: bytes) -> RawFrame:
    raw = codec.decode(value)
    if type(raw) is not RawFrame:
        raise codec.UnknownSchema(f"a {type(raw).__name__}, not a RawFrame")
    return raw


def _taken_apart(values: Sequence[bytes], fronts: Sequence[int]) -> tuple[NDArray[np.bool], Words, Words, Words, Longs, Longs]:
    """Return whether each value, whose front has so many bytes (0: it has none), is of the usual form, and what Peek says."""
    word = words(b"".join(values))
    sizes, front = np.fromiter(map(len, values), np.int64, len(values)), np.array(fronts, np.int64)
    ends = np.cumsum(sizes)
    begins = ends - sizes
    seq, seq_size = sevens(word[begins + front])
    at = begins + front + seq_size
    yes_price, ticker_size = word[at] & _BYTE, word[at] >> _8 & _BYTE
    ticker = at + 2
    times = ticker + (ticker_size >> _1).astype(np.int64)
    received, clock, behind = word[times], word[times + 8], word[times + 16]
    size = (behind >> _8 & _SEVEN_BITS) | (behind >> _9 & _NEXT_SEVEN_BITS)
    usual = (
        (front > 0)
        & (seq_size <= _SEQ_BYTES)
        & (yes_price == 0)
        & (ticker_size <= _SEVEN_BITS)
        & (((seq | ticker_size | size | received | clock) & _1) == 0)  # none is negative
        & (received & _TOPS == _EIGHT_BYTES)
        & (clock & _TOPS == _EIGHT_BYTES)
        & (behind & _TAIL == _TAIL_FORM)
        & (times + TIMES + (size >> _1).astype(np.int64) == ends)
    )
    recv_us, clock_us = sevens(received)[0] >> _1, sevens(clock)[0] >> _1
    return usual, seq >> _1, recv_us, clock_us, ticker - begins, times + TIMES - begins
