"""The short way of a delta: what it reads, and what the session makes of it, is what the long way would."""

from collections import Counter
from typing import Any

import orjson
from hypothesis import example, given
from hypothesis import strategies as st

from kalshibook_core.kalshi import messages, numbers
from kalshibook_core.kalshi.messages import Delta
from kalshibook_core.kalshi.session import Session
from kalshibook_core.wire.events import RawFrame
from tests.unit.kalshi import frames

A, B, UNASKED = "KXDOG-26AUG1-A", "KXCAT-26AUG1-T0.5", "KXFOX-26AUG1-C"
NOW = 1_785_901_540_000_000


def mostly(good: list[Any], odd: list[Any]) -> st.SearchStrategy[Any]:
    return st.sampled_from(good * (1 + 4 * len(odd) // len(good)) + odd)


TIMES = mostly(
    ["2026-08-05T03:45:40.722003Z", "2026-08-05T03:45:40.7Z", "2026-08-05T03:45:39.9Z"],
    ["2026-08-05T03:45:40Z", "2026-13-05T03:45:40.722003Z", "2026-08-05T03:45:40.1234567Z", "2026-08-05T03:45:40.722003", 1],
)
PRICES = mostly(["0.4800", "0.0000", "1.0000"], ["1.0001", "0.48", "00.4800", "-0.4800", ".4800", 0.48])
SIZES = mostly(["54.00", "-54.00", "-0.01", "0.00"], ["-0.00", "007.00", "9" * 14 + ".99", "1.0", "1.001", "+1.00", "1"])
NUMBERS = mostly([0, 1, 2], [-1, 2**31 - 1, 2**31, 10**17, 2**63, 1.0, "1"])
TICKERS = mostly([A], ["KXÄ-1", 'KX"-1', "KX\n", "", "X" * 200, "X" * 201, 7])


@st.composite
def spelled(draw: st.DrawFn) -> bytes:
    """A delta as the exchange writes it, of some strange value or other, and some bytes of it changed or not."""
    msg = {"market_ticker": draw(TICKERS), "market_id": draw(mostly(["", "9b0f6b43-5b68-4f9f-9f02-9a2d1b8ac1a1"], [1]))}
    msg |= {"price_dollars": draw(PRICES), "delta_fp": draw(SIZES), "side": draw(mostly(["yes", "no"], ["maybe"]))}
    msg |= {"ts": draw(TIMES), "ts_ms": draw(NUMBERS)}
    frame = orjson.dumps({"type": "orderbook_delta", "sid": draw(NUMBERS), "seq": draw(NUMBERS), "msg": msg})
    for at, new in draw(st.just([]) | st.lists(st.tuples(st.integers(0, len(frame) - 1), st.binary(max_size=2)), max_size=2)):
        frame = frame[:at] + new + frame[at + draw(st.integers(0, 2)) :]
    return frame + draw(st.sampled_from([b"\n", b"", b"\n\n", b" ", b"}"]))


LIKE_THE_EXCHANGE: dict[str, Any] = {"market_id": "9b0f6b43-5b68-4f9f-9f02-9a2d1b8ac1a1", "price_dollars": "0.3200"} | {
    "delta_fp": "-46.02", "side": "no", "ts": "2026-08-05T03:45:40.72203Z", "ts_ms": 1_785_901_540_722
}  # fmt: skip
FULL = ([["0.3200", "50.00"]], [["0.3200", "50.00"]])
ONE = orjson.dumps({"type": "orderbook_delta", "sid": 1, "seq": 2_146_643, "msg": {"market_ticker": A} | LIKE_THE_EXCHANGE})


@given(spelled())
@example(ONE.replace(b'"sid":1', b'"sid":01'))
@example(ONE.replace(b"0.3200", b"1.0001"))
@example(ONE.replace(b'"seq":2', b'"seq":-2'))
@example(ONE.replace(b"}}", b',"price_dollars":"0.1000"}}'))
@example(ONE.replace(b"}}", b'},"sid":7}'))
@example(ONE.replace(b'"side":"no"', b'"side":"n\\u006f"'))
def test_what_it_reads_is_what_there_is(frame: bytes) -> None:
    plain = messages.plain_delta(frame)
    if plain is None:
        assert messages.plain_change(frame, A.encode()) is None
        return
    sid, seq, ticker, side, price, change, exchange_us = plain
    assert messages.plain_change(frame, ticker.encode()) == (side, price, change, exchange_us)
    assert messages.plain_change(frame, ticker.encode() + b"-") is None
    whole = messages.envelope(frame)
    assert (whole.type, whole.sid, whole.seq, whole.market_ticker, whole.id) == ("orderbook_delta", sid, seq, ticker, 0)
    assert messages.parse_book(whole, False) == Delta(side, price, change, exchange_us)
    assert whole.exchange_us == exchange_us


def test_the_exchange_s_own_spelling_is_read() -> None:
    """Or the short way would be there for nothing."""
    read = (1, 2_146_643, A, messages.NO, 3200, -4602, 1_785_901_540_722_030)
    assert messages.plain_delta(ONE + b"\n") == messages.plain_delta(ONE) == read


def delta(
    seq: int, ticker: str, size: str = "-46.02", side: str = "yes", ts: object = "2026-08-05T03:45:40.7Z", sid: int = 1
) -> bytes:
    msg = {"market_ticker": ticker} | LIKE_THE_EXCHANGE | {"delta_fp": size, "side": side, "ts": ts}
    return orjson.dumps({"type": "orderbook_delta", "sid": sid, "seq": seq, "msg": msg})


@st.composite
def stories(draw: st.DrawFn) -> list[bytes]:
    """What a book subscription may be sent: deltas mostly, in order mostly, of levels that may not be there."""
    seq, out = 2, []
    for _ in range(draw(st.integers(0, 30))):
        seq += draw(mostly([1], [0, 2, -1]))
        ticker = draw(mostly([A, B], [UNASKED]))
        if draw(st.integers(0, 5)) == 0:
            out.append(frames.snapshot(ticker, 1, seq, *FULL))
            continue
        size, side, sid = (
            draw(st.sampled_from(["-46.02", "46.02", "-50.00"])),
            draw(st.sampled_from(["yes", "no"])),
            draw(mostly([1], [2, 9])),
        )
        out.append(delta(seq, ticker, size, side, draw(TIMES), sid))
    return out


@given(stories(), st.integers(-3_000_000, 3_000_000))
@example([delta(1, A)] * 40 + [delta(3, A)] + [delta(1, A)] * 40, 0)
def test_the_session_does_with_it_what_it_does_the_long_way(story: list[bytes], skew_us: int) -> None:
    """A blank before a frame changes nothing in it, and is no spelling of the exchange's."""
    told = []
    for blank in (b"", b" "):
        counts: Counter[str] = Counter()
        session = Session(RawFrame, "g1", 4, 77, skew_us=skew_us, counts=counts)
        session.subscribe({A: None, B: None}, NOW)
        for sid, channel in enumerate(["orderbook_delta", "trade", "ticker"], 1):
            session.receive_frame(frames.subscribed(1, channel, sid), NOW)
        for number, frame in enumerate([frames.snapshot(A, 1, 1, *FULL), frames.snapshot(B, 1, 2, *FULL), *story]):
            session.receive_frame(blank + frame, NOW + number)
        records = session.records_to_publish()
        session.due(NOW + 60_000_000)
        session.connection_lost("disconnect", NOW + 60_000_000)
        stripped = [record._replace(payload=record.payload.strip()) for record in records]
        left = (session.records_to_publish(), session.commands_to_send(), session.troubles_seen(), session.failed)
        told.append((stripped, left, counts))
    assert told[0] == told[1]


@given(st.integers(0, numbers.ONE_DOLLAR), st.integers(-(10**16) + 1, 10**16 - 1))
def test_every_price_and_size_of_the_exchange_s_is_read(price: int, size: int) -> None:
    frame = ONE.replace(b"0.3200", numbers.format_price(price).encode()).replace(b"-46.02", numbers.format_size(size).encode())
    plain = messages.plain_delta(frame)
    assert plain is not None and plain[4:6] == (price, size)


def test_nothing_else_is_read() -> None:
    for frame in (frames.trade(A, 1, 1, "x"), frames.ticker(A, 1), frames.snapshot(A, 1, 1), b"", b" " + ONE, ONE[:-1]):
        assert messages.plain_delta(frame) is None
