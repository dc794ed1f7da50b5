"""Deltas decoded or encoded together are what each is alone, and nothing that is no delta is taken for one."""

from itertools import product

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kalshibook_core.wire import codec, columns
from kalshibook_core.wire.events import BookDelta, Gap

LONG = st.one_of(st.integers(-(2**63), 2**63 - 1), st.integers(-200, 200), st.integers(2**55 - 9, 2**57))
INT = st.integers(-(2**31), 2**31 - 1)
TEXT = st.text(max_size=90)
DELTAS = st.lists(
    st.builds(BookDelta, TEXT, LONG, LONG, LONG, LONG, INT, INT, LONG, LONG, TEXT, INT, LONG, INT, LONG, LONG), max_size=12
)


def told(read: columns.Deltas) -> list[tuple]:
    return [(read.tickers[row[0]], *row[1:]) for row in zip(*(column.tolist() for column in read[1:]), strict=True)]


@given(DELTAS)
def test_together_is_as_one_by_one(events):
    values = [codec.encode(event) for event in events]
    read = columns.deltas(values)
    assert told(read) == [tuple(codec.decode(value)[:9]) for value in values]
    assert len(set(read.tickers)) == len(read.tickers)


@given(DELTAS)
def test_together_they_are_encoded_as_one_by_one(events):
    assert columns.encoded(events) == [codec.encode(event) for event in events]


def test_they_are_encoded_as_avro_has_it_wherever_a_number_gets_another_length():
    now = 1_800_000_000_000_000
    usual = BookDelta("KXA-1", 7, now, now, now + 1, 1, 4800, -5400, 2**62 + 5, "g1", 3, now, 2, 500_000, 900_000)
    edges = [sign * 2 ** (7 * n - 1) + near for n in range(1, 10) for sign in (1, -1) for near in (-1, 0)]
    edges += [0, 2**63 - 1, -(2**63)]
    fields = [field for field in (*usual._fields[1:9], "seq", "raw_offset") if field not in ("side", "price")]
    events = [usual._replace(**{field: edge}) for field, edge in product(fields, edges)]
    events += [usual._replace(effective_us=a, exchange_us=b, checksum=a, raw_offset=b) for a, b in product(edges, edges)]
    assert columns.encoded(events) == [codec.encode(event) for event in events]
    assert columns.encoded(events[:1]) == [codec.encode(events[0])]


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1])
def test_a_number_that_does_not_fit_is_not_encoded(number):
    with pytest.raises(OverflowError):
        columns.encoded([A, A._replace(delta=number)])


A = BookDelta("KXA", 7, 10**15, 10**15, 10**15 + 9, 1, 4800, -5, 2**62, "g1", 0, 1, 2, 3, 4)
WHOLE = codec.encode(A)
OTHER = codec.encode(Gap("KXA", 3, 5, "orderbook_delta", 5, None, "disconnect", 9, 6, "g1", 0, 1, 2))


@given(st.integers(0, 200), st.integers(1, 255), st.integers(0, 2))
@example(4, 1, 1)  # the schema's number
def test_a_flipped_byte_is_read_as_codec_reads_it_or_refused(at, bits, which):
    values = [codec.encode(A._replace(version=n)) for n in range(3)]
    broken = bytearray(values[which])
    broken[at % len(broken)] ^= bits
    values[which] = bytes(broken)
    try:
        read = told(columns.deltas(values))
    except codec.Undecodable:
        return
    assert read == [tuple(codec.decode(value)[:9]) for value in values]


@pytest.mark.parametrize("gatherer", ["g\xff", "g" * 8 + "\xff"])
def test_a_gatherer_whose_name_is_no_text_is_refused(gatherer):
    value = codec.encode(A._replace(gatherer=gatherer)).replace("\xff".encode(), b"\xff\xff")
    for read in (codec.decode, lambda value: columns.deltas([WHOLE, value])):
        with pytest.raises(codec.Undecodable, match=r"(?i)utf-8"):
            read(value)


@given(st.one_of(st.integers(1, 80).map(lambda less: WHOLE[:-less]), st.binary(min_size=1, max_size=3).map(WHOLE.__add__)))
def test_a_value_too_short_or_too_long_is_refused(broken):
    for values in ([broken], [WHOLE, broken], [broken, WHOLE]):
        with pytest.raises(codec.Undecodable):
            columns.deltas(values)


@pytest.mark.parametrize("value", [b"", b"\0", OTHER, WHOLE[:5] + b"\x00" + b"\xff" * 10 + b"\x01" * 20])
def test_what_is_no_delta_is_refused(value):
    with pytest.raises(codec.Undecodable):
        columns.deltas([WHOLE, value])
