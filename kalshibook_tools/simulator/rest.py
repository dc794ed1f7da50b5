"""The exchange's public REST answers, from its markets as they stand (Kalshi docs, API reference; bodies as seen on the wire).

A request in, a status and a body out; nothing here waits or sends.
"""

import base64
import binascii
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar
from urllib.parse import parse_qs, unquote

from kalshibook_core.kalshi import messages
from kalshibook_core.kalshi.numbers import format_price, format_size
from kalshibook_tools.simulator import frames
from kalshibook_tools.simulator.exchange import Exchange
from kalshibook_tools.simulator.market import STATUS_FILTERS, Market, Trade

PREFIX = "/trade-api/v2"
T = TypeVar("T")
Answer = tuple[int, Any]
_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")


class BadParameter(ValueError):
    """A query parameter REST refuses, with the exchange's own words for it."""


def answer(exchange: Exchange, path: str, query_text: str) -> Answer:
    """Answer GET `path` (below the prefix) with `query_text`."""
    query = parse_qs(query_text, keep_blank_values=True)
    parts = [unquote(part) for part in path.strip("/").split("/")]
    try:
        match parts:
            case ["markets"]:
                return _markets(exchange, query)
            case ["markets", "trades"]:
                return _trades(exchange, query, historical=False)
            case ["markets", "orderbooks"]:
                tickers = [ticker for text in query.get("tickers", []) for ticker in text.split(",")][:100]
                known = [(ticker, exchange.markets[ticker]) for ticker in tickers if ticker in exchange.markets]
                return 200, {"orderbooks": [{"ticker": ticker, **market.rest_book()} for ticker, market in known]}
            case ["historical", "cutoff"]:
                at = frames.rfc3339(exchange.cutoff_us)
                return 200, {"market_settled_ts": at, "orders_updated_ts": at, "trades_created_ts": at}
            case ["historical", "trades"]:
                return _trades(exchange, query, historical=True)
            case ["historical", "markets"]:
                return _historical_markets(exchange, query)
            case ["historical", "markets", ticker]:
                market = exchange.markets.get(ticker)
                there = market is not None and _historical(exchange, market)
                return (200, {"market": market.rest_object()}) if market and there else _not_found()
            case ["markets", ticker]:
                market = exchange.markets.get(ticker)
                there = market is not None and not _historical(exchange, market)
                return (200, {"market": market.rest_object()}) if market and there else _not_found()
            case ["markets", ticker, "orderbook"]:
                market = exchange.markets.get(ticker)
                depth = _integer(query, "depth", 0, "GetMarketOrderbook", "Depth", 100)
                return (200, market.rest_book(depth)) if market else _not_found()
            case ["events"]:
                return _events(exchange, query)
            case ["events", event_ticker]:
                markets = [m for m in exchange.markets.values() if m.event["event_ticker"] == event_ticker]
                if not markets:
                    return _not_found()
                return 200, {"event": markets[0].event, "markets": [market.rest_object() for market in markets]}
            case ["series"]:
                return 200, {"series": [_series(ticker) for ticker in sorted(_series_tickers(exchange))]}
            case ["series", ticker]:
                return (200, {"series": _series(ticker)}) if ticker in _series_tickers(exchange) else _not_found()
            case ["exchange", "status"]:
                return 200, _status(exchange)
            case ["exchange", "schedule"]:
                return 200, _schedule()
            case _:
                return _not_found()
    except BadParameter as refusal:
        return 400, {"msg": str(refusal)}


def _markets(exchange: Exchange, query: Mapping[str, list[str]]) -> Answer:
    limit = _integer(query, "limit", 100, "GetMarkets", "Limit", 1000) or 100
    status = _one(query, "status")
    if status and not all(word in STATUS_FILTERS for word in status.split(",")):
        raise BadParameter(_invalid("GetMarkets", "Status", "oneof"))
    states = [state for word in status.split(",") for state in STATUS_FILTERS[word]] if status else None
    tickers = set(_one(query, "tickers").split(",")) if _one(query, "tickers") else None
    event, series, combos = _one(query, "event_ticker"), _one(query, "series_ticker"), _one(query, "mve_filter")
    bounds = [(key, *_bounds(query, name)) for name, key in _TIMES.items()]
    chosen = [
        market
        for market in exchange.markets.values()
        if (states is None or market.body["status"] in states)
        and not _historical(exchange, market)
        and (tickers is None or market.ticker in tickers)
        and event in ("", market.event["event_ticker"])
        and series in ("", market.event["series_ticker"])
        and (not combos or market.ticker.startswith("KXMVE") == (combos == "only"))
        and all(_within(market.body.get(key), low, high) for key, low, high in bounds)
    ]
    page, cursor = _page(chosen, _one(query, "cursor"), limit, lambda market: market.ticker)
    return 200, {"cursor": cursor, "markets": [market.rest_object() for market in page]}


def _historical_markets(exchange: Exchange, query: Mapping[str, list[str]]) -> Answer:
    """Markets settled before the cutoff; unlike GET /markets it knows no times (Kalshi docs, "Get Historical Markets")."""
    limit = _integer(query, "limit", 100, "GetMarketsHistorical", "Limit", 1000) or 100
    tickers = set(_one(query, "tickers").split(",")) if _one(query, "tickers") else None
    event, series = _one(query, "event_ticker"), _one(query, "series_ticker")
    chosen = [
        market
        for market in exchange.markets.values()
        if _historical(exchange, market)
        and (tickers is None or market.ticker in tickers)
        and event in ("", market.event["event_ticker"])
        and series in ("", market.event["series_ticker"])
        and not (_one(query, "mve_filter") and market.ticker.startswith("KXMVE"))
    ]
    page, cursor = _page(chosen, _one(query, "cursor"), limit, lambda market: market.ticker)
    return 200, {"cursor": cursor, "markets": [market.rest_object() for market in page]}


def _historical(exchange: Exchange, market: Market) -> bool:
    settled: str = market.body.get("settlement_ts") or ""
    return bool(settled) and messages.time_us(settled) < exchange.cutoff_us


def _events(exchange: Exchange, query: Mapping[str, list[str]]) -> Answer:
    limit = _integer(query, "limit", 200, "GetEvents", "Limit", 200) or 200
    series, nested = _one(query, "series_ticker"), _one(query, "with_nested_markets") == "true"
    markets: dict[str, list[Market]] = {}
    for market in exchange.markets.values():
        if series in ("", market.event["series_ticker"]):
            markets.setdefault(market.event["event_ticker"], []).append(market)
    page, cursor = _page(list(markets), _one(query, "cursor"), limit, lambda ticker: ticker)
    events = [
        {**markets[ticker][0].event, **({"markets": [m.rest_object() for m in markets[ticker]]} if nested else {})}
        for ticker in page
    ]
    return 200, {"cursor": cursor, "events": events}


def _trades(exchange: Exchange, query: Mapping[str, list[str]], *, historical: bool) -> Answer:
    """Newest first; live and historical ones are two lists that have nothing in common."""
    limit = _integer(query, "limit", 100, "GetTrades", "Limit", 1000) or 100
    ticker, (low, high), cutoff_us = _one(query, "ticker"), _bounds(query, "ts"), exchange.cutoff_us
    chosen = [
        trade
        for trade in reversed(exchange.recent_trades)
        if ticker in ("", trade.ticker) and low * 1_000_000 <= trade.ts_us and trade.ts_us < high * 1_000_000
    ]
    # A cursor outlives its trade's move from one list to the other.
    start = _after(chosen, _one(query, "cursor"), lambda trade: trade.trade_id)
    chosen = [trade for trade in chosen[start:] if (trade.ts_us < cutoff_us) == historical]
    page, cursor = _page(chosen, "", limit, lambda trade: trade.trade_id)
    return 200, {"cursor": cursor, "trades": [_trade(trade) for trade in page]}


def _trade(trade: Trade) -> dict[str, Any]:
    side = frames.SIDES[trade.taker_side]
    return {
        "count_fp": format_size(trade.size),
        "created_time": frames.rfc3339(trade.ts_us),
        "is_block_trade": False,
        "no_price_dollars": format_price(10_000 - trade.yes_price),
        "taker_book_side": ("bid", "ask")[trade.taker_side],
        "taker_outcome_side": side,
        "taker_side": side,
        "ticker": trade.ticker,
        "trade_id": trade.trade_id,
        "yes_price_dollars": format_price(trade.yes_price),
    }


def _page(rows: list[T], cursor: str, limit: int, key: Any) -> tuple[list[T], str]:
    """Return one page and the cursor after it ("" at the end)."""
    start = _after(rows, cursor, key)
    page = rows[start : start + limit]
    more = start + limit < len(rows)
    return page, base64.urlsafe_b64encode(key(page[-1]).encode()).decode().rstrip("=") if more else ""


def _after(rows: list[T], cursor: str, key: Any) -> int:
    """Return where the page after this cursor begins. Garbage means the first page (seen on the wire)."""
    try:
        after = base64.urlsafe_b64decode(cursor.encode() + b"==").decode() if cursor else ""
    except (binascii.Error, ValueError):
        after = ""
    return next((index + 1 for index, row in enumerate(rows) if key(row) == after), 0) if after else 0


_TIMES = {"created": "created_time", "updated": "updated_time", "close": "close_time", "settled": "settlement_ts"}


def _bounds(query: Mapping[str, list[str]], name: str) -> tuple[float, float]:
    names = ("min_ts", "max_ts") if name == "ts" else (f"min_{name}_ts", f"max_{name}_ts")
    try:
        low, high = (_one(query, bound) for bound in names)
        return float(low) if low else float("-inf"), float(high) if high else float("inf")
    except ValueError:
        raise BadParameter(_invalid("GetMarkets", names[0], "number")) from None


def _within(text: str | None, low: float, high: float) -> bool:
    if low == float("-inf") and high == float("inf"):
        return True
    return text is not None and low <= messages.time_us(text) / 1_000_000 <= high


def _one(query: Mapping[str, list[str]], name: str) -> str:
    return query.get(name, [""])[0]


def _integer(query: Mapping[str, list[str]], name: str, default: int, call: str, field: str, most: int) -> int:
    text = _one(query, name)
    if not text:
        return default
    try:
        value = int(text)
    except ValueError:
        raise BadParameter(_invalid(call, field, "number")) from None
    if value > most:
        raise BadParameter(_invalid(call, field, "lte"))
    if value < 0:
        raise BadParameter(_invalid(call, field, "gte"))
    return value


def _invalid(call: str, field: str, tag: str) -> str:
    return (
        f"Parameter validation failed for {call}: Key: '{call}Params.{field}' "
        f"Error:Field validation for '{field}' failed on the '{tag}' tag"
    )


def _not_found() -> Answer:
    return 404, {"error": {"code": "not_found", "message": "not found"}}


def _series_tickers(exchange: Exchange) -> Iterable[str]:
    return {market.event["series_ticker"] for market in exchange.markets.values()}


def _series(ticker: str) -> dict[str, Any]:
    return {"category": "Simulated", "frequency": "custom", "tags": [], "ticker": ticker, "title": ticker}


def _status(exchange: Exchange) -> dict[str, Any]:
    return {"exchange_active": True, "trading_active": not exchange.paused}


def _schedule() -> dict[str, Any]:
    """Open around the clock but for the weekly pause, Thursday 03:00-05:00 Eastern (Kalshi docs, "Maintenance and pauses")."""
    whole = [{"open_time": "00:00", "close_time": "00:00"}]
    hours: dict[str, Any] = dict.fromkeys(_DAYS, whole)
    hours["thursday"] = [{"open_time": "00:00", "close_time": "03:00"}, {"open_time": "05:00", "close_time": "00:00"}]
    span = {"start_time": "2021-01-01T00:00:00Z", "end_time": "2099-01-01T00:00:00Z"}
    return {"schedule": {"maintenance_windows": [], "standard_hours": [{**span, **hours}]}}
