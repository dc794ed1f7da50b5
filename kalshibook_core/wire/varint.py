"""Avro's primitive encodings (specification, "Binary Encoding"), by table: what the hot paths' events are put together from.

Exact and total: an integer of more than 64 bits raises OverflowError. Strings that come again and again are kept encoded.
"""

from functools import lru_cache
from typing import Final

_GROUP: Final = 14  # bits a table step takes: two Avro groups of seven
_MASK: Final = (1 << _GROUP) - 1
MORE: Final = [bytes((z & 0x7F | 0x80, z >> 7 | 0x80)) for z in range(1 << _GROUP)]
LAST: Final = [bytes((z,)) if z < 0x80 else bytes((z & 0x7F | 0x80, z >> 7)) for z in range(1 << _GROUP)]


def long(n: int) -> bytes:
    """Return `n` as an Avro int or long: zigzag, then seven bits a byte, the low ones first."""
    z = n << 1 if n >= 0 else ~(n << 1)
    if z < 0x4000:
        return LAST[z]
    if z < 0x10000000:
        return MORE[z & _MASK] + LAST[z >> 14]
    if z >> 42 == 0:
        return MORE[z & _MASK] + MORE[z >> 14 & _MASK] + LAST[z >> 28]
    if z >> 56 == 0:
        return MORE[z & _MASK] + MORE[z >> 14 & _MASK] + MORE[z >> 28 & _MASK] + LAST[z >> 42]
    if z >> 64:
        raise OverflowError(f"{n} does not fit 64 bits")
    return MORE[z & _MASK] + MORE[z >> 14 & _MASK] + MORE[z >> 28 & _MASK] + MORE[z >> 42 & _MASK] + LAST[z >> 56]


def text(value: str) -> bytes:
    """Return an Avro string."""
    encoded = value.encode()
    return long(len(encoded)) + encoded


known_text = lru_cache(maxsize=1 << 18)(text)
"""`text` of a string that comes again and again, such as a ticker; the cache holds every ticker of the exchange."""
