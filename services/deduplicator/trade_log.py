"""Trades of a partition, each once, and the gaps in a market's trades. Pure.

A trade is unique by its id, whoever brings it and however late. That a trade is missing is known from the gatherer alone: a BREAK
opens a gap, a RESUME closes it. A RESUME of the next generation that no BREAK came before (the gatherer was killed) gives both.
"""

from collections import Counter, deque

from kalshibook_core.wire.events import TRADES, Cause, Gap, RawFrame, Trade
from services.deduplicator.alignment import NOBODY, Source, Standing, standing
from services.deduplicator.market_log import LAG_US


class TradeWindow:
    """The last `size` trades of a partition: their ids, and the time of each market's latest among them.

    It is a function of the tail of kalshi.trades.v1 alone, so a restart rebuilds it exactly. A repeat that comes more than `size`
    trades after its original is not recognised; one trade's repeats lie seconds apart at most.
    """

    def __init__(self, size: int) -> None:
        """Make an empty window."""
        self.size = size
        self._order: deque[Trade] = deque()
        self._ids: set[str] = set()
        self._latest: dict[str, Trade] = {}

    def __contains__(self, trade_id: str) -> bool:
        return trade_id in self._ids

    def add(self, trade: Trade) -> None:
        """Take a trade that is not in the window; the oldest leaves when the window is full."""
        if len(self._order) >= self.size:
            oldest = self._order.popleft()
            self._ids.discard(oldest.trade_id)
            if self._latest.get(oldest.market_ticker) is oldest:
                del self._latest[oldest.market_ticker]
        self._order.append(trade)
        self._ids.add(trade.trade_id)
        self._latest[trade.market_ticker] = trade

    def latest_us(self, ticker: str) -> int:
        """Return the exchange time of the market's latest trade, 0 where none is in the window."""
        trade = self._latest.get(ticker)
        return trade.exchange_us if trade else 0


class TradeLog:
    """What is known of the completeness of one market's trades."""

    __slots__ = ("gap_cause", "gap_start_us", "since_us", "source", "tally", "ticker")

    def __init__(self, ticker: str, tally: Counter[str]) -> None:
        """Make the log of a market whose trades nobody vouched for yet."""
        self.ticker = ticker
        self.tally = tally
        self.source: Source = NOBODY
        self.since_us = 0
        self.gap_start_us: int | None = None
        self.gap_cause: str | None = None

    def broken(self, raw: RawFrame, offset: int, latest_us: int) -> list[Gap]:
        """Return the gap that a BREAK opens; `latest_us` is the market's latest trade."""
        found = standing(self.source, raw[1:4])
        if self.source == NOBODY or self.gap_start_us is not None or found not in (Standing.LEADER, Standing.SUCCESSOR):
            return []
        if found is Standing.SUCCESSOR:
            return [self._open(raw, offset, Cause.DISCONNECT, max(self.since_us, latest_us))]
        return [self._open(raw, offset, raw.detail, max(self.since_us, latest_us, raw.clock_us - LAG_US))]

    def resumed(self, raw: RawFrame, offset: int, latest_us: int, ended: bool) -> list[Gap] | None:
        """Return the gaps that a RESUME closes, None if it changes nothing."""
        found = standing(self.source, raw[1:4])
        made: list[Gap] = []
        if self.gap_start_us is None:
            if self.source != NOBODY and found is not Standing.SUCCESSOR:
                return None
            if self.source != NOBODY and not ended:
                made = [self._open(raw, offset, Cause.DISCONNECT, max(self.since_us, latest_us))]
        elif found is Standing.OUTDATED:
            return None
        if self.gap_start_us is not None:
            made.append(self._close(raw, offset, raw.clock_us))
        self.source, self.since_us = raw[1:4], max(self.since_us, raw.clock_us)
        return made

    def ended(self, raw: RawFrame, offset: int) -> list[Gap]:
        """Return the gap that closes because nothing trades any more and nobody will resume."""
        return [] if self.gap_start_us is None else [self._close(raw, offset, raw.clock_us)]

    def unreadable(self, raw: RawFrame, offset: int, exchange_us: int) -> list[Gap]:
        """Return the gap of a trade frame without readable content: the microsecond it happened in, or as long as it may lag."""
        if self.source == NOBODY or self.gap_start_us is not None:
            return []
        start_us = exchange_us or max(self.since_us, raw.clock_us - LAG_US)
        opened = self._open(raw, offset, Cause.PARSE_FAILURE, start_us)
        return [opened, self._close(raw, offset, start_us + 1 if exchange_us else raw.clock_us)]

    def _open(self, raw: RawFrame, offset: int, cause: str, start_us: int) -> Gap:
        self.gap_start_us, self.gap_cause = start_us, str(cause)
        self.tally["trade_gaps_opened"] += 1
        return self._event(raw, offset, start_us, start_us, None)

    def _close(self, raw: RawFrame, offset: int, end_us: int) -> Gap:
        assert self.gap_start_us is not None
        end_us = max(self.gap_start_us, end_us)
        event = self._event(raw, offset, end_us, self.gap_start_us, end_us)
        self.gap_start_us = self.gap_cause = None
        self.since_us = max(self.since_us, end_us)
        self.tally["trade_gaps_closed"] += 1
        return event

    def _event(self, raw: RawFrame, offset: int, effective_us: int, start_us: int, end_us: int | None) -> Gap:
        return Gap(
            self.ticker, 0, effective_us, TRADES, start_us, end_us, self.gap_cause or "", raw.recv_us, 0,
            raw.gatherer, raw.connection, raw.generation, offset,
        )  # fmt: skip
