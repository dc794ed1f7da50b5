"""The exchange's frames: bytes with two places left open, the subscription's `sid` and `seq`, which every receiver has its own
of.

A frame built here has the keys and their order as seen on the wire in August 2026; a recorded frame keeps its own bytes.
Every frame ends with a newline, as the exchange's do. Prices are integers in 1/10,000 dollar, sizes in 1/100 contract.
"""

import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, NamedTuple

import orjson

from kalshibook_core.kalshi import messages
from kalshibook_core.kalshi.channels import BOOK
from kalshibook_core.kalshi.numbers import format_price, format_size
from kalshibook_core.orderbook import Book

SIDES = ("yes", "no")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SID = re.compile(rb'(?<!\\)"sid"\s*:\s*(\d+)')
_SEQ = re.compile(rb'(?<!\\)"seq"\s*:\s*(\d+)')


class Frame(NamedTuple):
    """A frame cut at its numbers: first, `sid`, second, `seq`, third. `sequenced` False: no seq, and `third` is empty.

    `seq_first`: the two stand the other way round, as in files of recorders that sort keys.
    """

    channel: str
    first: bytes
    second: bytes
    third: bytes
    sequenced: bool = True
    seq_first: bool = False

    def render(self, sid: int, seq: int) -> bytes:
        """Return the payload one subscription receives."""
        if not self.sequenced:
            return b"%b%d%b" % (self.first, sid, self.second)
        if self.seq_first:
            sid, seq = seq, sid
        return b"%b%d%b%d%b" % (self.first, sid, self.second, seq, self.third)

    def in_yes_price(self) -> "Frame":
        """Return the frame as a subscription with use_yes_price gets it: prices of the NO side as 1 - p, order kept."""
        if self.channel != BOOK:
            return self
        frame = orjson.loads(self.render(0, 0))
        msg = frame["msg"]
        if msg.get("side") == "no":
            msg["price_dollars"] = _complement(msg["price_dollars"])
        if "no_dollars_fp" in msg:
            msg["no_dollars_fp"] = [[_complement(price), size] for price, size in msg["no_dollars_fp"]]
        return cut(orjson.dumps(frame), self.channel)


def cut(event: bytes, channel: str) -> Frame:
    """Cut a frame's own bytes at its sid and seq. ValueError where there is no sid."""
    sid, seq = _SID.search(event), _SEQ.search(event)
    if sid is None:
        raise ValueError("the frame has no sid")
    if seq is None:
        return Frame(channel, event[: sid.start(1)], event[sid.end(1) :] + b"\n", b"", sequenced=False)
    low, high = (sid, seq) if sid.start() < seq.start() else (seq, sid)
    parts = event[: low.start(1)], event[low.end(1) : high.start(1)], event[high.end(1) :] + b"\n"
    return Frame(channel, *parts, seq_first=low is seq)


def built(kind: str, msg: dict[str, Any], *, sequenced: bool = True, command_id: int | None = None) -> Frame:
    """Return a frame of this message type; `command_id` where it answers a command."""
    head = b'{"type":"%b",' % kind.encode() + (b'"id":%d,' % command_id if command_id else b"") + b'"sid":'
    body = b',"msg":' + orjson.dumps(msg) + b"}\n"
    channel = messages.CHANNEL_OF_TYPE.get(kind, kind)
    return Frame(channel, head, b',"seq":', body) if sequenced else Frame(channel, head, body, b"", sequenced=False)


def snapshot(ticker: str, market_id: str, book: Book, command_id: int | None = None) -> Frame:
    """A whole book; a side with no levels is left out (seen on the wire; an empty list never was)."""
    msg: dict[str, Any] = {"market_ticker": ticker, "market_id": market_id}
    for key, levels in (("yes_dollars_fp", book.yes), ("no_dollars_fp", book.no)):
        if levels:
            msg[key] = [[format_price(price), format_size(size)] for price, size in levels]
    return built("orderbook_snapshot", msg, command_id=command_id)


def delta(ticker: str, market_id: str, side: int, price: int, size: int, ts_us: int) -> Frame:
    """A signed change of one level."""
    return Frame(
        BOOK,
        b'{"type":"orderbook_delta","sid":',
        b',"seq":',
        (
            f',"msg":{{"market_ticker":"{ticker}","market_id":"{market_id}","price_dollars":"{format_price(price)}",'
            f'"delta_fp":"{format_size(size)}","side":"{SIDES[side]}","ts":"{rfc3339(ts_us)}","ts_ms":{ts_us // 1000}}}}}\n'
        ).encode(),
    )


def trade(ticker: str, trade_id: str, yes_price: int, count: int, taker_side: int, ts_us: int) -> Frame:
    """One trade, as since 2026-08-13 (with `is_block_trade`)."""
    return built(
        "trade",
        {
            "trade_id": trade_id,
            "market_ticker": ticker,
            "yes_price_dollars": format_price(yes_price),
            "no_price_dollars": format_price(10_000 - yes_price),
            "count_fp": format_size(count),
            "taker_side": SIDES[taker_side],
            "taker_outcome_side": SIDES[taker_side],
            "taker_book_side": ("bid", "ask")[taker_side],
            "is_block_trade": False,
            "ts": ts_us // 1_000_000,
            "ts_ms": ts_us // 1000,
        },
    )


def rfc3339(us: int) -> str:
    """Microseconds since the epoch as the exchange prints them: trailing zeros cut, no point where nothing follows it."""
    seconds, part = divmod(us, 1_000_000)
    return f"{_to_the_second(seconds)}.{part:06d}".rstrip("0") + "Z" if part else _to_the_second(seconds) + "Z"


@lru_cache(maxsize=1 << 10)
def _to_the_second(seconds: int) -> str:
    return (_EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S")


def _complement(price: str) -> str:
    places = len(price.partition(".")[2])
    value = 10**places - int(price.replace(".", ""))
    return f"{value // 10**places}.{value % 10**places:0{places}d}" if places else str(value)
