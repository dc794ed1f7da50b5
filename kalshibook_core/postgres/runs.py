"""Book events as rows of `book_events`: a run of deltas is one row, a snapshot or a gap one of its own. Exact, and sealed.

A run is up to 64 deltas of one market with versions in a row and effective times within one UTC day. `packed` is, big-endian:

    u32  seal: the first four bytes of SHA-256 over i32 market_id, i32 version, i64 effective_us, i16 events, i16 kind and
         everything in `packed` after the seal
    i64  checksum of the book after the row's last event

and then, of a snapshot or a gap, i64 recv_us and the levels (`postgres.levels`; a gap has none); of deltas

    four times four bits: the width of the numbers in columns 1, 2, 3 and 5 (0: all are zero; 1, 2, 3, 4: i8, i16, i32, i64)
    1    effective_us less that of the event before, of all but the first (whose effective_us is the row's)
    2    effective_us - exchange_us of each
    3    recv_us - effective_us of each
    4    u16 of each: the price, and 32768 more for the no side
    5    the signed change of size of each

The checksum after every other event follows from the last one, because a delta changes it by delta * weight(side, price)
(`orderbook.checksum`). A delta whose checksum is not that of the one before it, changed so, begins a run of its own: what
comes out is what went in, whether or not it is right.
"""

import hashlib
import struct
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from itertools import accumulate, repeat
from operator import add, mul, sub
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kalshibook_core.orderbook.book import MAX_PRICE
from kalshibook_core.orderbook.checksum import MASK, level_weight
from kalshibook_core.postgres import levels, partitions
from kalshibook_core.wire.columns import Deltas, Longs
from kalshibook_core.wire.events import BookSnapshot, Gap

SNAPSHOT, DELTA, GAP = 1, 2, 3
"""Values of book_events.kind."""

MOST: Final = 64
"""Deltas a row holds at most: a row stays within a page, and a reader unpacks few that it did not ask for."""

COLUMNS: Final = ("effective_us", "market_id", "version", "events", "kind", "packed")

_KEY: Final = struct.Struct(">iiqhh")
_SEAL: Final = 4
_HEAD: Final = struct.Struct(">qBB")
_ALONE: Final = struct.Struct(">qq")
_CODES: Final = ("", "b", "h", "i", "q")
_SIZES: Final = (0, 1, 2, 4, 8)
_NO_SIDE: Final = 0x8000
_HALF: Final = 1 << 63


class DamagedRow(ValueError):
    """The bytes of a row are not what was written; nothing of it can be used."""


class Row(NamedTuple):
    """A row, in the order of COLUMNS: the key is that of its first event."""

    effective_us: int
    market_id: int
    version: int
    events: int
    kind: int
    packed: bytes


class Event(NamedTuple):
    """What a row says of one event. Of a snapshot or a gap, exchange_us, side, price and delta are 0."""

    version: int
    effective_us: int
    exchange_us: int
    recv_us: int
    kind: int
    side: int
    price: int
    delta: int
    checksum: int
    levels: bytes


class EventColumns(NamedTuple):
    """Book events of one market in order of version, as columns: for who reads them by the ten thousand.

    The arrays are of one length, their values those of `Event`; `levels` has those of the snapshots only, in their order.
    """

    version: Longs
    effective_us: Longs
    recv_us: Longs
    kind: Longs
    side: Longs
    price: Longs
    delta: Longs
    checksum: Longs
    levels: list[bytes]

    def cut(self, first: int, end: int) -> "EventColumns":
        """Return the events from `first` on and before `end`, places in the columns."""
        before, within = (int(np.count_nonzero(self.kind[a:b] == SNAPSHOT)) for a, b in ((0, first), (first, end)))
        return EventColumns._make([*(column[first:end] for column in self[:-1]), self.levels[before : before + within]])


def pack_snapshot(market_id: int, event: BookSnapshot) -> Row:
    """Return the row of a snapshot."""
    body = _ALONE.pack(event.checksum, event.recv_us) + levels.pack(event.yes, event.no)
    return _sealed(event.effective_us, market_id, event.version, 1, SNAPSHOT, body)


def pack_gap(market_id: int, event: Gap) -> Row:
    """Return the row of a gap in the book stream; its start and cause stand in table gaps."""
    return _sealed(event.effective_us, market_id, event.version, 1, GAP, _ALONE.pack(event.checksum, event.recv_us))


def pack_deltas(market_ids: Longs, deltas: Deltas) -> Iterator[Row]:
    """Yield the rows of deltas, given the market id of each of `deltas.tickers`. Those of one market stand in their order."""
    if not len(deltas.version):
        return
    each = market_ids[deltas.market]
    order = np.argsort(each, kind="stable")  # by id, so that the rows go through the index from one end to the other
    market, version, effective, exchange, recv, side, price, delta, checksum = (c[order] for c in (each, *deltas[2:]))
    starts = np.flatnonzero(_breaks(market, version, effective, side, price, delta, checksum))
    ends = np.append(starts[1:], len(order))
    steps = np.diff(effective, prepend=effective[:1])
    steps[starts] = 0
    numbers = (steps, effective - exchange, recv - effective, delta)
    widths = [_widths(column, starts) for column in numbers]
    (as_steps, as_exchange, as_recv, as_delta) = (_bytes(column, set(w)) for column, w in zip(numbers, widths, strict=True))
    levels_of = _in_sixteen_bits(side, price)
    keys = (column[starts].tolist() for column in (effective, market, version))
    lasts = checksum[ends - 1].tolist()
    for a, b, us, market_id, first, last, w1, w2, w3, w5 in zip(
        starts.tolist(), ends.tolist(), *keys, lasts, *widths, strict=True
    ):
        s1, s2, s3, s5 = _SIZES[w1], _SIZES[w2], _SIZES[w3], _SIZES[w5]
        body = b"".join((
            _HEAD.pack(last, w1 << 4 | w2, w3 << 4 | w5),
            as_steps[w1][(a + 1) * s1 : b * s1], as_exchange[w2][a * s2 : b * s2], as_recv[w3][a * s3 : b * s3],
            levels_of[2 * a : 2 * b], as_delta[w5][a * s5 : b * s5],
        ))  # fmt: skip
        yield _sealed(us, market_id, first, b - a, DELTA, body)


def unpack(effective_us: int, market_id: int, version: int, events: int, kind: int, packed: bytes) -> list[Any]:
    """Return the events of a row, each the values of an `Event`; raise DamagedRow if a bit of it is not as it was written."""
    body = packed[_SEAL:]
    try:
        if _seal(effective_us, market_id, version, events, kind, body) == packed[:_SEAL]:
            return _deltas(effective_us, version, events, body) if kind == DELTA else _alone(effective_us, version, kind, body)
    except (
        struct.error,
        IndexError,
        ValueError,
    ) as error:  # one damaged row in four milliards has a seal that fits
        raise DamagedRow(f"market {market_id}, version {version}: the row cannot be read ({error})") from error
    raise DamagedRow(f"market {market_id}, version {version}: the row's seal is broken")


def unpack_columns(rows: Sequence[Sequence[Any]]) -> EventColumns:
    """Return the events of rows of one market, each row as `COLUMNS` has it, in their order; raise DamagedRow like `unpack`."""
    try:
        for effective_us, market_id, version, events, kind, packed in rows:
            if _seal(effective_us, market_id, version, events, kind, packed[_SEAL:]) != packed[:_SEAL]:
                break
        else:
            return _together(rows)
    except (struct.error, IndexError, ValueError) as error:
        raise DamagedRow(f"market {rows[0][1]}, a row from version {rows[0][2]} on: it cannot be read ({error})") from error
    raise DamagedRow(f"market {market_id}, version {version}: the row's seal is broken")


def _together(rows: Sequence[Sequence[Any]]) -> EventColumns:
    # Eight bytes are read at the place where each number begins, and those that are not its own shifted out.
    joined = b"".join([row[5] for row in rows])
    words = np.ndarray((len(joined) + 1,), ">i8", joined + bytes(8), strides=(1,))
    fields = zip(*((row[2], row[0], row[3], row[4], len(row[5])) for row in rows), strict=True)
    version, effective, events, kind, length = (np.array(field, np.int64) for field in fields)
    ends = np.cumsum(length)
    at, deltas = ends - length + _SEAL, kind == DELTA
    head = np.where(deltas, words[at + 8] >> 48, 0)
    sizes = [np.array(_SIZES)[head >> shift & 15] for shift in (12, 8, 4, 0)]
    sizes.insert(3, np.where(deltas, 2, 0))
    counts = (events - 1, events, events, events, events)
    starts = np.cumsum([at + _HEAD.size, *(size * count for size, count in zip(sizes, counts, strict=True))], axis=0)
    if ((starts[5] != ends) & deltas).any() or (events < 1).any() or ((events != 1) & ~deltas).any():
        raise ValueError("a row is not as long as it says")
    of = np.repeat(np.arange(len(rows)), events)  # the row of each event
    first = np.cumsum(events) - events
    nth = np.arange(len(of)) - first[of]

    def numbers(column: int, places: Longs) -> Longs:
        size = sizes[column][of]
        found: Longs = words[np.where(size, starts[column][of] + places * size, 0)] >> (64 - 8 * np.maximum(size, 1))
        return np.where(size, found, 0)

    steps = np.cumsum(np.where(nth, numbers(0, np.maximum(nth - 1, 0)), 0))
    effective_us = effective[of] + steps - steps[first][of]
    level, delta = numbers(3, nth) & 0xFFFF, numbers(4, nth)
    side, price = level // _NO_SIDE, level % _NO_SIDE
    if (price > MAX_PRICE).any():
        raise ValueError("a price that no level can have")
    changes = np.cumsum(checksum_changes(side, price, delta), dtype=np.uint64)
    checksum = words[at][of] - (changes[first + events - 1][of] - changes).view(np.int64)
    recv_us = np.where(deltas[of], effective_us + numbers(2, nth), words[at + 8][of])
    levels_of = [bytes(row[5][_SEAL + _ALONE.size :]) for row in rows if row[4] == SNAPSHOT]
    return EventColumns(version[of] + nth, effective_us, recv_us, kind[of], side, price, delta, checksum, levels_of)


def checksum_changes(side: Longs, price: Longs, delta: Longs) -> NDArray[np.uint64]:
    """Return by how much each of these deltas changes a book's checksum, modulo 2**64; the levels must be such as can be."""
    changes: NDArray[np.uint64] = delta.view(np.uint64) * _weights()[side * (MAX_PRICE + 1) + price]
    return changes


def _alone(effective_us: int, version: int, kind: int, body: bytes) -> list[Any]:
    checksum, recv_us = _ALONE.unpack_from(body)
    return [(version, effective_us, 0, recv_us, kind, 0, 0, 0, checksum, body[_ALONE.size :])]


def _deltas(effective_us: int, version: int, events: int, body: bytes) -> list[Any]:
    checksum, high, low = _HEAD.unpack_from(body)
    widths = (high >> 4, high & 15, low >> 4, low & 15)
    values = _columns(events, *widths).unpack_from(body, _HEAD.size)
    found, at = list[Any](), 0
    for width, count in zip((*widths[:3], 2, widths[3]), (events - 1, events, events, events, events), strict=True):
        if width:
            found.append(values[at : at + count])
            at += count
        else:
            found.append((0,) * count)
    steps, before, after, levels_of, delta = found
    effective = list(accumulate(steps, initial=effective_us))
    exchange = map(sub, effective, before) if widths[1] else effective
    side, price, weights = zip(*map(_level, levels_of), strict=True)
    changes = list(map(mul, delta[1:], weights[1:]))
    checksums = accumulate(changes, initial=checksum - sum(changes))
    signed = [((c + _HALF) & MASK) - _HALF for c in checksums]
    versions, recv = range(version, version + events), map(add, effective, after)
    return list(zip(versions, effective, exchange, recv, repeat(DELTA), side, price, delta, signed, repeat(b"")))


@cache
def _level(number: int) -> tuple[int, int, int]:
    side, price = number >> 15, number & 0x7FFF
    return side, price, level_weight(side, price)


def _breaks(
    market: Longs, version: Longs, effective: Longs, side: Longs, price: Longs, delta: Longs, checksum: Longs
) -> NDArray[np.bool_]:
    """Return where a run begins."""
    known = (side >= 0) & (side <= 1) & (price >= 0) & (price <= MAX_PRICE)
    change = checksum_changes(np.where(known, side, 0), np.where(known, price, 0), delta)
    breaks = np.ones(len(market), np.bool_)
    days = effective // partitions.DAY_US
    breaks[1:] = (
        (np.diff(market) != 0)
        | (np.diff(version) != 1)
        | (np.diff(days) != 0)
        | (np.diff(effective) < 0)
        | ~known[1:]
        | (np.diff(checksum.view(np.uint64)) != change[1:])
    )
    starts = np.flatnonzero(breaks)
    nth = np.arange(len(market)) - np.repeat(starts, np.diff(starts, append=len(market)))
    breaks |= nth % MOST == 0
    return breaks


@lru_cache(maxsize=1)
def _weights() -> NDArray[np.uint64]:
    return np.array([level_weight(side, price) for side in (0, 1) for price in range(MAX_PRICE + 1)], np.uint64)


def _widths(column: Longs, starts: Longs) -> list[int]:
    """Return by run which of _CODES holds every number of it."""
    each = (column != 0).astype(np.int64)
    for kind in (np.int8, np.int16, np.int32):
        each += column != column.astype(kind)
    widest: list[int] = np.maximum.reduceat(each, starts).tolist()
    return widest


def _bytes(column: Longs, widths: set[int]) -> dict[int, bytes]:
    return {width: column.astype(f">i{_SIZES[width]}").tobytes() if width else b"" for width in widths}


def _in_sixteen_bits(side: Longs, price: Longs) -> bytes:
    both = side * _NO_SIDE + price
    if (price < 0).any() or (price >= _NO_SIDE).any() or (side < 0).any() or (side > 1).any():
        raise ValueError("a delta of a side or price that no market has cannot be stored")
    return both.astype(">u2").tobytes()


@lru_cache(maxsize=1 << 12)
def _columns(events: int, steps: int, exchange: int, recv: int, delta: int) -> struct.Struct:
    codes = (_CODES[steps], _CODES[exchange], _CODES[recv], "H", _CODES[delta])
    counts = (events - 1, events, events, events, events)
    return struct.Struct(">" + "".join(f"{count}{code}" for count, code in zip(counts, codes, strict=True) if code))


def _seal(effective_us: int, market_id: int, version: int, events: int, kind: int, body: bytes) -> bytes:
    return hashlib.sha256(_KEY.pack(market_id, version, effective_us, events, kind) + body).digest()[:_SEAL]


def _sealed(effective_us: int, market_id: int, version: int, events: int, kind: int, body: bytes) -> Row:
    packed = _seal(effective_us, market_id, version, events, kind, body) + body
    return Row(effective_us, market_id, version, events, kind, packed)
