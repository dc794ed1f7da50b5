"""Candles and top-of-book series against the slow and obvious way: every instant of every interval, every version."""

from collections.abc import AsyncIterator, Sequence
from fractions import Fraction

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from kalshibook_core.orderbook import Book
from kalshibook_core.postgres.runs import Event, EventColumns
from services.gateway.history import tops
from services.gateway.history.candles import Candles, Traded, flagged, gather, nearest
from services.gateway.history.fold import State
from services.gateway.history.walk import Walk
from tests.unit.gateway.test_fold import ROLLS
from tests.unit.gateway.test_walk import best, columns, wandering

NOTHING = [-1, -1, -1, -1]


def started(rows: list[Event]) -> State | None:
    state = State()
    state.fold(rows)
    return state if rows else None


def naive(values: Sequence[int | None]) -> list[int]:
    there = [value for value in values if value is not None]
    return [there[0], max(there), min(there), there[-1]] if there else NOTHING


def quotes(book: Book, gap: bool) -> tuple[int | None, int | None, int | None]:
    yes, _, no, _ = best(book)
    bid, ask = (None if gap or yes < 0 else yes), (None if gap or no < 0 else 10_000 - no)
    return bid, ask, None if bid is None or ask is None else bid + ask


async def batches(rows: list[Event], at_once: int) -> AsyncIterator[EventColumns]:
    for first in range(0, len(rows), at_once):
        yield columns(rows[first : first + at_once])


@given(ROLLS, st.integers(1, 9), st.integers(-12, 40), st.integers(1, 20), st.integers(1, 7))
async def test_candles_are_those_of_every_instant(rolls: list[int], step: int, after: int, number: int, at_once: int) -> None:
    rows, books, gaps = wandering(rolls)
    from_us = rows[0].effective_us + after
    edges = from_us + step * np.arange(number + 1)
    known = [row for row in rows if row.effective_us <= from_us]
    later = [row for row in rows if from_us < row.effective_us < edges[-1]]
    points, whole, last_us = await gather(started(known), batches(later, at_once), edges)
    assert (whole, last_us) == (number, max((row.effective_us for row in known + later), default=0))
    candles = Candles(edges, points)
    for n in range(number):
        seen, early, in_gap = list[tuple[int | None, ...]](), False, False
        for at_us in range(int(edges[n]), int(edges[n + 1])):
            version = sum(row.effective_us <= at_us for row in rows)
            early |= not version
            in_gap |= bool(version) and gaps[version - 1]
            seen.append(quotes(books[version - 1], gaps[version - 1]) if version else (None, None, None))
        assert [candles.bid[n], candles.ask[n], candles.mid[n]] == [naive(values) for values in zip(*seen, strict=True)]
        assert (candles.early[n], candles.in_gap[n]) == (early, in_gap)


@example([0, 2, 65], 0, 1, 1, 3).via("a version within a gap found out later, which changes nothing")
@example([0, 2, 65], 1, 1, 1, 3).via("a beginning within such a gap, before any version in it")
@given(ROLLS, st.integers(0, 30), st.integers(1, 5), st.integers(1, 9), st.integers(0, 12))
async def test_each_change_of_the_best_levels_is_told_once_whatever_the_pages(
    rolls: list[int], after: int, limit: int, at_once: int, early: int
) -> None:
    rows, books, gaps = wandering(rolls)
    from_us = rows[0].effective_us + after
    begun = [row for row in rows if row.effective_us <= from_us]
    # Each gap begins so much before its event, as one does that corrects what a liar said.
    spans = [(row.effective_us - early, None, "", row.version) for row, gap in zip(rows, gaps, strict=True) if gap]
    known_gaps = tops.Gaps(reversed(spans))

    def what(row: Event, book: Book, before_us: int) -> tuple[int, tuple[int, int, int, int, bool]]:
        starts = [start for start, _, _, opened in spans if row.version <= opened and start < before_us]
        known = not starts and not gaps[row.version - 1]
        return min(starts, default=row.effective_us), ((*best(book), True) if known else (-1, 0, -1, 0, False))

    first = what(begun[-1], books[len(begun) - 1], from_us + 1)
    wanted, last = [], first[1]
    for row, book in list(zip(rows, books, strict=True))[len(begun) :]:
        since_us, now = what(row, book, row.effective_us)
        if now != last:
            wanted.append((row.version, since_us, *now))
            last = now
    got, at_us, version = [], from_us, 0
    while True:
        known = [row for row in rows if row.effective_us <= at_us]
        later = [row for row in rows if row.effective_us > at_us]
        state = started(known)
        walk, stands = Walk(state), None
        if state is not None:
            stands = known_gaps.told(tops.Change(state.version, state.effective_us, walk.top()), 0 if version else at_us)
            assert version or (stands.effective_us, stands.top[1:]) == first
        found, following = await tops.changes(walk, batches(later, at_once), version, limit, known_gaps, stands)
        assert len(found) == limit or following is None
        got += [(each.version, each.effective_us, *each.top[1:]) for each in found]
        if following is None:
            break
        at_us, version = following[0] - 1, following[1]
    assert got == wanted


@given(st.lists(st.tuples(st.integers(1, 9_999), st.integers(1, 10**12), st.sampled_from([None, False, True])), max_size=9))
def test_traded_is_exact_and_block_trades_stand_apart(trades: list[tuple[int, int, bool | None]]) -> None:
    traded = Traded()
    for trade in trades:
        traded.add(*trade)
    row = traded.row()
    on_book = [(Fraction(price, 10_000), Fraction(size, 100)) for price, size, block in trades if not block]
    four = [row[name] and Fraction(row[name]) for name in ("open", "high", "low", "close")]
    prices = [price for price, _ in on_book]
    assert four == ([prices[0], max(prices), min(prices), prices[-1]] if prices else [None] * 4)
    notional, volume = sum(price * size for price, size in on_book), sum(size for _, size in on_book)
    assert (Fraction(row["notional"]), Fraction(row["volume"]), row["count"]) == (notional, volume, len(on_book))
    assert row["vwap"] is None if not volume else Fraction(row["vwap"]) == round(Fraction(notional, volume), 6)
    blocks = [Fraction(size, 100) for _, size, block in trades if block]
    assert (Fraction(row["block_volume"]), row["block_count"]) == (sum(blocks), len(blocks))


def test_intervals_that_a_gap_touches() -> None:
    edges = np.array([0, 10, 20, 30])
    for span, touched in (
        ((10, 20), [False, True, False]),
        ((9, 11), [True, True, False]),
        ((29, None), [False, False, True]),
        ((30, None), [False, False, False]),
        ((-5, 0), [False, False, False]),
        ((20, 20), [False, False, True]),
    ):
        assert flagged(edges, [(*span, "disconnect", 1)]).tolist() == touched
    assert [nearest(n, 2) for n in (1, 3, 5, 4)] == [0, 2, 2, 2]
