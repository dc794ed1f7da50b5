"""Each change of a market's best bid and ask, with their sizes, by version. No I/O but the events' own iterator.

A gap that corrects what was led by a liar begins before its event: what was known from there on is known to be wrong, so it is
told from where it begins, under the first version in it. What was told in the very microsecond of its beginning was told before.
"""

import heapq
from collections.abc import AsyncIterator, Iterable
from itertools import accumulate
from operator import itemgetter
from typing import Any, Final, NamedTuple

import numpy as np

from kalshibook_core.kalshi.numbers import ONE_DOLLAR, format_price, format_size
from kalshibook_core.postgres.runs import EventColumns
from kalshibook_core.wire.columns import Longs
from services.gateway import instants
from services.gateway.history.views import mid, signed_price
from services.gateway.history.walk import NONE, Top, Walk

MAX_EVENTS: Final = 1_000_000
"""Events a page may walk over; past it the page ends."""

_NEVER: Final = 1 << 62
_UNKNOWN: Final[Top] = (-1, NONE, 0, NONE, 0, False)


class Change(NamedTuple):
    """What the best levels are from a version on."""

    version: int
    effective_us: int
    top: Top


class Gaps:
    """Gaps of a market, as (start, end, cause, version that opened it): in which of them lies what the book was."""

    def __init__(self, gaps: Iterable[tuple[int, int | None, str, int]]) -> None:
        """Take those that touch what is walked over, in any order."""
        known = sorted((version, start_us) for start_us, _, _, version in gaps)
        self._versions = np.array([version for version, _ in known], np.int64)
        starts = [start_us for _, start_us in known]
        self._starts = np.array([*accumulate(reversed(starts), min, initial=_NEVER)], np.int64)[::-1]  # the first from here on

    def starts(self, versions: Longs, before_us: Longs) -> Longs:
        """Return for each version where a gap begins, before an instant, that a later version opened; -1 if none does."""
        starts = self._starts[self._versions.searchsorted(versions)]
        found: Longs = np.where(starts < before_us, starts, -1)
        return found

    def told(self, change: Change, at_us: int) -> Change:
        """Return what stands at an instant, or the gap in which it does, from where that begins."""
        start_us = int(self.starts(np.array([change.version]), np.array([max(at_us + 1, change.effective_us)]))[0])
        if start_us < 0:
            return change if change.top[5] else change._replace(top=_UNKNOWN)
        return change._replace(effective_us=start_us, top=_UNKNOWN)


async def changes(
    walk: Walk, batches: AsyncIterator[EventColumns], after_version: int, limit: int, gaps: Gaps, begun: Change | None
) -> tuple[list[Change], tuple[int, int] | None]:
    """Return the changes after a version, `limit` at most, and where to go on: (effective_us, version), None if that is all.

    `begun` is what stands before the first event.
    """
    found: list[Change] = []
    first, last = walk.version, None if begun is None else begun.top[1:]
    async for events in batches:
        tops: list[Top] = []
        walk.take(events)
        walk.until(len(events.version), tops)
        starts = gaps.starts(events.version, events.effective_us)
        within = starts >= 0
        entered = np.flatnonzero(within & ~np.append(False, within[:-1])).tolist()
        for top in heapq.merge(tops, [(place, *_UNKNOWN[1:]) for place in entered], key=itemgetter(0)):
            place, start_us = top[0], int(starts[top[0]])
            now = top[1:] if top[5] and start_us < 0 else _UNKNOWN[1:]
            if now == last:
                continue
            last = now
            if (version := int(events.version[place])) > after_version:
                if len(found) == limit:
                    return found, (found[-1].effective_us, found[-1].version)
                found.append(Change(version, int(events.effective_us[place]) if start_us < 0 else start_us, (place, *now)))
        if walk.version - first > MAX_EVENTS:
            return found, (int(events.effective_us[-1]), walk.version)
    return found, None


def row(change: Change) -> dict[str, Any]:
    """Return a change as customers see it; in a gap nothing is known of the best levels."""
    version, effective_us, (_, yes, yes_size, no, no_size, known) = change
    bid, ask = (yes if known else NONE), (ONE_DOLLAR - no if known and no != NONE else NONE)
    both = NONE not in (bid, ask)
    return {
        "version": version, "effective_at": instants.text(effective_us), "state": "complete" if known else "gap",
        "bid": None if bid == NONE else [format_price(bid), format_size(yes_size)],
        "ask": None if ask == NONE else [format_price(ask), format_size(no_size)],
        "mid": mid(bid + ask) if both else None, "spread": signed_price(ask - bid) if both else None,
    }  # fmt: skip
