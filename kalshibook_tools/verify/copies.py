"""Copies of a truth as gatherers would publish them, each hurt on its own: what one connection after another received, as raw
records.

The records are made by the gatherer's own session, so that what a hole, a repeat or a lost connection becomes is not imagined
here. Everything random comes from one seed.
"""

import random
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import orjson

from kalshibook_core.kalshi import messages
from kalshibook_core.kalshi.session import MARKET_CHANNELS, Session
from kalshibook_core.orderbook import Book
from kalshibook_core.wire.events import Cause, RawFrame
from kalshibook_tools.verify.truth import Event, snapshot_msg

CHANNEL_OF: Final = {messages.DELTA: "orderbook_delta", messages.SNAPSHOT: "orderbook_delta", messages.TRADE: "trade"}
_MARKETS_APART_US: Final = 3_000_000
"""How far the markets of one subscription get out of step; up to 10 s was seen."""

_FRAME: Final = b'{"type":"%b","sid":%d,"seq":%d,"msg":%b}\n'


@dataclass(frozen=True, slots=True)
class Hurts:
    """How often what happens to a copy, in a million events."""

    drop: int = 300
    repeat: int = 1000
    swap: int = 300
    cut: int = 150
    kill: int = 80
    error: int = 80
    silence: int = 60
    all_cut: int = 60  # every copy at the same time
    lag: int = 4000  # records by which the last copy is behind, at most

    def draw(self, roll: int) -> str:
        """Return what happens at a throw of 0 to 999,999."""
        for kind in ("drop", "repeat", "swap", "cut", "kill", "error", "silence"):
            roll -= getattr(self, kind)
            if roll < 0:
                return kind
        return "hear"


NO_HURTS: Final = Hurts(0, 0, 0, 0, 0, 0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Told:
    """A raw record, and what it is in truth: how many of its market's events of its channel had happened with it, -1 if
    it is no event."""

    raw: RawFrame
    number: int


class Copy:
    """One gatherer."""

    def __init__(self, name: str, tickers: Sequence[str], rng: random.Random, hurts: Hurts) -> None:
        """Make one that has connected to nothing yet."""
        self.name, self.hurts, self.counts = name, hurts, Counter[str]()
        self.out: deque[Told] = deque()
        self._tickers, self._rng = tickers, rng
        self._books = {ticker: Book() for ticker in tickers}
        self._numbers = {channel: dict.fromkeys(tickers, 0) for channel in MARKET_CHANNELS}
        self._session: Session[RawFrame] | None = None
        self._generation = 0
        self._connection = rng.randrange(3)
        self._away = rng.randrange(30)  # events until it connects
        self._silent = 0  # events that it will not hear before it notices
        self._skew_us = rng.randrange(0, 900_000)  # the clock it assumes is late by so much
        self._delay_us = rng.randrange(100, 50_000)
        self._now = 0
        self._sids: dict[str, int] = {}
        self._seqs: dict[int, int] = {}
        self._replies: deque[bytes] = deque()
        self._held: tuple[bytes, int] | None = None

    def happens(self, event: Event) -> None:
        """The exchange does something; hear of it, or not."""
        event.apply(self._books)
        channel = CHANNEL_OF[event.kind]
        self._numbers[channel][event.ticker] += 1
        self._now = max(self._now + 1, event.us + self._delay_us)
        if self._session is None:
            self._away -= 1
            if self._away < 0:
                self._connect()
            return
        rng, hurts = self._rng, self.hurts
        sid = self._sids.get(channel)
        if sid is None:
            self._answer()
            return
        self._seqs[sid] += 1
        frame = _FRAME % (event.kind.encode(), sid, self._seqs[sid], event.msg)
        number = self._numbers[channel][event.ticker]
        if self._silent:
            self._silent -= 1
            if not self._silent:
                self.lose(Cause.SILENT_SOCKET)
            return
        kind = hurts.draw(rng.randrange(1_000_000))
        self.counts[kind] += 1
        match kind:
            case "drop":
                pass
            case "swap" if self._held is None:
                self._held = frame, number
            case "cut":
                self.lose(Cause.DISCONNECT)
            case "kill":
                self._session = None
                for _ in range(min(len(self.out), rng.randrange(40))):
                    self.out.pop()  # what it had not published yet
                self._away = rng.randrange(400)
            case "error":
                self._deliver(frame, number)
                self._seqs[sid] += 1
                self._deliver(_FRAME % (b"error", sid, self._seqs[sid], b'{"code":25,"msg":"Subscription buffer overflow"}'), -1)
                del self._sids[channel]
            case "silence":
                self._silent = 1 + rng.randrange(200)
            case _:
                self._deliver(frame, number)
                if kind == "repeat":
                    self._deliver(frame, number)
                if self._held is not None and kind == "hear":
                    held, self._held = self._held, None
                    self._deliver(*held)
        if self._replies and rng.random() < 0.5:
            self._answer()

    def lose(self, cause: str) -> None:
        """The connection is lost, and the gatherer knows."""
        if self._session is not None:
            self._session.connection_lost(cause, self._now)
            self._take(-1, b"")
            self._session = None
            self._away = self._rng.randrange(400)

    def _connect(self) -> None:
        self._generation = max(self._generation + 1, self._now)
        if self._rng.random() < 0.2:
            self._connection = self._rng.randrange(3)
        life = (self.name, self._connection, self._generation)
        self._session = Session(RawFrame, *life, skew_us=self._skew_us, counts=self.counts)
        self._sids, self._seqs, self._silent, self._held = {}, {}, 0, None
        self._replies.clear()
        self._session.subscribe(dict.fromkeys(self._tickers), self._now)
        self._take(-1, b"")
        self._answer()

    def _deliver(self, frame: bytes, number: int) -> None:
        if self._session is None:
            return
        self._session.receive_frame(frame, self._now)
        self._take(number, frame)
        if self._session is not None and self._session.failed:
            self.lose(self._session.failed)

    def _take(self, number: int, frame: bytes) -> None:
        assert self._session is not None
        self.out.extend(Told(raw, number if raw.payload is frame else -1) for raw in self._session.records_to_publish())
        self._replies.extend(self._session.commands_to_send())
        self._session.lifecycle_received()
        self._session.troubles_seen()

    def _answer(self) -> None:
        """The exchange answers what it was asked."""
        while self._replies and self._session is not None:
            command = orjson.loads(self._replies.popleft())
            params = command["params"]
            if command["cmd"] == "subscribe":
                for channel in params["channels"]:
                    sid = self._rng.randrange(1, 1000)
                    while sid in self._seqs:
                        sid += 1
                    self._sids[channel], self._seqs[sid] = sid, 0
                    reply = {"type": "subscribed", "id": command["id"], "msg": {"channel": channel, "sid": sid}}
                    self._deliver(orjson.dumps(reply) + b"\n", -1)
                if "orderbook_delta" in params["channels"]:
                    self._snapshots(params["market_tickers"], b"")
            elif params["action"] == "get_snapshot":
                self._snapshots(params["market_tickers"], b'"id":%d,' % command["id"])
            else:
                (sid,) = params["sids"]
                self._seqs[sid] += 1
                self._deliver(b'{"type":"ok","id":%d,"sid":%d,"seq":%d}' % (command["id"], sid, self._seqs[sid]), -1)

    def _snapshots(self, tickers: Sequence[str], reply_to: bytes) -> None:
        sid = self._sids.get("orderbook_delta")
        if sid is None:
            return
        for ticker in tickers:
            self._seqs[sid] += 1
            told = b'{"type":"orderbook_snapshot",%b"sid":%d,"seq":%d,"msg":%b}\n' % (
                reply_to, sid, self._seqs[sid], snapshot_msg(ticker, self._books[ticker]),
            )  # fmt: skip
            self._deliver(told, self._numbers["orderbook_delta"][ticker])


def publish(truth: Sequence[Event], names: Sequence[str], seed: int, hurts: Hurts) -> Iterator[Told]:
    """Yield the raw records of several gatherers of one exchange in the order in which a partition of the raw topic may have
    them.

    Each gatherer hears the markets of a subscription in an order of its own, within a market in the true one; what it publishes
    waits for its turn, at the last one for thousands of records.
    """
    rng = random.Random(seed)
    tickers = sorted({event.ticker for event in truth})
    copies = [Copy(name, tickers, random.Random(rng.random()), hurts) for name in names]
    lags = [0] * len(copies)
    done = 0
    while done < len(truth):
        chunk = truth[done : done + rng.randrange(1, 60)]
        chunk = [event for event in chunk if event.us < chunk[0].us + _MARKETS_APART_US] or chunk[:1]
        done += len(chunk)
        for copy in copies:
            for event in _another_order(chunk, rng):
                copy.happens(event)
        if rng.randrange(1_000_000) < hurts.all_cut * len(chunk):
            for copy in copies:
                copy.lose(rng.choice((Cause.DISCONNECT, Cause.SILENT_SOCKET)))
        if rng.random() < 0.01:
            lags = [rng.choice((0, 0, 0, 5, 60)) if hurts.lag else 0 for _ in copies]
            lags[-1] = rng.randrange(hurts.lag + 1) if rng.random() < 0.5 else lags[-1]
        yield from _released(copies, lags, rng)
    yield from _released(copies, [0] * len(copies), rng)


def _another_order(chunk: Sequence[Event], rng: random.Random) -> Iterator[Event]:
    markets: dict[str, deque[Event]] = {}
    for event in chunk:
        markets.setdefault(event.ticker, deque()).append(event)
    while markets:
        ticker = rng.choice(list(markets))
        yield markets[ticker].popleft()
        if not markets[ticker]:
            del markets[ticker]


def _released(copies: Sequence[Copy], lags: Sequence[int], rng: random.Random) -> Iterator[Told]:
    ready = [copy for copy, lag in zip(copies, lags, strict=True) if len(copy.out) > lag]
    least = {id(copy): lag for copy, lag in zip(copies, lags, strict=True)}
    while ready:
        copy = rng.choice(ready)
        for _ in range(min(rng.randrange(1, 20), len(copy.out) - least[id(copy)])):
            yield copy.out.popleft()
        if len(copy.out) <= least[id(copy)]:
            ready.remove(copy)
