"""One hand-made raw sequence per rule of the deduplicator, with the canonical events it must give."""

import orjson
import pytest

from kalshibook_core.orderbook import Book
from kalshibook_core.orderbook.checksum import to_signed
from kalshibook_core.wire.events import BookDelta, BookSnapshot, Gap, Lifecycle, RawFrame, Ticker, Trade
from services.deduplicator.partition import Partition
from tests.unit.deduplicator.source import T0, TICKER, Source, rfc3339

S = 1_000_000


def receive(*raws: RawFrame, partition: Partition | None = None) -> list[object]:
    partition = partition or Partition()
    return [event for offset, raw in enumerate(raws) for event in partition.receive(raw, offset)]


def brief(events: list[object]) -> list[tuple[object, ...]]:
    """Events as (kind, version, effective, …), times after T0."""
    said: list[tuple[object, ...]] = []
    for event in events:
        match event:
            case BookSnapshot():
                gap = None if event.gap_start_us is None else (event.gap_start_us - T0, event.gap_cause)
                said.append(("snapshot", event.version, event.effective_us - T0, gap))
            case BookDelta():
                said.append(("delta", event.version, event.effective_us - T0, (event.side, event.price, event.delta)))
            case Gap(version=0):
                end = None if event.end_us is None else event.end_us - T0
                said.append(("trade gap", event.start_us - T0, end, event.cause))
            case Gap():
                assert event.start_us == event.effective_us and event.end_us is None
                said.append(("gap", event.version, event.start_us - T0, event.cause))
            case Trade():
                said.append(("trade", event.trade_id))
            case Lifecycle():
                said.append(("lifecycle", event.event_type))
            case Ticker():
                said.append(("ticker",))
    return said


def known(source: Source, at: int = 10 * S) -> list[RawFrame]:
    return [source.snapshot(at, {4800: 1200, 4700: 100}, {5000: 300})]


def test_a_snapshot_begins_the_log_and_deltas_continue_it() -> None:
    g = Source()
    first, second, third = receive(*known(g), g.delta(11 * S, "yes", 4800, -1200), g.delta(12 * S + 7, "no", 5100, 5))
    assert isinstance(first, BookSnapshot) and isinstance(second, BookDelta) and isinstance(third, BookDelta)
    assert (first.yes, first.no) == ([(4700, 100), (4800, 1200)], [(5000, 300)])
    assert brief([first, second, third]) == [
        ("snapshot", 1, 10 * S, None),
        ("delta", 2, 11 * S, (0, 4800, -1200)),
        ("delta", 3, 12 * S + 7, (1, 5100, 5)),
    ]
    assert third.checksum == to_signed(Book([(4700, 100)], [(5000, 300), (5100, 5)]).checksum)
    assert second[9:] == ("g1", 0, T0, 1, 2, 1)  # provenance: gatherer, connection, generation, sid, seq, raw offset


def test_nothing_is_known_before_the_first_snapshot() -> None:
    g = Source()
    partition = Partition()
    raws = g.delta(S, "yes", 4800, 5), g.broken(2 * S), g.raw("FRAME", "orderbook_delta", 3 * S, b'{"type":"orderbook_delta"}')
    assert receive(*raws, partition=partition) == []
    assert partition.tally["refused"] == 1


def test_an_earlier_exchange_time_is_kept_beside_the_effective_one() -> None:
    g = Source()
    events = receive(*known(g, 10 * S), g.delta(9 * S, "yes", 100, 5))
    delta = events[-1]
    assert isinstance(delta, BookDelta)
    assert (delta.effective_us, delta.exchange_us) == (T0 + 10 * S, T0 + 9 * S)


def test_an_unsolicited_snapshot_is_an_event_even_if_nothing_changed() -> None:
    g = Source()
    assert brief(receive(*known(g), *known(g, 11 * S), g.snapshot(9 * S, {}, {})))[1:] == [
        ("snapshot", 2, 11 * S, None),
        ("snapshot", 3, 11 * S, None),
    ]


def test_a_solicited_snapshot_confirms_or_convicts() -> None:
    g = Source()
    same = g.snapshot(20 * S, {4800: 1200, 4700: 100}, {5000: 300}, solicited=True)
    assert len(receive(*known(g), same)) == 1
    events = receive(*known(g), g.delta(15 * S, "no", 1, 1), g.snapshot(20 * S, {1: 1}, {}, solicited=True))
    assert brief(events)[2:] == [
        ("gap", 3, 15 * S, "upstream_sequence_gap"),
        ("snapshot", 4, 20 * S, (15 * S, "upstream_sequence_gap")),
    ]


def test_a_break_opens_one_gap_and_a_snapshot_closes_it() -> None:
    g = Source()
    events = receive(
        *known(g),
        g.broken(13 * S, cause="upstream_sequence_gap"),
        g.delta(13 * S, "yes", 100, 5),  # of the broken sid: not applied
        g.broken(14 * S),
        g.snapshot(15 * S, {1: 1}, {}, solicited=True),
        g.delta(16 * S, "yes", 1, 1),
    )
    assert brief(events) == [
        ("snapshot", 1, 10 * S, None),
        ("gap", 2, 10 * S, "upstream_sequence_gap"),
        ("snapshot", 3, 15 * S, (10 * S, "upstream_sequence_gap")),
        ("delta", 4, 16 * S, (0, 1, 1)),
    ]


def test_a_gap_begins_where_the_sid_can_first_have_lost_something() -> None:
    g = Source()
    assert brief(receive(*known(g), g.broken(100 * S)))[-1] == ("gap", 2, 90 * S, "disconnect")
    g = Source()
    assert brief(receive(*known(g), g.broken(-T0)))[-1] == ("gap", 2, 10 * S, "disconnect")


def test_a_stale_frame_is_never_applied() -> None:
    g = Source()
    raws = [*known(g), g.delta(11 * S, "yes", 100, 5, kind="STALE"), g.snapshot(12 * S, {}, {}, kind="STALE")]
    assert len(receive(*raws)) == 1


def test_a_newer_generation_without_a_break_opens_the_gap_itself() -> None:
    old, new = Source(), Source(generation=T0 + 30 * S)
    events = receive(*known(old), new.snapshot(31 * S, {1: 1}, {}), old.delta(32 * S, "yes", 1, 1), *known(old, 33 * S))
    assert brief(events)[1:] == [("gap", 2, 10 * S, "disconnect"), ("snapshot", 3, 31 * S, (10 * S, "disconnect"))]


def test_an_older_generation_never_comes_back() -> None:
    old, new = Source(), Source(generation=T0 + 30 * S)
    raws = [*known(old), new.snapshot(31 * S, {1: 1}, {}), new.broken(32 * S), old.snapshot(50 * S, {2: 2}, {})]
    assert [kind for kind, *_ in brief(receive(*raws))] == ["snapshot", "gap", "snapshot", "gap"]


def test_any_book_frame_of_a_newer_generation_shows_that_the_older_has_ended() -> None:
    bad = Source(generation=T0 + 30 * S).raw("FRAME", "orderbook_delta", 31 * S, b'{"type":"orderbook_snapshot"}')
    bad = bad._replace(payload=b'{"type":"orderbook_snapshot","msg":{"market_ticker":"%s","yes":7}}' % TICKER.encode())
    new = Source(generation=T0 + 30 * S)
    for raw in (new.delta(31 * S, "yes", 1, 1), new.broken(31 * S), bad):
        assert brief(receive(*known(Source()), raw))[1:] == [("gap", 2, 10 * S, "disconnect")]


def test_a_market_moves_to_a_later_connection_of_its_gatherer() -> None:
    old, new = Source(), Source(connection=4, generation=T0 + 30 * S)
    for told in ([old.broken(12 * S)], []):
        events = receive(*known(old), *told, new.snapshot(31 * S, {1: 1}, {}), old.broken(32 * S))
        assert brief(events)[1:] == [("gap", 2, 10 * S, "disconnect"), ("snapshot", 3, 31 * S, (10 * S, "disconnect"))]


def handed_over(old: Source, new: Source, at: int) -> list[RawFrame]:
    """A quiet market goes from one connection to another of its gatherer."""
    raws = [old.started(1), old.resumed(2), *known(old), new.snapshot(31 * S, {4800: 1200, 4700: 100}, {5000: 300})]
    raws += [new.resumed(31 * S), old.broken(at, cause="moved"), old.broken(at, "trade", cause="moved")]
    return [*raws, new.delta(at + S, "yes", 4800, 1)]


def test_a_market_handed_over_to_another_connection_has_no_gap() -> None:
    old, new = Source(), Source(connection=4, generation=T0 + S)
    assert [kind for kind, *_ in brief(receive(*handed_over(old, new, 42 * S)))] == ["snapshot", "delta"]


def test_a_market_let_go_of_before_it_is_proved_to_be_elsewhere_has_a_gap() -> None:
    old, new = Source(), Source(connection=4, generation=T0 + S)
    assert brief(receive(*handed_over(old, new, 32 * S)))[1:] == [
        ("gap", 2, 22 * S, "moved"),
        ("trade gap", 22 * S, None, "moved"),
        ("trade gap", 22 * S, 31 * S, "moved"),
        ("snapshot", 3, 31 * S, (22 * S, "moved")),
        ("delta", 4, 33 * S, (0, 4800, 1)),
    ]


def test_a_market_let_go_of_before_another_connection_has_it_has_a_gap() -> None:
    old, new = Source(), Source(connection=4, generation=T0 + S)
    raws = [old.started(1), *known(old), old.broken(22 * S, cause="moved"), new.snapshot(23 * S, {1: 1}, {})]
    assert brief(receive(*raws))[1:] == [("gap", 2, 12 * S, "moved"), ("snapshot", 3, 23 * S, (12 * S, "moved"))]


def test_two_connections_of_a_gatherer_are_two_sources() -> None:
    old, new = Source(), Source(connection=4, generation=T0 + S)
    raws = [old.started(1), *known(old), new.snapshot(11 * S, {4800: 1200, 4700: 100}, {5000: 300})]
    for at in (12 * S, 13 * S):
        raws += [each.delta(at, "yes", 4800, 1) for each in (new, old)]
    raws += [new.broken(14 * S), old.delta(15 * S, "yes", 4800, 1)]
    assert [kind for kind, *_ in brief(receive(*raws))] == ["snapshot", "delta", "delta", "delta"]


def test_a_new_process_of_a_gatherer_ends_all_that_the_one_before_had() -> None:
    a, b = Source(), Source(connection=4, generation=T0 + S, ticker="KXOTHER")
    raws = [a.started(1), *known(a), a.resumed(11 * S), b.snapshot(12 * S, {1: 1}, {}), a.started(60 * S)]
    raws += [*raws[1:4], *known(Source(generation=T0 + 60 * S), 70 * S)]  # what comes again of the one before is over
    events = receive(*raws)
    assert brief(events)[2:] == [
        ("gap", 2, 12 * S, "disconnect"),
        ("gap", 2, 10 * S, "disconnect"),
        ("trade gap", 11 * S, None, "disconnect"),
        ("snapshot", 3, 70 * S, (10 * S, "disconnect")),
    ]


def test_what_comes_again_is_no_content() -> None:
    g = Source()
    raws = [*known(g), g.delta(11 * S, "yes", 4800, 1), g.delta(11 * S, "yes", 4800, 1), g.broken(12 * S)]
    raws += [g.snapshot(13 * S, {1: 1}, {}), g.delta(14 * S, "yes", 1, 1)]
    once = receive(*raws)
    for start in range(len(raws)):
        assert receive(*raws, *raws[start:]) == once


def test_another_gatherer_waits_while_the_leader_is_whole_and_ends_a_gap() -> None:
    a, b = Source(), Source(gatherer="g2", generation=T0 + 40 * S)
    events = receive(
        *known(a),
        b.snapshot(11 * S, {1: 1}, {}),  # not a's book: it must be ahead of a
        b.broken(12 * S),
        a.broken(20 * S),  # gap from 10 s
        b.snapshot(9 * S, {2: 2}, {}),  # older than the log
        b.snapshot(21 * S, {3: 3}, {}),
        a.snapshot(22 * S, {4: 4}, {}),
    )
    assert brief(events)[1:] == [("gap", 2, 10 * S, "disconnect"), ("snapshot", 3, 21 * S, (10 * S, "disconnect"))]


def test_a_negative_level_is_corruption_and_no_clamp() -> None:
    g = Source()
    partition = Partition()
    raws = [*known(g), g.delta(11 * S, "yes", 4800, -1300), g.delta(12 * S, "yes", 4800, 1), g.snapshot(13 * S, {4800: 7}, {})]
    assert brief(receive(*raws, partition=partition))[1:] == [
        ("gap", 2, 10 * S, "parse_failure"),
        ("snapshot", 3, 13 * S, (10 * S, "parse_failure")),
    ]
    assert partition.notices["corrupt_book"][0] == TICKER


@pytest.mark.parametrize(
    ("msg", "start"),
    [
        ({"price_dollars": "0.48001", "delta_fp": "1.00", "side": "yes", "ts": rfc3339(T0 + 15 * S + S // 2)}, 15 * S + S // 2),
        ({"price_dollars": "0.4800", "delta_fp": "1.001", "side": "yes"}, 10 * S),
        ({"price_dollars": "0.4800", "delta_fp": "1.00", "side": "maybe"}, 10 * S),
        ({"price_dollars": 0.48, "delta_fp": "1.00", "side": "yes"}, 10 * S),
        ({}, 10 * S),
    ],
)
def test_content_that_does_not_parse_is_a_gap_from_its_own_time(msg: dict[str, object], start: int) -> None:
    g = Source()
    before = known(g)
    bad = g.frame("orderbook_delta", 16 * S, {"type": "orderbook_delta", "msg": {"market_ticker": TICKER, **msg}})
    assert brief(receive(*before, bad))[1:] == [("gap", 2, start, "parse_failure")]


def test_a_price_off_the_grid_is_applied_and_told() -> None:
    g = Source()
    partition = Partition()
    cents = [{"start": "0.0000", "end": "1.0000", "step": "0.0100"}]
    raws = [g.rest(1, price_ranges=cents), *known(g), g.delta(11 * S, "no", 5000, 1), g.delta(12 * S, "no", 5050, 1)]
    assert brief(receive(*raws, partition=partition))[-1] == ("delta", 3, 12 * S, (1, 5050, 1))
    assert partition.tally["off_grid"] == 1


def test_no_prices_of_a_yes_price_subscription_are_turned_back() -> None:
    g = Source()
    raws = [g.snapshot(1, {}, {5200: 300})._replace(yes_price=True), g.delta(11 * S, "no", 5200, -100)._replace(yes_price=True)]
    snapshot, delta = receive(*raws)
    assert isinstance(snapshot, BookSnapshot) and snapshot.no == [(4800, 300)]
    assert isinstance(delta, BookDelta) and (delta.price, delta.delta) == (4800, -100)


def test_frames_that_are_no_messages_change_nothing_and_are_counted() -> None:
    g = Source()
    partition = Partition()
    raws = [g.raw("FRAME", "", 11 * S, payload) for payload in (b"", b"{", b"[]", b"\xff", b"x" * 1_000_000, b'{"type":1}')]
    raws += [g.frame("ticker", 12 * S, {"type": "something_new", "msg": {}}), g.raw("NEW", "", 1)]
    raws.append(g.snapshot(12 * S, {1: 1}, {})._replace(market_ticker="@g1"))  # a book frame that names no known market
    assert len(receive(*known(g), *raws, g.delta(13 * S, "yes", 100, 5), partition=partition)) == 2
    assert (partition.tally["malformed_frame"], partition.tally["unknown_types"], partition.tally["no_market"]) == (6, 1, 1)


def test_a_trade_is_an_event_once_whoever_brings_it() -> None:
    a, b = Source(), Source(gatherer="g2")
    raws = a.trade(S, "t1"), b.trade(S, "t1"), a.trade(S, "t1", kind="STALE"), a.trade(2 * S, "t2", kind="STALE")
    assert brief(receive(*raws)) == [("trade", "t1"), ("trade", "t2")]


def test_a_gap_in_trades_opens_with_a_break_and_closes_with_a_resume() -> None:
    g = Source()
    events = receive(
        g.broken(S, "trade"),  # nobody vouched yet
        g.resumed(2 * S),
        g.trade(15 * S, "t1"),
        g.broken(20 * S, "trade", "upstream_sequence_gap"),
        g.broken(21 * S, "trade"),
        g.resumed(22 * S),
        g.resumed(23 * S),
        g.broken(24 * S, "trade"),
        g.resumed(1 * S),
    )
    assert brief(events) == [
        ("trade", "t1"),
        ("trade gap", 15 * S, None, "upstream_sequence_gap"),
        ("trade gap", 15 * S, 22 * S, "upstream_sequence_gap"),
        ("trade gap", 22 * S, None, "disconnect"),
        ("trade gap", 22 * S, 22 * S, "disconnect"),
    ]


def test_a_killed_gatherers_trades_have_a_gap_although_no_break_came() -> None:
    old, new = Source(), Source(generation=T0 + 30 * S)
    events = receive(old.resumed(2 * S), old.trade(5 * S, "t1"), new.resumed(31 * S), old.broken(32 * S, "trade"))
    assert brief(events)[1:] == [("trade gap", 5 * S, None, "disconnect"), ("trade gap", 5 * S, 31 * S, "disconnect")]


def test_an_unreadable_trade_is_a_gap_of_its_microsecond() -> None:
    g = Source()
    bad = g.frame("trade", 16 * S, {"type": "trade", "msg": {"market_ticker": TICKER, "ts_ms": (T0 + 15 * S) // 1000}})
    assert brief(receive(g.resumed(S), bad)) == [
        ("trade gap", 15 * S, None, "parse_failure"),
        ("trade gap", 15 * S, 15 * S + 1, "parse_failure"),
    ]


def unreadable(source: Source, at: int) -> RawFrame:
    msg = {"market_ticker": source.ticker, "ts_ms": (T0 + at) // 1000}
    return source.frame("trade", at, {"type": "trade", "msg": msg})


def test_an_unreadable_trade_is_missing_unless_somebody_who_vouches_for_its_time_delivers_it() -> None:
    a, b, late = Source(), Source("g2"), Source("g3")
    raws = [a.resumed(S), unreadable(a, 15 * S), unreadable(a, 15 * S)]
    gap = [("trade gap", 15 * S, end, "parse_failure") for end in (None, 15 * S + 1)]
    assert brief(receive(*raws)) == gap
    assert brief(receive(late.resumed(20 * S), *raws)) == gap  # who came later had it not
    raws = [b.resumed(S), *raws]
    assert brief(receive(*raws)) == []  # b may have it yet
    assert brief(receive(*raws, unreadable(b, 15 * S))) == gap
    rest = [("trade gap", *when, "disconnect") for _, *when, _ in gap]
    assert brief(receive(*raws, b.broken(10 * S, "trade"))) == rest
    assert brief(receive(*raws, b.trade(16 * S, "t1"), b.broken(16 * S, "trade"))) == [("trade", "t1")]
    no_time = unreadable(a, -T0)._replace(clock_us=T0 + 20 * S)
    assert brief(receive(a.resumed(S), a.trade(15 * S, "t1"), no_time))[1:] == [
        ("trade gap", 15 * S, end, "parse_failure") for end in (None, 20 * S)
    ]


def test_nothing_is_lost_of_a_market_that_has_ended() -> None:
    g, later = Source(), Source(generation=T0 + 60 * S)
    for end in (g.lifecycle(20 * S, event_type="determined"), g.rest(20 * S, status="finalized")):
        raws = [*known(g), g.resumed(1), end, g.broken(30 * S), g.broken(30 * S, "trade")]
        raws += [later.snapshot(61 * S, {}, {}), later.resumed(62 * S)]
        events = [event for event in receive(*raws) if isinstance(event, Gap | BookSnapshot)]
        assert brief(list(events))[1:] == [("snapshot", 2, 61 * S, None)]
        raws[-2] = later.snapshot(61 * S, {1: 1}, {}, solicited=True)._replace(seq=99)  # unless it has another book afterwards
        events = [event for event in receive(*raws) if isinstance(event, Gap | BookSnapshot)]
        assert brief(list(events))[1:] == [("gap", 2, 20 * S, "disconnect"), ("snapshot", 3, 61 * S, (20 * S, "disconnect"))]


def test_what_the_last_who_had_its_book_may_have_lost_before_a_market_ended_is_told() -> None:
    """The end is in the log before the break. Whoever was whole up to ten seconds behind it has lost nothing."""
    g, other = Source(), Source("g2", connection=3)
    led = [*known(g), g.delta(11 * S, "yes", 4800, 5), g.rest(12 * S, status="finalized")]
    told = [("gap", 3, 11 * S, "disconnect")]
    assert brief(receive(*led, g.broken(13 * S)))[3:] == told
    assert brief(receive(*led, g.broken(22 * S)))[3:] == []
    for clock in (13, 42):  # where frames are played faster than they came the clock hardly moves meanwhile
        closed = [g.broken(clock * S, channel, cause="market_closed") for channel in ("orderbook_delta", "trade")]
        assert brief(receive(g.resumed(9 * S), *led, *closed, g.started(50 * S), g.broken(13 * S)))[3:] == []
    assert brief(receive(*led, g.started(50 * S)))[3:] == told  # killed: nothing came after
    elsewhere = Source(ticker="KXOTHER")
    lived = [elsewhere.snapshot(20 * S, {}, {}), elsewhere.delta(22 * S, "yes", 1, 1)]
    assert brief(receive(*led, *lived, g.started(50 * S)))[5:] == [("gap", 3, 22 * S, "disconnect")]  # the other market's
    joined = [*led[:2], *known(other), other.delta(11 * S, "yes", 4800, 5), led[2], g.broken(13 * S)]
    assert brief(receive(*joined))[3:] == []  # the other may have more yet
    assert brief(receive(*joined, other.broken(14 * S)))[3:] == told
    clock = [*led, g.snapshot(13 * S, {4800: 1}, {})]  # when it came, and no proof that it has all of the time before
    assert brief(receive(*clock, g.broken(12 * S)))[4:] == [("gap", 4, 13 * S, "disconnect")]
    assert brief(receive(led[2], *known(other, 30 * S), other.broken(0)))[2:] == []  # its book is one of after the end
    assert brief(receive(*led, g.snapshot(13 * S, {}, {}), g.broken(12 * S)))[4:] == []  # as markets close
    late = other.rest(60 * S, status="finalized")  # who tells the end first may have heard it last
    for ends in ([late, led[2]], [led[2], late]):
        assert brief(receive(*led[:2], *ends, g.broken(42 * S, cause="market_closed")))[3:] == []


@pytest.mark.parametrize("book", [({4800: 7}, {}), ({}, {}), ({4800: 1205, 4700: 100}, {5000: 300, 5100: 9})])
def test_what_was_lost_before_a_market_ended_is_told_though_its_end_is_known_already(
    book: tuple[dict[int, int], dict[int, int]],
) -> None:
    """The end comes by REST, and before what a gatherer that lags has still to deliver."""
    g, lags = Source(), Source("g2")
    again = Source("g2", generation=T0 + 60 * S)
    led = [*known(g), *known(lags), g.delta(11 * S, "yes", 4800, 5), lags.delta(11 * S, "yes", 4800, 5)]
    lost = [g.delta(12 * S, "no", 5100, 9), g.broken(12 * S), g.snapshot(14 * S, *book), g.delta(15 * S, "yes", 4800, 1)]
    told = brief(receive(*led, *lost, g.rest(20 * S, status="finalized"), again.snapshot(61 * S, {}, {})))
    assert [event for event in told if event[0] != "lifecycle"][3:6] == [
        ("gap", 4, 12 * S, "disconnect"),
        ("snapshot", 5, 14 * S, (12 * S, "disconnect")),
        ("delta", 6, 15 * S, (0, 4800, 1)),
    ]


def test_a_gap_in_trades_ends_with_the_market() -> None:
    g = Source()
    events = receive(g.resumed(S), g.broken(20 * S, "trade"), g.lifecycle(30 * S, event_type="determined"), g.resumed(40 * S))
    assert brief(events) == [
        ("trade gap", 10 * S, None, "disconnect"),
        ("lifecycle", "determined"),
        ("trade gap", 10 * S, 30 * S, "disconnect"),
    ]


def test_a_definition_is_told_when_it_changed_and_a_lifecycle_frame_each_time() -> None:
    g = Source()
    off = {"event_type": "deactivated", "is_deactivated": True}
    on = {"event_type": "activated", "is_deactivated": False}
    raws = [g.lifecycle(i, **body) for i, body in enumerate((off, on, off))]
    raws += [raws[1]]
    raws += [g.rest(9, status="active"), g.rest(10, status="active"), g.rest(11, status="inactive"), g.rest(12, status="active")]
    partition = Partition()
    events = receive(*raws, partition=partition)
    words = ["deactivated", "activated", "deactivated", "market", "market", "market"]
    assert [event.event_type for event in events if isinstance(event, Lifecycle)] == words
    assert partition.tally["lifecycle_repeats"] == 2
    body = next(event.body for event in events if isinstance(event, Lifecycle))
    assert orjson.loads(body) == {"market_ticker": TICKER, **off}


def test_what_belongs_to_an_event_passes_under_its_gatherers_key() -> None:
    message = {"type": "event_lifecycle", "msg": {"event_ticker": "KXTEST-26NOV21", "title": "x"}}
    raw = Source().frame("market_lifecycle_v2", 1, message)._replace(market_ticker="@g1")
    (event,) = receive(raw)
    assert isinstance(event, Lifecycle) and (event.market_ticker, event.event_type) == ("@g1", "event_lifecycle")


def test_tickers_pass() -> None:
    g = Source()
    msg = {"market_ticker": TICKER, "price_dollars": "0.4800", "volume_fp": "33896.00", "ts_ms": T0 // 1000}
    (event,) = receive(g.frame("ticker", 1, {"type": "ticker", "msg": msg}))
    assert isinstance(event, Ticker)
    assert (event.price, event.volume, event.yes_bid, event.exchange_us) == (4800, 3389600, None, T0)
