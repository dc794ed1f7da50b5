"""A batch keeps every event once, in the table it belongs to, and passes over only what is no event."""

from types import SimpleNamespace

import pytest

from kalshibook_core.postgres import levels, runs
from kalshibook_core.runtime.settings import ConfigurationError
from kalshibook_core.wire import codec
from kalshibook_core.wire.events import BOOK, TRADES, BookDelta, BookSnapshot, Gap, Lifecycle
from services.deduplicator.partition import Partition
from services.persister import settings
from services.persister.batch import Batch, GapRow
from tests.unit.deduplicator.source import T0, TICKER, Source

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
    rows = sorted(batch.book_rows({"M": 17}), key=lambda row: row.version)
    assert [row.market_id for row in rows] == [17] * 3
    assert [runs.Event._make(event) for row in rows for event in runs.unpack(*row)] == [
        (1, AT, 0, AT + 9, 1, 0, 0, 0, -5, levels.pack([(4800, 1200)], [])),
        (2, AT + 2, AT + 1, AT + 9, 2, 1, 5100, -7, 6, b""),
        (3, AT + 5, 0, AT + 9, 3, 0, 0, 0, 6, b""),
    ]
    assert (batch.rows, batch.next, batch.last_effective_us) == (3, {("book", 0): 3}, AT + 5)
    assert {p.name for p in batch.partitions_needed()} == {"book_events_20260806"}


def test_a_gap_is_known_by_the_version_that_opened_it_also_where_it_is_closed_later():
    for events in ((GAP, CLOSING), (CLOSING,)):
        assert list(batch_of(*events).gap_rows.values()) == [GapRow("M", BOOK, AT + 5, AT + 8, "disconnect", 3)]


def test_trade_gaps_are_gaps_but_no_book_events():
    gap = GAP._replace(version=0, channel=TRADES, end_us=AT + 6)
    batch = batch_of(gap)
    assert list(batch.book_rows({"M": 1})) == []
    assert list(batch.gap_rows.values()) == [GapRow("M", TRADES, AT + 5, AT + 6, "disconnect", 0)]
    assert batch.tickers_named() == {"M"}


def test_gaps_made_by_what_no_connection_sent_have_their_rows():
    """A gatherer's START opens them, a settlement by REST closes them: neither has a connection, and neither is REST's fill."""
    source, partition = Source(), Partition()
    frames = [
        source.resumed(0), source.snapshot(1, {4800: 1200}, {}), source.delta(5, "yes", 4800, 7), source.trade(6, "t1"),
        source.started(40_000_000), source.rest(50_000_000, status="settled", result="yes"),
    ]  # fmt: skip
    made = [event for offset, frame in enumerate(frames) for event in partition.receive(frame, offset)]
    batch = batch_of(*made)
    versions = [runs.Event._make(event).version for row in batch.book_rows({TICKER: 17}) for event in runs.unpack(*row)]
    assert sorted(versions) == [1, 2, 3]
    assert {(gap.channel, gap.cause) for gap in batch.gap_rows.values()} == {(BOOK, "disconnect"), (TRADES, "disconnect")}
    assert [gap.end_us for gap in batch.gap_rows.values() if gap.channel == TRADES] == [T0 + 50_000_000]
    assert not batch.filled


def test_a_market_ends_when_the_first_word_of_it_was_heard_in_whatever_order_they_come():
    def told(ticker: str, event_type: str, clock_us: int, body: bytes = b"{}") -> Lifecycle:
        return Lifecycle(ticker, event_type, AT, clock_us, body, 0)

    words = [
        told("M", "settled", AT + 9), told("M", "determined", AT + 5), told("M", "amended", AT + 7), told("M", "created", AT - 9),
        told("N", "market", AT + 3, b'{"status":"finalized"}'), told("N", "market", AT + 1, b'{"status":"closed"}'),
        told("O", "deactivated", AT), told("E", "event", AT, b'{"status":"settled"}'),
    ]  # fmt: skip
    assert batch_of(*words).ends == batch_of(*reversed(words)).ends == {"M": AT + 5, "N": AT + 3}


def test_what_is_no_event_is_counted_and_its_offset_passed():
    batch = Batch()
    whole = codec.encode(DELTA)
    values = [b"", b"\x00\x00\x00\x00\x02", b"\x00" * 40, None, whole, whole[:-1], whole + b"\x00", whole[:5]]
    batch.add(("book", 0), [SimpleNamespace(offset=10 + 2 * n, value=value) for n, value in enumerate(values)])
    [row] = batch.book_rows({"M": 1})
    assert runs.unpack(*row)[0][0] == DELTA.version
    assert (batch.unreadable, batch.rows, batch.next) == (6, 1, {("book", 0): 25})
    assert (batch.last_effective_us, batch.tickers_named()) == (DELTA.effective_us, {"M"})


def test_a_batch_without_deltas_has_none():
    batch = batch_of(SNAPSHOT)
    assert [row.kind for row in batch.book_rows({"M": 1})] == [runs.SNAPSHOT]
    assert (batch.tickers_named(), batch.last_effective_us) == ({"M"}, AT)


def test_the_latest_time_is_that_of_whichever_market_is_furthest():
    other = SNAPSHOT._replace(market_ticker="N", effective_us=AT - 99)  # of another partition, behind it in the batch
    assert batch_of(SNAPSHOT, GAP, other, GAP._replace(market_ticker="N", effective_us=AT - 98)).last_effective_us == AT + 5


def test_settings_name_what_is_wrong():
    env = {"KB_KAFKA_BROKERS": "127.0.0.1:9092", "KB_POSTGRES_DSN": "postgresql://u:secret@h/d"}
    assert settings.from_env(env).batch_rows == 20_000
    assert "secret" not in repr(settings.from_env(env))
    for name in env:
        with pytest.raises(ConfigurationError, match=name):
            settings.from_env({key: value for key, value in env.items() if key != name})
    with pytest.raises(ConfigurationError, match="KB_PERSISTER_BATCH_ROWS"):
        settings.from_env({**env, "KB_PERSISTER_BATCH_ROWS": "0"})
