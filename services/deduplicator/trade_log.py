"""Trades of a partition, each once, and the gaps in a market's trades. Pure.

A trade is unique by its id, whoever brings it and however late. That a trade is missing is known from the gatherers alone: a
RESUME says that one vouches for the market's trades from then on, a BREAK that it does no longer. What nobody vouched for is a
gap. A START, or a RESUME of the connection's next generation, that no BREAK came before (the gatherer was killed) is a BREAK too.
Of a market that has ended a BREAK tells what was lost before its end, and a kill nothing.
"""

from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

from kalshibook_core.wire.events import IMPORTED, LAG_US, TRADES, Cause, Gap, RawFrame, Trade
from services.deduplicator.alignment import Life, Lives


class TradeWindow:
    """The last `size` trades that connections delivered in a partition: their ids, and the time of each market's latest.

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

    @property
    def held(self) -> list[Trade]:
        """The trades in it, in their order."""
        return list(self._order)

    def latest_us(self, ticker: str) -> int:
        """Return the exchange time of the market's latest trade, 0 where none is in the window."""
        trade = self._latest.get(ticker)
        return trade.exchange_us if trade else 0


class Voucher:
    """A connection that vouches, or vouched last, for a market's trades: since when."""

    __slots__ = ("life", "since_us", "unread_us", "vouches")

    def __init__(self, life: Life, since_us: int, vouches: bool = True, unread_us: int = -1) -> None:
        """Make a voucher from the exchange time `since_us` on."""
        self.life, self.since_us, self.vouches = life, since_us, vouches
        self.unread_us = unread_us  # the time of the last trade that it could not read


def _hears(voucher: Voucher, leaving: str) -> bool:
    """Return whether this one can vouch for what the other lost: who plays recorded frames hears nothing of today."""
    return leaving.startswith(IMPORTED) or not voucher.life.gatherer.name.startswith(IMPORTED)


class TradeLog:
    """What is known of the completeness of one market's trades."""

    __slots__ = ("_lives", "ended_us", "gap_cause", "gap_start_us", "since_us", "tally", "ticker", "until_us", "vouchers")

    def __init__(self, ticker: str, tally: Counter[str], lives: Lives) -> None:
        """Make the log of a market whose trades nobody vouched for yet."""
        self.ticker = ticker
        self.tally = tally
        self._lives = lives
        self.vouchers: dict[tuple[str, int], Voucher] = {}  # by gatherer and connection
        self.since_us = 0  # up to this instant everything is vouched for or told as a gap
        self.until_us = 0  # up to this instant those who no longer vouch had delivered everything
        self.gap_start_us: int | None = None
        self.gap_cause: str | None = None
        self.ended_us = 0  # from this instant on nothing trades any more, 0 while it may

    def broken(self, raw: RawFrame, offset: int, latest_us: int) -> list[Gap]:
        """Return the gap that a BREAK makes; `latest_us` is the market's latest trade."""
        voucher = self.vouchers.get(raw[1:3])
        if voucher is None or not voucher.vouches or voucher.life.generation > raw.generation:
            return []
        if voucher.life.generation < raw.generation:
            return self._killed([voucher], raw, offset, latest_us)
        voucher.vouches = False
        if raw.detail == Cause.MOVED:
            del self.vouchers[raw[1:3]]
        return self._lost(raw, offset, raw.detail, max(latest_us, raw.clock_us - LAG_US))

    def resumed(self, raw: RawFrame, offset: int, latest_us: int) -> list[Gap]:
        """Return the gaps that a RESUME makes or closes."""
        gatherer, connection, generation = raw[1:4]
        if raw[2:4] in self._lives.gatherer(gatherer).over:
            return []
        before = [each for each in self.vouchers.values() if each.life.ended_by(gatherer, connection)]
        newest = max((each.life.generation for each in before if each.vouches or each.life.connection == connection), default=0)
        if newest > generation or any(each.vouches and each.life.generation == generation for each in before):
            return []
        made = self._killed(before, raw, offset, latest_us)
        for each in before:
            del self.vouchers[each.life.name[:2]]
        self.vouchers[gatherer, connection] = Voucher(self._lives.of(gatherer, connection, generation), raw.clock_us)
        if self.gap_start_us is not None:
            made.append(self._close(raw, offset, raw.clock_us))
        self.since_us = max(self.since_us, min(each.since_us for each in self.vouchers.values() if each.vouches))
        return made

    def started(self, raw: RawFrame, offset: int, latest_us: int) -> list[Gap]:
        """Return the gap that a gatherer's START makes: no connection of the process before it vouches any longer."""
        before = [each for each in self.vouchers.values() if each.life.gatherer.name == raw.gatherer]
        made = self._killed(before, raw, offset, latest_us)
        for each in before:
            del self.vouchers[each.life.name[:2]]
        return made

    def ended(self, raw: RawFrame, offset: int) -> list[Gap]:
        """Return the gap that closes because nothing trades any more and nobody will resume."""
        self.ended_us = raw.clock_us
        return [] if self.gap_start_us is None else [self._close(raw, offset, raw.clock_us)]

    def unreadable(self, raw: RawFrame, offset: int, exchange_us: int) -> list[Gap]:
        """Return the gap of a trade frame without readable content: the microsecond it happened in, or as long as it may lag.

        It is one only if nobody who vouches could read it.
        """
        voucher = self.vouchers.get(raw[1:3])
        if voucher is None or self.gap_start_us is not None:
            return []
        voucher.unread_us = exchange_us
        if any(each.vouches and each.unread_us != exchange_us for each in self.vouchers.values()):
            return []
        for each in self.vouchers.values():
            each.unread_us = -1
        start_us = exchange_us or max(self.since_us, raw.clock_us - LAG_US)
        opened = self._open(raw, offset, Cause.PARSE_FAILURE, start_us)
        return [opened, self._close(raw, offset, start_us + 1 if exchange_us else raw.clock_us)]

    def _killed(self, vouchers: Sequence[Voucher], raw: RawFrame, offset: int, latest_us: int) -> list[Gap]:
        """These ended without a word, perhaps long after their connections' last event."""
        alive_us = [each.life.newest_us - LAG_US for each in vouchers if each.vouches]
        for each in vouchers:
            each.vouches = False
        if not alive_us or self.ended_us:
            return []
        return self._lost(raw, offset, Cause.DISCONNECT, latest_us, max(alive_us))

    def _lost(self, raw: RawFrame, offset: int, cause: str, until_us: int, alive_us: int = 0) -> list[Gap]:
        """One vouches no longer: a gap, unless another did before it ended.

        It had delivered everything up to `until_us`; killed without a word, perhaps to `alive_us`.
        """
        self.until_us = max(self.until_us, until_us, self.since_us)
        others = [each.since_us for each in self.vouchers.values() if each.vouches and _hears(each, raw.gatherer)]
        ends = [*others, self.ended_us] if self.ended_us else others
        if self.gap_start_us is not None or (ends and min(ends) <= max(self.until_us, alive_us)):
            return []
        opened = self._open(raw, offset, cause, self.until_us)
        return [opened, self._close(raw, offset, min(ends))] if ends else [opened]

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

    def state(self) -> list[Any]:
        """Return what `restore` needs, as JSON can hold it."""
        vouchers = [(*each.life.name, each.since_us, each.vouches, each.unread_us) for each in self.vouchers.values()]
        return [self.since_us, self.until_us, self.gap_start_us, self.gap_cause, vouchers, self.ended_us]

    def restore(self, state: Sequence[Any], ended: bool) -> None:
        """Become the log that gave this state. The release before did not write when the market had `ended`."""
        self.since_us, self.until_us, self.gap_start_us, self.gap_cause, vouchers, *ended_us = state
        self.ended_us = ended_us[0] if ended_us else int(ended)
        self.vouchers = {(each[0], each[1]): Voucher(self._lives.of(*each[:3]), *each[3:]) for each in vouchers}
