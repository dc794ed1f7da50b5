"""Levels come back from their bytes as they went in, and no other bytes are taken for levels."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kalshibook_core.postgres import levels

SIDE = st.dictionaries(st.integers(0, 10_000), st.integers(1, 2**63 - 1), max_size=30).map(lambda side: sorted(side.items()))


@given(SIDE, SIDE)
def test_unpack_inverts_pack(yes, no):
    assert levels.unpack(levels.pack(yes, no)) == (yes, no)


def test_the_form_is_the_documented_one():
    packed = levels.pack([(4800, 1200)], [(5100, 7), (5200, 2**32 - 1)])
    assert packed == struct.pack("<BHH3H3I", 4, 1, 2, 4800, 5100, 5200, 1200, 7, 2**32 - 1)
    assert levels.pack([(1, 2**32)], []) == struct.pack("<BHH1H1Q", 8, 1, 0, 1, 2**32)


@given(SIDE, SIDE, st.binary(max_size=3), st.integers(0, 40))
def test_other_bytes_are_refused(yes, no, more, less):
    packed = levels.pack(yes, no)
    for broken in (packed + more, packed[: len(packed) - less]):
        if broken != packed:
            with pytest.raises(ValueError, match="not packed levels"):
                levels.unpack(broken)


@pytest.mark.parametrize("level", [(65_536, 1), (-1, 1), (1, -1), (1, 2**64)])
def test_what_no_level_can_be_is_refused(level):
    with pytest.raises(struct.error):
        levels.pack([level], [])
