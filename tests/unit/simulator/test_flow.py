"""The generated order flow does as real frames do: books never cross, trades hit the book; same seed, same bytes."""

from itertools import pairwise
from typing import Any

import orjson

from kalshibook_core.orderbook import Book
from kalshibook_tools.simulator.flow import SECOND, Changed, Flow, Listed
from kalshibook_tools.simulator.market import Delta, Notice, Snapshot, Trade

START_US = 1_788_307_180 * SECOND


def run(seed: int = 7, markets: int = 30, seconds: int = 20, rate: float = 200.0, window: int = 12) -> list[tuple[int, Any]]:
    flow = Flow(seed=seed, markets=markets, start_us=START_US, window_us=window * SECOND)
    happened = [(START_US, happening) for happening in flow.opening()]
    return happened + list(flow.advance(START_US + seconds * SECOND, rate))


def test_the_same_seed_and_start_give_the_same_flow_however_time_is_cut():
    whole = run()
    flow = Flow(seed=7, markets=30, start_us=START_US, window_us=12 * SECOND)
    cut = [(START_US, happening) for happening in flow.opening()]
    for step in range(1, 201):
        cut += flow.advance(START_US + step * SECOND // 10, 200.0)
    assert cut == whole
    assert run(seed=8) != whole


def test_books_never_cross_and_no_level_goes_below_zero():
    books: dict[str, Book] = {}
    deltas = 0
    for _, event in run():
        if isinstance(event, Snapshot):
            books[event.ticker] = Book(event.yes, event.no)
        elif isinstance(event, Delta):
            books[event.ticker].apply(event.side, event.price, event.size)  # raises below zero
            yes, no = books[event.ticker].sides
            assert max(yes, default=0) + max(no, default=0) < 10_000
            deltas += 1
    assert deltas > 2_000


def test_a_trade_follows_the_makers_delta_with_the_same_timestamp():
    events = [event for _, event in run()]
    trades = [(before, event) for before, event in pairwise(events) if isinstance(event, Trade)]
    assert len(trades) > 100
    for delta, trade in trades:
        assert isinstance(delta, Delta) and delta.ticker == trade.ticker
        maker_price = trade.yes_price if delta.side == 0 else 10_000 - trade.yes_price
        assert (delta.side, delta.price, delta.size, delta.ts_us) == (1 - trade.taker_side, maker_price, -trade.size, trade.ts_us)


def test_timestamps_of_a_market_do_not_step_back_and_prices_lie_on_its_grid():
    last: dict[str, int] = {}
    steps: dict[str, list[tuple[int, int, int]]] = {}
    fractional = 0
    for _, event in run():
        if isinstance(event, Listed):
            ranges = event.body["price_ranges"]
            steps[event.body["ticker"]] = [tuple(round(float(r[k]) * 10_000) for k in ("start", "end", "step")) for r in ranges]
        elif isinstance(event, Delta):
            # The last cancels bear the moment of the close, whatever order they are sent in.
            assert event.ts_us >= last.get(event.ticker, 0) - 20
            last[event.ticker] = max(event.ts_us, last.get(event.ticker, 0))
            yes_price = event.price if event.side == 0 else 10_000 - event.price
            assert any(a <= yes_price <= b and (yes_price - a) % step == 0 for a, b, step in steps[event.ticker])
            fractional += event.size % 100 != 0
        elif isinstance(event, Notice) and "price_ranges" in event.changes:
            ranges = event.changes["price_ranges"]
            steps[event.ticker] = [tuple(round(float(r[k]) * 10_000) for k in ("start", "end", "step")) for r in ranges]
    assert fractional > 50


def test_a_short_market_lives_its_whole_life():
    happened = run(markets=10, seconds=40, window=8, rate=50.0)
    ticker = next(h.ticker for _, h in happened if isinstance(h, Notice) and b"created" in h.frame.third)
    life = [(at, h) for at, h in happened if (h.body["ticker"] if isinstance(h, Listed) else h.ticker) == ticker]
    words = []
    for _, happening in life:
        match happening:
            case Notice(frame=frame):
                words.append(orjson.loads(frame.render(1, 1))["msg"]["event_type"])
            case Listed():
                words.append("listed")
            case Changed(changes=changes):
                words.append(changes["status"])
            case Snapshot():
                words.append("snapshot")
    assert words[:5] == ["created", "listed", "snapshot", "active", "closed"]
    assert words[5:] in (["snapshot", "determined", "settled"], ["snapshot", "snapshot", "determined", "settled"])
    closed_us = next(at for at, h in life if isinstance(h, Changed) and h.changes["status"] == "closed")
    after = [h for at, h in life if at > closed_us]
    assert all(h.yes == h.no == () for h in after if isinstance(h, Snapshot))
    assert not any(isinstance(h, Delta) for h in after)


def test_markets_have_all_kinds_of_tickers_and_are_unlike_each_other():
    flow = Flow(seed=1, markets=1000, start_us=START_US)
    tickers = [happening.body["ticker"] for happening in flow.opening() if isinstance(happening, Listed)]
    assert len(set(tickers)) == len(tickers) == 1000
    assert max(map(len, tickers)) == 57 and any("." in ticker for ticker in tickers)
    assert len({ticker.partition("-")[0] for ticker in tickers}) > 5
    counts: dict[str, int] = {}
    for _ in range(1500):
        for event in flow.burst(START_US):
            counts[event.ticker] = counts.get(event.ticker, 0) + 1
    busiest = sorted(counts.values(), reverse=True)
    assert sum(busiest[:30]) > 10 * sum(busiest[-len(busiest) // 2 :]) / (len(busiest) / 2) * 30
