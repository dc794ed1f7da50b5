"""RawFrame to bytes, three times as fast as the general encoder: one is made per frame, and most of a record repeats.

The result is byte for byte that of `codec.encode` (a property of the tests), so nobody who reads can tell.
"""

from functools import lru_cache
from typing import Final

from kalshibook_core.wire import codec
from kalshibook_core.wire.events import RawFrame

_HEADER: Final = b"\x00" + codec.SCHEMAS["RawFrame"]["schema_id"].to_bytes(4, "big")
_BOOLEANS: Final = (b"\x00", b"\x01")


def encode(frame: RawFrame) -> bytes:
    """Return the frame as a Kafka value."""
    kind, gatherer, connection, generation, channel, sid, seq, yes_price, ticker, recv_us, clock_us, detail, payload = frame
    return b"".join(
        (
            _source(kind, gatherer, connection, generation, channel, sid),
            _long(seq),
            _BOOLEANS[yes_price],
            _string(ticker),
            _long(recv_us),
            _long(clock_us),
            _string(detail),
            _length(len(payload)),
            payload,
        )
    )


@lru_cache(maxsize=4096)
def _source(kind: str, gatherer: str, connection: int, generation: int, channel: str, sid: int) -> bytes:
    """What repeats from frame to frame of a sid."""
    words = _string(kind) + _string(gatherer) + _long(connection) + _long(generation)
    return _HEADER + words + _string(channel) + _long(sid)


@lru_cache(maxsize=1 << 17)
def _string(text: str) -> bytes:
    encoded = text.encode()
    return _long(len(encoded)) + encoded


@lru_cache(maxsize=4096)
def _length(count: int) -> bytes:
    return _long(count)


def _long(value: int) -> bytes:
    """Avro's long: zigzag, then seven bits a byte, the lowest first (Avro specification, "Binary encoding")."""
    n = (value << 1) ^ (value >> 63)
    if 1 << 49 <= n < 1 << 56:  # microseconds of our time, without the loop
        return bytes(
            (
                n & 127 | 128,
                n >> 7 & 127 | 128,
                n >> 14 & 127 | 128,
                n >> 21 & 127 | 128,
                n >> 28 & 127 | 128,
                n >> 35 & 127 | 128,
                n >> 42 & 127 | 128,
                n >> 49,
            )
        )
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    out.append(n)
    return bytes(out)
