"""Live books against the exchange's own, as REST had them. Pure.

A REST book carries no time and no version: it is the market's book at some instant between shortly before it was asked for (REST
lags) and when the answer came. It matches if ours was the same at any instant of that window, and contradicts it if ours was
known all the while and never the same. It is judged when our book has surely come to the window's end.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from enum import StrEnum
from typing import Final, NamedTuple

import orjson

from kalshibook_core.kalshi import messages
from kalshibook_core.kalshi.messages import Envelope
from kalshibook_core.orderbook import Book
from kalshibook_core.wire.events import AUDIT, RawFrame
from services.reconstructor.live_book import LiveBook

BEFORE_US: Final = 5_000_000
"""REST lags by 1.4 s (the most seen on the wire), and a gatherer knows the exchange's clock to a second; and as much again."""

AFTER_US: Final = 2_000_000
"""A snapshot holds in our log from up to a second too late on."""

PATIENCE_US: Final = 10_000_000
"""How long after the answer a market in which nothing happens is judged: what happened before has come by then."""

GIVEN_UP_US: Final = 600_000_000
MOST: Final = 10_000
"""Books waiting to be judged; a new one goes uncounted where there are as many."""


class Outcome(StrEnum):
    """What comparing gave."""

    MATCH = "match"
    MISMATCH = "mismatch"
    UNKNOWN = "unknown"  # our book was not known in all of the window


class Audit(NamedTuple):
    """A book that REST had at some instant of [from_us, to_us] by the exchange's clock; `answered_us` is by ours."""

    ticker: str
    from_us: int
    to_us: int
    answered_us: int
    checksum: int


def read(raw: RawFrame) -> Audit:
    """Read a REST record of an order book (Kalshi docs, "Get Multiple Market Orderbooks"). Raises ValueError."""
    if raw.channel != AUDIT:
        raise ValueError(f"a record of channel {raw.channel[:40]!r}")
    try:
        body = orjson.loads(raw.payload)["orderbook_fp"]
        msg = {f"{side}_dollars_fp": body.get(f"{side}_dollars") for side in ("yes", "no")}
        parsed = messages.parse_book(Envelope(messages.SNAPSHOT, -1, -1, raw.market_ticker, 0, 0, msg), False)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no order book: {error!r}") from None
    assert isinstance(parsed, messages.Snapshot)
    asked_us = raw.clock_us - (raw.recv_us - raw.generation)
    checksum = Book(parsed.yes, parsed.no).checksum
    return Audit(raw.market_ticker, asked_us - BEFORE_US, raw.clock_us + AFTER_US, raw.recv_us, checksum)


def judge(live: LiveBook, audit: Audit) -> Outcome:
    """Compare with what our book was."""
    states = live.recent
    first = bisect_right(states, audit.from_us, key=lambda state: state[0]) - 1
    last = bisect_right(states, audit.to_us, key=lambda state: state[0])
    window = [checksum for _, checksum in states[max(first, 0) : last]]
    if audit.checksum in window:
        return Outcome.MATCH
    return Outcome.UNKNOWN if first < 0 or None in window or live.corrupt else Outcome.MISMATCH


class Audits:
    """Books that wait until ours can be compared with them."""

    def __init__(self) -> None:
        """Wait for none."""
        self._waiting: deque[Audit] = deque()

    def expect(self, audit: Audit) -> None:
        """Have it judged when it is time."""
        if len(self._waiting) < MOST:
            self._waiting.append(audit)

    def due(self, now_us: int, live: Callable[[str], LiveBook | None], behind: Callable[[str], bool]) -> list[Audit]:
        """Return those that can be judged by now; `behind(ticker)`: what happened to it may not have come yet."""
        ready: list[Audit] = []
        for _ in range(len(self._waiting)):
            audit = self._waiting.popleft()
            book = live(audit.ticker)
            if book is None:
                continue  # somebody else's market
            waited_us = now_us - audit.answered_us
            if book.effective_us > audit.to_us or (waited_us > PATIENCE_US and not behind(audit.ticker)):
                ready.append(audit)
            elif waited_us < GIVEN_UP_US:
                self._waiting.append(audit)
        return ready
