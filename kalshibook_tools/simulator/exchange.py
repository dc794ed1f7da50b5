"""The exchange itself, without sockets: its markets, who hears what of them, and what was true.

`publish` is the one way a market changes. It lets the event happen, hands the frame to every subscription that covers it
(each with its own sid and seq, each through the faults in force), and keeps the event as truth, sent or lost.
"""

from collections import deque
from collections.abc import Callable, Iterable, Set
from typing import Any

from kalshibook_core.kalshi.channels import BOOK, OF_MARKETS, TRADES
from kalshibook_core.orderbook import YES, CorruptBook
from kalshibook_tools.simulator import frames
from kalshibook_tools.simulator.faults import Fault, Faults, UnknownFault
from kalshibook_tools.simulator.frames import Frame
from kalshibook_tools.simulator.market import Delta, Event, Market, Notice, Snapshot, Summary, Trade
from kalshibook_tools.simulator.subscriptions import Subscription

RECENT_TRADES = 50_000
"""How many trades GET /markets/trades and /historical/trades can reach back to, together."""

LIVE_SECONDS = 90 * 86_400.0
"""How long a trade or a settled market is live before it is historical (Kalshi docs, "Historical data": three months)."""


class Exchange:
    """All markets, and the index of who subscribed to what."""

    def __init__(
        self, *, clock_us: Callable[[], int], source: str, truth_limit: int, clients: int = 1, live: float = LIVE_SECONDS
    ) -> None:
        """`clock_us` is the simulated exchange's own clock; `truth_limit` true events are kept for each market.

        `clients` is how many are to hear each market; those that are `away` are not waited for. What is older than `live`
        seconds is historical.
        """
        self.clock_us = clock_us
        self._live_us = round(live * 1_000_000)
        self.clients = frozenset(range(1, clients + 1))
        self.away: set[int] = set()
        self.newest_us = dict.fromkeys((BOOK, TRADES), 0)  # the latest timestamp of an event, by channel
        self.begun_us = 0  # when somebody was last sent the book that a market begins with, for all or for him
        self.source = source
        self.markets: dict[str, Market] = {}
        self.faults = Faults()
        self.recent_trades: deque[Trade] = deque(maxlen=RECENT_TRADES)
        self.frames = self.book_frames = self.trades = self.unanchored = self.corrupt = 0
        self.done = False
        self.failed = ""
        self.paused = False
        self.waiting: dict[str, str] | None = None
        self.on_subscribed: Callable[[], None] = lambda: None
        self._truth_limit = truth_limit
        self._by_ticker: dict[str, dict[str, list[Subscription]]] = {}
        self._of_all: dict[str, list[Subscription]] = {}
        self._let_go: set[tuple[int, str, str]] = set()

    @property
    def cutoff_us(self) -> int:
        """Trades made and markets settled before this instant are historical."""
        return self.clock_us() - self._live_us

    # -- what a connection's subscriptions ask and tell ----------------------------------------------------------

    def snapshot(self, ticker: str, command_id: int | None) -> Frame | None:
        """Return the market's book now; None where it has none (yet)."""
        market = self.markets.get(ticker)
        if market is None or market.book is None:
            return None
        return frames.snapshot(ticker, market.market_id, market.book, command_id)

    def ticker_frame(self, ticker: str) -> Frame | None:
        """Return the market's summary now; None for a market there is not."""
        market = self.markets.get(ticker)
        return market.summary(self.clock_us()) if market else None

    def joined(self, subscription: Subscription, ticker: str | None) -> None:
        """Let the subscription hear this market (None: all)."""
        self._audience(subscription.channel, ticker).append(subscription)
        if ticker is not None:
            if subscription.channel in self.newest_us:
                self.begun_us = self.clock_us()
            self._let_go.discard((subscription.connection.client, subscription.channel, ticker))
        self.on_subscribed()

    def left(self, subscription: Subscription, ticker: str | None, *, asked: bool) -> None:
        """It does not hear it any more. If it asked for that, nobody waits for it to come back."""
        self._audience(subscription.channel, ticker).remove(subscription)
        if asked and ticker is not None:
            self._let_go.add((subscription.connection.client, subscription.channel, ticker))
        self.on_subscribed()

    def gone(self, subscriptions: Iterable[Subscription]) -> None:
        """Their connection died."""
        for subscription in subscriptions:
            for ticker in [None] if subscription.tickers is None else subscription.tickers:
                audience = self._audience(subscription.channel, ticker)
                if subscription in audience:
                    audience.remove(subscription)

    def audience(self, channel: str, ticker: str) -> list[Subscription]:
        """Return the subscriptions that hear this channel of this market."""
        named, every = self._by_ticker.get(channel, {}).get(ticker), self._of_all.get(channel)
        return (named or []) + every if every else named or []

    def heard(self, channel: str, ticker: str) -> bool:
        """Return whether every client hears it that is not away, or asked not to any more."""
        if channel not in OF_MARKETS:
            ticker = ""
        audience = self.audience(channel, ticker)
        if len(self.clients) == 1 and audience:
            return True
        hear = {subscription.connection.client for subscription in audience}
        return all(client in hear or client in self.away or (client, channel, ticker) in self._let_go for client in self.clients)

    def heard_by(self, client: int, channel: str, ticker: str) -> bool:
        """Return whether this client hears it, or asked not to any more."""
        hear = {subscription.connection.client for subscription in self.audience(channel, ticker)}
        return client in hear or (client, channel, ticker) in self._let_go

    def subscribed(self, client: int) -> Set[tuple[str, str]]:
        """Return (channel, ticker) of all that this client hears by name."""
        return {
            (channel, ticker)
            for channel, audiences in self._by_ticker.items()
            for ticker, audience in audiences.items()
            if any(subscription.connection.client == client for subscription in audience)
        }

    def _audience(self, channel: str, ticker: str | None) -> list[Subscription]:
        if ticker is None:
            return self._of_all.setdefault(channel, [])
        return self._by_ticker.setdefault(channel, {}).setdefault(ticker, [])

    # -- what happens ------------------------------------------------------------------------------------------

    def list_market(self, body: dict[str, Any], event: dict[str, Any], market_id: str) -> Market:
        """Let a market be known to REST."""
        market = self.markets[body["ticker"]] = Market(body, event, market_id, self._truth_limit)
        return market

    def publish(self, event: Event) -> None:
        """Let an event happen, send it to whom it concerns, and remember it."""
        market = self.markets.get(event.ticker)
        if isinstance(event, Notice):
            if market is not None:
                market.body.update(event.changes)
            self._send(event.frame, event.ticker)
            self.frames += 1
            return
        assert market is not None, event.ticker
        if isinstance(event, Summary):
            self._send(market.summary(event.ts_us), event.ticker)
            self.frames += 1
            return
        anchored = self._apply(market, event)
        sent, lost = self._send(event.frame, event.ticker)
        self.frames += 1
        if anchored:
            market.remember(event, sent, lost)

    def _apply(self, market: Market, event: Snapshot | Delta | Trade) -> bool:
        """Let the event change the market; False for a delta that no book stands under, which is only passed on."""
        if not isinstance(event, Snapshot):
            self.newest_us[event.frame.channel] = event.ts_us
        if isinstance(event, Trade):
            self.trades += 1
            self.recent_trades.append(event)
        elif isinstance(event, Delta) and market.book is None:
            self.unanchored += 1
            return False
        elif isinstance(event, Snapshot) and market.book is None:
            self.begun_us = self.clock_us()
        try:
            market.apply(event)
        except CorruptBook:
            self.corrupt += 1
            return False
        self.book_frames += not isinstance(event, Trade)
        return True

    def _send(self, frame: Frame, ticker: str) -> tuple[int, int]:
        sent = lost = 0
        for subscription in self.audience(frame.channel, ticker):
            connection = subscription.connection
            if connection.silent:
                lost += 1
                continue
            if self.faults.armed:
                payloads, is_lost = self.faults.shape(subscription, frame, ticker, self.clock_us())
                sent, lost = (sent, lost + 1) if is_lost else (sent + 1, lost)
                if is_lost and frame.channel == BOOK:
                    subscription.owed.update(t for t in subscription.tickers or () if self.markets[t].book is not None)
                for payload in payloads:
                    connection.enqueue(payload)
                continue
            connection.enqueue(subscription.payload(frame))
            sent += 1
        return sent, lost

    def forget_books(self, tickers: Iterable[str]) -> None:
        """The recorder's connection died: until its next snapshot nobody knows these markets' books, this exchange neither."""
        for ticker in tickers:
            market = self.markets.get(ticker)
            if market is not None and market.book is not None:
                market.book = None
                market.gaps += 1

    def disturb(self, fault: Fault) -> None:
        """Let something rare but true happen to a market: an unasked snapshot, a price off its grid."""
        market = self.markets.get(fault.market_ticker or "")
        if market is None or market.book is None:
            raise UnknownFault(f"market_ticker={fault.market_ticker!r}: it has no book (yet)")
        ticker, market_id, book = market.ticker, market.market_id, market.book
        if fault.kind == "resnapshot":
            self.publish(Snapshot(ticker, frames.snapshot(ticker, market_id, book), book.yes, book.no))
        else:
            ts_us = self.clock_us()
            self.publish(Delta(ticker, frames.delta(ticker, market_id, YES, 55, 100, ts_us), ts_us, YES, 55, 100))

    # -- what it tells of itself -------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Return the body of GET /simulator/status."""
        return {
            "source": self.source,
            "done": self.done,
            "error": self.failed,
            "paused": self.paused,
            "waiting": self.waiting,
            "frames": self.frames,
            "events": self.book_frames + self.trades,
            "markets": len(self.markets),
            "unanchored": self.unanchored,
            "corrupt": self.corrupt,
            "faults": self.faults.report(),
            "injected": {str(client): dict(kinds) for client, kinds in sorted(self.faults.injected.items())},
            "per_market": {
                ticker: {"book_frames": market.book_frames, "trades": market.trades, "gaps": market.gaps}
                for ticker, market in self.markets.items()
            },
        }
