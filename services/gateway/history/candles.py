"""Open, high, low and close by the interval, of trades and of the best bid, best ask and mid. No I/O of its own.

A book's candle is over the values that `at` gives for the instants of its interval: the first and the last one there is, the
highest and the lowest. An instant in a gap has none, nor has one at which the side is empty, and nothing is carried over a gap.
A mid is kept as twice itself.
"""

from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kalshibook_core.kalshi.numbers import ONE_DOLLAR, format_price, format_size
from kalshibook_core.postgres.runs import EventColumns
from kalshibook_core.wire.columns import Longs
from services.gateway.history.fold import State
from services.gateway.history.views import mid
from services.gateway.history.walk import NONE, Top, Walk

MILLIONTHS: Final = 1_000_000
"""Of a dollar: a price times a size is an integer of them."""


MAX_EVENTS: Final = 1_000_000
"""Events a page may walk over; past it the page ends with the intervals that are whole by then, one at least."""


class Points:
    """The best levels by instant: each holds from its time to that of the next. A point holds for a microsecond at least."""

    def __init__(self) -> None:
        self._parts: list[Longs] = []

    def add(self, effective_us: Longs, tops: list[Top]) -> None:
        """Add what the levels were after events, given when each of their places took effect."""
        if tops:
            part = np.array(tops, np.int64)
            part[:, 0] = effective_us[part[:, 0]]
            self._parts.append(part[:, [0, 1, 3, 5]])

    def columns(self) -> tuple[Longs, Longs, Longs, NDArray[np.bool_]]:
        """Return (time, best yes, best no, known); of several events in a microsecond the last counts."""
        found = np.concatenate(self._parts) if self._parts else np.zeros((0, 4), np.int64)
        last = np.append(np.diff(found[:, 0]) != 0, np.ones(min(1, len(found)), np.bool_))
        time, yes, no, known = found[last].T
        return time, yes, no, known != 0


class Candles:
    """The rows of one page: intervals from `edges[i]` to before `edges[i + 1]`."""

    def __init__(self, edges: Longs, points: Points) -> None:
        time, yes, no, known = points.columns()
        first = np.searchsorted(time, edges[:-1], "right") - 1  # what holds as the interval begins; -1 before the first snapshot
        self._first, self._end = np.maximum(first, 0), np.searchsorted(time, edges[1:], "left")
        self.early = first < 0
        bid, ask = np.where(known & (yes != NONE), yes, NONE), np.where(known & (no != NONE), ONE_DOLLAR - no, NONE)
        both = np.where((bid != NONE) & (ask != NONE), bid + ask, NONE)
        self.in_gap = self._reduce(np.maximum, (~known).astype(np.int64), 0) > 0
        self.bid, self.ask, self.mid = (self._four(values) for values in (bid, ask, both))

    def _reduce(self, how: np.ufunc, values: Longs, nothing: int) -> Longs:
        pairs = np.stack((self._first, self._end), axis=1).ravel()
        found: Longs = how.reduceat(np.append(values, nothing), np.minimum(pairs, len(values)))[::2]
        return np.where(self._first < self._end, found, nothing)

    def _four(self, values: Longs) -> list[list[int]]:
        """Return open, high, low and close of each interval, NONE where there is none."""
        place = np.arange(len(values))
        there = values != NONE
        highest = self._reduce(np.maximum, values, NONE)
        lowest = self._reduce(np.minimum, np.where(there, values, 2 * ONE_DOLLAR + 1), NONE)
        opens = self._reduce(np.minimum, np.where(there, place, len(values)), NONE)
        closes = self._reduce(np.maximum, np.where(there, place, NONE), NONE)
        padded = np.append(values, NONE)
        none = highest == NONE
        columns = (padded[opens], highest, lowest, padded[closes])
        four: list[list[int]] = np.where(none[:, None], NONE, np.stack(columns, axis=1)).tolist()
        return four


async def gather(state: State | None, batches: AsyncIterator[EventColumns], edges: Longs) -> tuple[Points, int, int]:
    """Walk over the events of intervals; return the points, of how many intervals they are, and when the last took effect."""
    walk, points, at_us = Walk(state), Points(), 0
    first = walk.version
    if state is not None:
        at_us = state.effective_us
        points.add(edges[:1], [(0, *walk.top()[1:])])
    async for events in batches:
        tops: list[Top] = []
        walk.take(events)
        walk.until(len(events.version), tops)
        points.add(events.effective_us, tops)
        at_us = int(events.effective_us[-1])
        if walk.version - first > MAX_EVENTS and at_us >= edges[1]:
            return points, int(edges.searchsorted(at_us, "right")) - 1, at_us  # of this very microsecond more may come
    return points, len(edges) - 1, at_us


class Traded:
    """The trades of one interval. Block trades are made off the book: they are counted, and are in nothing else."""

    __slots__ = ("block_count", "block_volume", "close", "count", "high", "low", "notional", "open", "volume")

    def __init__(self) -> None:
        self.open = self.high = self.low = self.close = NONE
        self.count = self.volume = self.notional = self.block_count = self.block_volume = 0

    def add(self, price: int, size: int, block: bool | None) -> None:
        """Take the next trade: its price of YES, its size, and whether it was a block trade (None: not said, and not one)."""
        if block:
            self.block_count += 1
            self.block_volume += size
            return
        if not self.count:
            self.open = self.low = price
        self.high, self.low, self.close = max(self.high, price), min(self.low, price), price
        self.count += 1
        self.volume += size
        self.notional += price * size

    def row(self) -> dict[str, Any]:
        """Return the trades as customers see them. The notional is exact; the vwap is rounded half to even at six decimals."""
        return {
            **four((self.open, self.high, self.low, self.close), format_price),
            "volume": format_size(self.volume), "notional": millionths(self.notional),
            "vwap": millionths(nearest(100 * self.notional, self.volume)) if self.volume else None, "count": self.count,
            "block_volume": format_size(self.block_volume), "block_count": self.block_count,
        }  # fmt: skip


def four(values: Iterable[int], written: Callable[[int], str]) -> dict[str, str | None]:
    """Return open, high, low and close as strings, null where there is none."""
    names = ("open", "high", "low", "close")
    return {name: None if value == NONE else written(value) for name, value in zip(names, values, strict=True)}


def book_row(bid: list[int], ask: list[int], middle: list[int]) -> dict[str, Any]:
    """Return the candles of the best levels as customers see them."""
    return {"bid": four(bid, format_price), "ask": four(ask, format_price), "mid": four(middle, mid)}


def millionths(value: int) -> str:
    """Return millionths of a dollar in dollars with six decimals."""
    return f"{value // MILLIONTHS}.{value % MILLIONTHS:06d}"


def nearest(dividend: int, divisor: int) -> int:
    """Return the integer nearest to a quotient, the even one of two; both are above zero."""
    whole, rest = divmod(dividend, divisor)
    return whole + (2 * rest > divisor or (2 * rest == divisor and whole % 2))


def flagged(edges: Longs, gaps: Iterable[tuple[int, int | None, str, int]]) -> NDArray[np.bool_]:
    """Return which intervals any of the gaps (start, end, …) touches; an end of None is open."""
    found = np.zeros(len(edges) - 1, np.bool_)
    for start, end, *_ in gaps:
        found |= (edges[1:] > start) & (edges[:-1] < (edges[-1] if end is None else max(end, start + 1)))
    return found
