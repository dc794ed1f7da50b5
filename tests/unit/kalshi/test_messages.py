"""Frames of every documented form are read exactly, and nothing else is."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kalshibook_core.kalshi import messages, numbers
from kalshibook_core.kalshi.messages import Delta, MalformedFrame, Snapshot, UnparsableFrame
from tests.unit.kalshi import frames

MARKET = "KXDOG-26AUG1-T0.5"


def read(kind: str, msg: object, **top: object) -> messages.Envelope:
    return messages.envelope(orjson.dumps({"type": kind, "sid": 1, "seq": 7, **top, "msg": msg}))


def test_envelope_of_a_delta() -> None:
    message = messages.envelope(frames.delta(MARKET, 3, 9, "0.3200", "-46.02", "no", "2026-08-05T03:45:40.722003Z"))
    assert message[:6] == ("orderbook_delta", 3, 9, MARKET, 0, 1_785_901_540_722_003)


def test_envelope_without_sid_seq_or_msg() -> None:
    assert messages.envelope(b'{"id":102,"sid":2,"seq":7,"type":"unsubscribed"}\n') == ("unsubscribed", 2, 7, "", 102, 0, {})
    assert messages.envelope(b'{"id":3,"type":"ok","msg":[{"channel":"trade","sid":1}]}').msg == [{"channel": "trade", "sid": 1}]


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"7",
        b'{"type":7}',
        b"{}",
        b'{"type":"ok","sid":"1"}',
        b'{"type":"ok","sid":-2}',
        b'{"type":"ok","sid":true}',
        b'{"type":"ok","seq":1.5}',
        b'{"type":"ok","sid":2147483648}',
        b'{"type":"ok","seq":9223372036854775808}',
        b"\xff",
        b'{"type":"\xed\xa0\x80"}',
        b'{"type":"error","msg":{"code":5,"msg":' + b"[" * 1000 + b"]" * 1000 + b"}}",
        b'{"type":"market_lifecycle_v2","msg":{"event_type":"created","x":' + b"[" * 300 + b"]" * 300 + b'},"sid":1}',
    ],
)
def test_what_is_no_message_is_malformed(frame: bytes) -> None:
    with pytest.raises(MalformedFrame):
        messages.envelope(frame)


def test_a_frame_of_many_levels_is_read() -> None:
    rows = [[numbers.format_price(price), "1.00"] for price in range(1, 1000)]
    assert len(messages.parse_book(read("orderbook_snapshot", {"yes_dollars_fp": rows}), False)[0]) == 999  # type: ignore[arg-type]


@pytest.mark.parametrize("ticker", [7, None, ["A"], "A" * 201, {}, "A\0"])
def test_impossible_ticker_belongs_to_no_market(ticker: object) -> None:
    assert read("orderbook_delta", {"market_ticker": ticker}).market_ticker == ""


def test_tickers_with_dots_and_57_characters_are_tickers() -> None:
    for ticker in ("CPI-22DEC-TN0.1", "K" * 57):
        assert read("trade", {"market_ticker": ticker}).market_ticker == ticker


@pytest.mark.parametrize(
    ("msg", "us"),
    [
        ({"ts": "2022-11-22T20:44:01Z", "ts_ms": 5}, 1_669_149_841_000_000),
        ({"ts": "2025-08-12T21:00:32.539836022Z"}, 1_755_032_432_539_836),
        ({"ts": "2026-08-17T08:49:57.86889Z"}, 1_786_956_597_868_890),
        ({"ts": 1_669_149_841, "ts_ms": 1_669_149_841_123}, 1_669_149_841_123_000),
        ({"ts": 1_669_149_841}, 1_669_149_841_000_000),
        ({"ts": "garbage", "ts_ms": 9}, 9_000),
        ({"ts": "0001-01-01T00:00:00Z"}, 0),
        ({"ts": "2026-08-17T08:49:57.Z"}, 0),
        ({"ts": "2026-13-17T08:49:57Z"}, 0),
        ({"ts_ms": 1.5}, 0),
        ({"ts_ms": 10**18}, 0),
        ({}, 0),
    ],
)
def test_exchange_time(msg: dict[str, object], us: int) -> None:
    assert read("orderbook_delta", msg).exchange_us == us


levels = st.dictionaries(st.integers(1, 9_999), st.integers(1, 10**12), min_size=1, max_size=8)


@given(levels, levels, st.booleans(), st.randoms(use_true_random=False))
def test_snapshot_is_read_in_any_order_and_price_mode(yes: dict[int, int], no: dict[int, int], yes_price: bool, rng) -> None:  # type: ignore[no-untyped-def]
    def rows(side: dict[int, int], flip: bool) -> list[list[str]]:
        out = [[numbers.format_price(10_000 - p if flip else p), numbers.format_size(s)] for p, s in side.items()]
        rng.shuffle(out)
        return out

    message = read("orderbook_snapshot", {"yes_dollars_fp": rows(yes, False), "no_dollars_fp": rows(no, yes_price)})
    assert messages.parse_book(message, yes_price) == Snapshot(tuple(sorted(yes.items())), tuple(sorted(no.items())))


def test_absent_side_is_empty() -> None:
    assert messages.parse_book(read("orderbook_snapshot", {"market_ticker": MARKET, "market_id": ""}), False) == Snapshot((), ())
    one = read("orderbook_snapshot", {"no_dollars_fp": [["0.4800", "3.00"]]})
    assert messages.parse_book(one, False) == Snapshot((), ((4800, 300),))


@pytest.mark.parametrize(
    "msg",
    [
        {"yes": [[3, 800]], "no": [[1, 7]]},
        {"yes": [[3, 800]], "no": [[1, 7]], "yes_dollars": [["0.030", 800]], "no_dollars": [["0.010", 7]]},
        {
            "yes": [[3, 800]],
            "yes_dollars": [["0.030", 800]],
            "yes_dollars_fp": [["0.0300", "800.00"]],
            "no_dollars_fp": [["0.0100", "7.00"]],
        },
    ],
)
def test_snapshots_of_all_three_eras(msg: dict[str, object]) -> None:
    assert messages.parse_book(read("orderbook_snapshot", msg), False) == Snapshot(((300, 80_000),), ((100, 700),))


@pytest.mark.parametrize(
    "msg",
    [
        {"price": 51, "delta": -1, "side": "no", "ts": "2025-08-12T21:00:32.539836022Z"},
        {"price": 51, "delta": -1, "side": "no", "price_dollars": "0.510", "ts": "2025-08-12T21:00:32.539836Z"},
        {"price_dollars": "0.5100", "delta_fp": "-1.00", "side": "no", "ts": "2025-08-12T21:00:32.539836Z"},
    ],
)
def test_deltas_of_all_three_eras(msg: dict[str, object]) -> None:
    assert messages.parse_book(read("orderbook_delta", msg), False) == Delta(1, 5100, -100, 1_755_032_432_539_836)


def test_no_side_is_turned_back_where_it_came_in_yes_prices() -> None:
    msg = {"price_dollars": "0.5200", "delta_fp": "1.00", "side": "no"}
    assert messages.parse_book(read("orderbook_delta", msg), True) == Delta(1, 4800, 100, 0)
    assert messages.parse_book(read("orderbook_delta", {**msg, "side": "yes"}), True) == Delta(0, 5200, 100, 0)


@pytest.mark.parametrize(
    ("kind", "msg"),
    [
        ("orderbook_delta", {"price_dollars": "0.52001", "delta_fp": "1.00", "side": "no"}),
        ("orderbook_delta", {"price_dollars": "0.5200", "delta_fp": "1.001", "side": "no"}),
        ("orderbook_delta", {"price_dollars": "0.5200", "delta_fp": 1.0, "side": "no"}),
        ("orderbook_delta", {"price_dollars": "0.5200", "delta_fp": "1.00", "side": "maybe"}),
        ("orderbook_delta", {"price_dollars": "0.5200", "delta_fp": "1.00", "side": []}),
        ("orderbook_delta", {"price": 52.5, "delta": 1, "side": "no"}),
        ("orderbook_delta", {}),
        ("orderbook_delta", []),
        ("orderbook_snapshot", {"yes_dollars_fp": [["0.1000", "-1.00"]]}),
        ("orderbook_snapshot", {"yes_dollars_fp": [["0.1000", "0.00"]]}),
        ("orderbook_snapshot", {"yes_dollars_fp": [["0.1000", "1.00"], ["0.100", "2.00"]]}),
        ("orderbook_snapshot", {"yes_dollars_fp": [["0.1000"]]}),
        ("orderbook_snapshot", {"yes_dollars_fp": True}),
        ("trade", {}),
    ],
)
def test_book_content_that_is_none_is_unparsable(kind: str, msg: object) -> None:
    with pytest.raises(UnparsableFrame) as refused:
        messages.parse_book(read(kind, msg), False)
    assert refused.value.kind == kind and refused.value.why


def test_trade() -> None:
    trade = messages.parse_trade(
        messages.envelope(frames.trade(MARKET, 2, 5, "t-1", "0.6800", "46.02", "yes", 1_785_901_540_722))
    )
    assert trade == ("t-1", 1_785_901_540_722_000, 6800, 3200, 4602, 0, None)
    old = read("trade", {"trade_id": "t", "yes_price": 36, "no_price": 64, "count": 136, "taker_side": "no", "ts": 1_669_149_841})
    assert messages.parse_trade(old) == ("t", 1_669_149_841_000_000, 3600, 6400, 13_600, 1, None)
    new = {"trade_id": "t", "yes_price_dollars": "0.36", "count_fp": "1.00", "taker_book_side": "ask", "is_block_trade": True}
    assert messages.parse_trade(read("trade", new)) == ("t", 0, 3600, 6400, 100, 1, True)
    for broken in (
        {**new, "trade_id": 7},
        {**new, "trade_id": "t\0"},
        {**new, "trade_id": "t" * 201},
        {**new, "taker_book_side": "?"},
        {**new, "count_fp": None},
        {**new, "is_block_trade": 1},
        [],
    ):
        with pytest.raises(UnparsableFrame):
            messages.parse_trade(read("trade", broken))


def test_ticker() -> None:
    msg = {
        "market_ticker": MARKET,
        "price_dollars": "0.4800",
        "yes_bid_dollars": "0.4500",
        "volume_fp": "33896.00",
        "dollar_volume": 16948,
    }
    expected = (1_000, 4800, 4500, None, None, None, None, 3_389_600, None, 16_948, None)
    assert messages.parse_ticker(read("ticker", {**msg, "ts_ms": 1})) == expected
    for broken in ({"price_dollars": "x"}, {"dollar_volume": 1.5}, []):
        with pytest.raises(UnparsableFrame):
            messages.parse_ticker(read("ticker", broken))


def test_lifecycle() -> None:
    message = read("market_lifecycle_v2", {"market_ticker": MARKET, "event_type": "settled", "settled_ts": 1})
    assert messages.parse_lifecycle(message)[:2] == (MARKET, "settled")
    assert messages.parse_lifecycle(read("event_lifecycle", {"event_ticker": "KXDOG"}))[:2] == ("", "event_lifecycle")
    for broken in ({}, [], {"event_type": 7}, {"event_type": "set\0"}):
        with pytest.raises(UnparsableFrame):
            messages.parse_lifecycle(read("market_lifecycle_v2", broken))


def test_content_is_verbatim() -> None:
    frame = b'{"type":"event_lifecycle","sid":5,"msg":{ "b":1.10,"a":"\\u0041" }}\n'
    assert messages.content(frame, messages.envelope(frame)) == b'{ "b":1.10,"a":"\\u0041" }'
    frame = b'{"msg":{"a":1},"type":"x"}'
    assert messages.content(frame, messages.envelope(frame)) == b'{"a":1}'


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NAMES = """market_ticker side price_dollars delta_fp yes_dollars_fp no_dollars yes no price delta ts ts_ms count_fp trade_id
taker_side yes_price_dollars event_type volume_fp dollar_volume"""
names = st.sampled_from(NAMES.split())


@given(
    st.sampled_from([*messages.CHANNEL_OF_TYPE, "ok", "news"]), st.dictionaries(names, json_values) | json_values, st.booleans()
)
def test_any_message_is_read_or_refused_by_name(kind: str, msg: object, yes_price: bool) -> None:
    try:
        message = read(kind, msg)
    except MalformedFrame:
        return
    for parse in (
        lambda m: messages.parse_book(m, yes_price),
        messages.parse_trade,
        messages.parse_ticker,
        messages.parse_lifecycle,
    ):
        try:
            parse(message)
        except UnparsableFrame:
            continue


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_malformed(frame: bytes) -> None:
    try:
        messages.envelope(frame)
    except MalformedFrame:
        return
