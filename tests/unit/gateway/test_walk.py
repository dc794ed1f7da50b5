"""Walking over columns of events gives what folding them one by one gives, and refuses what that refuses."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kalshibook_core.orderbook import Book
from kalshibook_core.orderbook.checksum import MASK, level_weight, to_signed
from kalshibook_core.postgres import levels
from kalshibook_core.postgres.runs import DELTA, GAP, SNAPSHOT, Event, EventColumns
from services.gateway.history.fold import CorruptHistory, State
from services.gateway.history.walk import NONE, Top, Walk
from tests.unit.gateway.test_fold import ROLLS


def columns(events: list[Event]) -> EventColumns:
    fields = ("version", "effective_us", "recv_us", "kind", "side", "price", "delta", "checksum")
    numbers = (np.array([getattr(event, field) for event in events], np.int64) for field in fields)
    return EventColumns(*numbers, [event.levels for event in events if event.kind == SNAPSHOT])


def best(book: Book) -> tuple[int, int, int, int]:
    yes, no = (max(side.items(), default=(NONE, 0)) for side in book.sides)
    return (*yes, *no)


def wandering(rolls: list[int]) -> tuple[list[Event], list[Book], list[bool]]:
    """Return a market's rows, its book and whether it is in a gap after each: levels come and go, the best ones too."""
    book, gap, at, rows, books, gaps = Book(), True, 1_000_000, list[Event](), list[Book](), list[bool]()
    for version, roll in enumerate(rolls, 1):
        at += roll % 3
        side, price, packed = roll % 2, 4_000 + 1_500 * (roll % 5), b""
        if gap or roll % 11 == 0:
            kind, gap, book = SNAPSHOT, False, Book([(price, 5)] if roll % 4 else [], [(2_000, 7)] if side else [])
            packed = levels.pack(book.yes, book.no)
        elif roll % 13 == 0:
            kind, gap = GAP, True
        else:
            kind, size = DELTA, book.sides[side].get(price, 0)
            delta = -size if roll % 7 < 3 else 1 + roll
            book.apply(side, price, delta)
        level = (side, price, delta) if kind == DELTA else (0, 0, 0)
        rows.append(Event(version, at, 0, at, kind, *level, to_signed(book.checksum), packed))
        books.append(book.copy())
        gaps.append(gap)
    return rows, books, gaps


@given(ROLLS, st.data())
def test_a_walk_is_the_fold_wherever_it_begins_and_however_it_is_cut(rolls: list[int], data: st.DataObject) -> None:
    rows, books, gaps = wandering(rolls)
    cuts = [*sorted(data.draw(st.lists(st.integers(0, len(rows)), min_size=1, max_size=6))), len(rows)]
    state = None
    if cuts[0]:
        state = State()
        state.fold(rows[: cuts[0]])
    walk = Walk(state)
    seen = walk.top()
    for first, end in pairwise(cuts):
        if first == end:
            continue
        walk.take(columns(rows[first:end]))
        middle = data.draw(st.integers(0, end - first))
        tops = list[Top]()
        for place in (middle, end - first):
            walk.until(place, tops)
            now = first + place - 1
            if now >= 0:
                assert (walk.version, walk.sides, walk.checksum) == (now + 1, books[now].sides, books[now].checksum)
                assert (walk.in_gap, walk.top()[1:]) == (gaps[now], (*best(books[now]), not gaps[now]))
        by_place = {top[0]: top for top in tops}
        for place in range(end - first):
            seen = by_place.get(place, seen)
            assert seen[1:] == (*best(books[first + place]), not gaps[first + place])


def beneath_zero(rows: list[Event], books: list[Book]) -> list[Event]:
    """Return a delta in place of the last event that its checksum fits and no level holds."""
    before = books[-2].copy()
    checksum = before.checksum - 9 * level_weight(0, 9_999)
    return [rows[-1]._replace(kind=DELTA, side=0, price=9_999, delta=-9, checksum=to_signed(checksum & MASK), levels=b"")]


@given(ROLLS.filter(lambda rolls: len(rolls) > 1), st.data())
def test_what_contradicts_itself_is_refused(rolls: list[int], data: st.DataObject) -> None:
    rows, books, _ = wandering(rolls)
    at = data.draw(st.integers(0, len(rows) - 2))
    middle, last = rows[at], rows[-1]
    wrongs = [
        rows[:at] + rows[at + 1 :],
        [*rows[: at + 1], *rows[at:]],
        [*rows[:at], rows[at + 1], middle, *rows[at + 2 :]],
        [*rows[:at], middle._replace(checksum=middle.checksum ^ 1), *rows[at + 1 :]],
        [*rows[:-1], last._replace(kind=DELTA, price=99, delta=last.delta + 1)],
        [*rows[:-1], *beneath_zero(rows, books)],
        [*rows[:-1], last._replace(kind=SNAPSHOT, levels=b"\x04")],
    ]
    for wrong in wrongs:
        walk = Walk(None)
        with pytest.raises(CorruptHistory):
            walk.take(columns(wrong))
            walk.until(len(wrong))
