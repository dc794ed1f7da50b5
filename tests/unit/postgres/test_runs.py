"""Events come out of their rows as they went in, whatever they say; and no row is believed of which a bit is other."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kalshibook_core.orderbook.checksum import MASK, level_weight, to_signed
from kalshibook_core.postgres import levels, partitions, runs
from kalshibook_core.wire import codec, columns
from kalshibook_core.wire.events import BOOK, BookDelta, BookSnapshot, Gap

DAY = partitions.DAY_US
AT = 20_671 * DAY - 40_000_000  # shortly before a UTC midnight
IDS = {"KXA": 7, "KXB": 2**31 - 1}

STEPS = st.tuples(
    st.sampled_from(sorted(IDS)),
    st.sampled_from([0, 0, 1, 90, 40_000, 10**6, 3 * 10**9, 2 * DAY, -5]),  # effective time on from the market's last
    st.sampled_from([0, 0, 0, 1, 250, -3, 10**10]),  # exchange_us behind it
    st.one_of(st.integers(-100, 70_000), st.just(2**40)),  # recv_us after it
    st.integers(0, 1),
    st.integers(0, 10_000),
    st.one_of(st.integers(-300, 300), st.integers(-(2**62), 2**62)),
    st.sampled_from([1, 1, 1, 1, 1, 1, 2]),  # version on
    st.sampled_from([0, 0, 0, 0, 0, 0, 1]),  # how wrong the checksum is
)


def deltas(steps) -> list[BookDelta]:
    """Return deltas that are mostly as they should be."""
    last = dict.fromkeys(IDS, (4, AT, 99))
    made = []
    for ticker, on, behind, after, side, price, delta, versions, wrong in steps:
        version, us, checksum = last[ticker]
        checksum = (checksum + delta * level_weight(side, price) + wrong) & MASK
        version, us = version + versions, us + on
        last[ticker] = (version, us, checksum)
        made.append(
            BookDelta(
                ticker, version, us, us - behind, us + after, side, price, delta, to_signed(checksum), "g1", 0, 1, 1, version, 0
            )
        )
    return made


def packed(events) -> list[runs.Row]:
    read = columns.deltas([codec.encode(event) for event in events])
    return list(runs.pack_deltas(np.array([IDS[ticker] for ticker in read.tickers], np.int64), read))


def told(event: BookDelta) -> tuple:
    _, version, effective_us, exchange_us, recv_us, side, price, delta, checksum, *_ = event
    return (version, effective_us, exchange_us, recv_us, runs.DELTA, side, price, delta, checksum, b"")


@given(st.lists(STEPS, max_size=200))
def test_what_goes_in_comes_out_whether_or_not_it_is_right(steps):
    events = deltas(steps)
    rows = packed(events)
    out = {market_id: [] for market_id in IDS.values()}
    for row in rows:
        found = runs.unpack(*row)
        assert len(found) == row.events <= runs.MOST
        assert found[0][:2] == (row.version, row.effective_us)
        assert [event[0] for event in found] == list(range(row.version, row.version + row.events))
        assert len({event[1] // DAY for event in found}) == 1
        out[row.market_id] += found
    assert out == {IDS[ticker]: [told(e) for e in events if e.market_ticker == ticker] for ticker in IDS}
    for market_id, found in out.items():
        of_it = [row for row in rows if row.market_id == market_id]
        if of_it:
            assert in_rows(runs.unpack_columns(of_it)) == [(*event[:2], 0, *event[3:]) for event in found]


def in_rows(columns: runs.EventColumns) -> list[tuple]:
    """Return columns as the values of `runs.Event`, but exchange_us, which they lack."""
    snapshots = iter(columns.levels)
    return [
        (version, us, 0, recv, kind, *rest, next(snapshots) if kind == runs.SNAPSHOT else b"")
        for version, us, recv, kind, *rest in zip(*(column.tolist() for column in columns[:-1]), strict=True)
    ]


def test_a_quiet_run_is_one_row_and_small():
    events = deltas([("KXA", 900, 0, 21_000, n % 2, 100 * n, 500, 1, 0) for n in range(64)])
    [row] = packed(events)
    assert len(row.packed) == 4 + 8 + 2 + 63 * 2 + 64 * (2 + 2 + 2)
    assert [r.events for r in packed(events + deltas([("KXB", 1, 0, 0, 0, 1, 1, 1, 0)]))] == [64, 1]


def test_the_form_is_the_documented_one():
    [row] = packed([BookDelta("KXA", 5, AT, AT - 1, AT + 300, 1, 4800, -70, -9, "g", 0, 1, 1, 1, 0)])
    assert row == (AT, 7, 5, 1, 2, row.packed)
    assert row.packed[4:].hex() == (-9).to_bytes(8, "big", signed=True).hex() + "0121" + "01" + "012c" + "92c0" + "ba"


SIDE = st.dictionaries(st.integers(0, 10_000), st.integers(1, 2**40), max_size=9).map(lambda side: sorted(side.items()))


@given(SIDE, SIDE, st.integers(-(2**63), 2**63 - 1))
def test_a_snapshot_and_a_gap_are_rows_of_their_own(yes, no, checksum):
    snapshot = BookSnapshot("KXA", 3, AT, AT + 5, yes, no, checksum, None, None, "g1", 0, 1, 1, 1, 0)
    body = levels.pack(yes, no)
    assert runs.unpack(*runs.pack_snapshot(7, snapshot)) == [(3, AT, 0, AT + 5, runs.SNAPSHOT, 0, 0, 0, checksum, body)]
    gap = Gap("KXA", 4, AT, BOOK, AT - 9, None, "disconnect", AT + 5, checksum, "g1", 0, 1, 0)
    assert runs.unpack(*runs.pack_gap(7, gap)) == [(4, AT, 0, AT + 5, runs.GAP, 0, 0, 0, checksum, b"")]
    other = runs.pack_snapshot(7, snapshot._replace(yes=no, no=[(1, 1)]))
    rows = [runs.pack_snapshot(7, snapshot), runs.pack_gap(7, gap), other]
    events = runs.unpack_columns(rows)
    assert in_rows(events) == [event for row in rows for event in runs.unpack(*row)]
    for first, end in ((0, 1), (1, 3), (2, 3), (3, 3)):
        assert in_rows(events.cut(first, end)) == in_rows(events)[first:end]


@given(st.lists(STEPS, min_size=1, max_size=20), st.data())
def test_a_flipped_bit_a_cut_and_another_key_are_told(steps, data):
    row = data.draw(st.sampled_from(packed(deltas(steps))))
    bit = data.draw(st.integers(0, 8 * len(row.packed) - 1))
    flipped = bytearray(row.packed)
    flipped[bit // 8] ^= 1 << bit % 8
    cut = data.draw(st.integers(0, len(row.packed) - 1))
    for wrong in (
        row._replace(packed=bytes(flipped)),
        row._replace(packed=row.packed[:cut]),
        row._replace(packed=row.packed + b"\0"),
        row._replace(market_id=row.market_id ^ 1),
        row._replace(version=row.version + 1),
        row._replace(effective_us=row.effective_us + 1),
        row._replace(events=row.events % 64 + 1) if row.events % 64 + 1 != row.events else row._replace(events=2),
        row._replace(kind=3),
        row._replace(events=0),
        row._replace(events=2**40),
    ):
        with pytest.raises(runs.DamagedRow, match=f"version {wrong.version}"):
            runs.unpack(*wrong)
        with pytest.raises(runs.DamagedRow):
            runs.unpack_columns([row, wrong])


@given(st.integers(-1, 70), st.integers(0, 4), st.binary(max_size=60))
@example(0, runs.DELTA, bytes(10))
@example(1, runs.DELTA, b"\xff" * 60)
def test_bytes_under_a_seal_that_fits_them_are_events_or_told(events, kind, body):
    row = runs._sealed(AT, 7, 1, events, kind, body)  # one in four milliards of damaged rows has such a seal
    try:
        found = runs.unpack(*row)
    except runs.DamagedRow:
        return
    assert all(len(event) == 10 for event in found)


def test_what_no_market_has_is_not_stored_as_something_else():
    for side, price in ((0, 40_000), (2, 5), (0, -1)):
        with pytest.raises(ValueError, match="cannot be stored"):
            packed([BookDelta("KXA", 5, AT, AT, AT, side, price, 5, 0, "g", 0, 1, 1, 1, 0)])
