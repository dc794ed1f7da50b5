"""The exchange's decimal strings as integers and back, exactly: price in 1/10,000 dollar, size in 1/100 contract.

A string that no such integer represents is refused, never rounded. Both directions are cached: a market moves among few
prices and sizes, and one lookup costs a tenth of one parse.
"""

import re
from functools import lru_cache
from typing import Final

ONE_DOLLAR: Final = 10_000
"""The greatest price: a YES and a NO together are worth exactly this."""

ONE_CONTRACT: Final = 100
LARGEST_SIZE: Final = 2**63 - 1
"""Sizes travel as Avro longs and rest in Postgres bigints."""

_PRICE: Final = re.compile(r"([0-9]{1,5})(?:\.([0-9]{1,4})0*)?", re.ASCII)
_SIZE: Final = re.compile(r"(-?[0-9]{1,18})(?:\.([0-9]{1,2})0*)?", re.ASCII)


class NotRepresentable(ValueError):
    """The value is not a decimal string that our integers hold exactly."""


@lru_cache(maxsize=2 * ONE_DOLLAR)
def price(text: str) -> int:
    """Return dollars "0.4800" as 4800; raise NotRepresentable outside 0 to 1 dollar or finer than 1/10,000."""
    match = _PRICE.fullmatch(text)
    if match is None:
        raise NotRepresentable(f"{text[:40]!r} is not a price with four decimals at most")
    whole, fraction = match.groups()
    value = int(whole) * ONE_DOLLAR + (int(fraction.ljust(4, "0")) if fraction else 0)
    if value > ONE_DOLLAR:
        raise NotRepresentable(f"{text[:40]!r} is more than one dollar")
    return value


@lru_cache(maxsize=1 << 16)
def size(text: str) -> int:
    """Return contracts "-54.00" as -5400; raise NotRepresentable for what is finer than 1/100 or does not fit 64 bits."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise NotRepresentable(f"{text[:40]!r} is not a size with two decimals at most")
    whole, fraction = match.groups()
    value = int(whole + (fraction.ljust(2, "0") if fraction else "00"))
    if abs(value) > LARGEST_SIZE:
        raise NotRepresentable(f"{text[:40]!r} does not fit 64 bits")
    return value


@lru_cache(maxsize=2 * ONE_DOLLAR)
def format_price(value: int) -> str:
    """Return 4800 as "0.4800"."""
    return f"{value // ONE_DOLLAR}.{value % ONE_DOLLAR:04d}"


@lru_cache(maxsize=1 << 16)
def format_size(value: int) -> str:
    """Return -5400 as "-54.00"."""
    whole, fraction = divmod(abs(value), ONE_CONTRACT)
    return f"{'-' if value < 0 else ''}{whole}.{fraction:02d}"
