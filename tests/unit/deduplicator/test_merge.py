"""Several gatherers: hurt copies of one truth, also hurt at the same time, make the true stream; what nobody heard is a gap."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
from click.testing import CliRunner
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kalshibook_core.kalshi.session import Session
from kalshibook_core.orderbook import Book
from kalshibook_core.wire import codec
from kalshibook_core.wire.events import (
    LAG_US,
    TRADES,
    BookDelta,
    BookSnapshot,
    Event,
    Gap,
    Lifecycle,
    MarketMemory,
    RawFrame,
    Ticker,
    Trade,
)
from kalshibook_tools.cli.command import kb
from kalshibook_tools.verify import copies, merge, truth
from services.deduplicator.alignment import Lives
from services.deduplicator.market_log import LIMITS, Limits
from services.deduplicator.partition import REVIEW, Partition
from services.deduplicator.trade_log import TradeLog
from tests.unit.deduplicator.source import T0, TICKER, Source
from tests.unit.deduplicator.test_rules import brief, receive
from tests.unit.kalshi import frames

S = 1_000_000


@given(st.integers(0, 10**9), st.integers(1, 5), st.integers(1, 5))
@settings(max_examples=25, deadline=None)
def test_hurt_copies_make_the_true_stream(seed: int, gatherers: int, harm: int) -> None:
    hurts = copies.Hurts(300 * harm, 1000, 300 * harm, 150 * harm, 80 * harm, 80 * harm, 60 * harm, 60 * harm, 900, 300 * harm)
    happened = truth.generate(1500, seed)
    result = merge.compare(happened, copies.publish(happened, [f"g{n}" for n in range(gatherers)], seed, hurts), LIMITS)
    assert not result.differences, result.told


@given(st.integers(0, 10**9), st.integers(1, 3), st.data())
@settings(max_examples=6, deadline=None)
def test_what_is_taken_at_a_glance_is_what_is_read_in_full(seed: int, gatherers: int, data: st.DataObject) -> None:
    happened = truth.generate(600, seed, tickers=3)
    hurts = copies.Hurts(1000, 1000, 1000, 1000, 500, 500, 500, 500, 300, 1000)
    raws = [told.raw for told in copies.publish(happened, [f"g{n}" for n in range(gatherers)], seed, hurts)]
    limits = Limits(data.draw(st.sampled_from([100, 10_000])))
    glanced, full = Partition(limits=limits), Partition(limits=limits)
    assert list(merge.merged(raws, glanced)) == [(raw, list(full.receive(raw, offset))) for offset, raw in enumerate(raws)]
    assert list(glanced.memories(len(raws))) == list(full.memories(len(raws)))
    assert (glanced.tally, glanced.gatherers, glanced.waiting) == (full.tally, full.gatherers, full.waiting)
    for name, gatherer in full.lives.gatherers.items():
        other = glanced.lives.gatherers[name]
        assert (other.led, other.confirmed, other.behind) == (gatherer.led, gatherer.confirmed, gatherer.behind)


def test_whole_copies_make_the_true_stream_without_a_gap() -> None:
    happened = truth.generate(3000, 1)
    result = merge.compare(happened, copies.publish(happened, ["g1", "g2", "g3"], 1, copies.NO_HURTS), LIMITS)
    assert (result.differences, result.counts["gaps"], result.counts["trade_gaps"]) == (0, 0, 0)
    assert result.counts["followed"] > 2700


def test_who_is_further_behind_than_anybody_is_waited_for_leaves_a_gap_and_else_none() -> None:
    """In quiet markets a gatherer that lags by some hundred records lags by minutes."""
    happened = truth.generate(1200, 10292, pace=21)
    hurts = copies.Hurts(1500, 1000, 1500, 750, 400, 400, 300, 300, 1800, 1500)
    told = list(copies.publish(happened, ["g0", "g1", "g2"], 10292, hurts))
    patient = merge.compare(happened, told, Limits(patience_us=3600 * S))
    hasty = merge.compare(happened, told, LIMITS)
    assert (patient.differences, hasty.differences) == (0, 0), hasty.told
    assert patient.counts["gaps"] < hasty.counts["gaps"]


@example(872, 1, 100).via("the death of a gatherer whose last records came twice, and that never says that it starts")
@given(st.integers(0, 10**9), st.integers(1, 5), st.sampled_from([100, 200]))
@settings(max_examples=20, deadline=None)
def test_what_a_small_window_loses_is_a_gap(seed: int, gatherers: int, window: int) -> None:
    hurts = copies.Hurts(6000, 2000, 6000, 3000, 1600, 1600, 1200, 1200, 900, 4000)
    happened = truth.generate(1000, seed, tickers=2)
    result = merge.compare(happened, copies.publish(happened, [f"g{n}" for n in range(gatherers)], seed, hurts), Limits(window))
    assert not result.differences, result.told


@pytest.mark.parametrize("gatherers", [1, 3])
def test_planned_moves_make_no_gap(gatherers: int) -> None:
    happened = truth.generate(6000, gatherers)
    told = list(copies.publish(happened, [f"g{n}" for n in range(gatherers)], 7, replace(copies.NO_HURTS, move=5000, hasty=0)))
    result = merge.compare(happened, told, LIMITS)
    assert (result.differences, result.counts["gaps"], result.counts["trade_gaps"]) == (0, 0, 0), result.told
    assert sum(each.raw.detail == "moved" and each.raw.channel == "orderbook_delta" for each in told) > 3 * gatherers


@given(st.integers(0, 10**9), st.data())
@settings(max_examples=20, deadline=None)
def test_a_restart_leaves_no_trace_among_several(seed: int, data: st.DataObject) -> None:
    happened = truth.generate(400, seed, tickers=2)
    hurts = copies.Hurts(3000, 3000, 3000, 2000, 2000, 1000, 1000, 1000, 300, 5000)
    raws = [told.raw for told in copies.publish(happened, ["g1", "g2", "g3"], seed, hurts)]
    limits = Limits(data.draw(st.sampled_from([5, 60, 10_000])))
    undisturbed, partition = [], Partition(limits=limits)
    for offset, raw in enumerate(raws):
        undisturbed.append(list(partition.receive(raw, offset)))
    cut = data.draw(st.integers(0, len(raws)))
    savepoints = data.draw(st.lists(st.integers(0, cut), max_size=3))
    assert again(raws, cut, savepoints, limits) == undisturbed[cut:]


def again(raws: Sequence[RawFrame], cut: int, savepoints: Sequence[int], limits: Limits) -> list[list[Event]]:
    memories: dict[str, MarketMemory] = {}
    killed, trades = Partition(limits=limits), []
    for offset, raw in enumerate(raws[:cut]):
        trades += [event for event in killed.receive(raw, offset) if isinstance(event, Trade)]
        if offset + 1 in savepoints:
            memories |= {m.market_ticker: codec.decode(codec.encode(m)) for m in killed.memories(offset)}
    partition = Partition(limits=limits)
    since = partition.restore(memories.values(), trades)
    for offset in range(since, cut):
        partition.receive(raws[offset], offset)
    return [list(partition.receive(raw, offset)) for offset, raw in enumerate(raws[cut:], cut)]


def trio() -> list[Source]:
    return [Source(f"g{n}", generation=T0 + n) for n in (1, 2, 3)]


def begun(sources: Sequence[Source]) -> list[RawFrame]:
    """All have one book and two timestamps in common."""
    raws = [source.snapshot(10 * S, {4800: 1000}, {}) for source in sources]
    for at in (11 * S, 12 * S):
        raws += [source.delta(at, "yes", 4800, 100) for source in sources]
    return raws


def test_equal_deltas_of_one_microsecond_stay_as_many_as_they_are() -> None:
    sources = trio()
    raws = begun(sources)
    raws += [source.delta(13 * S, "yes", 4800, change) for source in sources for change in (100, -100, 100, 100, -100)]
    events = receive(*raws)
    assert [event.delta for event in events if isinstance(event, BookDelta)][2:] == [100, -100, 100, 100, -100]


def test_the_stream_goes_on_without_a_gap_when_its_leader_is_cut() -> None:
    a, b, _ = trio()
    raws = [*begun([a, b]), a.delta(13 * S, "yes", 4800, 100), a.broken(13 * S)]
    raws += [b.delta(13 * S, "yes", 4800, 100), b.delta(14 * S, "no", 1, 1)]
    assert [kind for kind, *_ in brief(receive(*raws))] == ["snapshot", "delta", "delta", "delta", "delta"]


def test_who_died_without_a_word_is_waited_for_as_long_as_told() -> None:
    a, b, _ = trio()
    partition = Partition(limits=Limits(patience_us=300 * S))
    raws = [*begun([a]), b.snapshot(100 * S, {4800: 9999}, {})]  # a is dead from 12 s on, and b has what came after
    raws += [b.delta(at * S, "yes", 4800, 1) for at in (101, 311, 312)]
    events = receive(*raws, partition=partition)
    assert [kind for kind, *_ in brief(events)] == ["snapshot", "delta", "delta"]  # as long as a may only be late
    events += partition.receive(b.delta(313 * S, "yes", 4800, 1), len(raws))
    assert brief(events)[3:5] == [("gap", 4, 12 * S, "disconnect"), ("snapshot", 5, 100 * S, (12 * S, "disconnect"))]
    assert [kind for kind, *_ in brief(events)[5:]] == ["delta"] * 4


def test_who_could_not_read_a_delta_had_not_all_of_its_microsecond() -> None:
    """Its next book, older than that by its time, may be one ahead of the log, though equal to the log's last."""
    a, b, _ = trio()
    raws = [*begun([a, b]), *(b.delta(43 * S, "yes", 4800, change) for change in (100, -100, 100))]
    raws[-2] = raws[-2]._replace(payload=raws[-2].payload.replace(b"price_", b"prize_"))
    raws += [b.snapshot(44 * S, {4800: 1300}, {}, True), b.delta(43 * S, "no", 1, 1)]
    raws += [a.delta(43 * S, "yes", 4800, change) for change in (100, -100, 100)] + [a.delta(43 * S, "no", 1, 1)]
    events = receive(*raws)
    assert [event.delta for event in events if isinstance(event, BookDelta)][2:] == [100, -100, 100, 1]


def test_who_lags_far_behind_is_not_ahead_of_a_log_that_began_anew_and_is_quiet() -> None:
    a, b, _ = trio()
    partition = Partition(limits=Limits(20))
    raws = [*begun([a]), a.broken(20 * S), a.snapshot(50 * S, {4800: 7}, {}), b.snapshot(13 * S, {4800: 1200}, {})]
    events = receive(*raws, *(b.delta(14 * S + n, "yes", 4800, 100) for n in range(30)), partition=partition)
    assert [kind for kind, *_ in brief(events)] == ["snapshot", "delta", "delta", "gap", "snapshot"]


def test_a_whole_book_does_not_hold_up_who_stands_within_a_quiet_log() -> None:
    """It has no time of its own, but came so late that it is younger than all that the log has."""
    a, b, _ = trio()
    raws = [*begun([a]), a.delta(28 * S, "yes", 4800, 100), b.snapshot(29 * S, {4800: 1300}, {})]
    raws += [a.broken(40 * S, cause="moved")]  # b may have more from before 30 s
    raws += [b.snapshot(60 * S, {4800: 7}, {}), b.delta(60 * S, "yes", 4800, 1)]
    for younger in (60, 39):
        raws[-2] = b.snapshot(younger * S, {4800: 7}, {})._replace(seq=raws[-2].seq)
        assert [kind for kind, *_ in brief(receive(*raws))] == ["snapshot", "delta", "delta", "delta", "snapshot", "delta"]
    raws[-2] = b.snapshot(38 * S, {4800: 7}, {})._replace(seq=raws[-2].seq)
    assert [kind for kind, *_ in brief(receive(*raws))][4:] == ["gap", "snapshot", "delta"]  # the log's last may be later


def test_a_whole_book_that_a_seeker_heard_is_not_taken_for_older_than_the_log() -> None:
    """It equals the log's last, and would be left out."""
    a, b, _ = trio()
    other = {"connection": a.connection, "generation": a.generation, "ticker": "KXOTHER"}
    theirs = [Source(each.gatherer, **{**other, "connection": each.connection}) for each in (a, b)]  # type: ignore[arg-type]
    partition = Partition()
    raws = [a.snapshot(50 * S, {4800: 7}, {}), b.snapshot(55 * S, {4800: 7}, {})]
    for each, at in zip(theirs, (80, 70), strict=True):
        raws += [each.snapshot(50 * S, {1: 1}, {}), each.delta(at * S, "yes", 1, 1)]
    raws += [b.snapshot(75 * S, {4800: 7}, {}), b.delta(77 * S, "yes", 4800, 1)]
    raws += [a.snapshot(75 * S, {4800: 7}, {}), a.delta(77 * S, "yes", 4800, 1)]
    events = [event for event in receive(*raws, partition=partition) if event.market_ticker == TICKER]
    assert [kind for kind, *_ in brief(events)] == ["snapshot", "snapshot", "delta"]
    assert not partition.tally["contradiction"]


def test_one_who_broke_before_it_came_to_the_logs_end_leaves_a_gap_there() -> None:
    a, b, _ = trio()
    raws = [*begun([a, b]), a.delta(33 * S, "yes", 4800, 100), a.broken(33 * S), b.broken(12 * S, cause="silent_socket")]
    assert brief(receive(*raws))[-1] == ("gap", 5, 33 * S, "silent_socket")


def test_an_altered_delta_is_found_and_its_source_excluded() -> None:
    a, b, c = trio()
    partition = Partition()
    raws = [*begun([a, b, c]), a.delta(13 * S, "yes", 4800, 100), b.delta(13 * S, "yes", 4800, 777)]
    raws += [c.delta(13 * S, "yes", 4800, 100), b.delta(14 * S, "yes", 4800, 1), a.delta(15 * S, "yes", 4800, 5)]
    events = receive(*raws, partition=partition)
    assert [event.delta for event in events if isinstance(event, BookDelta)] == [100, 100, 100, 5]
    assert partition.tally["contradiction"] == 1 and not partition.tally["corrections"]
    assert partition.excluded == {"g2": 1} and partition.lives.gatherers["g2"].contradictions == 1
    agrees = [b.snapshot(16 * S, {4800: 1305}, {})]
    for at in (17 * S, 40 * S):
        agrees += [each.delta(at, "yes", 4800, 1) for each in (a, b)]
    agrees += [a.broken(41 * S), c.broken(41 * S), b.delta(42 * S, "yes", 4800, 1)]
    for offset, raw in enumerate(agrees, len(raws)):
        events += partition.receive(raw, offset)
    assert not partition.excluded
    assert [event.delta for event in events if isinstance(event, BookDelta)][4:] == [1, 1, 1]
    assert not any(isinstance(event, Gap) for event in events)


def test_two_who_reorder_events_agree_again_after_them() -> None:
    a, b, _ = trio()
    partition = Partition()
    raws = [*begun([a, b]), a.delta(13 * S, "yes", 4800, 100), a.delta(14 * S, "no", 1, 1), a.delta(15 * S, "no", 2, 1)]
    raws += [b.delta(14 * S, "no", 1, 1), b.delta(13 * S, "yes", 4800, 100), b.delta(15 * S, "no", 2, 1), a.broken(16 * S)]
    raws.append(b.delta(16 * S, "no", 3, 1))
    assert brief(receive(*raws, partition=partition))[-1] == ("delta", 7, 16 * S, (1, 3, 1))
    assert partition.tally["contradiction"] == 1


def test_a_liar_who_led_is_corrected_by_the_majority() -> None:
    a, b, c = trio()
    partition = Partition()
    raws = [*begun([a, b, c]), a.delta(13 * S, "yes", 4800, 777), b.delta(13 * S, "yes", 4800, 100)]
    raws += [c.delta(13 * S, "yes", 4800, 100), b.delta(14 * S, "no", 1, 1), a.delta(15 * S, "no", 1, 1)]
    events = receive(*raws, partition=partition)
    gap, snapshot, *after = events[4:]
    assert isinstance(gap, Gap) and gap.start_us == T0 + 12 * S
    assert isinstance(snapshot, BookSnapshot) and Book(snapshot.yes, snapshot.no) == Book([(4800, 1200)])
    assert [event.delta for event in after if isinstance(event, BookDelta)] == [100, 1]
    assert (partition.tally["excluded"], partition.tally["corrections"]) == (1, 1)
    assert (snapshot.raw_offset, snapshot.sid, snapshot.gap_start_us) == (6, 1, T0 + 12 * S)  # the book after version 3
    assert partition.markets[TICKER].book.contradicting == {"g1"}
    assert (
        gap.effective_us > gap.start_us and snapshot.effective_us == gap.effective_us
    )  # what was told meanwhile lies in the gap


def test_a_quiet_markets_newcomer_is_placed_by_the_clock_of_its_connection() -> None:
    a, b, _ = trio()
    other = Source("g1", generation=T0 + 1, ticker="KXOTHER")
    partition = Partition()
    raws = [a.snapshot(10 * S, {1: 1}, {}), b.snapshot(11 * S, {1: 1}, {}), other.snapshot(10 * S, {}, {})]
    others = Source("g2", generation=T0 + 2, ticker="KXOTHER")
    raws += [others.snapshot(10 * S, {}, {}), others.delta(40 * S, "yes", 1, 1)]
    raws += [other.delta(40 * S, "yes", 1, 1), a.broken(40 * S), b.delta(41 * S, "yes", 1, 1)]
    mine = [event for event in receive(*raws, partition=partition) if event.market_ticker == TICKER]  # type: ignore[attr-defined]
    assert [kind for kind, *_ in brief(mine)] == ["snapshot", "delta"]


def test_a_market_that_is_quiet_since_its_first_book_outlives_its_leader() -> None:
    a, b, c = trio()
    whole = {4800: 1000}
    raws = [a.snapshot(10 * S, whole, {}), b.snapshot(11 * S, whole, {}), c.snapshot(9 * S, {4800: 900}, {})]
    quiet = [a.broken(25 * S), b.delta(30 * S, "no", 1, 1)]  # up to 15 s it had delivered everything
    assert brief(receive(*raws, *quiet))[1:] == [("delta", 2, 30 * S, (1, 1, 1))]
    older = [a.broken(25 * S), b.broken(26 * S), c.delta(9 * S, "yes", 4800, 100), c.delta(30 * S, "no", 1, 1)]
    assert brief(receive(*raws, *older))[1:] == [("delta", 2, 30 * S, (1, 1, 1))]  # what led to the first book is in it
    other = [a.broken(25 * S), b.broken(26 * S), c.delta(9 * S, "yes", 4800, 50), c.delta(30 * S, "no", 1, 1)]
    assert brief(receive(*raws, *other))[1] == ("gap", 2, 16 * S, "disconnect")
    young = [a.broken(20 * S), b.delta(30 * S, "no", 1, 1)]  # what a may have lost since 10 s may be in b's book of 11 s
    assert brief(receive(*raws, *young))[1][:3] == ("gap", 2, 10 * S)


def test_the_first_event_after_their_books_puts_two_in_one_place() -> None:
    a, b, _ = trio()
    raws = [a.snapshot(10 * S, {1: 1}, {}), b.snapshot(11 * S, {1: 1}, {})]
    raws += [each.delta(12 * S, "no", 1, 1) for each in (a, b)]
    assert [kind for kind, *_ in brief(receive(*raws, a.broken(13 * S), b.delta(14 * S, "no", 1, 1)))] == [
        "snapshot",
        "delta",
        "delta",
    ]
    late = [a.snapshot(10 * S, {1: 1}, {}), b.snapshot(13 * S, {1: 1}, {})]  # b's may be a book with the first of two alike
    late += [each.delta(12 * S, "no", 1, 1) for each in (a, b)]
    assert brief(receive(*late, a.broken(13 * S), b.delta(14 * S, "no", 1, 1)))[2][0] == "gap"


def test_trades_are_missing_only_if_nobody_vouched() -> None:
    a, b, _ = trio()
    raws = [a.resumed(S), b.resumed(2 * S), a.trade(30 * S, "t1"), a.broken(40 * S, "trade"), b.trade(41 * S, "t2")]
    assert brief(receive(*raws)) == [("trade", "t1"), ("trade", "t2")]
    raws += [b.broken(60 * S, "trade"), a.resumed(70 * S)]
    assert brief(receive(*raws))[2:] == [("trade gap", 50 * S, None, "disconnect"), ("trade gap", 50 * S, 70 * S, "disconnect")]
    late = [a.resumed(S), b.resumed(38 * S), a.broken(40 * S, "trade")]  # b came after what a may have lost
    assert brief(receive(*late)) == [("trade gap", 30 * S, None, "disconnect"), ("trade gap", 30 * S, 38 * S, "disconnect")]


def test_trades_that_rested_on_one_who_is_far_behind_are_missing_when_it_breaks() -> None:
    a, b, c = trio()
    raws = [a.resumed(S), b.resumed(2 * S), a.trade(30 * S, "t1"), a.broken(40 * S, "trade"), a.resumed(100 * S)]
    raws += [a.trade(115 * S, "t2"), a.broken(120 * S, "trade"), a.resumed(130 * S), a.trade(140 * S, "t3")]
    assert [kind for kind, *_ in brief(receive(*raws))] == ["trade"] * 3  # b may have all that a has not
    late = [b.trade(30 * S, "t1"), b.trade(45 * S, "t4"), b.broken(50 * S, "trade")]
    gaps = [("trade gap", start * S, end, "disconnect") for start, stop in ((45, 100), (115, 130)) for end in (None, stop * S)]
    assert brief(receive(*raws, *late))[3:] == [("trade", "t4"), *gaps]
    # Where a does not stand by then, a gap is open from where it began; where it ends, and what else there is, says who comes.
    raws.append(a.broken(150 * S, "trade"))
    found = brief(receive(*raws, *late, c.resumed(60 * S)))[4:]
    assert found == [("trade gap", 45 * S, None, "disconnect"), ("trade gap", 45 * S, 60 * S, "disconnect")]
    found = brief(receive(*raws, *late, c.resumed(125 * S)))[6:]
    assert found == [("trade gap", 115 * S, None, "disconnect"), ("trade gap", 115 * S, 125 * S, "disconnect")]


@given(st.integers(0, LAG_US // S))
@settings(max_examples=5, deadline=None)
def test_what_a_hole_hides_of_a_markets_trades_may_be_younger_than_the_frame_that_shows_it(lag: int) -> None:
    """The markets of a subscription are out of step; another gatherer, far behind, breaks before it comes there."""
    shows, lost = 41, 41 + lag
    session = Session(RawFrame, "g1", 0, T0, skew_us=0, counts=Counter())
    session.subscribe(dict.fromkeys(["KXOTHER", TICKER]), T0 + S)
    for frame in (
        frames.subscribed(1, TRADES, 2),
        frames.trade(TICKER, 2, 1, "t1", ts_ms=T0 // 1000 + 30_000),
        frames.trade("KXOTHER", 2, 3, "t3", ts_ms=T0 // 1000 + shows * 1000),
    ):
        session.receive_frame(frame, T0 + S)
    behind = Source("g2")
    raws = [*session.records_to_publish(), behind.resumed(S), behind.trade(30 * S, "t1"), behind.broken(40 * S, "trade")]
    gaps = [event for event in receive(*raws) if isinstance(event, Gap) and event.market_ticker == TICKER]
    assert gaps[-1].start_us <= T0 + lost * S <= (gaps[-1].end_us or 0)


def test_trades_go_on_from_what_the_release_before_had_written() -> None:
    a, b, _ = trio()
    broken, resumed = a.broken(60 * S, "trade"), b.resumed(70 * S)
    told, lives = [[*broken[1:4], broken.clock_us - 59 * S, True, -1]], Lives()
    for before, gaps in (
        ([broken.clock_us - 59 * S, 0, None, None, told, 0], [(50, None), (50, 70)]),
        ([broken.clock_us - 20 * S, 0, broken.clock_us - 30 * S, "x", [[*told[0][:4], False, -1]], 0], [(30, 70)]),
        ([0, 0, None, None, [], 0], []),
        (
            [[[broken.clock_us - 59 * S, 1 << 62]], None, None, [[*told[0], broken.clock_us - 3 * S]], 0, 0],
            [(57, None), (57, 70)],
        ),
    ):
        log = TradeLog(broken.market_ticker, Counter(), lives)
        log.restore(before, False)
        made = [*log.broken(broken, 1), *log.resumed(resumed, 2)]
        zero = broken.clock_us - 60 * S
        assert [((e.start_us - zero) // S, e.end_us and (e.end_us - zero) // S) for e in made] == gaps
    assert [life.traded_us for life in lives.restore([[], [["g1", 0, 1, 77]]])] == [77]


def test_definitions_of_several_gatherers_are_one_sequence() -> None:
    sources = trio()
    words = ["activated", "deactivated", "activated", "determined"]
    partition = Partition()
    raws = [source.lifecycle(n, event_type=word) for source in sources for n, word in enumerate(words)]
    raws += [source.rest(n, status=word) for source in sources for n, word in enumerate(["a", "b", "a"])]
    events = receive(*raws, partition=partition)
    assert [event.event_type for event in events if isinstance(event, Lifecycle)] == [*words, "market", "market", "market"]
    assert partition.tally["lifecycle_repeats"] == 14


def test_tickers_come_once_and_never_go_back() -> None:
    def ticker(source: Source, at: int, price: str) -> RawFrame:
        msg = {"market_ticker": TICKER, "price_dollars": price, "ts_ms": (T0 + at) // 1000}
        return source.frame("ticker", at, {"type": "ticker", "msg": msg})

    a, b, _ = trio()
    raws = [
        ticker(a, S, "0.1000"),
        ticker(a, S, "0.2000"),
        ticker(b, S, "0.1000"),
        ticker(b, S, "0.2000"),
        ticker(a, 2 * S, "0.3000"),
    ]
    raws += [ticker(b, S, "0.4000"), ticker(b, 2 * S, "0.3000")]
    assert [event.price for event in receive(*raws) if isinstance(event, Ticker)] == [1000, 2000, 3000]


@pytest.mark.parametrize("gatherers", [2, 5])
def test_a_log_remembers_no_more_than_it_is_told_to(gatherers: int) -> None:
    sources = [Source(f"g{n}", generation=T0 + n) for n in range(gatherers)]
    partition = Partition(limits=Limits(200))
    raws = begun(sources)
    raws += [sources[0].trade(12 * S, f"{n}") for n in range(REVIEW)]
    receive(*raws, partition=partition)
    assert partition.waiting == 0
    late = [sources[0].delta(13 * S + n, "yes", 1 + n % 9, 1) for n in range(1000)]  # the others lag by more than the window
    receive(*late, partition=partition)
    log = partition.markets[TICKER].book
    assert len(log.window.sums) <= 400
    assert partition.tally["fell_behind"] == gatherers - 1
    assert partition.waiting == (gatherers > 1)  # who fell behind is looked for from then on


def test_the_proof_sees_what_is_wrong() -> None:
    happened = truth.generate(600, 3, tickers=1)
    told = list(copies.publish(happened, ["g1"], 3, copies.NO_HURTS))
    deltas = [n for n, each in enumerate(told) if b'"orderbook_delta"' in each.raw.payload[:30] and each.number > 0]
    lost = [each for n, each in enumerate(told) if n != deltas[50]]
    told = [replace(each, raw=each.raw._replace(seq=-1)) for each in told]  # so that the repeat is not known for one
    again = [*told[: deltas[50] + 1], *told[deltas[50] :]]
    for changed, kind in ((lost, "lost"), (again, "extra")):
        assert merge.compare(happened, changed).counts[kind]


def test_the_command_tells_and_exits_by_what_it_found() -> None:
    run = CliRunner().invoke(kb, ["verify-merge", "--generated", "1500", "--seed", "5"])
    assert run.exit_code == 0 and "the true one" in run.output
    assert CliRunner().invoke(kb, ["verify-merge"]).exit_code == 2
