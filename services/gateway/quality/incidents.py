"""Gaps of many markets at once, as one thing that happened. Pure."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from kalshibook_core.wire.quality import Span


class Incident(NamedTuple):
    """A span in all of which at least so many markets as were asked for were in a gap of one cause."""

    cause: str
    start_us: int
    end_us: int | None  # None: it lasts
    markets: int  # that were in such a gap at any instant of it
    at_once: int  # the most at any one instant


def incidents(gaps: Iterable[tuple[int, Span]], fewest: int) -> list[Incident]:
    """Return what happened to at least `fewest` markets at once, by start, given (market id, gap)."""
    by_cause: dict[str, list[tuple[int, Span]]] = defaultdict(list)
    for market_id, gap in gaps:
        by_cause[gap.cause].append((market_id, gap))
    found = [each for cause, told in by_cause.items() for each in _of_one(cause, told, fewest)]
    return sorted(found, key=lambda each: (each.start_us, each.cause))


def _of_one(cause: str, gaps: Iterable[tuple[int, Span]], fewest: int) -> Iterator[Incident]:
    # Starts stand before ends of the same instant only if they are later: [a, b) and [b, c) do not overlap.
    edges: list[tuple[int, int, int]] = []
    for market_id, gap in gaps:
        edges.append((gap.start_us, 1, market_id))
        if gap.end_us is not None:
            edges.append((max(gap.end_us, gap.start_us + 1), 0, market_id))
    edges.sort()
    active: dict[int, int] = defaultdict(int)
    start_us, markets, at_once = None, set[int](), 0
    for number, (us, opens, market_id) in enumerate(edges):
        active[market_id] += 1 if opens else -1
        if not active[market_id]:
            del active[market_id]
        if number + 1 < len(edges) and edges[number + 1][0] == us:
            continue  # what happens at one instant is seen together
        if len(active) >= fewest:
            if start_us is None:
                start_us, markets, at_once = us, set(), 0
            markets |= active.keys()
            at_once = max(at_once, len(active))
        elif start_us is not None:
            yield Incident(cause, start_us, us, len(markets), at_once)
            start_us = None
    if start_us is not None:
        yield Incident(cause, start_us, None, len(markets), at_once)
