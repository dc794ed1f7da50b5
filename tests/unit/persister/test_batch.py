"""A batch keeps every event once, in the table it belongs to, and passes over only what is no event."""

from types import SimpleNamespace

import pytest

from kalshibook_core.postgres import levels
from kalshibook_core.runtime.settings import ConfigurationError
from kalshibook_core.wire import codec
from kalshibook_core.wire.events import BOOK, TRADES, BookDelta, BookSnapshot, Gap
from services.persister import settings
from services.persister.batch import BOOK_COLUMNS, Batch, GapRow

AT = 1_786_000_000_000_000
SNAPSHOT = BookSnapshot("M", 1, AT, AT + 9, [(4800, 1200)], [], -5, None, None, "g1", 0, 1, 1, 1, 0)
DELTA = BookDelta("M", 2, AT + 2, AT + 1, AT + 9, 1, 5100, -7, 6, "g1", 0, 1, 1, 2, 1)
GAP = Gap("M", 3, AT + 5, BOOK, AT + 5, None, "disconnect", AT + 9, 6, "g1", 0, 1, 2)
CLOSING = SNAPSHOT._replace(version=4, effective_us=AT + 8, gap_start_us=AT + 5, gap_cause="disconnect")


def batch_of(*events, first: int = 0) -> Batch:
    batch = Batch()
    batch.add(("book", 0), [SimpleNamespace(offset=first + n, value=codec.encode(e)) for n, e in enumerate(events)])
    return batch


def test_book_rows_carry_each_event_as_it_was():
    batch = batch_of(SNAPSHOT, DELTA, GAP)
    rows = [dict(zip(BOOK_COLUMNS, row, strict=True)) for row in batch.book_rows({"M": 17})]
    same = {"market_id": 17, "recv_us": AT + 9, "exchange_us": 0, "delta": 0, "price": 0, "side": 0, "levels": b""}
    assert rows == [
        {**same, "effective_us": AT, "checksum": -5, "version": 1, "kind": 1, "levels": levels.pack([(4800, 1200)], [])},
        {**same, "effective_us": AT + 5, "checksum": 6, "version": 3, "kind": 3},
        {**same, "effective_us": AT + 2, "exchange_us": AT + 1, "checksum": 6, "delta": -7, "version": 2, "price": 5100,
         "side": 1, "kind": 2},
    ]  # fmt: skip
    assert (batch.rows, batch.next, batch.last_effective_us) == (3, {("book", 0): 3}, AT + 5)
    assert {p.name for p in batch.partitions_needed()} == {"book_events_20260806"}


def test_a_gap_closed_in_its_batch_is_one_row_and_one_closed_later_keeps_its_version():
    assert list(batch_of(GAP, CLOSING).gap_rows.values()) == [GapRow("M", BOOK, AT + 5, AT + 8, "disconnect", 3)]
    assert list(batch_of(CLOSING).gap_rows.values()) == [GapRow("M", BOOK, AT + 5, AT + 8, "disconnect", 0)]


def test_trade_gaps_are_gaps_but_no_book_events():
    gap = GAP._replace(version=0, channel=TRADES, end_us=AT + 6)
    batch = batch_of(gap)
    assert list(batch.book_rows({"M": 1})) == []
    assert list(batch.gap_rows.values()) == [GapRow("M", TRADES, AT + 5, AT + 6, "disconnect", 0)]
    assert batch.tickers_named() == {"M"}


def test_what_is_no_event_is_counted_and_its_offset_passed():
    batch = Batch()
    values = [b"", b"\x00\x00\x00\x00\x02", b"\x00" * 40, None, codec.encode(DELTA)]
    batch.add(("book", 0), [SimpleNamespace(offset=10 + 2 * n, value=value) for n, value in enumerate(values)])
    assert (batch.unreadable, batch.rows, batch.next) == (3, 1, {("book", 0): 19})
    assert batch.deltas == [DELTA]


def test_settings_name_what_is_wrong():
    env = {"KB_KAFKA_BROKERS": "127.0.0.1:9092", "KB_POSTGRES_DSN": "postgresql://u:secret@h/d"}
    assert settings.from_env(env).batch_rows == 20_000
    assert "secret" not in repr(settings.from_env(env))
    for name in env:
        with pytest.raises(ConfigurationError, match=name):
            settings.from_env({key: value for key, value in env.items() if key != name})
    with pytest.raises(ConfigurationError, match="KB_PERSISTER_BATCH_ROWS"):
        settings.from_env({**env, "KB_PERSISTER_BATCH_ROWS": "0"})
