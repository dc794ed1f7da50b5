"""A seeded order flow: markets of several series and what happens in them, in virtual time. No clock, no I/O.

The same seed, start and times give the same markets, events and bytes. Books never cross and no level goes below zero.
Activity is heavy-tailed over the markets and comes in bursts; a trade is the maker's delta first and then the trade, with one
timestamp (seen on the wire). Short-lived markets open and close in fixed windows: after the close last cancels, one or two
unasked empty snapshots, then determination and settlement.
"""

import heapq
import uuid
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import accumulate
from random import Random
from typing import Any, NamedTuple

from kalshibook_core.kalshi.numbers import price as parse_price
from kalshibook_core.orderbook import NO, YES, Book
from kalshibook_tools.simulator import frames
from kalshibook_tools.simulator.market import (
    PRICE_RANGES,
    Delta,
    Event,
    Notice,
    Snapshot,
    Summary,
    Trade,
    created_frame,
    definition,
    lifecycle_frame,
)

SECOND = 1_000_000
MOST_LEVELS = 40
_SHORT_SERIES = ("KXGOLD15M", "KXBTC15M", "KXETH15M", "KXSOL15M", "KXXRP15M", "KXDOGE15M")
_TEAMS = ("MIN", "SD", "NYY", "BOS", "LAD", "CHC", "ATL", "HOU", "SEA", "TOR")
_STRUCTURES = tuple(PRICE_RANGES)
_STRUCTURE_WEIGHTS = (50, 15, 10, 5, 5, 5, 10)


class Listed(NamedTuple):
    """REST knows the market from now on."""

    body: dict[str, Any]
    event: dict[str, Any]
    market_id: str


class Changed(NamedTuple):
    """The market's REST object changes and no frame tells it: an implicit open or close (Kalshi docs, "Market lifecycle")."""

    ticker: str
    changes: dict[str, Any]


Happening = Listed | Changed | Event


class _Trading:
    """A market as the flow sees it."""

    __slots__ = ("book", "grid", "last_us", "market_id", "mid", "ticker", "weight")

    def __init__(self, ticker: str, market_id: str, structure: str, weight: float, mid: int) -> None:
        self.ticker = ticker
        self.market_id = market_id
        self.book = Book()
        self.grid = _grid(structure)
        self.weight = weight
        self.mid = bisect_left(self.grid, mid)
        self.last_us = 0


class Flow:
    """The generator. `opening()` once, then `advance` by time; `burst` is one fit of activity now."""

    def __init__(self, *, seed: int, markets: int, start_us: int, window_us: int = 900 * SECOND) -> None:
        """Plan `markets` markets, a tenth of them short-lived ones that are open for `window_us`."""
        self._random = Random(seed)
        self._start_us = start_us
        self._window_us = window_us
        self._short = max(1, markets // 10) if markets > 2 else 0
        self._long = markets - self._short
        self._trading: dict[str, _Trading] = {}
        self._open: list[_Trading] = []
        self._weights: list[float] = []
        self._agenda: list[tuple[int, int, Callable[[int], Iterator[Happening]]]] = []
        self._agenda_size = 0
        self._next_burst_us = start_us

    def opening(self) -> Iterator[Happening]:
        """Yield the markets that stand at the start, with books."""
        for n in range(self._long):
            yield from self._list_long(n)
        window_start = self._start_us - self._start_us % self._window_us
        for n in range(self._short):
            yield from self._list_short(n, window_start, self._start_us)
        self._reweigh()
        if self._open:
            self._at(self._start_us + self._random.randint(20, 60) * SECOND, self._resnapshot)

    def advance(self, now_us: int, rate: float | None) -> Iterator[tuple[int, Happening]]:
        """Yield (when, what) up to now: what is scheduled, and bursts at `rate` frames a second on average (None: no bursts)."""
        while True:
            scheduled = self._agenda[0][0] if self._agenda else now_us + 1
            if rate is not None and self._open and self._next_burst_us <= min(scheduled, now_us):
                at_us = self._next_burst_us
                happened = self.burst(at_us)
                gap = self._random.expovariate(1.0) * len(happened) / rate
                self._next_burst_us = at_us + max(1, round(gap * SECOND))
                for event in happened:
                    yield at_us, event
            elif scheduled <= now_us:
                due_us, _, happen = heapq.heappop(self._agenda)
                for happening in happen(due_us):
                    yield due_us, happening
            else:
                return

    def skip_to(self, now_us: int) -> None:
        """Forget bursts that should have been before `now_us`: whoever plays the flow cannot keep up."""
        self._next_burst_us = max(self._next_burst_us, now_us)

    def burst(self, at_us: int) -> list[Event]:
        """Return one fit of activity in one market, all of it at `at_us` or some microseconds later."""
        random = self._random
        if not self._open:
            return []
        market = random.choices(self._open, cum_weights=self._weights)[0]
        events: list[Event] = []
        ts_us = max(at_us, market.last_us)
        if random.random() < 0.2:
            market.mid = min(max(market.mid + random.choice((-1, 1)), 1), len(market.grid) - 2)
        for _ in range(1 + int(random.expovariate(0.35))):
            self._act(market, ts_us, events)
            ts_us += random.randint(0, 300)
        market.last_us = ts_us
        if random.random() < 0.1 or any(isinstance(event, Trade) for event in events):
            events.append(Summary(market.ticker, ts_us))
        return events

    # -- orders ------------------------------------------------------------------------------------------------

    def _act(self, market: _Trading, ts_us: int, events: list[Event]) -> None:
        yes, no = market.book.sides
        count, chance = len(yes) + len(no), self._random.random()
        if count < 6 or (chance < 0.46 and count < MOST_LEVELS):
            self._add(market, ts_us, events)
        elif chance < 0.9 or not yes or not no:
            self._cancel(market, ts_us, events)
        else:
            self._trade(market, ts_us, events)

    def _add(self, market: _Trading, ts_us: int, events: list[Event]) -> None:
        random, grid = self._random, market.grid
        yes, no = market.book.sides
        side, depth = random.getrandbits(1), int(random.expovariate(0.3))
        if side == YES:
            place = min(market.mid, bisect_left(grid, 10_000 - max(no, default=0)) - 1) - depth
        else:
            place = max(market.mid + 1, bisect_right(grid, max(yes, default=0))) + depth
        if 0 <= place < len(grid):
            price = grid[place] if side == YES else 10_000 - grid[place]
            events.append(self._change(market, side, price, self._size(), ts_us))

    def _cancel(self, market: _Trading, ts_us: int, events: list[Event]) -> None:
        random = self._random
        side = random.getrandbits(1)
        levels = market.book.sides[side] or market.book.sides[1 - side]
        if levels is not market.book.sides[side]:
            side = 1 - side
        if levels:
            price = random.choice(list(levels))
            held = levels[price]
            size = held if random.random() < 0.6 else random.randint(1, held)
            events.append(self._change(market, side, price, -size, ts_us))

    def _trade(self, market: _Trading, ts_us: int, events: list[Event]) -> None:
        taker = self._random.getrandbits(1)
        maker, wanted = 1 - taker, self._size()
        levels = market.book.sides[maker]
        for _ in range(3):
            if not levels or wanted <= 0:
                break
            price = max(levels)
            count = min(wanted, levels[price])
            wanted -= count
            events.append(self._change(market, maker, price, -count, ts_us))
            yes_price = price if maker == YES else 10_000 - price
            trade_id = str(uuid.UUID(int=self._random.getrandbits(128)))
            frame = frames.trade(market.ticker, trade_id, yes_price, count, taker, ts_us)
            events.append(Trade(market.ticker, frame, ts_us, trade_id, yes_price, count, taker))

    def _change(self, market: _Trading, side: int, price: int, size: int, ts_us: int) -> Delta:
        market.book.apply(side, price, size)
        return Delta(
            market.ticker, frames.delta(market.ticker, market.market_id, side, price, size, ts_us), ts_us, side, price, size
        )

    def _size(self) -> int:
        """Whole contracts mostly, and hundredths of them (seen on the wire: one delta in six)."""
        random = self._random
        return random.randint(1, 50_000) if random.random() < 0.17 else 100 * random.randint(1, 400)

    # -- markets -----------------------------------------------------------------------------------------------

    def _list_long(self, n: int) -> Iterator[Happening]:
        random = self._random
        ticker = _long_ticker(n, self._start_us)
        structure = random.choices(_STRUCTURES, _STRUCTURE_WEIGHTS)[0]
        open_us, close_us = self._start_us - random.randint(1, 90) * 86_400 * SECOND, self._start_us + 60 * 86_400 * SECOND
        body, about = definition(ticker, open_us=open_us, close_us=close_us, status="active", structure=structure)
        market = self._begin(ticker, structure)
        yield Listed(body, about, market.market_id)
        yield self._seeded(market)
        if structure == "linear_cent" and random.random() < 0.05:
            self._at(self._start_us + random.randint(30, 600) * SECOND, lambda _: self._refine(market))

    def _list_short(self, n: int, open_us: int, now_us: int) -> Iterator[Happening]:
        """List the window's market that is open already, and plan its end and the next one's beginning."""
        ticker = self._short_ticker(n, open_us)
        close_us = open_us + self._window_us
        body, about = definition(ticker, open_us=open_us, close_us=close_us, status="active")
        market = self._begin(ticker, "linear_cent")
        yield Listed(body, about, market.market_id)
        yield self._seeded(market)
        self._plan_close(market, n, close_us)

    def _plan_close(self, market: _Trading, n: int, close_us: int) -> None:
        lead = min(60 * SECOND, self._window_us // 4)
        self._at(close_us - lead, lambda now_us: self._announce(n, close_us, now_us))
        self._at(close_us, lambda now_us: self._close(market, now_us))

    def _announce(self, n: int, open_us: int, now_us: int) -> Iterator[Happening]:
        """Create the next window's market: the lifecycle frame first, REST a moment later (it may 404 right after `created`)."""
        ticker = self._short_ticker(n, open_us)
        close_us = open_us + self._window_us
        body, about = definition(ticker, open_us=open_us, close_us=close_us, status="initialized")
        body["created_time"] = body["updated_time"] = frames.rfc3339(now_us)
        yield Notice(ticker, created_frame(body, about, open_us, close_us), {})
        market = _Trading(ticker, str(uuid.UUID(int=self._random.getrandbits(128))), "linear_cent", self._weight(), 5000)

        def listed(_: int) -> Iterator[Happening]:
            yield Listed(body, about, market.market_id)
            yield Snapshot(ticker, frames.snapshot(ticker, market.market_id, market.book), (), ())

        def opened(_: int) -> Iterator[Happening]:
            self._trading[ticker] = market
            self._reweigh()
            yield Changed(ticker, {"status": "active"})

        self._at(min(now_us + 300_000, open_us), listed)
        self._at(open_us, opened)
        self._plan_close(market, n, close_us)

    def _close(self, market: _Trading, close_us: int) -> Iterator[Happening]:
        """Close: last cancels at the very close, unasked empty snapshots, then the result."""
        del self._trading[market.ticker]
        self._reweigh()
        random, ticker = self._random, market.ticker
        yield Changed(ticker, {"status": "closed"})
        for side in (YES, NO):
            for price, size in list(market.book.sides[side].items()):
                if random.random() < 0.5:
                    yield self._change(market, side, price, -size, close_us + random.randint(0, 20))
        market.book = Book()
        scale = min(1.0, self._window_us / (900 * SECOND))
        first = close_us + round(random.uniform(0.2, 5.3) * scale * SECOND)
        empties = [first] if random.random() < 0.4 else [first, first + round(random.uniform(0.1, 2.0) * scale * SECOND)]
        empty = Snapshot(ticker, frames.snapshot(ticker, market.market_id, Book()), (), ())
        for at_us in empties:
            self._at(at_us, lambda _: iter((empty,)))
        self._at(empties[-1] + round(random.uniform(0.5, 12.0) * scale * SECOND), lambda now_us: self._settle(ticker, now_us))

    def _settle(self, ticker: str, now_us: int) -> Iterator[Happening]:
        result, now_s = self._random.choice(("yes", "no")), now_us // SECOND
        value = "1.0000" if result == "yes" else "0.0000"
        determined = lifecycle_frame(ticker, "determined", result=result, determination_ts=now_s, settlement_value=value)
        yield Notice(ticker, determined, {"status": "determined", "result": result})
        final = {"status": "finalized", "settlement_ts": frames.rfc3339(now_us), "settlement_value_dollars": value}
        yield Notice(
            ticker, lifecycle_frame(ticker, "settled", settled_ts=now_s), {**final, "updated_time": frames.rfc3339(now_us)}
        )

    def _refine(self, market: _Trading) -> Iterator[Happening]:
        """Make the market's grid finer while it trades."""
        mid = market.grid[market.mid]
        market.grid = _grid("deci_cent")
        market.mid = bisect_left(market.grid, mid)
        fields = {"price_level_structure": "deci_cent", "price_ranges": PRICE_RANGES["deci_cent"]}
        yield Notice(market.ticker, lifecycle_frame(market.ticker, "price_level_structure_updated", **fields), fields)

    def _resnapshot(self, now_us: int) -> Iterator[Happening]:
        """Send a whole book in mid-session, unasked, as the exchange does now and then."""
        self._at(now_us + self._random.randint(20, 120) * SECOND, self._resnapshot)
        market = self._random.choice(self._open)
        book = market.book
        yield Snapshot(market.ticker, frames.snapshot(market.ticker, market.market_id, book), book.yes, book.no)

    def _begin(self, ticker: str, structure: str) -> _Trading:
        mid = self._random.randint(1000, 9000)
        market_id = str(uuid.UUID(int=self._random.getrandbits(128)))
        market = self._trading[ticker] = _Trading(ticker, market_id, structure, self._weight(), mid)
        return market

    def _seeded(self, market: _Trading) -> Snapshot:
        """Fill a book for a market that has traded for a while; one in ten has no side or only one."""
        events: list[Event] = []
        if self._random.random() > 0.1:
            for _ in range(self._random.randint(2, 20)):
                self._add(market, self._start_us, events)
        book = market.book
        return Snapshot(market.ticker, frames.snapshot(market.ticker, market.market_id, book), book.yes, book.no)

    def _weight(self) -> float:
        return self._random.paretovariate(1.1)

    def _reweigh(self) -> None:
        self._open = list(self._trading.values())
        self._weights = list(accumulate(market.weight for market in self._open))

    def _at(self, due_us: int, happen: Callable[[int], Iterator[Happening]]) -> None:
        self._agenda_size += 1
        heapq.heappush(self._agenda, (due_us, self._agenda_size, happen))

    def _short_ticker(self, n: int, open_us: int) -> str:
        series = _SHORT_SERIES[n] if n < len(_SHORT_SERIES) else f"KXSIM{n}15M"
        close = datetime.fromtimestamp((open_us + self._window_us) // SECOND, UTC)
        whole_minutes = self._window_us % (60 * SECOND) == 0
        stamp = close.strftime("%y%b%d%H%M" if whole_minutes else "%y%b%d%H%M%S").upper()
        return f"{series}-{stamp}-{close.minute:02d}"


def _long_ticker(n: int, start_us: int) -> str:
    """Return a ticker of one of five forms, dots and 57 characters among them (both seen in real ones)."""
    day = datetime.fromtimestamp(start_us // SECOND, UTC).strftime("%y%b%d").upper()
    match n % 5:
        case 0:
            return f"KXBTCD-{day}17-T{60_000 + n * 250 - 1}.99"
        case 1:
            home, away = _TEAMS[n // 5 % 10], _TEAMS[(n // 5 // 10 + n // 5 + 1) % 10]
            return f"KXMLBGAME-{day}{n:04d}{home}{away}-{home}"
        case 2:
            return f"KXFEDDECISION-27JAN-H{n}"
        case 3:
            return "KXMVESPORTSMULTIGAMEEXTENDED-S2026" + f"{n * 0x9E37_79B9_7F4A % 2**48:012X}-{n:010d}"
        case _:
            return f"KXHIGHNY-{day}-B{20 + n}.5"


_GRIDS: dict[str, list[int]] = {}


def _grid(structure: str) -> list[int]:
    """Return every price strictly between 0 and one dollar that the structure allows."""
    if structure not in _GRIDS:
        prices: set[int] = set()
        for span in PRICE_RANGES[structure]:
            start, end, step = (parse_price(span[key]) for key in ("start", "end", "step"))
            prices.update(range(start, end + 1, step))
        _GRIDS[structure] = sorted(prices - {0, 10_000})
    return _GRIDS[structure]
