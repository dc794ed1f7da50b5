"""What a lifecycle event says about the row of a market, an event or a series: pure, from the JSON as sent to columns.

A column the body does not speak of is None and stays as it is in the table.
"""

from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

import orjson

from kalshibook_core.kalshi import numbers
from kalshibook_core.wire import events
from kalshibook_core.wire.events import Lifecycle

EVENT_LEVEL: Final = frozenset({"event_lifecycle", "event_fee_update", events.EVENT, events.SERIES})
"""What speaks of no market: message types (Kalshi docs, market_lifecycle_v2), and our words for REST's definitions."""

_STATUS: Final = {
    "created": "initialized",
    "activated": "active",
    "deactivated": "inactive",
    "determined": "determined",
    "settled": "finalized",
}
"""The REST status a market has after a frame (Kalshi docs, "Market lifecycle"); opening and closing by time send none."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class MarketChange(NamedTuple):
    """New values of a market's columns, in the order of the table; None leaves the old one."""

    ticker: str
    event_ticker: str | None
    series_ticker: str | None
    title: str | None
    status: str | None
    result: str | None
    open_us: int | None
    close_us: int | None
    settled_us: int | None
    settlement_value: int | None
    updated_us: int
    body: str | None


class Family(NamedTuple):
    """A row of the tables events or series."""

    ticker: str
    series_ticker: str | None
    title: str | None
    category: str | None
    updated_us: int
    body: str


def family(event: Lifecycle) -> Family | None:
    """Return the definition of an event or a series that it is; None if it is none. Raise ValueError as `change` does."""
    if event.event_type not in (events.EVENT, events.SERIES):
        return None
    body = _object(event)
    series, title, category = (_text(body.get(name)) for name in ("series_ticker", "title", "category"))
    return Family(event.market_ticker, series, title, category, event.recv_us, event.body.decode())


def change(event: Lifecycle) -> MarketChange | None:
    """Return what the event changes; None if it is about no market. Raise ValueError if its body is not a JSON object."""
    body = _object(event)
    if event.event_type in EVENT_LEVEL or not event.market_ticker or event.market_ticker.startswith("@"):
        return None
    return _from_rest(event, body) if event.event_type == "market" else _from_frame(event, body)


def later(old: MarketChange, new: MarketChange) -> MarketChange:
    """Return two changes of one market as one."""
    merged: list[Any] = [before if after is None else after for before, after in zip(old, new, strict=True)]
    return MarketChange(*merged)


def _from_rest(event: Lifecycle, body: dict[str, Any]) -> MarketChange:
    return MarketChange(
        event.market_ticker,
        _text(body.get("event_ticker")),
        _text(body.get("series_ticker")),
        _text(body.get("title")),
        _text(body.get("status")),
        _text(body.get("result")),
        _moment(body.get("open_time")),
        _moment(body.get("close_time")),
        _moment(body.get("settlement_ts")),
        _dollars(body.get("settlement_value_dollars")),
        event.recv_us,
        event.body.decode(),
    )


def _from_frame(event: Lifecycle, body: dict[str, Any]) -> MarketChange:
    about = body.get("additional_metadata")
    about = about if isinstance(about, dict) else {}
    status = _STATUS.get(event.event_type)
    if event.event_type == "activated" and body.get("is_deactivated") is True:
        status = "inactive"
    return MarketChange(
        event.market_ticker,
        _text(about.get("event_ticker")),
        _text(about.get("series_ticker")),
        _text(about.get("title")),
        status,
        _text(body.get("result")),
        _moment(body.get("open_ts")),
        _moment(body.get("close_ts")),
        _moment(body.get("settled_ts")),
        _dollars(body.get("settlement_value")),
        event.recv_us,
        None,
    )


def _object(event: Lifecycle) -> dict[str, Any]:
    body = orjson.loads(event.body)
    if not isinstance(body, dict):
        raise ValueError("the body of a lifecycle event is not a JSON object")
    return body


def _text(value: object) -> str | None:
    # Postgres text holds no NUL; the body keeps the exchange's bytes as sent.
    return value.replace("\x00", "") or None if isinstance(value, str) else None


def _dollars(value: object) -> int | None:
    """1/10,000 dollars of what a YES contract pays; None where it is not said (it is "" until then)."""
    try:
        return numbers.price(value) if isinstance(value, str) else None
    except numbers.NotRepresentable:
        return None


def _moment(value: object) -> int | None:
    """Microseconds of an RFC 3339 text (REST) or of whole Unix seconds (frames); None for anything else."""
    try:
        if isinstance(value, str):
            moment = datetime.fromisoformat(value)
            return (moment - _EPOCH) // timedelta(microseconds=1) if moment.tzinfo else None
        return value * 1_000_000 if type(value) is int and 0 < value < 10**11 else None
    except ValueError:
        return None
