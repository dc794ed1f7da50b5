"""A partition: raw records in, canonical events out. Pure: no I/O, no clock; the same records give the same events.

What a market's events depend on is in its `Market`; markets share the window of trade ids and the clocks of the connections that
deliver them (`alignment.Lives`). All of it is a function of the raw records so far, and no canonical topic could tell it: so a
savepoint writes down the whole state (`MarketMemory`) of the markets that changed since the one before, and a restart goes on
from there, doing again what came after. Price grids and counters are not saved; no event depends on them.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import starmap
from typing import Any, Final

import orjson

from kalshibook_core.kafka.records import Record
from kalshibook_core.kalshi import messages
from kalshibook_core.orderbook import Book, CorruptBook
from kalshibook_core.wire import codec
from kalshibook_core.wire.events import (
    AUDIT,
    BOOK,
    BY_REST,
    EVENT,
    FILLED,
    IMPORTED,
    READ_OVER,
    SERIES,
    TRADES,
    Event,
    Gap,
    Lifecycle,
    MarketMemory,
    RawFrame,
    RawKind,
    Ticker,
    Trade,
)
from kalshibook_core.wire.raw import TIMES, Front, RawReader
from services.deduplicator import definitions
from services.deduplicator.alignment import Life, Lives
from services.deduplicator.market_log import LIMITS, Limits, MarketLog, print_of
from services.deduplicator.trade_log import TradeLog, TradeWindow

FRAME, STALE, BREAK, RESUME, REST, START = map(str, RawKind)


TICKERS_AT_ONCE: Final = 16
"""Different tickers of one instant that are remembered."""

_TICKERS: Final = {"": "ticker", EVENT: "event_ticker", SERIES: "ticker"}
"""Where an object read by REST has its ticker, by the record's channel."""

REVIEW: Final = 1024
"""Raw records from one look at all waiting sources to the next: those of quiet markets are placed by the clocks of their
connections."""


class Market:
    """Everything known of one market."""

    __slots__ = ("book", "lifecycle", "rest", "ticker_us", "tickers", "trades")

    def __init__(
        self, ticker: str, tally: Counter[str], lives: Lives, limits: Limits, tell: Callable[[str, str, str], None]
    ) -> None:
        """Make a market nothing is known of."""
        self.book = MarketLog(ticker, tally, lives, limits, tell)
        self.trades = TradeLog(ticker, tally, lives)
        self.lifecycle = definitions.Occurrences(
            definitions.REMEMBERED_OF_ALL if ticker.startswith("@") else definitions.REMEMBERED
        )
        self.rest = definitions.Sequence()
        self.ticker_us = 0  # the exchange time of the last ticker,
        self.tickers: list[messages.Ticker] = []  # and those that have it

    def memory(self, offset: int, lives: Lives | None) -> MarketMemory:
        """Return all of it as of the raw record at `offset`, and with it `lives` if they are to be remembered here."""
        state = [
            self.book.state(), self.book.ended_us, self.trades.state(), self.lifecycle.state(), self.rest.state(),
            self.ticker_us, [tuple(each) for each in self.tickers], lives and lives.state(),
        ]  # fmt: skip
        return MarketMemory(self.book.ticker, orjson.dumps(state), offset)

    def restore(self, state: Sequence[Any]) -> None:
        """Become the market that gave this state."""
        book, self.book.ended_us, trades, lifecycle, rest, self.ticker_us, tickers, _ = state
        self.book.restore(book)
        self.trades.restore(trades, bool(self.book.ended_us))
        self.lifecycle.restore(lifecycle)
        self.rest.restore(rest)
        self.tickers = list(starmap(messages.Ticker, tickers))


class Partition:
    """The markets of one partition of the raw topic."""

    def __init__(
        self,
        trade_window: int = 50_000,
        tally: Counter[str] | None = None,
        gatherers: Counter[tuple[str, str]] | None = None,
        limits: Limits = LIMITS,
    ) -> None:
        """Make a partition nothing came from yet; `trade_window` is how many trade ids it remembers.

        `tally` counts what happened, `gatherers` raw records by (gatherer, kind); several partitions may share them.
        """
        self.tally = Counter() if tally is None else tally
        self.gatherers = Counter() if gatherers is None else gatherers
        self.notices: dict[str, tuple[str, str]] = {}  # kind of trouble -> the last (ticker, why); the shell tells and clears
        self.limits = limits
        self.markets: dict[str, Market] = {}
        self._logs: dict[bytes, MarketLog] = {}  # by key
        self.window = TradeWindow(trade_window)
        self.lives = Lives()
        self.changed: set[str] = set()  # markets that the last savepoint does not show as they are
        self._waiting: set[str] = set()  # markets with a source whose place is not known
        self._take: dict[str, Callable[[RawFrame, int, messages.Envelope, int], Sequence[Event]]] = {
            messages.SNAPSHOT: self._book,
            messages.DELTA: self._book,
            messages.TRADE: self._trade,
            messages.TICKER: self._ticker,
            **dict.fromkeys(messages.LIFECYCLE_TYPES, self._lifecycle),
        }

    def events(
        self, records: Sequence[Record], reader: RawReader, ours: Callable[[bytes], bool]
    ) -> Iterator[tuple[Record, Event]]:
        """Yield the events that raw records make, in order, each with its record. Never raises for what a record holds.

        `ours` says whether a key is of this partition. Nearly all records are deltas that come as they should: these the log
        takes at a glance, and does what `receive` would.
        """
        values = [record.value or b"" for record in records]
        logs, changed, taken = self._logs, self.changed, list[Front]()
        for record, value, found in zip(records, values, reader.peek(values), strict=True):
            front, seq, recv_us, clock_us, ticker, start = found
            key, offset = record.key, record.offset
            log, known = logs.get(key), False
            if log is not None and front is not None and value[ticker : start - TIMES] == key:
                known = True
                if front.of_book and offset % REVIEW:
                    made = log.usual(front, seq, recv_us, clock_us, value, start, offset)
                    if made is not None:
                        taken.append(front)
                        changed.add(log.ticker)
                        for delta in made:
                            yield record, delta
                        continue
            try:
                raw = reader.read(value, found)
            except codec.Undecodable as error:
                self._foreign(record, str(error))
                continue
            if not known and (key != raw.market_ticker.encode() or not ours(key)):
                self._foreign(record, "not a RawFrame under its own key in its own partition")
                continue
            for event in self.receive(raw, offset):
                yield record, event
        for front, count in Counter(taken).items():
            self.gatherers[front.counted] += count

    def receive(self, raw: RawFrame, offset: int) -> Sequence[Event]:
        """Return the events that the raw record at `offset` makes, in order. Never raises for what a record holds."""
        made = self._receive(raw, offset)
        if not offset % REVIEW and self._waiting:
            made = [*made, *self._review(raw, offset)]
        return made

    @property
    def waiting(self) -> int:
        """How many markets have a source whose place in the log is not known."""
        return len(self._waiting)

    @property
    def excluded(self) -> Counter[str]:
        """In how many markets a gatherer contradicts the log and is not heard until it agrees."""
        return Counter(name for ticker in self._waiting for name in self.markets[ticker].book.contradicting)

    def memories(self, offset: int) -> Iterable[MarketMemory]:
        """Return what a savepoint writes, as of the raw record at `offset`: the markets that changed since the one before."""
        lives: Lives | None = self.lives
        for ticker in sorted(self.changed & self.markets.keys()):
            yield self.markets[ticker].memory(offset, lives)
            lives = None
        self.changed.clear()

    def restore(self, saved: Iterable[MarketMemory], trades: Iterable[Trade]) -> int:
        """Become the partition of the last savepoint: from each market's last memory and from trades in their order, up to it or
        beyond.

        Returns the raw offset it goes on at, 0 if nothing was saved. Trades from there on are not taken: it makes them again.
        """
        next_raw, held = 0, list[Life]()
        states = []
        for memory in saved:
            state = orjson.loads(memory.state)
            states.append((memory.market_ticker, state))
            if memory.raw_offset >= next_raw:
                next_raw = memory.raw_offset + 1
            if state[-1] is not None and memory.raw_offset + 1 == next_raw:
                held = self.lives.restore(state[-1])
        for ticker, state in states:
            market = self.market(ticker)
            market.restore(state)
            if market.book.waits:
                self._waiting.add(ticker)
        del held
        for trade in trades:
            if trade.raw_offset < next_raw and trade.connection != BY_REST:
                self.window.add(trade)
        return next_raw

    def market(self, ticker: str) -> Market:
        """Return the market, new if it was not known."""
        found = self.markets.get(ticker)
        if found is None:
            found = self.markets[ticker] = Market(ticker, self.tally, self.lives, self.limits, self._tell)
            self._logs[found.book.key] = found.book
        return found

    def _receive(self, raw: RawFrame, offset: int) -> Sequence[Event]:
        kind, ticker = raw[0], raw[8]
        self.gatherers[raw[1], kind] += 1
        self.changed.add(ticker)
        if kind == FRAME:
            payload, mark = raw[12], 0
            if raw[4] == BOOK and not raw[7]:
                market = self.markets.get(ticker)
                if market is not None:
                    log = market.book
                    if len(log.sources) > 1:
                        mark = print_of(payload)
                    change = messages.plain_change(payload, log.key)
                    if change is not None:
                        return self._delta(log, raw, offset, change, mark)
            try:
                message = messages.envelope(payload)
            except messages.MalformedFrame as error:
                return self._unreadable("malformed_frame", raw, error)
            take = self._take.get(message.type)
            if take is None:
                return self._other(message)
            if message[3] != ticker and message[0] not in messages.LIFECYCLE_TYPES:
                return self._unreadable("no_market", raw, ValueError(f"a {message.type} under a key that is not its market's"))
            return take(raw, offset, message, mark)
        if kind == STALE:
            return self._stale(raw, offset)
        if kind == BREAK:
            return self._break(raw, offset)
        if kind == RESUME:
            return self._resume(raw, offset)
        if kind == REST:
            return self._rest(raw, offset)
        if kind == START:
            return self._start(raw, offset)
        return self._unreadable("unknown_kind", raw, ValueError(f"a raw record of kind {kind[:40]!r}"))

    def _review(self, raw: RawFrame, offset: int) -> list[Event]:
        made: list[Event] = []
        for ticker in sorted(self._waiting):
            log = self.markets[ticker].book
            self.changed.add(ticker)
            made += log.review(raw, offset)
            if not log.waits:
                self._waiting.discard(ticker)
        return made

    def _book(self, raw: RawFrame, offset: int, message: messages.Envelope, mark: int) -> Sequence[Event]:
        market = self.markets.get(raw[8])
        if market is None:
            market = self.market(raw[8])
        log = market.book
        try:
            content = messages.parse_book(message, raw[7])
            if isinstance(content, messages.Delta):
                return self._delta(log, raw, offset, content, mark)
            book = Book(content.yes, content.no)
        except messages.UnparsableFrame as error:
            self._notice("unparsable_book", raw, error.why)
            return self._waited(log, log.unreadable(raw, offset, message.exchange_us))
        except CorruptBook as error:
            self._notice("corrupt_book", raw, str(error))
            return self._waited(log, log.unreadable(raw, offset, 0))
        if log.grid is not None and not (
            log.grid.issuperset(book.sides[0]) and log.grid.issuperset(10_000 - price for price in book.sides[1])
        ):
            self._notice("off_grid", raw, "a level of a snapshot")
        if raw[1].startswith(IMPORTED) and not log.admits(raw):
            self._notice("import_refused", raw, "recorded frames come too late for a log that goes on")
            return []
        return self._waited(log, log.snapshot(raw, offset, book, message.id > 0))

    def _delta(self, log: MarketLog, raw: RawFrame, offset: int, delta: tuple[int, int, int, int], mark: int) -> Sequence[Event]:
        if log.grid is not None:
            side, price, _, _ = delta
            if (10_000 - price if side else price) not in log.grid:
                self._notice("off_grid", raw, f"price {price} of side {side}")
        made = log.delta(raw, offset, delta, mark)
        return made if log.quiet else self._waited(log, made)

    def _waited(self, log: MarketLog, made: Sequence[Event]) -> Sequence[Event]:
        if len(log.sources) > 1 and log.waits:
            self._waiting.add(log.ticker)
        return made

    def _trade(self, raw: RawFrame, offset: int, message: messages.Envelope, _: int = 0) -> Sequence[Event]:
        try:
            trade_id, exchange_us, yes_price, no_price, count, side, block = messages.parse_trade(message)
        except messages.UnparsableFrame as error:
            self._notice("unparsable_trade", raw, error.why)
            return self.market(raw.market_ticker).trades.unreadable(raw, offset, message.exchange_us)
        self.market(raw.market_ticker).trades.heard(raw, exchange_us)
        if trade_id in self.window:
            self.tally["trade_repeats"] += 1
            return []
        trade = Trade(
            raw.market_ticker, trade_id, exchange_us, raw.recv_us, yes_price, no_price, count, side, block,
            raw.gatherer, raw.connection, raw.generation, raw.sid, raw.seq, offset,
        )  # fmt: skip
        self.window.add(trade)
        return [trade]

    def _ticker(self, raw: RawFrame, offset: int, message: messages.Envelope, _: int) -> Sequence[Event]:
        try:
            said = messages.parse_ticker(message)
        except messages.UnparsableFrame as error:
            return self._unreadable("unparsable_ticker", raw, error)
        # The channel has no order and several gatherers: time goes forward, and in one instant each is told once.
        market = self.market(raw.market_ticker)
        if said.exchange_us < market.ticker_us or (said.exchange_us == market.ticker_us and said in market.tickers):
            self.tally["ticker_repeats"] += 1
            return []
        if said.exchange_us > market.ticker_us:
            market.ticker_us, market.tickers = said.exchange_us, []
        market.tickers = [*market.tickers[-TICKERS_AT_ONCE:], said]
        return [
            Ticker(
                raw.market_ticker, said.exchange_us, raw.recv_us, said.price, said.yes_bid, said.yes_ask, said.yes_bid_size,
                said.yes_ask_size, said.last_trade_size, said.volume, said.open_interest, said.dollar_volume,
                said.dollar_open_interest, offset,
            )
        ]  # fmt: skip

    def _lifecycle(self, raw: RawFrame, offset: int, message: messages.Envelope, _: int) -> Sequence[Event]:
        try:
            told = messages.parse_lifecycle(message)
        except messages.UnparsableFrame as error:
            return self._unreadable("unparsable_lifecycle", raw, error)
        market, body = self.market(raw.market_ticker), messages.content(raw.payload, message)
        if not market.lifecycle.new(raw, body):
            self.tally["lifecycle_repeats"] += 1
            return self._ended(raw, offset, told.msg)
        return self._defined(raw, offset, told.event_type, body, told.msg)

    def _rest(self, raw: RawFrame, offset: int) -> Sequence[Event]:
        if raw.channel == AUDIT:
            return [raw]  # a book to compare ours with, for others
        if raw.channel in (TRADES, FILLED):
            return self._backfilled(raw, offset)
        try:
            key, definition = _TICKERS[raw.channel], orjson.loads(raw.payload)
            if definition[key] != raw.market_ticker:
                raise ValueError(f"an object of {definition[key]}")
        except (ValueError, KeyError, TypeError) as error:
            return self._unreadable("unparsable_rest", raw, error)
        if not self.market(raw.market_ticker).rest.new(raw.gatherer, raw.payload, raw.clock_us):
            self.tally["lifecycle_repeats"] += 1
            return [] if raw.channel else self._ended(raw, offset, definition)
        if raw.channel:
            return [Lifecycle(raw.market_ticker, raw.channel, raw.recv_us, raw.clock_us, raw.payload, offset)]
        return self._defined(raw, offset, "market", raw.payload, definition)

    def _backfilled(self, raw: RawFrame, offset: int) -> Sequence[Event]:
        """Pass on what REST says of trades: whether one is known is for whoever has all of them to say."""
        ticker, gatherer = raw.market_ticker, raw.gatherer
        try:
            body = orjson.loads(raw.payload)
            if raw.channel == FILLED:
                start_us, end_us, cause = int(body["start_us"]), int(body["end_us"]), str(body["cause"])
                self.tally["trade_gaps_filled"] += 1
                return [Gap(ticker, 0, end_us, TRADES, start_us, end_us, cause, raw.recv_us, 0, gatherer, READ_OVER, 0, offset)]
            trade_id, exchange_us, yes_price, no_price, count, side, block = messages.parse_rest_trade(body)
            if body["ticker"] != ticker:
                raise ValueError(f"a trade of {body['ticker']}")
        except (ValueError, KeyError, TypeError, messages.UnparsableFrame) as error:
            return self._unreadable("unparsable_rest", raw, error)
        self.tally["rest_trades"] += 1
        return [
            Trade(
                ticker, trade_id, exchange_us, raw.recv_us, yes_price, no_price, count, side, block,
                gatherer, BY_REST, 0, -1, -1, offset,
            )
        ]  # fmt: skip

    def _defined(
        self, raw: RawFrame, offset: int, event_type: str, body: bytes, definition: dict[str, object]
    ) -> Sequence[Event]:
        market = self.market(raw.market_ticker)
        market.book.grid = definitions.grid(definition) or market.book.grid
        event = Lifecycle(raw.market_ticker, event_type, raw.recv_us, raw.clock_us, body, offset)
        return [event, *self._ended(raw, offset, definition)]

    def _ended(self, raw: RawFrame, offset: int, definition: dict[str, object]) -> Sequence[Event]:
        """Take that a market has ended, if this says so. Also a repeat counts: who heard it sooner may be behind."""
        if not definitions.ends(definition):
            return []
        market = self.market(raw.market_ticker)
        made = market.trades.ended(raw, offset)
        market.book.ended_us = market.trades.ended_us
        return made

    def _stale(self, raw: RawFrame, offset: int) -> Sequence[Event]:
        # Of use only where order does not matter: a trade that comes late is still a trade, and its id shows a repeat.
        if raw.channel == TRADES:
            try:
                message = messages.envelope(raw.payload)
                if message.type == messages.TRADE:
                    messages.parse_trade(message)
                    return self._trade(raw, offset, message)
            except (messages.MalformedFrame, messages.UnparsableFrame):
                pass  # it was passed over before or never in order: no gap of its own
        return []

    def _break(self, raw: RawFrame, offset: int) -> Sequence[Event]:
        market = self.markets.get(raw.market_ticker)
        if market is None:
            return []
        if raw.channel == BOOK:
            return self._waited(market.book, market.book.broken(raw, offset))
        if raw.channel == TRADES:
            return market.trades.broken(raw, offset)
        return []

    def _resume(self, raw: RawFrame, offset: int) -> Sequence[Event]:
        if raw.channel != TRADES:
            return []
        market = self.market(raw.market_ticker)
        if raw.gatherer.startswith(IMPORTED) and not market.book.admits(raw):
            return []
        return market.trades.resumed(raw, offset)

    def _start(self, raw: RawFrame, offset: int) -> Sequence[Event]:
        made: list[Event] = []
        self.lives.start(raw.gatherer, raw.recv_us)
        for ticker, market in sorted(self.markets.items()):
            book, trades = market.book, market.trades
            if any(name == raw.gatherer for name, _ in (*book.sources, *trades.vouchers)):
                self.changed.add(ticker)
                made += self._waited(book, book.started(raw, offset))
                made += trades.started(raw, offset)
        return made

    def _other(self, message: messages.Envelope) -> Sequence[Event]:
        if message.type in messages.REPLY_TYPES:
            self.tally["replies"] += 1
        else:
            self.tally["unknown_types"] += 1
        return []

    def _unreadable(self, kind: str, raw: RawFrame, error: Exception) -> Sequence[Event]:
        self._notice(kind, raw, str(error))
        return []

    def _foreign(self, record: Record, why: str) -> None:
        self.tally["foreign_records"] += 1
        self.notices["foreign_records"] = repr(record.key)[:80], f"offset {record.offset}: {why}"

    def _notice(self, kind: str, raw: RawFrame, why: str) -> None:
        self._tell(kind, raw.market_ticker, why)

    def _tell(self, kind: str, ticker: str, why: str) -> None:
        self.tally[kind] += 1
        self.notices[kind] = (ticker, why[:200])
