"""A market of the simulated exchange: its definition, its book, and everything that was true of it, in order."""

from collections import deque
from collections.abc import Iterable
from typing import Any, NamedTuple

from kalshibook_core.kalshi import channels
from kalshibook_core.kalshi.numbers import format_price, format_size
from kalshibook_core.orderbook import Book
from kalshibook_tools.simulator import frames
from kalshibook_tools.simulator.frames import Frame

Ladder = tuple[tuple[int, int], ...]

STATUS_FILTERS = {
    "unopened": ("initialized",),
    "open": ("active",),
    "paused": ("inactive",),
    "closed": ("closed", "determined", "disputed", "amended"),
    "settled": ("finalized",),
}
"""REST's `status` parameter names states otherwise than the market object does (Kalshi docs, "Market lifecycle")."""


class Snapshot(NamedTuple):
    """The exchange sends the whole book, unasked or as a market's first frame."""

    ticker: str
    frame: Frame
    yes: Ladder
    no: Ladder


class Delta(NamedTuple):
    """One level changes by a signed size."""

    ticker: str
    frame: Frame
    ts_us: int
    side: int
    price: int
    size: int


class Trade(NamedTuple):
    """Two orders met."""

    ticker: str
    frame: Frame
    ts_us: int
    trade_id: str
    yes_price: int
    size: int
    taker_side: int


class Notice(NamedTuple):
    """A frame that changes no book and is no trade: ticker, lifecycle. `changes` go into the market's REST object."""

    ticker: str
    frame: Frame
    changes: dict[str, Any]


class Summary(NamedTuple):
    """A ticker frame is due; it is made of the market as it then is."""

    ticker: str
    ts_us: int


Event = Snapshot | Delta | Trade | Notice | Summary


class TrueEvent(NamedTuple):
    """One true event with what became of it: to how many subscriptions it went, for how many a fault lost it.

    Its frame is not kept: it would take two thirds of the memory.
    """

    kind: type[Snapshot | Delta | Trade]
    content: tuple[Any, ...]  # the event's fields after its frame
    sent: int
    lost: int

    def row(self) -> dict[str, Any]:
        """Return the event as truth is served: integers, microseconds."""
        if self.kind is Snapshot:
            yes, no = self.content
            body: dict[str, Any] = {"type": "snapshot", "ts_us": None, "yes": yes, "no": no}
        elif self.kind is Delta:
            ts_us, side, price, size = self.content
            body = {"type": "delta", "ts_us": ts_us, "side": frames.SIDES[side], "price": price, "delta": size}
        else:
            ts_us, trade_id, price, count, taker = self.content
            body = {"type": "trade", "ts_us": ts_us, "trade_id": trade_id, "yes_price": price, "count": count}
            body["taker_side"] = frames.SIDES[taker]
        return {**body, "sent": self.sent, "lost": self.lost}


class Market:
    """One market. `book` is None until its first snapshot; `body` is what REST shows of it apart from its quotes."""

    __slots__ = (
        "body",
        "book",
        "book_frames",
        "event",
        "forgotten",
        "gaps",
        "last_price",
        "market_id",
        "ticker",
        "trades",
        "truth",
        "volume",
    )

    @property
    def ended(self) -> bool:
        """True when it is determined: nothing of it is traded any more."""
        return self.body["status"] in ("determined", "finalized")

    def __init__(self, body: dict[str, Any], event: dict[str, Any], market_id: str, truth_limit: int) -> None:
        self.ticker: str = body["ticker"]
        self.body = body
        self.event = event
        self.market_id = market_id
        self.book: Book | None = None
        self.truth: deque[TrueEvent] = deque(maxlen=truth_limit)
        self.forgotten = 0
        self.book_frames = self.trades = self.gaps = 0
        self.last_price = self.volume = 0

    def apply(self, event: Snapshot | Delta | Trade) -> None:
        """Let a true event happen. CorruptBook, and nothing changed, for a delta the book cannot take."""
        if isinstance(event, Delta):
            if self.book is not None:
                self.book.apply(event.side, event.price, event.size)
            self.book_frames += 1
        elif isinstance(event, Snapshot):
            self.book = Book(event.yes, event.no)
            self.book_frames += 1
        else:
            self.trades += 1
            self.volume += event.size
            self.last_price = event.yes_price

    def remember(self, event: Snapshot | Delta | Trade, sent: int, lost: int) -> None:
        """Keep a true event; the oldest is forgotten, and counted, where the limit is reached."""
        if len(self.truth) == self.truth.maxlen:
            self.forgotten += 1
        self.truth.append(TrueEvent(type(event), event[2:], sent, lost))

    def quotes(self) -> tuple[int, int, int, int]:
        """Return (yes bid, its size, yes ask, its size); a side without levels bids 0 and asks one dollar."""
        yes, no = self.book.sides if self.book is not None else ({}, {})
        bid, best_no = max(yes, default=0), max(no, default=0)
        return bid, yes.get(bid, 0), 10_000 - best_no, no.get(best_no, 0)

    def rest_object(self) -> dict[str, Any]:
        """Return the market as REST shows it now, keys in order (GET /markets/{ticker})."""
        if self.body["status"] == "finalized":
            return self.body
        bid, bid_size, ask, ask_size = self.quotes()
        live = {
            "yes_bid_dollars": format_price(bid),
            "yes_ask_dollars": format_price(ask),
            "no_bid_dollars": format_price(10_000 - ask),
            "no_ask_dollars": format_price(10_000 - bid),
            "yes_bid_size_fp": format_size(bid_size),
            "yes_ask_size_fp": format_size(ask_size),
            "last_price_dollars": format_price(self.last_price),
            "volume_fp": format_size(self.volume),
            "volume_24h_fp": format_size(self.volume),
            "open_interest_fp": format_size(self.volume // 2),
        }
        return dict(sorted({**self.body, **live}.items()))

    def rest_book(self, depth: int = 0) -> dict[str, Any]:
        """Return the book as REST shows it: ascending, best bid last, the best `depth` levels (0: all)."""
        book = self.book if self.book is not None else Book()
        return {
            "orderbook_fp": {
                "no_dollars": _strings(book.no[-depth:]),
                "yes_dollars": _strings(book.yes[-depth:]),
            }
        }

    def summary(self, ts_us: int) -> Frame:
        """Return the market's `ticker` frame."""
        bid, bid_size, ask, ask_size = self.quotes()
        msg = {
            "market_ticker": self.ticker,
            "market_id": self.market_id,
            "price_dollars": format_price(self.last_price),
            "yes_bid_dollars": format_price(bid),
            "yes_ask_dollars": format_price(ask),
            "volume_fp": format_size(self.volume),
            "open_interest_fp": format_size(self.volume // 2),
            "dollar_volume": self.volume // 200,
            "dollar_open_interest": self.volume // 400,
            "yes_bid_size_fp": format_size(bid_size),
            "yes_ask_size_fp": format_size(ask_size),
            "last_trade_size_fp": "0.00",
            "ts": ts_us // 1_000_000,
            "ts_ms": ts_us // 1000,
            "time": frames.rfc3339(ts_us),
        }
        return frames.built("ticker", msg, sequenced=False)


def definition(
    ticker: str,
    *,
    open_us: int,
    close_us: int,
    status: str,
    structure: str = "linear_cent",
    event_ticker: str | None = None,
    series_ticker: str | None = None,
    title: str | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (market object, event object) with every field REST requires, for a market nobody described."""
    event_ticker = event_ticker or (ticker.rpartition("-")[0] or ticker)
    series_ticker = series_ticker or ticker.partition("-")[0]
    opened, closes = frames.rfc3339(open_us), frames.rfc3339(close_us)
    market = {
        "can_close_early": True,
        "close_time": closes,
        "created_time": opened,
        "event_ticker": event_ticker,
        "exchange_index": 0,
        "expected_expiration_time": closes,
        "expiration_value": "",
        "latest_expiration_time": closes,
        "liquidity_dollars": "0.0000",
        "market_type": "binary",
        "no_sub_title": "",
        "notional_value_dollars": "1.0000",
        "open_time": opened,
        "previous_price_dollars": "0.0000",
        "previous_yes_ask_dollars": "0.0000",
        "previous_yes_bid_dollars": "0.0000",
        "price_level_structure": structure,
        "price_ranges": PRICE_RANGES[structure],
        "result": "",
        "rules_primary": "A market of the KalshiBook simulator. It settles to no truth.",
        "rules_secondary": "",
        "settlement_timer_seconds": 1,
        "status": status,
        "ticker": ticker,
        "title": title or ticker,
        "updated_time": opened,
        "yes_sub_title": "",
    }
    event = {
        "category": "Simulated",
        "collateral_return_type": "",
        "event_ticker": event_ticker,
        "mutually_exclusive": False,
        "series_ticker": series_ticker,
        "strike_period": "",
        "sub_title": "",
        "title": title or event_ticker,
    }
    return market, event


def created_frame(body: dict[str, Any], event: dict[str, Any], open_us: int, close_us: int) -> Frame:
    """Return the lifecycle frame of a new market; combos have a channel of their own (changelog, Feb 12 2026)."""
    kind = channels.COMBO_LIFECYCLE if body["ticker"].startswith("KXMVE") else channels.LIFECYCLE
    msg = {
        "market_ticker": body["ticker"],
        "event_type": "created",
        "exchange_index": 0,
        "open_ts": open_us // 1_000_000,
        "close_ts": close_us // 1_000_000,
        "price_level_structure": body.get("price_level_structure", ""),
        "price_ranges": body.get("price_ranges", []),
        "additional_metadata": {
            "name": body.get("title", ""),
            "title": body.get("title", ""),
            "yes_sub_title": body.get("yes_sub_title", ""),
            "no_sub_title": body.get("no_sub_title", ""),
            "rules_primary": body.get("rules_primary", ""),
            "rules_secondary": body.get("rules_secondary", ""),
            "can_close_early": body.get("can_close_early", True),
            "event_ticker": event["event_ticker"],
        },
    }
    return frames.built(kind, msg)


def lifecycle_frame(ticker: str, event_type: str, **fields: Any) -> Frame:
    """Return a lifecycle frame of this type."""
    return frames.built(channels.LIFECYCLE, {"market_ticker": ticker, "event_type": event_type, **fields})


def _range(start: int, end: int, step: int) -> dict[str, str]:
    return {"end": format_price(end), "start": format_price(start), "step": format_price(step)}


def _edges(edge: int, step: int, middle: int) -> list[dict[str, str]]:
    return [_range(0, edge, step), _range(edge, 10_000 - edge, middle), _range(10_000 - edge, 10_000, step)]


PRICE_RANGES = {
    "linear_cent": [_range(0, 10_000, 100)],
    "deci_cent": [_range(0, 10_000, 10)],
    "tapered_deci_cent": _edges(1000, 10, 100),
    "center_whole_edge_half_cent": _edges(1000, 50, 100),
    "center_half_edge_quint_cent": _edges(1000, 20, 50),
    "center_centi_edge_centi_cent": [_range(0, 10_000, 1)],
    "center_deci_edge_centi_cent": _edges(100, 1, 10),
}
"""Price grids by name (Kalshi docs, "Fixed-point migration", August 2026)."""


def fitting_structure(levels: Iterable[tuple[int, int]]) -> str:
    """Return the coarsest uniform grid that holds all these prices."""
    prices = [price for price, _ in levels]
    uniform = (("linear_cent", 100), ("deci_cent", 10))
    return next((name for name, step in uniform if not any(p % step for p in prices)), "center_centi_edge_centi_cent")


def _strings(levels: Iterable[tuple[int, int]]) -> list[list[str]]:
    return [[format_price(price), format_size(size)] for price, size in levels]
