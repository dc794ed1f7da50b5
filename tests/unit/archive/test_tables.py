"""What is written is what is read, whatever it says; and what needs no bytes takes none."""

import dataclasses
import io

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kalshibook_core.archive import tables
from kalshibook_core.wire.events import (
    BOOK,
    TRADES,
    BookDelta,
    BookSnapshot,
    Checkpoint,
    Gap,
    Lifecycle,
    RawFrame,
    Ticker,
    Trade,
)
from tests.support import archive

LONG = st.integers(-(2**63), 2**63 - 1)
MAYBE = st.none() | LONG
TIME = st.integers(-(2**62) + 1, 2**62)
TEXT = st.text(max_size=8)
TICKER = st.sampled_from(["KXA-1", "KXA-2", "", "@g1", "KX/../x"])
LEVELS = st.lists(st.tuples(LONG, LONG), max_size=3)
NOWHERE = (st.just(""), st.just(0), st.just(0))
NONE = (st.just(-1), st.just(-1))

EVENTS = {
    tables.RAW: st.builds(
        RawFrame, TEXT, TEXT, LONG, LONG, TEXT, LONG, LONG, st.booleans(), TICKER, TIME, TIME, TEXT, st.binary(max_size=20)
    ),
    tables.BOOKS: st.one_of(
        st.builds(
            BookDelta, TICKER, st.integers(1, 5), LONG, LONG, LONG, st.integers(0, 1), st.integers(0, 10_000),
            st.integers(-(2**63) + 1, 2**63 - 1), st.sampled_from([0, 1, -1, 2**63 - 1]), *NOWHERE, *NONE, LONG,
        ),
        st.builds(BookSnapshot, TICKER, st.integers(1, 5), LONG, LONG, LEVELS, LEVELS, LONG, MAYBE, st.none() | TEXT, *NOWHERE,
                  *NONE, LONG),
        st.builds(Gap, TICKER, LONG, LONG, st.just(BOOK), LONG, MAYBE, TEXT, LONG, LONG, *NOWHERE, LONG),
    ),
    tables.TRADED: st.one_of(
        st.builds(Trade, TICKER, TEXT, LONG, LONG, LONG, LONG, LONG, LONG, st.none() | st.booleans(), *NOWHERE, *NONE, LONG),
        st.builds(Gap, TICKER, st.just(0), LONG, st.just(TRADES), LONG, MAYBE, TEXT, LONG, st.just(0), *NOWHERE, LONG),
    ),
    tables.TICKED: st.builds(Ticker, TICKER, LONG, LONG, *[MAYBE] * 10, LONG),
    tables.DEFINED: st.builds(Lifecycle, TICKER, TEXT, LONG, LONG, st.binary(max_size=9), LONG),
    tables.CHECKPOINTED: st.builds(
        Checkpoint, TICKER, LONG, LONG, LEVELS, LEVELS, LONG, MAYBE, st.none() | TEXT, *NOWHERE, LONG, LONG
    ),
}  # fmt: skip


@pytest.mark.parametrize("table", tables.FORMATS.values(), ids=lambda table: f"{table.name}-{table.format}")
def test_what_is_read_is_what_was_written(table: tables.Table) -> None:
    known = tables.BY_NAME[table.name]

    @settings(max_examples=20)
    @given(st.lists(EVENTS[known], min_size=1, max_size=12))
    def check(events: list) -> None:
        rows = [(getattr(event, "raw_offset", n), event) for n, event in enumerate(events)]
        assert list(known.read(table.write(rows))) == rows

    check()


def test_each_row_group_can_be_read_alone() -> None:
    events = [tables.bare(event) for event in archive.book(1, 1_000)]
    content = dataclasses.replace(tables.BOOKS, row_group=100).write([(event.raw_offset, event) for event in events])
    wanted = range(events[420].effective_us, events[430].effective_us)
    found = list(tables.BOOKS.read(content, lambda first, last: first < wanted.stop and last >= wanted.start))
    assert [event for _, event in found if event.effective_us in wanted] == [e for e in events if e.effective_us in wanted]
    assert 0 < len(found) < 1_000


def test_a_market_is_read_without_the_others() -> None:
    events = sorted(map(tables.bare, archive.book(1, 1_000)), key=lambda event: event.market_ticker)
    by_market = dataclasses.replace(tables.FORMATS["book", tables.REPACKED], row_group=50)
    content = by_market.write([(event.raw_offset, event) for event in events])
    for ticker in {event.market_ticker for event in events}:
        wanted = [event for event in events if event.market_ticker == ticker]
        assert [event for _, event in tables.BOOKS.read(content, ticker=ticker)] == wanted
    assert not list(tables.BOOKS.read(content, ticker="KXNONE"))


def test_what_the_row_before_tells_is_not_written_again() -> None:
    events = archive.book(2, 4_000)
    file = pq.ParquetFile(io.BytesIO(tables.BOOKS.write([(event.raw_offset, event) for event in events])))
    told = file.read(["kind", "version", "checksum"]).to_pylist()
    markets = len({event.market_ticker for event in events})
    assert sum(row["version"] is not None for row in told) == markets
    deltas = [row for row in told if row["kind"] == "delta"]
    assert len(deltas) > 1_000
    assert sum(row["checksum"] is not None for row in deltas) == 0  # each market begins with a snapshot


def test_what_is_no_parquet_file_is_a_value_error() -> None:
    content = tables.BOOKS.write([(event.raw_offset, event) for event in archive.book(3, 50)])
    for broken in (b"", content[:-1], content[5:], b"PAR1" + bytes(100) + b"PAR1"):
        with pytest.raises(ValueError, match="no book table"):
            list(tables.BOOKS.read(broken))
