"""The session: whatever a connection does to the frames, each becomes one record, and no loss goes unsaid."""

from collections import Counter

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kalshibook_core.kalshi import session as sessions
from kalshibook_core.kalshi import subscriptions
from kalshibook_core.kalshi.channels import BOOK, COMBO_LIFECYCLE, LIFECYCLE, TICKERS, TRADES
from kalshibook_core.kalshi.session import Session
from kalshibook_core.kalshi.subscriptions import REPLY_US
from kalshibook_core.wire.events import Cause, RawFrame, RawKind
from tests.unit.kalshi import frames

A, B, C = "KXDOG-26AUG1-A", "KXDOG-26AUG1-B", "KXCAT-26AUG1-T0.5"
NOW = 1_785_901_540_000_000
LATER = NOW + REPLY_US


def open_session(*tickers: str, skew_us: int = 0) -> Session[RawFrame]:
    """Return a session whose subscriptions were acknowledged: book 1, trades 2, tickers 3."""
    session = Session(RawFrame, "g1", 4, 77, skew_us=skew_us, counts=Counter())
    session.subscribe(dict.fromkeys(tickers), NOW)
    (command,) = map(orjson.loads, session.commands_to_send())
    for sid, channel in enumerate(command["params"]["channels"], 1):
        session.receive_frame(frames.subscribed(command["id"], channel, sid), NOW)
    session.records_to_publish()
    return session


def feed(session: Session[RawFrame], *received: bytes, now_us: int = NOW) -> list[RawFrame]:
    for frame in received:
        session.receive_frame(frame, now_us)
    return session.records_to_publish()


def sent(session: Session[RawFrame]) -> list[tuple[str, list[int], list[str]]]:
    """Return (what is asked, sids, tickers) of the commands to send."""
    out = []
    for command in map(orjson.loads, session.commands_to_send()):
        params = command["params"]
        out.append((params.get("action", command["cmd"]), params.get("sids", []), params.get("market_tickers", [])))
    return out


def brief(records: list[RawFrame]) -> list[tuple[str, str, str]]:
    return [(r.kind, r.channel, r.market_ticker) for r in records]


def test_words_are_those_of_the_stream() -> None:
    """The session cannot import the stream's vocabulary (it stands below it), so it is held to it here."""
    assert {sessions.FRAME, sessions.STALE, subscriptions.BREAK, subscriptions.RESUME} == set(RawKind) - {
        RawKind.REST,
        RawKind.START,
    }
    assert (subscriptions.SEQUENCE_GAP, subscriptions.SUBSCRIPTION_ERROR) == (Cause.SEQUENCE_GAP, Cause.SUBSCRIPTION_ERROR)


# Properties.

LOSSES = st.sampled_from(["keep"] * 6 + ["drop", "twice", "swap"])


@given(st.lists(st.tuples(st.sampled_from([A, B, C]), st.integers(0, 9), LOSSES), max_size=60), st.integers(0, 5))
def test_no_loss_goes_unsaid(plan: list[tuple[str, int, str]], answer_after: int) -> None:
    """Whatever is dropped, doubled or swapped: each frame is one record, and what was lost lies behind a BREAK of its market.

    The exchange answers get_snapshot some frames later, in the same stream, which is harmed as well.
    """
    session = open_session(A, B, C)
    stream = [(A, frames.snapshot(A, 1, 1)), (B, frames.snapshot(B, 1, 2)), (C, frames.snapshot(C, 1, 3))]
    known = feed(session, *[frame for _, frame in stream])
    assert [r.payload for r in known] == [frame for _, frame in stream] and {r.kind for r in known} == {"FRAME"}

    seq, asked, received, records = 3, [], [], []
    lost: list[tuple[int, str]] = []  # (how many records there were when it went, its market)
    held: tuple[str, bytes] | None = None
    for planned, cents, fate in plan:
        seq += 1
        if asked and asked[0][1] <= 0:
            ticker, _ = asked.pop(0)
            frame = frames.snapshot(ticker, 1, seq, command_id=9)
        else:
            ticker = planned
            frame = frames.delta(ticker, 1, seq, f"0.{10 + cents}00", "1.00")
        asked = [(t, wait - 1) for t, wait in asked]
        if fate == "drop":
            lost.append((len(records), ticker))
            continue
        if fate == "swap" and held is None:
            lost.append((len(records), ticker))  # it will come too late to be in order
            held = (ticker, frame)
            continue
        arriving = [frame, frame] if fate == "twice" else [frame]
        if held is not None:
            arriving.append(held[1])
            held = None
        for each in arriving:
            received.append(each)
            records += feed(session, each)
        for action, _, tickers in sent(session):
            assert action == "get_snapshot"
            asked += [(t, answer_after) for t in tickers]
    assert [r.payload for r in records if r.kind != "BREAK"] == received
    assert all(r.detail == "upstream_sequence_gap" and r.payload == b"" for r in records if r.kind == "BREAK")
    if not lost:
        assert all(r.kind != "BREAK" for r in records)
    for before, ticker in lost:
        rest = [r for r in records[before:] if r.market_ticker == ticker and r.kind != "STALE"]
        # Nothing of the market may be believed after the loss until a BREAK has been said; a loss at the end is not seen yet.
        unbelieved = next((i for i, r in enumerate(rest) if r.kind == "BREAK"), len(rest))
        believed_after = rest[:unbelieved]
        assert not believed_after, (before, ticker, brief(records))


@given(st.binary(max_size=80))
def test_any_bytes_become_a_record(frame: bytes) -> None:
    session = open_session(A)
    (record,) = feed(session, frame)
    assert record.payload == frame


json = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5) | st.sampled_from([A, BOOK, 2**40]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["code", "market_ticker", "market_tickers", "channel", "sid", "msg"]), inner, max_size=4
        )
    ),
    max_leaves=6,
)
messages_of_any_kind = st.fixed_dictionaries(
    {
        "type": st.sampled_from(
            [
                "subscribed",
                "ok",
                "error",
                "unsubscribed",
                "orderbook_snapshot",
                "orderbook_delta",
                "trade",
                "market_lifecycle_v2",
                "event_lifecycle",
                "news",
            ]
        )
        | json
    },
    optional={"id": json, "sid": json, "seq": json, "msg": json},
)


@given(st.lists(messages_of_any_kind, max_size=12))
def test_any_message_is_survived(received: list[dict[str, object]]) -> None:
    session = open_session(A, B)
    session.subscribe({C: 5}, NOW)
    payloads = [orjson.dumps(each) for each in received]
    records = feed(session, *payloads)
    assert [r.payload for r in records if r.payload] == payloads
    for turn in range(5):
        session.due(LATER * (turn + 1))
    session.unsubscribe([A], LATER, Cause.MOVED)
    session.connection_lost("disconnect", LATER)


# Order and breaks.


def test_provenance_of_a_frame() -> None:
    session = open_session(A, skew_us=250)
    frame = frames.snapshot(A, 1, 1)
    assert feed(session, frame) == [RawFrame("FRAME", "g1", 4, 77, BOOK, 1, 1, False, A, NOW, NOW + 250, "", frame)]


def test_gap_breaks_every_market_of_its_sid_and_no_other() -> None:
    session = open_session(A, B)
    ts = "2026-08-05T03:45:40.000123Z"
    feed(session, frames.snapshot(A, 1, 1), frames.snapshot(B, 1, 2), frames.delta(A, 1, 3, ts=ts))
    records = feed(session, frames.delta(B, 1, 5, ts="2026-08-05T03:45:41Z"))
    assert brief(records) == [("BREAK", BOOK, A), ("BREAK", BOOK, B), ("FRAME", BOOK, B)]
    assert [(r.clock_us, r.detail) for r in records[:2]] == [(1_785_901_540_000_123, "upstream_sequence_gap")] * 2
    assert sent(session) == [("get_snapshot", [1], [A, B])]


def test_lost_reply_or_error_breaks_too() -> None:
    """`ok` and scoped errors consume a seq, so a hole may be one of those, or a market's: nobody can tell."""
    session = open_session(A)
    feed(session, frames.snapshot(A, 1, 1), frames.ok(50, 1, 2, []), frames.error(13, "Unsupported action", sid=1, seq=3))
    assert brief(feed(session, frames.delta(A, 1, 4))) == [("FRAME", BOOK, A)]
    assert brief(feed(session, frames.delta(A, 1, 6))) == [("BREAK", BOOK, A), ("FRAME", BOOK, A)]


def test_trade_gap_is_open_for_a_moment() -> None:
    session = open_session(A, B)
    feed(session, frames.trade(A, 2, 1, "t1", ts_ms=5_000))
    records = feed(session, frames.trade(A, 2, 3, "t3", ts_ms=9_000))
    assert brief(records) == [
        ("BREAK", TRADES, A),
        ("BREAK", TRADES, B),
        ("RESUME", TRADES, A),
        ("RESUME", TRADES, B),
        ("FRAME", TRADES, A),
    ]
    assert [r.clock_us for r in records[:4]] == [5_000_000, 5_000_000, 19_000_000, 19_000_000]
    assert sent(session) == []


def test_trades_are_vouched_for_from_the_ack_on() -> None:
    session = Session(RawFrame, "g1", 0, 1, skew_us=7, counts=Counter())
    session.subscribe({A: None, B: None}, NOW)
    records = feed(session, frames.subscribed(1, BOOK, 1), frames.subscribed(1, TRADES, 2), frames.subscribed(1, TICKERS, 3))
    assert brief(records)[1:3] == [("RESUME", TRADES, A), ("RESUME", TRADES, B)] or ("RESUME", TRADES, A) in brief(records)
    assert [r.clock_us for r in records if r.kind == "RESUME"] == [NOW + 7] * 2
    session.subscribe({C: None}, NOW)
    add_trades = next(c for c in map(orjson.loads, session.commands_to_send()[1:]) if c["params"]["sids"] == [2])
    assert ("RESUME", TRADES, C) in brief(feed(session, frames.ok(add_trades["id"], 2, 1, [])))


def test_ticker_channel_has_no_order() -> None:
    session = open_session(A)
    assert brief(feed(session, frames.ticker(A, 3), frames.ticker(A, 3))) == [("FRAME", TICKERS, A)] * 2


def test_passed_frames_are_kept_and_not_believed() -> None:
    session = open_session(A)
    records = feed(session, frames.snapshot(A, 1, 1), frames.delta(A, 1, 2), frames.delta(A, 1, 2), frames.snapshot(A, 1, 1))
    assert [r.kind for r in records] == ["FRAME", "FRAME", "STALE", "STALE"]


def test_without_a_seq_no_book_and_no_trade_is_believed() -> None:
    session = open_session(A)
    feed(session, frames.snapshot(A, 1, 1))
    records = feed(session, frames.snapshot(A, 1, -1), frames.delta(A, 1, -1), frames.trade(A, 2, -1, "t"), frames.ticker(A, 3))
    assert [r.kind for r in records] == ["STALE", "STALE", "STALE", "FRAME"]


def test_a_seq_set_back_for_good_is_given_up() -> None:
    session = open_session(A)
    feed(session, frames.snapshot(A, 1, 1), frames.delta(A, 1, 2**62))
    for seq in range(2, 2 + sessions.STALE_RUN):
        assert session.failed is None
        feed(session, frames.delta(A, 1, seq))
    assert session.failed == Cause.SEQUENCE_GAP


def test_frames_of_an_unannounced_sid_are_not_believed() -> None:
    session = open_session(A)
    records = feed(session, frames.delta(A, 9, 4), frames.trade(A, 9, 4, "t"), frames.ticker(A, 9))
    assert brief(records) == [("STALE", BOOK, A), ("STALE", TRADES, A), ("FRAME", TICKERS, A)]


def test_a_lost_ack_costs_nothing() -> None:
    session = Session(RawFrame, "g1", 0, 1, skew_us=0, counts=Counter())
    session.subscribe({A: None}, NOW)
    assert brief(feed(session, frames.snapshot(A, 1, 1), frames.delta(A, 1, 2))) == [("FRAME", BOOK, A)] * 2
    assert brief(feed(session, frames.delta(A, 1, 4)))[0] == ("BREAK", BOOK, A)


def test_connection_lost_breaks_books_and_trades() -> None:
    session = open_session(A, B)
    feed(session, frames.snapshot(A, 1, 1))
    session.connection_lost(Cause.SILENT_SOCKET, NOW)
    records = session.records_to_publish()
    assert sorted(brief(records)) == sorted([("BREAK", c, t) for c in (BOOK, TRADES) for t in (A, B)])
    assert {r.detail for r in records} == {"silent_socket"}


def test_one_sid_for_two_channels_is_given_up_and_both_are_broken() -> None:
    """Else the first one's markets would be followed by nobody, and no loss of theirs be told."""
    session = Session(RawFrame, "g1", 4, 77, skew_us=0, counts=Counter())
    session.subscribe({A: None}, NOW)
    feed(session, frames.subscribed(1, BOOK, 1), frames.snapshot(A, 1, 1), frames.subscribed(1, TRADES, 2))
    feed(session, frames.subscribed(1, TICKERS, 1))
    assert session.failed == Cause.SUBSCRIPTION_ERROR
    session.connection_lost(session.failed, NOW)
    assert set(brief(session.records_to_publish())) == {("BREAK", BOOK, A), ("BREAK", TRADES, A)}


def test_unparsable_and_negative_book_frames_ask_for_that_market() -> None:
    session = open_session(A, B)
    feed(session, frames.snapshot(A, 1, 1, yes=[["0.4800", "3.00"]]), frames.snapshot(B, 1, 2))
    assert [r.kind for r in feed(session, frames.delta(A, 1, 3, price="many"))] == ["FRAME"]
    assert sent(session) == [("get_snapshot", [1], [A])]
    feed(session, frames.snapshot(A, 1, 4, yes=[["0.4800", "3.00"]], command_id=3), frames.delta(A, 1, 5, delta="-3.00"))
    assert sent(session) == []
    assert [r.kind for r in feed(session, frames.delta(A, 1, 6, delta="-0.01"))] == ["FRAME"]
    assert sent(session) == [("get_snapshot", [1], [A])]
    assert [kind for kind, _ in session.troubles_seen()] == ["unparsable", "negative_level"]


def test_sides_of_a_book_are_told_apart() -> None:
    session = open_session(A)
    feed(session, frames.snapshot(A, 1, 1, yes=[["0.4800", "3.00"]], no=[["0.4800", "1.00"]]))
    feed(session, frames.delta(A, 1, 2, delta="-3.00", side="yes"), frames.delta(A, 1, 3, delta="-1.00", side="no"))
    assert session.troubles_seen() == []


# Healing.


def ask_times(session: Session[RawFrame], seconds: int) -> list[tuple[int, str]]:
    out = []
    for second in range(1, seconds + 1):
        session.due(NOW + second * 1_000_000)
        out += [(second, action) for action, _, _ in sent(session)]
        if session.failed:
            out.append((second, session.failed))
            break
    return out


def test_a_snapshot_that_never_comes_is_asked_for_harder_each_time() -> None:
    session = open_session(A)
    feed(session, frames.snapshot(A, 1, 1), frames.delta(A, 1, 3))
    assert sent(session) == [("get_snapshot", [1], [A])]
    assert ask_times(session, 120) == [
        (5, "get_snapshot"),
        (20, "delete_markets"),
        (20, "add_markets"),
        (35, "delete_markets"),
        (35, "add_markets"),
        (35, "upstream_sequence_gap"),
    ]


def test_a_market_that_never_was_disturbs_nobody() -> None:
    session = open_session(A, B)
    feed(session, frames.snapshot(A, 1, 1))
    for second in range(1, 400):
        session.due(NOW + second * 1_000_000)
        for command in map(orjson.loads, session.commands_to_send()):
            if command["params"]["action"] != "get_snapshot":
                feed(session, frames.ok(command["id"], 1, -1, []))
    assert session.failed is None


def test_a_snapshot_heals() -> None:
    session = open_session(A)
    feed(session, frames.snapshot(A, 1, 1), frames.delta(A, 1, 3), frames.snapshot(A, 1, 4, command_id=2))
    sent(session)
    assert ask_times(session, 120) == []


def test_terminal_error_of_a_sid_renews_that_subscription() -> None:
    session = open_session(A, B)
    feed(session, frames.snapshot(A, 1, 1), frames.snapshot(B, 1, 2))
    records = feed(session, frames.error(25, "Subscription buffer overflow", sid=1, seq=3))
    assert brief(records) == [("FRAME", BOOK, "@g1"), ("BREAK", BOOK, A), ("BREAK", BOOK, B)]
    assert {r.detail for r in records[1:]} == {"terminal_subscription_error"}
    (command,) = map(orjson.loads, session.commands_to_send())
    assert (
        command["cmd"] == "subscribe"
        and command["params"]["channels"] == [BOOK]
        and command["params"]["market_tickers"] == [A, B]
    )
    assert [r.kind for r in feed(session, frames.subscribed(command["id"], BOOK, 4), frames.snapshot(A, 4, 1))] == [
        "FRAME",
        "FRAME",
    ]
    assert session.failed is None


@pytest.mark.parametrize("code", [10, 17, 25])
def test_terminal_error_of_no_sid_ends_the_connection(code: int) -> None:
    session = open_session(A)
    feed(session, frames.error(code, "dead"))
    assert session.failed == Cause.SUBSCRIPTION_ERROR


def test_unanswered_subscribe_ends_the_connection() -> None:
    session = Session(RawFrame, "g1", 0, 1, skew_us=0, counts=Counter())
    session.subscribe_lifecycle(NOW)
    assert not session.settled
    session.due(LATER)
    assert session.failed == Cause.SUBSCRIPTION_ERROR


def test_unanswered_add_is_tried_again_then_ends_the_connection() -> None:
    session = open_session(A)
    session.subscribe({B: None}, NOW)
    assert [c[0] for c in sent(session)] == ["add_markets"] * 3
    session.due(LATER)
    assert [c[0] for c in sent(session) if c[0] == "add_markets"] == ["add_markets"] * 3 and session.failed is None
    session.due(LATER + REPLY_US)
    assert session.failed == Cause.SUBSCRIPTION_ERROR


def test_a_refused_market_does_not_keep_the_others_out() -> None:
    session = Session(RawFrame, "g1", 0, 1, skew_us=0, counts=Counter())
    session.subscribe({A: None, B: None}, NOW)
    sent(session)
    feed(session, frames.error(16, "Market not found", id=1).replace(b'"code"', b'"market_ticker":"%s","code"' % A.encode()))
    assert sent(session) == [("subscribe", [], [B])]


# Subscribing.


def test_markets_beyond_one_command_wait_for_the_sid() -> None:
    tickers = [f"KXDOG-{n}" for n in range(subscriptions.BATCH * 2 + 1)]
    session = Session(RawFrame, "g1", 0, 1, skew_us=0, counts=Counter())
    session.subscribe(dict.fromkeys(tickers), NOW)
    (first,) = map(orjson.loads, session.commands_to_send())
    assert first["params"]["market_tickers"] == tickers[: subscriptions.BATCH] and first["params"]["use_yes_price"] is False
    feed(session, frames.subscribed(1, BOOK, 1))
    assert [(s, len(t)) for _, s, t in sent(session)] == [([1], subscriptions.BATCH), ([1], 1)]
    feed(session, frames.subscribed(1, TRADES, 2), frames.subscribed(1, TICKERS, 3))
    assert [(s, len(t)) for _, s, t in sent(session)] == [
        ([2], subscriptions.BATCH),
        ([2], 1),
        ([3], subscriptions.BATCH),
        ([3], 1),
    ]


def test_a_market_that_has_ended_was_whole_until_it_is_let_go() -> None:
    session = open_session(A, B)
    feed(session, frames.snapshot(A, 1, 1), frames.snapshot(B, 1, 2))
    session.unsubscribe([A, "KXNOBODY"], NOW, Cause.MARKET_CLOSED)
    commands = list(map(orjson.loads, session.commands_to_send()))
    assert [(c["params"]["action"], c["params"]["sids"], c["params"]["market_tickers"]) for c in commands] == [
        ("delete_markets", [sid], [A]) for sid in (1, 2, 3)
    ]
    records = feed(session, *(frames.ok(each["id"], sid, 3 if sid == 1 else 1, []) for sid, each in enumerate(commands, 1)))
    assert [(r.channel, r.market_ticker, r.detail, r.clock_us) for r in records if r.kind == "BREAK"] == [
        (channel, A, "market_closed", records[0].clock_us) for channel in (BOOK, TRADES)
    ]
    assert session._counts["breaks"] == 0 and not session._leaving
    assert brief(feed(session, frames.delta(B, 1, 9))) == [("BREAK", BOOK, B), ("FRAME", BOOK, B)]


def test_a_market_given_up_alive_gets_a_break_after_its_last_frame() -> None:
    session = open_session(A, B)
    feed(session, frames.snapshot(A, 1, 1), frames.snapshot(B, 1, 2))
    session.unsubscribe([A], NOW, Cause.NOT_SUBSCRIBED)
    ids = [orjson.loads(command)["id"] for command in session.commands_to_send()]
    records = feed(session, frames.delta(A, 1, 3), frames.ok(ids[0], 1, 4, []), frames.ok(ids[1], 2, 1, []))
    assert [r.kind for r in records] == ["FRAME", "FRAME", "BREAK", "FRAME", "BREAK"]
    assert [(r.channel, r.market_ticker, r.detail) for r in records if r.kind == "BREAK"] == [
        (BOOK, A, "not_yet_subscribed"),
        (TRADES, A, "not_yet_subscribed"),
    ]


def test_a_market_wanted_again_before_it_was_let_go_has_a_break() -> None:
    """Between its two answers the exchange sends nothing of it."""
    session = open_session(A, B)
    feed(session, frames.snapshot(A, 1, 1), frames.snapshot(B, 1, 2))
    session.unsubscribe([A], NOW, Cause.NOT_SUBSCRIBED)
    ids = [orjson.loads(command)["id"] for command in session.commands_to_send()]
    session.subscribe({A: None}, NOW)
    again = [orjson.loads(command)["id"] for command in session.commands_to_send()]
    records = feed(session, frames.delta(A, 1, 3), frames.ok(ids[0], 1, 4, []), frames.ok(ids[1], 2, 1, []))
    assert [(r.channel, r.market_ticker) for r in records if r.kind == "BREAK"] == [(BOOK, A), (TRADES, A)]
    assert not session.knows(A) and session.knows(B)
    records = feed(session, frames.ok(again[0], 1, 5, []), frames.ok(again[1], 2, 2, []), frames.snapshot(A, 1, 6))
    assert [r.kind for r in records] == ["FRAME", "FRAME", "RESUME", "FRAME"] and session.knows(A)


def test_a_market_that_cannot_be_deleted_gets_its_break_all_the_same() -> None:
    session = open_session(A, B)
    feed(session, frames.snapshot(A, 1, 1), frames.snapshot(B, 1, 2))
    assert session.knows(A) and not session.knows("KXNOBODY")
    session.unsubscribe([A], NOW, Cause.MOVED)
    ids = [orjson.loads(command)["id"] for command in session.commands_to_send()]
    records = feed(session, orjson.dumps({"type": "error", "id": ids[0], "sid": 1, "seq": 3, "msg": {"code": 11}}))
    assert brief(records) == [("FRAME", BOOK, "@g1"), ("BREAK", BOOK, A)]
    assert (records[1].detail, records[1].clock_us) == ("moved", records[0].clock_us)  # not the last event's: there was none
    assert not session.knows(A) and not session.settled


def test_an_overflow_is_noted_for_the_caller() -> None:
    session = open_session(A, B)
    feed(session, orjson.dumps({"type": "error", "sid": 1, "seq": 1, "msg": {"code": 17}}))
    assert not session.overflowed
    feed(session, orjson.dumps({"type": "error", "sid": 2, "seq": 1, "msg": {"code": 25}}))
    assert session.overflowed


def test_a_subscription_that_ends_before_anything_happened_on_it_is_not_renewed_at_full_speed() -> None:
    session = open_session(A, B)
    feed(session, frames.snapshot(A, 1, 1), frames.delta(A, 1, 2, ts="2026-08-05T03:45:40Z"))
    feed(session, orjson.dumps({"type": "error", "sid": 1, "seq": 3, "msg": {"code": 25}}))
    assert not session.too_fast
    feed(session, orjson.dumps({"type": "error", "sid": 2, "seq": 1, "msg": {"code": 25}}))
    assert session.too_fast


def test_a_market_unwanted_before_its_ack_is_deleted_after() -> None:
    session = Session(RawFrame, "g1", 0, 1, skew_us=0, counts=Counter())
    session.subscribe({A: None, B: None}, NOW)
    session.unsubscribe([A], NOW, Cause.MARKET_CLOSED)
    sent(session)
    feed(session, frames.subscribed(1, BOOK, 1))
    assert sent(session) == [("delete_markets", [1], [A])]


# Clocks.


def test_clock_is_never_behind_what_the_exchange_wrote() -> None:
    session = open_session(A, skew_us=-1_000)
    ahead = frames.delta(A, 1, 2, ts="2026-08-05T03:45:50Z")
    records = feed(session, frames.snapshot(A, 1, 1), ahead, frames.snapshot(A, 1, 3))
    assert [r.clock_us for r in records] == [NOW - 1_000, NOW + 10_000_000, NOW + 10_000_000]


def test_first_snapshot_is_not_claimed_for_before_the_market_was_known() -> None:
    session = open_session(A)
    session.subscribe({B: 3_600_000_000}, NOW)
    records = feed(session, frames.snapshot(A, 1, 1), frames.snapshot(B, 1, 2), frames.snapshot(B, 1, 3))
    assert [r.clock_us - NOW for r in records] == [0, 3_600_000_000, 0]


# Lifecycle.


def test_lifecycle_is_handed_over_and_its_loss_noticed() -> None:
    session = Session(RawFrame, "g1", 0, 1, skew_us=0, counts=Counter())
    session.subscribe_lifecycle(NOW)
    feed(session, frames.subscribed(1, LIFECYCLE, 1), frames.subscribed(1, COMBO_LIFECYCLE, 2))
    feed(session, frames.lifecycle(A, 1, 1, "created"), frames.lifecycle(A, 1, -1, "settled"))
    assert [(e.market_ticker, e.event_type) for e in session.lifecycle_received()] == [(A, "created"), (A, "settled")]
    assert session.settled and session.missed_lifecycle  # before the channel was there, whatever happened was not heard
    session.missed_lifecycle = False
    feed(session, frames.lifecycle(A, 1, 2, "settled"))
    assert not session.missed_lifecycle
    assert brief(feed(session, frames.lifecycle(B, 1, 4, "created"))) == [("FRAME", LIFECYCLE, B)]
    assert session.missed_lifecycle


def test_an_exchange_without_combos_is_no_reason_to_leave() -> None:
    session = Session(RawFrame, "g1", 0, 1, skew_us=0, counts=Counter())
    session.subscribe_lifecycle(NOW)
    feed(session, frames.subscribed(1, LIFECYCLE, 1), frames.error(8, "Unknown channel name", id=2))
    session.due(LATER)
    assert session.settled and session.failed is None


# The exchange's limits.


def test_a_command_that_came_too_fast_is_sent_again_and_slower() -> None:
    session = open_session(A)
    session.subscribe({B: None}, NOW)
    before = sent(session)
    assert [action for action, *_ in before] == ["add_markets"] * 3
    feed(session, *[frames.error(27, "Too many requests", id=number) for number in (2, 3, 4)])
    assert session.too_fast and not sent(session) and not session.settled
    session.due(NOW + subscriptions.SLOWER_US)
    assert sent(session) == before and session.failed is None
    feed(session, frames.ok(5, 1, 1, []), frames.ok(6, 2, 1, []), frames.ok(7, 3, 1, []))
    assert session.settled


def test_a_first_subscription_that_came_too_fast_is_sent_again() -> None:
    session = Session(RawFrame, "g1", 4, 77, skew_us=0, counts=Counter())
    session.subscribe({A: None}, NOW)
    before = sent(session)
    for time in range(1, 9):  # for as long as the exchange says so
        feed(session, frames.error(27, "Too many requests", id=time))
        session.due(NOW + time * subscriptions.SLOWER_US)
        assert sent(session) == before and session.failed is None


def test_markets_beyond_the_exchange_s_limit_are_turned_away_and_the_others_undisturbed() -> None:
    session = open_session(A, B)
    feed(session, frames.snapshot(A, 1, 1), frames.snapshot(B, 1, 2))
    session.subscribe({C: None}, NOW)
    sent(session)
    feed(session, frames.ok(3, 2, 1, []), frames.ok(4, 3, 1, []), frames.error(26, "Subscription market limit exceeded", id=2))
    assert (session.turned_away, session.most_markets, session.failed) == ([C], 2, None)
    assert sent(session) == [("delete_markets", [2], [C]), ("delete_markets", [3], [C])]
    # The trades of it were vouched for since the exchange had said ok: not any more.
    assert brief(feed(session, frames.ok(5, 2, 2, [])))[1:] == [("BREAK", TRADES, C)]
    assert not [r for r in feed(session, frames.delta(A, 1, 3), frames.delta(B, 1, 4)) if r.kind != "FRAME"]
    assert session.markets == 2


def test_a_whole_first_batch_turned_away_says_how_many_to_try() -> None:
    session = Session(RawFrame, "g1", 4, 77, skew_us=0, counts=Counter())
    many = [f"KXDOG-{n}" for n in range(40)]
    session.subscribe(dict.fromkeys(many), NOW)
    feed(session, frames.error(26, "Subscription market limit exceeded", id=1))
    assert (session.turned_away, session.most_markets, session.markets) == (many, 20, 0)


def test_a_snapshot_nobody_asked_for_is_kept_and_counted() -> None:
    counts: Counter[str] = Counter()
    session = Session(RawFrame, "g1", 4, 77, skew_us=0, counts=counts)
    session.subscribe({A: None}, NOW)
    sent(session)
    feed(session, frames.subscribed(1, BOOK, 1))
    records = feed(session, *[frames.snapshot(f"KXCAT-{n}", 1, n + 1) for n in range(200)])
    assert len(records) == 200 and counts["unasked"] == 200 and not sent(session)
    assert list(session._by_sid[1].markets) == [A]  # nothing of them is remembered
    assert {record.kind for record in records} == {"STALE"}


def test_a_snapshot_that_comes_after_its_market_was_handed_over_is_not_the_books() -> None:
    session = Session(RawFrame, "g1", 4, 77, skew_us=0, counts=Counter())
    session.subscribe({A: None, B: None}, NOW)
    feed(session, frames.subscribed(1, BOOK, 1), frames.snapshot(A, 1, 1), frames.snapshot(B, 1, 2))
    broken = feed(session, frames.delta(B, 1, 4))  # a hole: a whole book is asked for
    session.unsubscribe([A], NOW, "moved")
    commands = [orjson.loads(command) for command in session.commands_to_send()]
    [away] = [each["id"] for each in commands if each["params"].get("action") == "delete_markets"]
    late = feed(session, frames.ok(away, 1, 5, [B]), frames.snapshot(A, 1, 6), frames.snapshot(B, 1, 7), frames.delta(B, 1, 8))
    told = [(record.kind, record.market_ticker, record.detail) for record in (*broken, *late) if record.market_ticker in (A, B)]
    gap = "upstream_sequence_gap"
    assert told == [
        ("BREAK", A, gap), ("BREAK", B, gap), ("FRAME", B, ""), ("BREAK", A, "moved"), ("STALE", A, ""), ("FRAME", B, ""),
        ("FRAME", B, ""),
    ]  # fmt: skip
