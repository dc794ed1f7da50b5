"""A market's book while columns of its events go by, each event checked against the one before it. No I/O.

What `State` is for one instant, this is for many: the same checks at a fraction of the cost. A delta's checksum must be the one
before it changed by that delta, which proves every book after a snapshot.
"""

from typing import Final, TypeAlias

import numpy as np

from kalshibook_core.orderbook import NO, YES, Book
from kalshibook_core.orderbook.book import MAX_SIZE
from kalshibook_core.postgres import levels
from kalshibook_core.postgres.runs import DELTA, SNAPSHOT, EventColumns, checksum_changes
from services.gateway.history.fold import CorruptHistory, State

NONE: Final = -1
"""The price of a side that is empty; its size is 0."""

Top: TypeAlias = tuple[int, int, int, int, int, bool]
"""(place of the event in its columns, yes price, yes size, no price, no size, whether the book is known then)."""


class Walk:
    """The book after the events applied so far; it begins with a state, or with None before a market's first snapshot."""

    __slots__ = (
        "_best",
        "_checksums",
        "_code",
        "_delta",
        "_events",
        "_price",
        "_snapshots",
        "checksum",
        "in_gap",
        "place",
        "sides",
        "version",
    )

    def __init__(self, state: State | None) -> None:
        self.sides: tuple[dict[int, int], dict[int, int]] = ({}, {})
        self.version = self.checksum = self.place = 0
        self.in_gap = False
        if state is not None:
            self.sides = state.book.copy().sides
            self.version, self.checksum, self.in_gap = state.version, state.book.checksum, state.in_gap
        self._best = [max(side, default=NONE) for side in self.sides]

    def top(self) -> Top:
        """Return the best levels as they are."""
        (yes, no), (yes_price, no_price) = self.sides, self._best
        return self.place - 1, yes_price, yes.get(yes_price, 0), no_price, no.get(no_price, 0), not self.in_gap

    def take(self, events: EventColumns) -> None:
        """Take the next events, for `until` to apply one after the other; raise CorruptHistory unless they go on from here."""
        version = self.version + 1 + np.arange(len(events.version))
        for wrong in np.flatnonzero(events.version != version)[:1].tolist():
            raise CorruptHistory(f"version {version[wrong]} is missing: {events.version[wrong]} follows {version[wrong] - 1}")
        if not self.version and events.kind[0] != SNAPSHOT:
            raise CorruptHistory("version 1: the market does not begin with a snapshot")
        after = events.checksum.view(np.uint64)
        before = np.concatenate((np.array([self.checksum], np.uint64), after[:-1]))
        differs = after - before != checksum_changes(events.side, events.price, events.delta)
        for wrong in np.flatnonzero(differs & (events.kind != SNAPSHOT))[:1].tolist():
            raise CorruptHistory(f"version {version[wrong]}: its checksum is not that of the book before it, changed by it")
        self._events, self._snapshots, self.place = events, iter(events.levels), 0
        self._checksums = after.tolist()
        self._code = np.where(events.kind == DELTA, events.side, NO + events.kind).tolist()
        self._price, self._delta = events.price.tolist(), events.delta.tolist()

    def until(self, end: int, tops: list[Top] | None = None) -> None:
        """Apply the events taken that lie before place `end`; add to `tops` what the best levels were after each that may have
        changed them. Raise CorruptHistory for one that cannot be true.
        """
        first, sides, best, known = self.place, self.sides, self._best, not self.in_gap
        steps = zip(range(first, end), self._code[first:end], self._price[first:end], self._delta[first:end], strict=True)
        for place, side, price, delta in steps:
            if side <= NO:
                ladder = sides[side]
                size = ladder.get(price, 0) + delta
                if 0 < size <= MAX_SIZE:
                    ladder[price] = size
                    if price < best[side]:
                        continue
                    best[side] = price
                elif size == 0:
                    ladder.pop(price, None)
                    if price != best[side]:
                        continue
                    best[side] = max(ladder, default=NONE)
                else:
                    raise CorruptHistory(f"version {self._events.version[place]}: level {side}, {price} would hold {size}")
            elif known := side == NO + SNAPSHOT:
                sides = self._replace(place)
            if tops is not None:
                yes, no = best
                tops.append((place, yes, sides[YES].get(yes, 0), no, sides[NO].get(no, 0), known))
        if end > first:
            self.place, self.in_gap = end, not known
            self.version, self.checksum = self.version + end - first, self._checksums[end - 1]

    def _replace(self, place: int) -> tuple[dict[int, int], dict[int, int]]:
        version, checksum = self._events.version[place], self._checksums[place]
        try:
            book = Book(*levels.unpack(next(self._snapshots)))
        except ValueError as error:  # CorruptBook is one
            raise CorruptHistory(f"the levels of version {version} cannot be read: {error}") from error
        if book.checksum != checksum:
            raise CorruptHistory(f"the snapshot of version {version} has checksum {book.checksum:016x}, not {checksum:016x}")
        self.sides = book.sides
        self._best[:] = [max(side, default=NONE) for side in self.sides]
        return self.sides
