"""Frames in the documented form, made by hand: what the exchange sends, key order and final newline included."""

import orjson


def _frame(kind: str, top: dict[str, object], msg: dict[str, object]) -> bytes:
    return orjson.dumps({"type": kind, **top, "msg": msg}) + b"\n"


def subscribed(command_id: int, channel: str, sid: int) -> bytes:
    return _frame("subscribed", {"id": command_id}, {"channel": channel, "sid": sid})


def ok(command_id: int, sid: int, seq: int, tickers: list[str]) -> bytes:
    return _frame("ok", {"id": command_id, "sid": sid, "seq": seq}, {"market_tickers": tickers})


def error(code: int, text: str, **top: object) -> bytes:
    return _frame("error", top, {"code": code, "msg": text})


def snapshot(ticker: str, sid: int, seq: int, yes: list[list[str]] = [], no: list[list[str]] = [], command_id: int = 0) -> bytes:  # noqa: B006
    msg: dict[str, object] = {"market_ticker": ticker, "market_id": "9b0f6b43-5b68-4f9f-9f02-9a2d1b8ac1a1"}
    msg |= {key: rows for key, rows in (("yes_dollars_fp", yes), ("no_dollars_fp", no)) if rows}
    return _frame("orderbook_snapshot", ({"id": command_id} if command_id else {}) | {"sid": sid, "seq": seq}, msg)


def delta(ticker: str, sid: int, seq: int, price: str = "0.4800", delta: str = "1.00", side: str = "yes", ts: str = "") -> bytes:
    msg: dict[str, object] = {"market_ticker": ticker, "market_id": "9b0f6b43-5b68-4f9f-9f02-9a2d1b8ac1a1"}
    msg |= {"price_dollars": price, "delta_fp": delta, "side": side}
    return _frame("orderbook_delta", {"sid": sid, "seq": seq}, msg | ({"ts": ts} if ts else {}))


def trade(
    ticker: str,
    sid: int,
    seq: int,
    trade_id: str,
    yes_price: str = "0.4800",
    count: str = "1.00",
    taker: str = "yes",
    ts_ms: int = 0,
) -> bytes:
    msg: dict[str, object] = {"trade_id": trade_id, "market_ticker": ticker, "yes_price_dollars": yes_price, "count_fp": count}
    return _frame("trade", {"sid": sid, "seq": seq}, msg | {"taker_side": taker, "ts": ts_ms // 1000, "ts_ms": ts_ms})


def ticker(ticker: str, sid: int, ts_ms: int = 0) -> bytes:
    return _frame(
        "ticker", {"sid": sid}, {"market_ticker": ticker, "price_dollars": "0.4800", "ts": ts_ms // 1000, "ts_ms": ts_ms}
    )


def lifecycle(ticker: str, sid: int, seq: int, event_type: str, **msg: object) -> bytes:
    top = {"sid": sid} | ({"seq": seq} if seq >= 0 else {})
    return _frame("market_lifecycle_v2", top, {"market_ticker": ticker, "event_type": event_type, **msg})
