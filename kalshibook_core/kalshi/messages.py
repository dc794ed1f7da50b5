"""What the exchange's frames say: the envelope all of them share, then the contents of each channel.

Two depths on purpose. `envelope` reads what ordering and routing need and refuses only what is no message at all; `parse_*`
reads a channel's content into integers and refuses whatever it cannot hold exactly. Anything refused is still a frame that
was received: the caller keeps its bytes.

Formats by date (Kalshi changelog): integers in cents and whole contracts until 2026-03-12, beside them `*_dollars` with
whole contracts from 2025-09-09 and `*_dollars_fp` strings from 2026-01-22; only the strings since. All three are read, the
finest present.
"""

import re
from datetime import UTC, datetime
from functools import cache, lru_cache
from typing import Any, Final, NamedTuple, TypeGuard

import orjson

from kalshibook_core.kalshi import channels, numbers

YES: Final = 0
NO: Final = 1
SIDES: Final = {"yes": YES, "no": NO}

SNAPSHOT: Final = "orderbook_snapshot"
DELTA: Final = "orderbook_delta"
TRADE: Final = "trade"
TICKER: Final = "ticker"
LIFECYCLE_TYPES: Final = frozenset({*channels.LIFECYCLES, "event_lifecycle", "event_fee_update"})
"""Message types of both lifecycle channels."""

CHANNEL_OF_TYPE: Final = {
    SNAPSHOT: channels.BOOK,
    DELTA: channels.BOOK,
    TRADE: channels.TRADES,
    TICKER: channels.TICKERS,
    **dict.fromkeys(LIFECYCLE_TYPES, channels.LIFECYCLE),
    channels.COMBO_LIFECYCLE: channels.COMBO_LIFECYCLE,
}
REPLY_TYPES: Final = frozenset({"subscribed", "unsubscribed", "ok", "error"})
"""Message types that answer a command; of a sid that has a seq, they consume one."""

LONGEST_TICKER: Final = 200
"""Kalshi's OpenAPI maxLength; 57 is the longest seen on the wire, and dots occur although the pattern denies them."""

_DEEP: Final = 200
"""Brackets that a frame may open before it is looked at whether they are nested; orjson reads 1,024 levels and writes 254."""

Levels = tuple[tuple[int, int], ...]
"""One side's levels, ascending by price: ((price, size), ...)."""


def is_word(value: object) -> TypeGuard[str]:
    """Return whether this can be a ticker, an id or a kind of event: tables and their indexes hold no NUL and nothing longer."""
    return type(value) is str and 0 < len(value) <= LONGEST_TICKER and "\0" not in value


class MalformedFrame(ValueError):
    """The bytes are not a message: no JSON object, or no usable type, sid or seq."""


class UnparsableFrame(ValueError):
    """The frame is a message of a known channel, but its content is not what that channel carries."""

    def __init__(self, kind: str, why: str) -> None:
        """`kind` is the message type, for counting; `why` is for a person."""
        super().__init__(f"{kind}: {why}")
        self.kind = kind
        self.why = why


class Envelope(NamedTuple):
    """What every message has, or its absence: sid and seq -1, id and exchange_us 0, market_ticker ""."""

    type: str
    sid: int
    seq: int
    market_ticker: str
    id: int
    exchange_us: int
    msg: Any  # a dict in every channel's messages; a list in the reply to list_subscriptions; {} where absent


class Snapshot(NamedTuple):
    """The whole book of a market, prices of both sides as their own side's bids (NO prices are native)."""

    yes: Levels
    no: Levels


class Delta(NamedTuple):
    """A signed change of one level's size; exchange_us is 0 where the frame carries no timestamp."""

    side: int
    price: int
    delta: int
    exchange_us: int


class Trade(NamedTuple):
    """One trade; is_block_trade is None where the frame does not say (before 2026-08-13)."""

    trade_id: str
    exchange_us: int
    yes_price: int
    no_price: int
    size: int
    taker_side: int
    is_block_trade: bool | None


class Ticker(NamedTuple):
    """The exchange's own summary of a market; a field the frame does not carry is None. Dollar figures are whole dollars."""

    exchange_us: int
    price: int | None
    yes_bid: int | None
    yes_ask: int | None
    yes_bid_size: int | None
    yes_ask_size: int | None
    last_trade_size: int | None
    volume: int | None
    open_interest: int | None
    dollar_volume: int | None
    dollar_open_interest: int | None


class Lifecycle(NamedTuple):
    """A change of a market's definition, or of its event's (then market_ticker is ""). `msg` is the message's content."""

    market_ticker: str
    event_type: str
    msg: dict[str, Any]


def envelope(frame: bytes) -> Envelope:
    """Read a frame's envelope; raise MalformedFrame where there is none.

    A ticker that no market can have (see `is_word`) reads as "": the frame belongs to no market.
    """
    try:
        message = orjson.loads(frame)
    except orjson.JSONDecodeError as error:
        raise MalformedFrame(f"not JSON: {error}") from None
    if type(message) is not dict:
        raise MalformedFrame("not a JSON object")
    if frame.count(b"[") + frame.count(b"{") > _DEEP:
        try:
            orjson.dumps(message)
        except TypeError as error:  # whoever told or wrote a part of it would run out of stack
            raise MalformedFrame(f"nested too deeply: {error}") from None
    get = message.get
    kind, sid, seq, reply_to = get("type"), get("sid", -1), get("seq", -1), get("id", 0)
    if type(kind) is not str:
        raise MalformedFrame("no type")
    if type(sid) is not int or not -1 <= sid < 2**31 or type(seq) is not int or not -1 <= seq < 2**63:
        raise MalformedFrame("sid or seq is not a number a subscription can have")
    msg = get("msg")
    if type(msg) is not dict:
        return Envelope(kind, sid, seq, "", reply_to if type(reply_to) is int else 0, 0, {} if msg is None else msg)
    ticker = msg.get("market_ticker", "")
    if not is_word(ticker):
        ticker = ""
    return Envelope(kind, sid, seq, ticker, reply_to if type(reply_to) is int else 0, _exchange_us(msg), msg)


def plain_delta(frame: bytes) -> tuple[int, int, str, int, int, int, int] | None:
    """Return (sid, seq, market_ticker, side, price, delta, exchange_us) of a delta spelled as the exchange does, else None.

    Byte for byte that spelling (seen on the wire, August 2026) and nothing else: what it reads is exactly what `envelope` and
    `parse_book` find in the frame, at a third of their cost. A frame that it does not read may be a delta all the same.
    """
    found = _PLAIN_DELTA(frame)
    if found is None:
        return None
    sid, seq, ticker, price, change, side, second, fraction = found.groups()
    try:
        exchange_us = _plain_second_us(second) + int(fraction.ljust(6, b"0"))
        return (
            int(sid),
            int(seq),
            ticker.decode(),
            _PLAIN_SIDES[side],
            _plain_price(price),
            int(change.replace(b".", b"")),
            exchange_us,
        )
    except ValueError:
        return None


def plain_change(frame: bytes, ticker: bytes, start: int = 0) -> tuple[int, int, int, int] | None:
    """Return (side, price, delta, exchange_us) of what `plain_delta` reads, if it is of this market, else None.

    What is before `start` is not of the frame.
    """
    found = _PLAIN_DELTA(frame, start)
    if found is None:
        return None
    market, price, change, side, second, fraction = found.group(3, 4, 5, 6, 7, 8)
    if market != ticker:
        return None
    try:
        exchange_us = _plain_second_us(second) + int(fraction.ljust(6, b"0"))
        return _PLAIN_SIDES[side], _plain_price(price), int(change.replace(b".", b"")), exchange_us
    except ValueError:
        return None


def parse_book(message: Envelope, yes_price: bool) -> Snapshot | Delta:
    """Read an orderbook_snapshot or orderbook_delta; raise UnparsableFrame.

    With `yes_price` (the subscription's use_yes_price) NO prices arrive as 1 - p and are turned back. List order is not
    relied on. A side that is absent is empty (Kalshi docs, orderbook_snapshot; an empty list was never seen).
    """
    msg = message.msg
    try:
        if message.type == DELTA:
            side, dollars, contracts = SIDES[msg["side"]], msg.get("price_dollars"), msg.get("delta_fp")
            price = numbers.price(dollars) if dollars is not None else _cents(msg["price"])
            change = numbers.size(contracts) if contracts is not None else _integer(msg["delta"]) * numbers.ONE_CONTRACT
            return Delta(side, numbers.ONE_DOLLAR - price if yes_price and side == NO else price, change, message.exchange_us)
        if message.type == SNAPSHOT:
            if "yes_dollars_fp" in msg or "no_dollars_fp" in msg:
                read, suffix = _level_strings, "_dollars_fp"
            elif "yes_dollars" in msg or "no_dollars" in msg:
                read, suffix = _level_dollars, "_dollars"
            else:
                read, suffix = _level_cents, ""
            return Snapshot(_ladder(msg, "yes" + suffix, read, False), _ladder(msg, "no" + suffix, read, yes_price))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UnparsableFrame(message.type, _why(error)) from None
    raise UnparsableFrame(message.type, "not a book message")


def parse_trade(message: Envelope) -> Trade:
    """Read a trade; raise UnparsableFrame."""
    msg = message.msg
    try:
        yes_price = _price(msg, "yes_price")
        no_price = _price(msg, "no_price") if "no_price_dollars" in msg or "no_price" in msg else numbers.ONE_DOLLAR - yes_price
        side = msg.get("taker_side") or msg.get("taker_outcome_side") or {"bid": "yes", "ask": "no"}[msg["taker_book_side"]]
        block, trade_id = msg.get("is_block_trade"), msg["trade_id"]
        if not is_word(trade_id) or not (block is None or type(block) is bool):
            raise ValueError("trade_id or is_block_trade of another type")
        return Trade(trade_id, message.exchange_us, yes_price, no_price, _size(msg, "count"), SIDES[side], block)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UnparsableFrame(message.type, _why(error)) from None


def parse_rest_trade(body: dict[str, Any]) -> Trade:
    """Read a trade of GET /markets/trades or /historical/trades (Kalshi docs); raise UnparsableFrame."""
    try:
        return parse_trade(Envelope(TRADE, -1, -1, body["ticker"], 0, time_us(body["created_time"]), body))
    except (KeyError, TypeError, ValueError) as error:
        raise UnparsableFrame(TRADE, _why(error)) from None


def parse_ticker(message: Envelope) -> Ticker:
    """Read a ticker; raise UnparsableFrame for a field that is there and not a number of its kind."""
    msg = message.msg
    try:
        return Ticker(
            message.exchange_us,
            *(_price(msg, name) if _present(msg, name) else None for name in ("price", "yes_bid", "yes_ask")),
            *(
                _size(msg, name) if _present(msg, name) else None
                for name in ("yes_bid_size", "yes_ask_size", "last_trade_size", "volume", "open_interest")
            ),
            *(_integer(msg[name]) if msg.get(name) is not None else None for name in ("dollar_volume", "dollar_open_interest")),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UnparsableFrame(message.type, _why(error)) from None


def parse_lifecycle(message: Envelope) -> Lifecycle:
    """Read a message of a lifecycle channel; its event_type is the message type where it has none."""
    msg = message.msg
    if type(msg) is not dict or not msg:
        raise UnparsableFrame(message.type, "no content")
    event_type = msg.get("event_type", message.type)
    if not is_word(event_type):
        raise UnparsableFrame(message.type, "event_type is not a word")
    return Lifecycle(message.market_ticker, event_type, msg)


def content(frame: bytes, message: Envelope) -> bytes:
    """Return the bytes of the frame's `msg` as the exchange wrote them (re-encoded only if `msg` is not its last key)."""
    start, end = frame.find(b'"msg":') + 6, frame.rfind(b"}")
    try:
        if start > 5 and orjson.loads(frame[start:end]) == message.msg:
            return frame[start:end].strip()
    except orjson.JSONDecodeError:
        pass
    return orjson.dumps(message.msg)


def time_us(text: str) -> int:
    """Return RFC 3339 in UTC as microseconds since the epoch; raise ValueError. A finer fraction is cut.

    The exchange trims trailing zeros of the fraction (seen on the wire: 20 to 30 characters).
    """
    if len(text) < 20 or text[-1] != "Z":
        raise ValueError(f"{text[:40]!r} is not an RFC 3339 time in UTC")
    whole = _second_us(text[:19])
    fraction = text[20:-1]
    if len(text) == 27 and text[19] == "." and fraction.isdigit() and fraction.isascii():
        return whole + int(fraction)
    if len(text) == 20:
        return whole
    match = _FRACTION.fullmatch(text, 19)
    if match is None:
        raise ValueError(f"{text[:40]!r} is not an RFC 3339 time in UTC")
    return whole + int(match[1].ljust(6, "0"))


_FRACTION: Final = re.compile(r"\.([0-9]{1,6})[0-9]*Z", re.ASCII)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@lru_cache(maxsize=4096)
def _second_us(text: str) -> int:
    since = datetime.strptime(text, "%Y-%m-%dT%H:%M:%S").replace(tzinfo=UTC) - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000


_PLAIN_DELTA: Final = re.compile(
    rb'\{"type":"orderbook_delta","sid":(0|[1-9]\d{0,8}),"seq":(0|[1-9]\d{0,17}),"msg":'
    rb'\{"market_ticker":"([\w.-]{1,200})","market_id":"[\w-]*","price_dollars":"([01]\.\d{4})","delta_fp":"(-?\d{1,14}\.\d\d)",'
    rb'"side":"(yes|no)","ts":"(20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d)\.(\d{1,6})Z","ts_ms":(?:0|[1-9]\d{0,17})\}\}\n?'
).fullmatch
_PLAIN_SIDES: Final = {b"yes": YES, b"no": NO}


@lru_cache(maxsize=4096)
def _plain_second_us(text: bytes) -> int:
    return _second_us(text.decode())


@cache  # of 20,000 spellings at most
def _plain_price(text: bytes) -> int:
    return numbers.price(text.decode())


_LATEST_US: Final = 2**62


def _exchange_us(msg: dict[str, Any]) -> int:
    """`ts` as RFC 3339 has microseconds; else `ts_ms` (since 2026-04-15); else `ts` in seconds, as on trades and tickers."""
    ts = msg.get("ts")
    if type(ts) is str:
        try:
            return max(time_us(ts), 0)
        except ValueError:
            pass
    ts_ms = msg.get("ts_ms")
    value = ts_ms * 1000 if type(ts_ms) is int else ts * 1_000_000 if type(ts) is int else 0
    return value if 0 < value < _LATEST_US else 0


def _level_strings(level: list[Any]) -> tuple[int, int]:
    price, size = level
    return numbers.price(price), numbers.size(size)


def _level_dollars(level: list[Any]) -> tuple[int, int]:
    price, count = level
    return numbers.price(price), _integer(count) * numbers.ONE_CONTRACT


def _level_cents(level: list[Any]) -> tuple[int, int]:
    price, count = level
    return _cents(price), _integer(count) * numbers.ONE_CONTRACT


def _ladder(msg: dict[str, Any], key: str, read: Any, complement: bool) -> Levels:
    rows = msg.get(key)
    if not rows:
        return ()
    levels = {}
    for row in rows:
        price, size = read(row)
        levels[numbers.ONE_DOLLAR - price if complement else price] = size
        if size <= 0:
            raise ValueError(f"a level of size {size}")
    if len(levels) != len(rows):
        raise ValueError("two levels at one price")
    return tuple(sorted(levels.items()))


def _present(msg: dict[str, Any], name: str) -> bool:
    return any(msg.get(name + suffix) is not None for suffix in ("", "_dollars", "_fp"))


def _price(msg: dict[str, Any], name: str) -> int:
    text = msg.get(name + "_dollars")
    return numbers.price(text) if text is not None else _cents(msg[name])


def _size(msg: dict[str, Any], name: str) -> int:
    text = msg.get(name + "_fp")
    return numbers.size(text) if text is not None else _integer(msg[name]) * numbers.ONE_CONTRACT


def _cents(value: Any) -> int:
    if not 0 <= _integer(value) <= 100:
        raise ValueError(f"{value} cents is no price")
    return int(value) * 100


def _integer(value: Any) -> int:
    if type(value) is not int or abs(value) > numbers.LARGEST_SIZE // numbers.ONE_CONTRACT:
        raise ValueError(f"{str(value)[:40]!r} is not an integer")
    return value


def _why(error: Exception) -> str:
    return f"no {error}" if isinstance(error, KeyError) else str(error)[:200]
