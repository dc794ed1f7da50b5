"""The levels of a book as bytes, for `bytea` columns: exact, about 6 bytes a level, packed and unpacked at C speed.

Little-endian: u8 width of a size in bytes (4, or 8 where a size needs it), u16 yes levels, u16 no levels, then the u16 prices of
yes and of no, then their sizes. Prices ascend within a side, in 1/10,000 dollar; sizes are in 1/100 contract.
"""

import struct
from collections.abc import Sequence
from typing import Final

_HEADER: Final = struct.Struct("<BHH")
_SIZES: Final = {4: "I", 8: "Q"}

Levels = Sequence[tuple[int, int]]


def pack(yes: Levels, no: Levels) -> bytes:
    """Return both sides, [(price, size), …] each, as bytes; raise struct.error for a price or size that no level can have."""
    prices, sizes = zip(*yes, *no, strict=True) if yes or no else ((), ())
    width = 8 if sizes and max(sizes) > 0xFFFF_FFFF else 4
    n = len(prices)
    return struct.pack(f"<BHH{n}H{n}{_SIZES[width]}", width, len(yes), len(no), *prices, *sizes)


def unpack(packed: bytes) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return (yes, no) as they were packed; raise ValueError for bytes that `pack` did not make."""
    try:
        width, n_yes, n_no = _HEADER.unpack_from(packed)
        n = n_yes + n_no
        values = struct.unpack_from(f"<{n}H{n}{_SIZES[width]}", packed, _HEADER.size)
    except (struct.error, KeyError) as error:
        raise ValueError(f"not packed levels: {error!r}") from error
    if len(packed) != _HEADER.size + n * (2 + width):
        raise ValueError(f"not packed levels: {len(packed)} bytes for {n} levels")
    levels = list(zip(values[:n], values[n:], strict=True))
    return levels[:n_yes], levels[n_yes:]
