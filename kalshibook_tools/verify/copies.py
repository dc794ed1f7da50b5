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
from kalshibook_core.kalshi.channels import OF_MARKETS
from kalshibook_core.kalshi.session import Session
from kalshibook_core.orderbook import Book
from kalshibook_core.wire.events import LAG_US, Cause, RawFrame
from kalshibook_tools.verify.truth import Event, snapshot_msg

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
    move: int = 200  # some of its markets are handed over to another connection
    hasty: int = 200_000  # of those moves, in which the old one lets go too soon for a proof that nothing is lost

    def draw(self, roll: int) -> str:
        """Return what happens at a throw of 0 to 999,999."""
        for kind in ("drop", "repeat", "swap", "cut", "error", "silence"):
            roll -= getattr(self, kind)
            if roll < 0:
                return kind
        return "hear"


NO_HURTS: Final = Hurts(0, 0, 0, 0, 0, 0, 0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Told:
    """A raw record, and what it is in truth: how many of its market's events of its channel had happened with it, -1 if
    it is no event."""

    raw: RawFrame
    number: int


class Copy:
    """One gatherer: a connection, or two that hand markets over to each other."""

    def __init__(self, name: str, tickers: Sequence[str], rng: random.Random, hurts: Hurts) -> None:
        """Make one that has connected to nothing yet."""
        self.name, self.hurts, self.rng, self.counts = name, hurts, rng, Counter[str]()
        self.out: deque[Told] = deque()
        self.now = 1
        self.generation = 0
        self.says_start = rng.random() < 0.8  # gatherers that do not are of older make: they hand nothing over either
        self.lines = [Line(self, rng.randrange(3), dict.fromkeys(tickers), rng.randrange(30))]
        self._start()

    def happens(self, chunk: Sequence[Event]) -> None:
        """The exchange does these things; hear of them, or not: each connection in an order of its own."""
        for line in self.lines:
            for event in _another_order(chunk, self.rng):
                line.happens(event)
                if self.hurts.kill and self.rng.randrange(1_000_000) < self.hurts.kill:
                    self._kill()
        if self.says_start:
            if self.rng.randrange(1_000_000) < self.hurts.move * len(chunk):
                self._move()
            self._let_go()

    def lose(self, cause: str) -> None:
        """Every connection is lost, and the gatherer knows."""
        for line in self.lines:
            line.lose(cause)

    def _start(self) -> None:
        if self.says_start:
            life = ("START", self.name, -1, 0, "", -1, -1, False)
            self.out.append(Told(RawFrame(*life, f"@{self.name}.0", self.now, self.now, "", b""), -1))

    def _kill(self) -> None:
        for line in self.lines:
            line.dies()
        for _ in range(min(len(self.out), self.rng.randrange(40))):
            self.out.pop()  # what it had not published yet
        if self.rng.random() < 0.5:  # what it had published already comes once more
            again = list(self.out)[-self.rng.randrange(1, 40) :]
            self.out.extend(Told(told.raw, -1) for told in again)
        self._start()

    def _move(self) -> None:
        """Begin to hand some markets over."""
        old = self.rng.choice(self.lines)
        if any(line.moving for line in self.lines) or old.session is None or not old.markets:
            return
        self.counts["moves"] += 1
        moved = self.rng.sample(sorted(old.markets), self.rng.randrange(1, len(old.markets) + 1))
        if len(self.lines) == 1:
            self.lines.append(old.beside())
        new = next(line for line in self.lines if line is not old)
        old.moving = dict.fromkeys(moved)
        old.hasty = self.rng.randrange(1_000_000) < self.hurts.hasty
        new.wants(moved)

    def _let_go(self) -> None:
        for old in self.lines:
            if old.moving:
                new = next(line for line in self.lines if line is not old)
                wait_us = 0 if old.hasty else LAG_US + 1_000_000
                if old.session is None:
                    arrived = list(old.moving)  # lost anyway; they need not come back there
                else:
                    arrived = [t for t in old.moving if t in new.known and new.known[t] + wait_us <= self.now]
                old.releases(arrived)
        if len(self.lines) > 1:
            self.lines = [line for line in self.lines if line.markets or line.leaving] or self.lines[:1]


class Line:
    """A connection of a copy, one generation after another, and the order in which it hears what the exchange does."""

    def __init__(self, copy: Copy, number: int, markets: dict[str, None], away: int) -> None:
        """Make one that has connected to nothing yet; `away`: events until it does."""
        self.copy, self.number, self.markets = copy, number, markets
        self.session: Session[RawFrame] | None = None
        self.moving: dict[str, None] = {}  # markets it will let go of when another has them
        self.leaving: dict[str, None] = {}  # those it has let go of, until the exchange says so
        self.hasty = False
        self.known: dict[str, int] = {}  # markets whose book it has, and since when
        self._away = away
        rng = copy.rng
        self._books = {ticker: Book() for ticker in markets}
        self._numbers = {channel: dict.fromkeys(markets, 0) for channel in OF_MARKETS}
        self._silent = 0  # events that it will not hear before it notices
        self._skew_us = rng.randrange(0, 900_000)  # the clock it assumes is late by so much
        self._delay_us = rng.randrange(100, 50_000)
        self._sids: dict[str, int] = {}
        self._seqs: dict[int, int] = {}
        self._sent: dict[str, set[str]] = {}  # what the exchange sends, by channel
        self._replies: deque[bytes] = deque()
        self._held: tuple[bytes, int] | None = None

    def beside(self) -> "Line":
        """Return another connection to the same exchange, without markets."""
        line = Line(self.copy, (self.number + 1 + self.copy.rng.randrange(2)) % 3, {}, self.copy.rng.randrange(5))
        line._books = {ticker: book.copy() for ticker, book in self._books.items()}
        line._numbers = {channel: dict(numbers) for channel, numbers in self._numbers.items()}
        return line

    def happens(self, event: Event) -> None:
        """The exchange does something; hear of it, or not."""
        copy, rng = self.copy, self.copy.rng
        event.apply(self._books)
        channel = messages.CHANNEL_OF_TYPE[event.kind]
        self._numbers[channel][event.ticker] += 1
        copy.now = max(copy.now + 1, event.us + self._delay_us)
        if self.session is None:
            self._away -= 1
            if self._away < 0:
                self._connect()
            return
        if event.ticker not in self._sent.get(channel, ()):
            self._answer()
            return
        sid = self._sids[channel]
        self._seqs[sid] += 1
        frame = _FRAME % (event.kind.encode(), sid, self._seqs[sid], event.msg)
        number = self._numbers[channel][event.ticker]
        if self._silent:
            self._silent -= 1
            if not self._silent:
                self.lose(Cause.SILENT_SOCKET)
            return
        kind = copy.hurts.draw(rng.randrange(1_000_000))
        copy.counts[kind] += 1
        match kind:
            case "drop":
                pass
            case "swap" if self._held is None:
                self._held = frame, number
            case "cut":
                self.lose(Cause.DISCONNECT)
            case "error":
                self._deliver(frame, number)
                self._seqs[sid] += 1
                self._deliver(_FRAME % (b"error", sid, self._seqs[sid], b'{"code":25,"msg":"Subscription buffer overflow"}'), -1)
                del self._sids[channel], self._sent[channel]
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
        if self.session is not None:
            self.session.connection_lost(cause, self.copy.now)
            self._take(-1, b"")
            self.dies()

    def dies(self) -> None:
        """The connection ends without a word."""
        self.session = None
        self.known.clear()
        self.leaving.clear()
        self._away = self.copy.rng.randrange(400)

    def wants(self, tickers: Sequence[str]) -> None:
        """Have these markets as well."""
        self.markets.update(dict.fromkeys(tickers))
        if self.session is not None:
            self.session.subscribe(dict.fromkeys(tickers), self.copy.now)
            self._take(-1, b"")

    def releases(self, tickers: Sequence[str]) -> None:
        """Let go of these markets, which another has by now."""
        for ticker in tickers:
            del self.moving[ticker], self.markets[ticker]
            self.known.pop(ticker, None)
        if self.session is not None and tickers:
            self.leaving.update(dict.fromkeys(tickers))
            self.session.unsubscribe(tickers, self.copy.now, Cause.MOVED)
            self._take(-1, b"")

    def _connect(self) -> None:
        copy = self.copy
        copy.generation = max(copy.generation + 1, copy.now)
        if len(copy.lines) == 1 and copy.rng.random() < 0.2:
            self.number = copy.rng.randrange(3)
        life = (copy.name, self.number, copy.generation)
        self.session = Session(RawFrame, *life, skew_us=self._skew_us, counts=copy.counts)
        self._sids, self._seqs, self._sent, self._silent, self._held = {}, {}, {}, 0, None
        self._replies.clear()
        self.session.subscribe(dict.fromkeys(self.markets), copy.now)
        self._take(-1, b"")
        self._answer()

    def _deliver(self, frame: bytes, number: int) -> None:
        if self.session is None:
            return
        self.session.receive_frame(frame, self.copy.now)
        self._take(number, frame)
        if self.session is not None and self.session.failed:
            self.lose(self.session.failed)

    def _take(self, number: int, frame: bytes) -> None:
        assert self.session is not None
        for raw in self.session.records_to_publish():
            self.copy.out.append(Told(raw, number if raw.payload is frame else -1))
            if raw.detail == Cause.MOVED:
                self.leaving.pop(raw.market_ticker, None)
        self._replies.extend(self.session.commands_to_send())
        self.session.lifecycle_received()
        self.session.troubles_seen()

    def _answer(self) -> None:
        """The exchange answers what it was asked."""
        while self._replies and self.session is not None:
            command = orjson.loads(self._replies.popleft())
            params = command["params"]
            if command["cmd"] == "subscribe":
                for channel in params["channels"]:
                    sid = self.copy.rng.randrange(1, 1000)
                    while sid in self._seqs:
                        sid += 1
                    self._sids[channel], self._seqs[sid], self._sent[channel] = sid, 0, set(params["market_tickers"])
                    reply = {"type": "subscribed", "id": command["id"], "msg": {"channel": channel, "sid": sid}}
                    self._deliver(orjson.dumps(reply) + b"\n", -1)
                if "orderbook_delta" in params["channels"]:
                    self._snapshots(params["market_tickers"], b"")
                continue
            (sid,) = params["sids"]
            channel = next((channel for channel, each in self._sids.items() if each == sid), "")
            if not channel:
                continue  # it has ended meanwhile
            tickers, sent = params["market_tickers"], self._sent[channel]
            if params["action"] == "get_snapshot":
                self._snapshots(tickers, b'"id":%d,' % command["id"])
                continue
            new = [ticker for ticker in tickers if ticker not in sent]
            if params["action"] == "delete_markets":
                sent.difference_update(tickers)
            self._seqs[sid] += 1
            self._deliver(b'{"type":"ok","id":%d,"sid":%d,"seq":%d}\n' % (command["id"], sid, self._seqs[sid]), -1)
            if params["action"] == "add_markets":
                sent.update(tickers)
                if channel == "orderbook_delta":
                    self._snapshots(new, b"")

    def _snapshots(self, tickers: Sequence[str], reply_to: bytes) -> None:
        sid = self._sids.get("orderbook_delta")
        if sid is None:
            return
        for ticker in tickers:
            self._seqs[sid] += 1
            told = b'{"type":"orderbook_snapshot",%b"sid":%d,"seq":%d,"msg":%b}\n' % (
                reply_to, sid, self._seqs[sid], snapshot_msg(ticker, self._books[ticker]),
            )  # fmt: skip
            self.known.setdefault(ticker, self.copy.now)
            self._deliver(told, self._numbers["orderbook_delta"][ticker])


def publish(truth: Sequence[Event], names: Sequence[str], seed: int, hurts: Hurts) -> Iterator[Told]:
    """Yield the raw records of several gatherers of one exchange in the order in which a partition of the raw topic may have
    them.

    Each connection hears the markets of a subscription in an order of its own, within a market in the true one; what a gatherer
    publishes waits for its turn, at the last one for thousands of records.
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
            copy.happens(chunk)
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
