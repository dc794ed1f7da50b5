"""Frames as the exchange wrote them in each of its years give the same canonical events as today's (Kalshi changelog).

Integers in cents and whole contracts until 2025-09-09; beside them dollars of three decimals until 2026-01-22; beside both,
strings of four decimals and hundredths of contracts until 2026-03-12; the strings alone since. The content tells which.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from kalshibook_core.kalshi.session import Session
from kalshibook_core.wire.events import BookDelta, BookSnapshot, Event, Gap, RawFrame, Ticker, Trade
from services.deduplicator.partition import Partition
from tests.unit.deduplicator.source import T0, TICKER
from tests.unit.kalshi import frames

Ladder = dict[int, int]
"""Cents to contracts."""

Spellings = tuple[dict[str, Any], ...]
"""Of one thing, as each era writes it beside those before it; the last alone."""

ERAS = 4
SIDES = ("yes", "no")


def named(era: int, name: str, cents: int) -> dict[str, Any]:
    """A price."""
    spellings: Spellings = {name: cents}, {f"{name}_dollars": f"{cents / 100:.3f}"}, {}, {f"{name}_dollars": f"{cents / 100:.4f}"}
    return {key: value for spelling in chosen(era, spellings) for key, value in spelling.items()}


def counted(era: int, name: str, contracts: int) -> dict[str, Any]:
    """A size."""
    spellings: Spellings = {name: contracts}, {}, {f"{name}_fp": f"{contracts}.00"}, {f"{name}_fp": f"{contracts}.00"}
    return {key: value for spelling in chosen(era, spellings) for key, value in spelling.items()}


def chosen(era: int, spellings: Spellings) -> Spellings:
    return spellings[-1:] if era == ERAS - 1 else spellings[: era + 1]


def snapshot(era: int, at: int, yes: Ladder, no: Ladder) -> tuple[str, dict[str, Any]]:
    msg: dict[str, Any] = {"market_ticker": TICKER}
    for side, levels in zip(SIDES, (yes, no), strict=True):
        if not levels:
            continue  # a side without levels has no key
        rows = sorted(levels.items())
        for spelling in chosen(
            era,
            (
                {side: [[cents, count] for cents, count in rows]},
                {f"{side}_dollars": [[f"{cents / 100:.3f}", count] for cents, count in rows]},
                {f"{side}_dollars_fp": [[f"{cents / 100:.4f}", f"{count}.00"] for cents, count in rows]},
                {f"{side}_dollars_fp": [[f"{cents / 100:.4f}", f"{count}.00"] for cents, count in rows]},
            ),
        ):
            msg |= spelling
    return "orderbook_snapshot", msg


def delta(era: int, at: int, side: int, cents: int, change: int) -> tuple[str, dict[str, Any]]:
    nanoseconds = f"2025-08-12T21:00:{at % 60:02d}.{at:06d}" + ("022Z" if era == 0 else "Z")
    sizes = counted(era, "delta", change)
    return "orderbook_delta", {
        "market_ticker": TICKER, **named(era, "price", cents), **sizes, "side": SIDES[side], "ts": nanoseconds,
    }  # fmt: skip


def trade(era: int, at: int, cents: int, contracts: int, taker: int) -> tuple[str, dict[str, Any]]:
    prices = named(era, "yes_price", cents) | named(era, "no_price", 100 - cents)
    return "trade", {
        "trade_id": f"trade-{at}", "market_ticker": TICKER, **prices, **counted(era, "count", contracts),
        "taker_side": SIDES[taker], "ts": 1_755_032_432 + at,
    }  # fmt: skip


def ticker(era: int, at: int, cents: int, volume: int) -> tuple[str, dict[str, Any]]:
    prices = named(era, "price", cents) | named(era, "yes_bid", cents) | named(era, "yes_ask", min(100, cents + 1))
    return "ticker", {
        "market_ticker": TICKER, **prices, **counted(era, "volume", volume), **counted(era, "open_interest", volume // 2),
        "dollar_volume": volume // 3, "ts": 1_755_032_432 + at,
    }  # fmt: skip


Frame = Callable[[int, int], tuple[str, dict[str, Any]]]
"""(era, number of the frame) -> message type and content."""

ladders = st.dictionaries(st.integers(1, 99), st.integers(1, 10**6), max_size=5)
happenings: st.SearchStrategy[Frame] = st.one_of(
    st.builds(lambda yes, no: lambda era, at: snapshot(era, at, yes, no), ladders, ladders),
    st.builds(
        lambda side, cents, change: lambda era, at: delta(era, at, side, cents, change),
        st.integers(0, 1), st.integers(1, 99), st.integers(-5, 50),
    ),
    st.builds(
        lambda cents, contracts, taker: lambda era, at: trade(era, at, cents, contracts, taker),
        st.integers(1, 99), st.integers(1, 10**6), st.integers(0, 1),
    ),
    st.builds(lambda cents, volume: lambda era, at: ticker(era, at, cents, volume), st.integers(1, 99), st.integers(0, 10**6)),
)  # fmt: skip


def stream(happened: list[Frame], eras: list[int]) -> tuple[list[Event], Counter[str]]:
    """Receive the frames as a gatherer does, and make events of its records as the deduplicator does."""
    counts: Counter[str] = Counter()
    session, partition, seqs = Session(RawFrame, "g1", 0, T0, skew_us=0, counts=counts), Partition(), Counter[int]()
    session.subscribe({TICKER: None}, T0)
    for command in map(orjson.loads, session.commands_to_send()):
        for sid, channel in enumerate(command["params"]["channels"], 1):
            session.receive_frame(frames.subscribed(command["id"], channel, sid), T0)
    for number, (make, era) in enumerate(zip(happened, eras, strict=True)):
        kind, msg = make(era, number)
        sid = {"trade": 2, "ticker": 3}.get(kind, 1)
        seqs[sid] += 1
        top = {"type": kind, "sid": sid} | ({} if sid == 3 else {"seq": seqs[sid]})
        session.receive_frame(orjson.dumps(top | {"msg": msg}) + b"\n", T0 + number)
    made = [event for offset, raw in enumerate(session.records_to_publish()) for event in partition.receive(raw, offset)]
    assert not partition.notices.keys() - {"corrupt_book"} and not counts["unparsable"]
    return made, counts


@settings(max_examples=60, deadline=None)
@given(st.lists(happenings, max_size=25), st.lists(st.integers(0, ERAS - 1), min_size=26, max_size=26), ladders, ladders)
def test_every_era_makes_the_same_events(happened: list[Frame], mixed: list[int], yes: Ladder, no: Ladder) -> None:
    """Also where the eras are mixed frame by frame, as no date could tell; what would go below zero does so in all of them."""
    happened = [lambda era, at: snapshot(era, at, yes, no), *happened]
    today, counts = stream(happened, [ERAS - 1] * len(happened))
    assert today
    for eras in ([0] * len(happened), [1] * len(happened), [2] * len(happened), mixed[: len(happened)]):
        assert stream(happened, eras) == (today, counts)


def test_the_events_of_an_old_day_are_exact() -> None:
    happened: list[Frame] = [
        lambda era, at: snapshot(era, at, {3: 800}, {}),
        lambda era, at: delta(era, at, 0, 3, -800),
        lambda era, at: trade(era, at, 3, 7, 1),
        lambda era, at: ticker(era, at, 3, 9),
    ]
    first, second, third, fourth = stream(happened, [0, 0, 0, 0])[0]
    assert isinstance(first, BookSnapshot) and (first.yes, first.no) == ([(300, 80_000)], [])
    assert isinstance(second, BookDelta) and (second.price, second.delta) == (300, -80_000)
    assert second.exchange_us == 1_755_032_401_000_001
    assert isinstance(third, Trade) and (third.yes_price, third.no_price, third.count, third.taker_side) == (300, 9700, 700, 1)
    assert isinstance(fourth, Ticker) and (fourth.price, fourth.yes_ask, fourth.volume, fourth.open_interest) == (
        300,
        400,
        900,
        400,
    )
    assert not any(isinstance(event, Gap) for event in (first, second, third, fourth))
