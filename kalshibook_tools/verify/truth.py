"""What the exchange truly did: generated, with everything that makes streams hard to merge, or read from recorded frames.

A truth is a list of events in the order in which the exchange made them; within a market no timestamp is less than the one
before.
"""

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import orjson

from kalshibook_core.kalshi import messages
from kalshibook_core.kalshi.numbers import format_price, format_size
from kalshibook_core.orderbook import Book
from kalshibook_tools.simulator import market, recording

START_US: Final = 1_790_000_000_000_000
"""Any instant will do."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something the exchange did in a market, and the `msg` it tells it with."""

    ticker: str
    kind: str  # the message type
    us: int  # when; of a whole book an instant at which it held
    msg: bytes
    delta: tuple[int, int, int] | None = None  # side, price, change
    book: Book | None = None
    trade_id: str = ""

    def apply(self, books: dict[str, Book]) -> None:
        """Change the book of its market."""
        if self.delta is not None:
            books[self.ticker].apply(*self.delta)
        elif self.book is not None:
            books[self.ticker] = self.book.copy()


def generate(count: int, seed: int, tickers: int = 4, pace: int = 1) -> list[Event]:
    """Return `count` events of which nine in ten are deltas.

    Seven in ten happen in the same microsecond as the one before; few levels and sizes, so that identical ones and bursts that
    add up to zero abound; pauses from a microsecond to a minute; whole books in mid-session; a market's close is two empty ones.
    Each pause is `pace` times as long: with many tickers, most of them are quiet for minutes.
    """
    rng = random.Random(seed)
    names = [f"KXTRUTH-{seed}-{n}.5" for n in range(tickers)]
    books = {ticker: Book() for ticker in names}
    made: list[Event] = []
    now = START_US
    while len(made) < count:
        if rng.random() > 0.7:
            now += pace * rng.choice((1, 1, 7, 1_000, 1_000, 30_000, 30_000, 1_000_000 if rng.random() < 0.2 else 5_000))
            if rng.random() < 0.0002:
                now += 60_000_000
        ticker = rng.choice(names[: 1 + rng.randrange(tickers)])  # the first are busy, the last quiet
        book = books[ticker]
        roll = rng.random()
        if roll < 0.07:
            made.append(trade(ticker, now, f"{ticker}-{len(made)}"))
            continue
        if roll < 0.0705:
            for _ in range(2):
                made.append(whole(ticker, now, Book()))
            books[ticker] = Book()
            continue
        if roll < 0.072:
            made.append(whole(ticker, now, book.copy()))
            continue
        side, price, change = rng.randrange(2), rng.choice((4800, 4900)), rng.choice((-100, 100, 100, 200, -200))
        if book.sides[side].get(price, 0) + change < 0:
            change = -change
        book.apply(side, price, change)
        made.append(delta(ticker, now, side, price, change))
    return made


def delta(ticker: str, us: int, side: int, price: int, change: int) -> Event:
    """Return a change of one level."""
    msg = b'{"market_ticker":"%b","market_id":"","price_dollars":"%b","delta_fp":"%b","side":"%b","ts":"%b","ts_ms":%d}' % (
        ticker.encode(), format_price(price).encode(), format_size(change).encode(), (b"yes", b"no")[side], rfc3339(us).encode(),
        us // 1000,
    )  # fmt: skip
    return Event(ticker, messages.DELTA, us, msg, delta=(side, price, change))


def whole(ticker: str, us: int, book: Book) -> Event:
    """Return a whole book that nobody asked for."""
    return Event(ticker, messages.SNAPSHOT, us, snapshot_msg(ticker, book), book=book)


def trade(ticker: str, us: int, trade_id: str) -> Event:
    """Return a trade."""
    msg = {
        "trade_id": trade_id, "market_ticker": ticker, "yes_price_dollars": "0.3600", "no_price_dollars": "0.6400",
        "count_fp": "1.00", "taker_side": "no", "ts": us // 1_000_000, "ts_ms": us // 1000,
    }  # fmt: skip
    return Event(ticker, messages.TRADE, us, orjson.dumps(msg), trade_id=trade_id)


def snapshot_msg(ticker: str, book: Book) -> bytes:
    """Return a whole book as the exchange writes it: a side without levels is absent."""
    msg: dict[str, object] = {"market_ticker": ticker, "market_id": ""}
    for name, levels in (("yes_dollars_fp", book.yes), ("no_dollars_fp", book.no)):
        if levels:
            msg[name] = [[format_price(price), format_size(size)] for price, size in levels]
    return orjson.dumps(msg)


def rfc3339(us: int) -> str:
    """Return an instant as the exchange writes it: µs, trailing zeros trimmed."""
    whole_second = datetime.fromtimestamp(us // 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return whole_second + f".{us % 1_000_000:06d}".rstrip("0").rstrip(".") + "Z"


def recorded(paths: Iterable[Path]) -> Iterator[Event]:
    """Yield the book events and trades of recorded frames. Raises recording.UnreadableRecording."""
    for recv_ms, event in recording.play(recording.scan(tuple(paths))):
        if isinstance(event, market.Notice):
            continue
        frame = event.frame.render(1, 1)
        msg = messages.content(frame, messages.envelope(frame))
        if isinstance(event, market.Delta):
            yield Event(event.ticker, messages.DELTA, event.ts_us, msg, delta=(event.side, event.price, event.size))
        elif isinstance(event, market.Snapshot):
            yield Event(event.ticker, messages.SNAPSHOT, recv_ms * 1000, msg, book=Book(event.yes, event.no))
        else:
            yield Event(event.ticker, messages.TRADE, event.ts_us, msg, trade_id=event.trade_id)
