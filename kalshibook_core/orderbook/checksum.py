"""The checksum of a book: a 64-bit sum that anybody can recompute and that one delta updates in O(1).

    checksum = ( sum over levels of size * weight(side, price) )  mod 2**64

`size` is in 1/100 contract, `price` in 1/10,000 dollar, `side` 0 for yes and 1 for no. `weight` is one step of SplitMix64
(Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014) over `side * 65536 + price`, made odd.
An empty book has checksum 0. The sum is linear in size, so a delta changes it by `delta * weight(side, price)` without
knowing the level. On the wire and in tables it is a signed 64-bit integer; the API prints it as 16 hex digits.
"""

from collections.abc import Mapping
from functools import cache

MASK = 0xFFFF_FFFF_FFFF_FFFF


@cache
def level_weight(side: int, price: int) -> int:
    """Return the odd 64-bit weight of one price level; at most 20,002 of them exist, so the cache is bounded."""
    z = (side * 65536 + price + 0x9E37_79B9_7F4A_7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58_476D_1CE4_E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D0_49BB_1331_11EB) & MASK
    return (z ^ (z >> 31)) | 1


def book_checksum(yes: Mapping[int, int], no: Mapping[int, int]) -> int:
    """Return the checksum (0 <= c < 2**64) of a book given as {price: size} a side."""
    total = 0
    for side, levels in enumerate((yes, no)):
        for price, size in levels.items():
            total += size * level_weight(side, price)
    return total & MASK


def to_signed(checksum: int) -> int:
    """Return the checksum as the signed 64-bit integer that Avro and Postgres hold."""
    return checksum - (1 << 64) if checksum >> 63 else checksum


def to_hex(signed: int) -> str:
    """Return a stored (signed) checksum as the API prints it: 16 hex digits."""
    return f"{signed & MASK:016x}"
