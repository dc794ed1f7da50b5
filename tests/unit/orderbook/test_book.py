"""A book is what its deltas make of it, and its checksum says which book it is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kalshibook_core.orderbook import Book, CorruptBook, book_checksum, level_weight
from kalshibook_core.orderbook.checksum import to_hex, to_signed

LADDER = st.dictionaries(st.integers(0, 10_000), st.integers(1, 10**12), max_size=20)
CHANGES = st.lists(st.tuples(st.integers(0, 1), st.sampled_from([0, 1, 4800, 10_000]), st.integers(-500, 500)), max_size=60)


@given(LADDER, LADDER, CHANGES)
def test_any_deltas_leave_the_book_a_brute_force_fold_gives(yes, no, changes):
    book, sides = Book(yes.items(), no.items()), (dict(yes), dict(no))
    for side, price, delta in changes:
        size = sides[side].get(price, 0) + delta
        before = (book.yes, book.no, book.checksum)
        if size < 0:
            with pytest.raises(CorruptBook):
                book.apply(side, price, delta)
            assert (book.yes, book.no, book.checksum) == before
            continue
        book.apply(side, price, delta)
        sides[side][price] = size
        if not size:
            del sides[side][price]
        assert book.checksum == book_checksum(*sides)
    assert book.yes == tuple(sorted(sides[0].items())) and book.no == tuple(sorted(sides[1].items()))
    assert book == Book(book.yes, book.no) and book.checksum == Book(book.yes, book.no).checksum


@given(LADDER, LADDER)
def test_a_copy_goes_its_own_way(yes, no):
    book = Book(yes.items(), no.items())
    twin = book.copy()
    twin.apply(0, 5, 7)
    assert book == Book(yes.items(), no.items()) and twin != book


@given(LADDER, LADDER)
def test_the_sides_are_told_apart(yes, no):
    if yes != no:
        assert book_checksum(yes, no) != book_checksum(no, yes)


def test_the_checksum_is_the_documented_function():
    def weight(side: int, price: int) -> int:  # SplitMix64, written out once more
        z = (side * 65536 + price + 0x9E3779B97F4A7C15) % 2**64
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return (z ^ (z >> 31)) | 1

    assert level_weight(1, 4800) == weight(1, 4800)
    assert book_checksum({4800: 1200}, {5100: 7}) == (1200 * weight(0, 4800) + 7 * weight(1, 5100)) % 2**64
    assert book_checksum({}, {}) == 0


@given(st.integers(0, 2**64 - 1))
def test_the_signed_form_prints_as_the_unsigned_one(checksum):
    assert -(2**63) <= to_signed(checksum) < 2**63
    assert to_hex(to_signed(checksum)) == f"{checksum:016x}"


@pytest.mark.parametrize("levels", [[(10_001, 1)], [(-1, 1)], [(5, 0)], [(5, -1)], [(5, 1), (5, 2)]])
def test_levels_no_book_can_have_are_refused(levels):
    with pytest.raises(CorruptBook):
        Book(levels, [])


def test_a_delta_makes_no_level_outside_the_prices():
    book = Book()
    for price in (-1, 10_001):
        with pytest.raises(CorruptBook):
            book.apply(0, price, 5)
    assert book.empty and book.checksum == 0
