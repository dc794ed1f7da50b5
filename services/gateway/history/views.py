"""A book as it is shown: bids of both sides as the exchange has them, or both sides of YES; all levels or the best few. No I/O.

Integers until the last step: a mid is kept as twice itself, so it is exact in the five decimals it is written with.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal

from kalshibook_core.kalshi.numbers import ONE_DOLLAR, format_price, format_size

View = Literal["yes"]
Sides = tuple[Mapping[int, int], Mapping[int, int]]
Levels = list[tuple[int, int]]


def shown(sides: Sides, depth: int | None, view: View | None) -> dict[str, Any]:
    """Return the levels of a book, {price: size} a side: the best `depth` of each side (None: all), in the form asked for."""
    return written(best(sides[0], depth), best(sides[1], depth), view)


def written(yes: Levels, no: Levels, view: View | None) -> dict[str, Any]:
    """Return levels, (price, size) with the best first, in the form asked for."""
    if view is None:
        return {"yes": _strings(yes)[::-1], "no": _strings(no)[::-1]}
    bid, ask = (yes[0][0] if yes else None), (ONE_DOLLAR - no[0][0] if no else None)
    return {
        "bids": _strings(yes), "asks": _strings([(ONE_DOLLAR - price, size) for price, size in no]),
        "mid": None if bid is None or ask is None else mid(bid + ask),
        "spread": None if bid is None or ask is None else signed_price(ask - bid),
    }  # fmt: skip


def whole(sides: Sides, depth: int | None, view: View | None) -> dict[str, Any]:
    """Return what is told of all levels: how many of each side `shown` leaves out (None: none) and, seen from YES, the totals."""
    names = ("yes", "no") if view is None else ("bids", "asks")
    out = {name: max(0, len(side) - (depth or len(side))) for name, side in zip(names, sides, strict=True)}
    totals = {} if view is None else {"bid_total": _total(sides[0]), "ask_total": _total(sides[1])}
    return {**totals, "cut": out if any(out.values()) else None}


def _total(side: Mapping[int, int]) -> str:
    return format_size(sum(side.values()))


def best(side: Mapping[int, int], depth: int | None) -> Levels:
    """Return the best levels of a side, (price, size), the best first."""
    return sorted(side.items(), reverse=True)[:depth]


@lru_cache(maxsize=4 * ONE_DOLLAR)
def mid(twice: int) -> str:
    """Return half of `twice`, bid + ask, in dollars with five decimals: 9,701 is 0.48505."""
    return f"{twice // (2 * ONE_DOLLAR)}.{twice % (2 * ONE_DOLLAR) * 5:05d}"


def signed_price(value: int) -> str:
    """Return a difference of prices; a crossed book has a spread below zero."""
    return format_price(value) if value >= 0 else f"-{format_price(-value)}"


def _strings(levels: Levels) -> list[list[str]]:
    return [[format_price(price), format_size(size)] for price, size in levels]
