"""A partition: raw records in, canonical events out. Pure: no I/O, no clock; the same records give the same events.

What a market's events depend on is in its `Market` and nowhere else, so the order in which different markets' records come
does not matter; only the window of trade ids is shared. All of it can be rebuilt: books from checkpoints and kalshi.book.v1,
the window from the tail of kalshi.trades.v1, the rest from `MarketMemory`, which is emitted whenever it changes. Price grids and
counters are not rebuilt; no event depends on them.
"""

from collections import Counter
from collections.abc import Sequence

import orjson

from kalshibook_core.kalshi import messages
from kalshibook_core.orderbook import Book, CorruptBook
from kalshibook_core.wire.events import (
    BOOK,
    TRADES,
    BookDelta,
    BookEvent,
    BookSnapshot,
    Checkpoint,
    Event,
    Gap,
    Lifecycle,
    MarketMemory,
    RawFrame,
    RawKind,
    Ticker,
    Trade,
)
from services.deduplicator import definitions
from services.deduplicator.market_log import BrokenLog, MarketLog
from services.deduplicator.trade_log import TradeLog, TradeWindow

FRAME, STALE, BREAK, RESUME, REST = map(str, RawKind)


class Market:
    """Everything known of one market."""

    __slots__ = ("book", "ended", "grid", "lifecycle_digest", "market_digest", "trades")

    def __init__(self, ticker: str, tally: Counter[str]) -> None:
        """Make a market nothing is known of."""
        self.book = MarketLog(ticker, tally)
        self.trades = TradeLog(ticker, tally)
        self.ended = False
        self.lifecycle_digest = 0
        self.market_digest = 0
        self.grid: definitions.Grid | None = None

    def memory(self, offset: int) -> MarketMemory:
        """Return what must be remembered of the market."""
        trades = self.trades
        return MarketMemory(
            self.book.ticker, self.ended, self.lifecycle_digest, self.market_digest,
            *trades.source, trades.since_us, trades.gap_start_us, trades.gap_cause, offset,
        )  # fmt: skip


class Partition:
    """The markets of one partition of the raw topic."""

    def __init__(
        self,
        trade_window: int = 50_000,
        tally: Counter[str] | None = None,
        gatherers: Counter[tuple[str, str]] | None = None,
    ) -> None:
        """Make a partition nothing came from yet; `trade_window` is how many trade ids it remembers.

        `tally` counts what happened, `gatherers` raw records by (gatherer, kind); several partitions may share them.
        """
        self.tally = Counter() if tally is None else tally
        self.gatherers = Counter() if gatherers is None else gatherers
        self.notices: dict[str, tuple[str, str]] = {}  # kind of trouble -> the last (ticker, why); the shell tells and clears
        self.markets: dict[str, Market] = {}
        self.window = TradeWindow(trade_window)
        self._take = {
            messages.SNAPSHOT: self._book,
            messages.DELTA: self._book,
            messages.TRADE: self._trade,
            messages.TICKER: self._ticker,
            **dict.fromkeys(messages.LIFECYCLE_TYPES, self._lifecycle),
        }

    def receive(self, raw: RawFrame, offset: int) -> Sequence[Event]:
        """Return the events that the raw record at `offset` makes, in order. Never raises for what a record holds."""
        kind = raw[0]
        self.gatherers[raw[1], kind] += 1
        if kind == FRAME:
            try:
                message = messages.envelope(raw[12])
            except messages.MalformedFrame as error:
                return self._unreadable("malformed_frame", raw, error)
            take = self._take.get(message.type)
            if take is None:
                return self._other(message)
            if message[3] != raw[8] and message[0] not in messages.LIFECYCLE_TYPES:
                return self._unreadable("no_market", raw, ValueError(f"a {message.type} under a key that is not its market's"))
            return take(raw, offset, message)
        if kind == STALE:
            return self._stale(raw, offset)
        if kind == BREAK:
            return self._break(raw, offset)
        if kind == RESUME:
            return self._resume(raw, offset)
        if kind == REST:
            return self._rest(raw, offset)
        return self._unreadable("unknown_kind", raw, ValueError(f"a raw record of kind {kind[:40]!r}"))

    def restore(self, saved: Checkpoint | MarketMemory) -> None:
        """Take a market's last checkpoint or memory; raise BrokenLog."""
        market = self.market(saved.market_ticker)
        if isinstance(saved, Checkpoint):
            market.book.restore(saved)
            return
        market.ended, market.lifecycle_digest, market.market_digest = saved.ended, saved.lifecycle_digest, saved.market_digest
        trades = market.trades
        trades.source = (saved.trades_gatherer, saved.trades_connection, saved.trades_generation)
        trades.since_us, trades.gap_start_us, trades.gap_cause = (
            saved.trades_since_us,
            saved.trades_gap_start_us,
            saved.trades_gap_cause,
        )

    def replay(self, event: BookEvent | Trade) -> None:
        """Take a canonical event made earlier, in the order of its topic; raise BrokenLog."""
        if isinstance(event, Trade):
            self.window.add(event)
        elif isinstance(event, BookSnapshot | BookDelta | Gap):
            self.market(event.market_ticker).book.replay(event)
        else:
            raise BrokenLog(f"a {type(event).__name__} in kalshi.book.v1: somebody else writes there")

    def market(self, ticker: str) -> Market:
        """Return the market, new if it was not known."""
        found = self.markets.get(ticker)
        if found is None:
            found = self.markets[ticker] = Market(ticker, self.tally)
        return found

    def _book(self, raw: RawFrame, offset: int, message: messages.Envelope) -> Sequence[Event]:
        market = self.markets.get(raw[8])
        if market is None:
            market = self.market(raw[8])
        log = market.book
        try:
            content = messages.parse_book(message, raw[7])
            if isinstance(content, messages.Delta):
                grid = market.grid
                if grid is not None and (10_000 - content.price if content.side else content.price) not in grid:
                    self._notice("off_grid", raw, f"price {content.price} of side {content.side}")
                return log.delta(raw, offset, content)
            book = Book(content.yes, content.no)
        except messages.UnparsableFrame as error:
            self._notice("unparsable_book", raw, error.why)
            return log.unreadable(raw, offset, message.exchange_us)
        except CorruptBook as error:
            self._notice("corrupt_book", raw, str(error))
            if message.type == messages.SNAPSHOT:
                return log.unreadable(raw, offset, 0)
            return log.contradicted(raw, offset)
        if market.grid is not None and not (
            market.grid.issuperset(book.sides[0]) and market.grid.issuperset(10_000 - price for price in book.sides[1])
        ):
            self._notice("off_grid", raw, "a level of a snapshot")
        return log.snapshot(raw, offset, book, message.id > 0, market.ended)

    def _trade(self, raw: RawFrame, offset: int, message: messages.Envelope) -> Sequence[Event]:
        try:
            trade_id, exchange_us, yes_price, no_price, count, side, block = messages.parse_trade(message)
        except messages.UnparsableFrame as error:
            self._notice("unparsable_trade", raw, error.why)
            market = self.market(raw.market_ticker)
            gaps = market.trades.unreadable(raw, offset, message.exchange_us)
            return [*gaps, market.memory(offset)] if gaps else []
        if trade_id in self.window:
            self.tally["trade_repeats"] += 1
            return []
        trade = Trade(
            raw.market_ticker, trade_id, exchange_us, raw.recv_us, yes_price, no_price, count, side, block,
            raw.gatherer, raw.connection, raw.generation, raw.sid, raw.seq, offset,
        )  # fmt: skip
        self.window.add(trade)
        return [trade]

    def _ticker(self, raw: RawFrame, offset: int, message: messages.Envelope) -> Sequence[Event]:
        try:
            said = messages.parse_ticker(message)
        except messages.UnparsableFrame as error:
            return self._unreadable("unparsable_ticker", raw, error)
        return [
            Ticker(
                raw.market_ticker, said.exchange_us, raw.recv_us, said.price, said.yes_bid, said.yes_ask, said.yes_bid_size,
                said.yes_ask_size, said.last_trade_size, said.volume, said.open_interest, said.dollar_volume,
                said.dollar_open_interest, offset,
            )
        ]  # fmt: skip

    def _lifecycle(self, raw: RawFrame, offset: int, message: messages.Envelope) -> Sequence[Event]:
        try:
            _, event_type, definition = messages.parse_lifecycle(message)
        except messages.UnparsableFrame as error:
            return self._unreadable("unparsable_lifecycle", raw, error)
        market, body = self.market(raw.market_ticker), messages.content(raw.payload, message)
        digest = definitions.digest(body)
        if digest == market.lifecycle_digest:
            self.tally["lifecycle_repeats"] += 1
            return []
        market.lifecycle_digest = digest
        return self._defined(raw, offset, event_type, body, definition)

    def _rest(self, raw: RawFrame, offset: int) -> Sequence[Event]:
        try:
            definition = orjson.loads(raw.payload)
            if definition["ticker"] != raw.market_ticker:
                raise ValueError(f"an object of {definition['ticker']}")
        except (ValueError, KeyError, TypeError) as error:
            return self._unreadable("unparsable_rest", raw, error)
        market, digest = self.market(raw.market_ticker), definitions.digest(raw.payload)
        if digest == market.market_digest:
            self.tally["lifecycle_repeats"] += 1
            return []
        market.market_digest = digest
        return self._defined(raw, offset, "market", raw.payload, definition)

    def _defined(
        self, raw: RawFrame, offset: int, event_type: str, body: bytes, definition: dict[str, object]
    ) -> Sequence[Event]:
        market = self.market(raw.market_ticker)
        market.grid = definitions.grid(definition) or market.grid
        event = Lifecycle(raw.market_ticker, event_type, raw.recv_us, raw.clock_us, body, offset)
        gaps = []
        if not market.ended and definitions.ends(definition):
            market.ended, gaps = True, market.trades.ended(raw, offset)
        return [event, *gaps, market.memory(offset)]

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
        if market is None or market.ended:
            return []
        if raw.channel == BOOK:
            return market.book.broken(raw, offset)
        if raw.channel == TRADES:
            gaps = market.trades.broken(raw, offset, self.window.latest_us(raw.market_ticker))
            return [*gaps, market.memory(offset)] if gaps else []
        return []

    def _resume(self, raw: RawFrame, offset: int) -> Sequence[Event]:
        if raw.channel != TRADES:
            return []
        market = self.market(raw.market_ticker)
        gaps = market.trades.resumed(raw, offset, self.window.latest_us(raw.market_ticker), market.ended)
        return [] if gaps is None else [*gaps, market.memory(offset)]

    def _other(self, message: messages.Envelope) -> Sequence[Event]:
        if message.type in messages.REPLY_TYPES:
            self.tally["replies"] += 1
        else:
            self.tally["unknown_types"] += 1
        return []

    def _unreadable(self, kind: str, raw: RawFrame, error: Exception) -> Sequence[Event]:
        self._notice(kind, raw, str(error))
        return []

    def _notice(self, kind: str, raw: RawFrame, why: str) -> None:
        self.tally[kind] += 1
        self.notices[kind] = (raw.market_ticker, why[:200])
