"""The form of the spool's files, without I/O.

A segment is MAGIC, the chain (u32) that it continues, then records:

    length u32 | chain u32 | key length u16 | timestamp in ms i64 | key | value

all little endian; `length` counts what follows `chain`. The chain is the CRC-32 of a record's length and of what follows its
chain, begun with the chain before it, and runs on from one segment to the next. So a flipped bit, a cut and a segment that is
missing in the middle all show, and what stands before them is read all the same. What cannot show is an end that was cut off
exactly between two records.
"""

import struct
import zlib
from typing import Final, NamedTuple

MAGIC: Final = b"KBSPOOL1"

_HEADER: Final = struct.Struct("<8sI")
_RECORD: Final = struct.Struct("<IIHq")
_LENGTH: Final = struct.Struct("<I")
_FIXED: Final = _RECORD.size - 8  # of what `length` counts

HEADER_BYTES: Final = _HEADER.size


class Record(NamedTuple):
    """What goes to the broker."""

    key: bytes
    value: bytes
    timestamp_ms: int


class Damaged(ValueError):
    """The bytes are not what was written."""


def pack_header(chain: int) -> bytes:
    """Return the beginning of a segment that continues `chain`."""
    return _HEADER.pack(MAGIC, chain)


def unpack_header(header: bytes) -> int:
    """Return the chain that a segment continues; raise Damaged if it is no beginning of a segment."""
    if len(header) < HEADER_BYTES or not header.startswith(MAGIC):
        raise Damaged("it does not begin as a segment does")
    return int(_HEADER.unpack_from(header)[1])


def pack(record: Record, chain: int) -> tuple[bytes, int]:
    """Return a record's bytes, and the chain after it."""
    key, value, timestamp_ms = record
    length = _FIXED + len(key) + len(value)
    rest = b"".join((_RECORD.pack(length, 0, len(key), timestamp_ms)[8:], key, value))
    chain = zlib.crc32(rest, zlib.crc32(_LENGTH.pack(length), chain))
    return b"".join((_RECORD.pack(length, chain, 0, 0)[:8], rest)), chain


def unpack(buffer: bytes, at: int, chain: int) -> tuple[Record, int, int] | None:
    """Return the record at `at`, where the next one begins, and the chain after it; None where the buffer ends before it does.

    Raises Damaged.
    """
    if len(buffer) < at + _RECORD.size:
        return None
    length, said, key_length, timestamp_ms = _RECORD.unpack_from(buffer, at)
    end = at + 8 + length
    if length < _FIXED + key_length:
        raise Damaged("a record shorter than its key")
    if len(buffer) < end:
        return None
    chain = zlib.crc32(memoryview(buffer)[at + 8 : end], zlib.crc32(memoryview(buffer)[at : at + 4], chain))
    if chain != said:
        raise Damaged("a record's checksum is not that of its content")
    key_at = at + _RECORD.size
    return Record(buffer[key_at : key_at + key_length], buffer[key_at + key_length : end], timestamp_ms), end, chain
