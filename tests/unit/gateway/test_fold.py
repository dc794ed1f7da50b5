"""Folding from any checkpoint gives the same book, and whatever contradicts itself is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kalshibook_core.orderbook import Book
from kalshibook_core.postgres import levels
from kalshibook_core.postgres.runs import DELTA, GAP, SNAPSHOT, Event
from kalshibook_core.wire.events import BookDelta, BookEvent, BookSnapshot, Checkpoint, Gap
from services.gateway.history.fold import CorruptHistory, State
from tests.support.canonical import Market

ROLLS = st.lists(st.integers(0, 199), min_size=1, max_size=60)


def row(event: BookEvent) -> Event:
    times = (event.version, event.effective_us, 0, event.recv_us)
    match event:
        case BookSnapshot():
            return Event(*times, SNAPSHOT, 0, 0, 0, event.checksum, levels.pack(event.yes, event.no))
        case BookDelta():
            return Event(*times, DELTA, event.side, event.price, event.delta, event.checksum, b"")
        case Gap():
            return Event(*times, GAP, 0, 0, 0, event.checksum, b"")


def told(rolls: list[int]) -> tuple[list[Event], list[Book], list[bool]]:
    """Return a market's rows, its book and whether it is in a gap after each."""
    market, rows, books, gaps = Market("KXA"), list[Event](), list[Book](), list[bool]()
    for roll in rolls:
        rows.append(row(market.event(roll, roll % 3)))
        books.append(market.book.copy())
        gaps.append(market.gap is not None)
    return rows, books, gaps


@given(ROLLS, st.data())
def test_any_checkpoint_and_any_cut_give_the_same_book(rolls: list[int], data: st.DataObject) -> None:
    rows, books, gaps = told(rolls)
    end = data.draw(st.integers(1, len(rows)))
    start, cut = sorted((data.draw(st.integers(0, end)), data.draw(st.integers(0, end))))
    state = State()
    if start:
        book, last = books[start - 1], rows[start - 1]
        packed = levels.pack(book.yes, book.no)
        gap = (1, "disconnect") if gaps[start - 1] else (None, None)
        state.restore(last.version, last.effective_us, last.checksum, packed, *gap)
    state.fold(rows[start:cut])
    state.fold(rows[cut:end])
    assert (state.book, state.version, state.in_gap, state.applied) == (books[end - 1], end, gaps[end - 1], end - start)
    assert (state.effective_us, state.start is not None) == (rows[end - 1].effective_us, True)


@given(ROLLS.filter(lambda rolls: len(rolls) > 1), st.data())
def test_a_missing_repeated_or_swapped_event_is_refused(rolls: list[int], data: st.DataObject) -> None:
    rows, _, _ = told(rolls)
    at = data.draw(st.integers(0, len(rows) - 2))
    for wrong in (
        rows[:at] + rows[at + 1 :],
        [*rows[: at + 1], *rows[at:]],
        [*rows[:at], rows[at + 1], rows[at], *rows[at + 2 :]],
    ):
        with pytest.raises(CorruptHistory):
            State().fold(wrong)


@given(ROLLS)
def test_a_wrong_checksum_size_or_level_is_refused(rolls: list[int]) -> None:
    rows, _, _ = told(rolls)
    last = rows[-1]
    for wrong in (
        last._replace(checksum=last.checksum ^ 1),
        last._replace(kind=DELTA, delta=last.delta + 1, price=99),
        last._replace(kind=DELTA, delta=-(10**12)),
        last._replace(kind=SNAPSHOT, levels=b"\x04"),
        last._replace(kind=SNAPSHOT, levels=levels.pack([(1, 10**9)], [])),
    ):
        with pytest.raises(CorruptHistory):
            State().fold([*rows[:-1], wrong])


def test_a_history_that_does_not_begin_with_a_snapshot_and_a_broken_live_book_are_refused() -> None:
    book = Book([(1, 1)], [])
    signed = book.checksum - (1 << 64) if book.checksum >> 63 else book.checksum
    with pytest.raises(CorruptHistory, match="does not begin"):
        State().fold([Event(1, 1, 1, 1, DELTA, 0, 1, 1, signed, b"")])
    live = Checkpoint("KXA", 5, 9, [(1, 1)], [], signed, None, None, "g1", 0, 1, 0, 0)
    state = State()
    state.restore_live(live)
    assert (state.version, state.book, state.in_gap) == (5, book, False)
    for wrong in (live._replace(checksum=signed + 1), live._replace(yes=[(1, -1)])):
        with pytest.raises(CorruptHistory):
            State().restore_live(wrong)
