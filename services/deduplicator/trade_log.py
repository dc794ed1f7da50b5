"""Trades of a partition, each once, and the gaps in a market's trades. Pure.

A trade is unique by its id, whoever brings it and however late. That a trade is missing is known from the gatherers alone: a
RESUME says that one vouches for the market's trades from then on, a BREAK that it does no longer. What nobody vouched for is a
gap, and told as soon as nobody is left who may have it, be it far behind. A START, or a RESUME of the connection's next
generation, that no BREAK came before (the gatherer was killed) is a BREAK too. Of a market that has ended both tell what was
lost before its end.
"""

from collections import Counter, deque
from collections.abc import Sequence
from typing import Any, Final

from kalshibook_core.wire.events import IMPORTED, LAG_US, LET_GO, TRADES, Cause, Gap, RawFrame, RawKind, Trade
from services.deduplicator.alignment import Life, Lives

MOST: Final = 100
"""Spans that one market's trades are divided in; it takes so many connections to come while one stands."""

_NEVER: Final = 1 << 62


class TradeWindow:
    """The ids of the last `size` trades that connections delivered in a partition.

    It is a function of the tail of kalshi.trades.v1 alone, so a restart rebuilds it exactly. A repeat that comes more than `size`
    trades after its original is not recognised; one trade's repeats lie seconds apart at most.
    """

    def __init__(self, size: int) -> None:
        """Make an empty window."""
        self.size = size
        self._order: deque[Trade] = deque()
        self._ids: set[str] = set()

    def __contains__(self, trade_id: str) -> bool:
        return trade_id in self._ids

    def add(self, trade: Trade) -> None:
        """Take a trade that is not in the window; the oldest leaves when the window is full."""
        if len(self._order) >= self.size:
            oldest = self._order.popleft()
            self._ids.discard(oldest.trade_id)
        self._order.append(trade)
        self._ids.add(trade.trade_id)

    @property
    def held(self) -> list[Trade]:
        """The trades in it, in their order."""
        return list(self._order)


class Voucher:
    """A connection that vouches, or vouched last, for a market's trades: since when."""

    __slots__ = ("heard_us", "life", "since_us", "vouches")

    def __init__(self, life: Life, since_us: int, vouches: bool = True, heard_us: int = 0) -> None:
        """Make a voucher from the exchange time `since_us` on."""
        self.life, self.since_us, self.vouches = life, since_us, vouches
        self.heard_us = heard_us  # of the latest that it delivered, known already or not


def _hears(voucher: Voucher, leaving: str) -> bool:
    """Return whether this one can vouch for what the other lost: who plays recorded frames hears nothing of today."""
    return leaving.startswith(IMPORTED) or not voucher.life.gatherer.name.startswith(IMPORTED)


class TradeLog:
    """What is known of the completeness of one market's trades.

    `spans` are what nobody who has left had delivered, and no gap yet: each rests on those who vouch and came before it. The last
    has no end. Who comes begins another, so that each rests on the same ones throughout; who leaves takes from each that rested
    on it what it had delivered; and what rests on nobody is a gap.
    """

    __slots__ = ("_lives", "begun_us", "ended_us", "gap_cause", "gap_start_us", "spans", "tally", "ticker", "vouchers")

    def __init__(self, ticker: str, tally: Counter[str], lives: Lives) -> None:
        """Make the log of a market whose trades nobody vouched for yet."""
        self.ticker = ticker
        self.tally = tally
        self._lives = lives
        self.vouchers: dict[tuple[str, int], Voucher] = {}  # by gatherer and connection
        self.begun_us = _NEVER  # from here on somebody vouched once
        self.spans: list[tuple[int, int]] = []  # (start, end), by their start
        self.gap_start_us: int | None = None
        self.gap_cause: str | None = None
        self.ended_us = 0  # from this instant on nothing trades any more, 0 while it may

    def heard(self, raw: RawFrame, exchange_us: int) -> None:
        """Take a trade that a connection delivered in order: up to then it has delivered them all."""
        voucher = self.vouchers.get(raw[1:3])
        if voucher is None or voucher.life.generation != raw.generation or raw.kind != RawKind.FRAME:
            return
        voucher.heard_us = max(voucher.heard_us, exchange_us)
        voucher.life.traded_us = max(voucher.life.traded_us, exchange_us)

    def broken(self, raw: RawFrame, offset: int) -> list[Gap]:
        """Return the gaps that a BREAK makes."""
        voucher = self.vouchers.get(raw[1:3])
        if voucher is None or not voucher.vouches or voucher.life.generation > raw.generation:
            return []
        if voucher.life.generation < raw.generation:
            return self._killed([voucher], raw, offset)
        voucher.vouches = False
        if raw.detail in LET_GO:
            del self.vouchers[raw[1:3]]
        closed_us = self.ended_us if raw.detail == Cause.MARKET_CLOSED else 0
        self._delivered(voucher, max(raw.clock_us - LAG_US, voucher.heard_us, closed_us))
        return self._gaps(raw, offset, raw.detail)

    def resumed(self, raw: RawFrame, offset: int) -> list[Gap]:
        """Return the gaps that a RESUME makes or closes."""
        gatherer, connection, generation = raw[1:4]
        if raw[2:4] in self._lives.gatherer(gatherer).over:
            return []
        before = [each for each in self.vouchers.values() if each.life.ended_by(gatherer, connection)]
        newest = max((each.life.generation for each in before if each.vouches or each.life.connection == connection), default=0)
        if newest > generation or any(each.vouches and each.life.generation == generation for each in before):
            return []
        made = self._killed(before, raw, offset)
        for each in before:
            del self.vouchers[each.life.name[:2]]
        self.vouchers[gatherer, connection] = Voucher(self._lives.of(gatherer, connection, generation), raw.clock_us)
        if raw.clock_us < self.begun_us:
            self.spans.insert(0, (raw.clock_us, self.begun_us))
            self.begun_us = raw.clock_us
        self._divide(raw.clock_us)
        if self.gap_start_us is not None:
            made += self._end(raw, offset, raw.clock_us)
        return made

    def started(self, raw: RawFrame, offset: int) -> list[Gap]:
        """Return the gaps that a gatherer's START makes: no connection of the process before it vouches any longer."""
        before = [each for each in self.vouchers.values() if each.life.gatherer.name == raw.gatherer]
        made = self._killed(before, raw, offset)
        for each in before:
            del self.vouchers[each.life.name[:2]]
        return made

    def ended(self, raw: RawFrame, offset: int) -> list[Gap]:
        """Return the gaps that close because nothing trades any more and nobody will resume. Whoever hears it first is right."""
        self.ended_us = min(self.ended_us or raw.clock_us, raw.clock_us)
        return [] if self.gap_start_us is None else self._end(raw, offset, raw.clock_us)

    def unreadable(self, raw: RawFrame, offset: int, exchange_us: int) -> list[Gap]:
        """Return the gaps that a trade frame without readable content makes: that of the microsecond it happened in, or of as
        long as it may lag.

        Whose it is has delivered all before it, and vouches again behind it. A time that cannot be is none.
        """
        voucher = self.vouchers.get(raw[1:3])
        if voucher is None or not voucher.vouches or voucher.life.generation != raw.generation:
            return []
        if exchange_us >= max(voucher.heard_us, voucher.since_us):
            start_us, end_us = exchange_us, exchange_us + 1
        else:
            start_us, end_us = max(voucher.heard_us, raw.clock_us - LAG_US), max(voucher.heard_us, raw.clock_us)
        if end_us <= voucher.since_us:
            return []
        self._delivered(voucher, start_us)
        voucher.since_us = end_us
        self._divide(end_us)
        return self._gaps(raw, offset, Cause.PARSE_FAILURE)

    def _killed(self, vouchers: Sequence[Voucher], raw: RawFrame, offset: int) -> list[Gap]:
        """These ended without a word, perhaps long after their connections' last trade: who came before that takes over."""
        left = [each for each in vouchers if each.vouches]
        for each in left:
            each.vouches = False
            self._delivered(each, max(each.life.traded_us - LAG_US, each.heard_us))
        return self._gaps(raw, offset, Cause.DISCONNECT) if left else []

    def _standing(self, raw: RawFrame) -> list[Voucher]:
        return [each for each in self.vouchers.values() if each.vouches and _hears(each, raw.gatherer)]

    def _divide(self, us: int) -> None:
        """Who vouches from this instant on came: what is before it does not rest on it."""
        self.spans = [
            part for start, end in self.spans for part in (((start, us), (us, end)) if start < us < end else ((start, end),))
        ]
        if len(self.spans) > MOST:  # nobody left for long: two of them rest on whom both rest
            self.spans[:2] = [(self.spans[0][0], self.spans[1][1])]

    def _delivered(self, voucher: Voucher, until_us: int) -> None:
        """One that vouches no longer had delivered everything up to this instant."""
        rest = [(max(start, until_us) if voucher.since_us <= start else start, end) for start, end in self.spans]
        self.spans = [(start, end) for start, end in rest if start < end]

    def _gaps(self, raw: RawFrame, offset: int, cause: str) -> list[Gap]:
        """Return as gaps what is before the first instant anybody vouches for."""
        ends = [each.since_us for each in self._standing(raw)]
        if self.ended_us:
            ends.append(self.ended_us)
        if self.gap_start_us is not None or not self.spans:
            return []
        if not ends:
            return [self._open(raw, offset, cause, self.spans[0][0])]
        made, first_us = list[Gap](), min(ends)
        self._divide(first_us)
        while self.spans[0][1] <= first_us:
            start_us, end_us = self.spans.pop(0)
            made += [self._open(raw, offset, cause, start_us), self._close(raw, offset, end_us)]
        return made

    def _end(self, raw: RawFrame, offset: int, end_us: int) -> list[Gap]:
        """Return the end of the gap that is open, and whatever else nobody vouches for before this instant."""
        self._divide(end_us)
        first_us, cause = self.spans[0][1], self.gap_cause or ""
        if first_us <= end_us:
            del self.spans[0]
        return [self._close(raw, offset, min(first_us, end_us)), *self._gaps(raw, offset, cause)]

    def _open(self, raw: RawFrame, offset: int, cause: str, start_us: int) -> Gap:
        self.gap_start_us, self.gap_cause = start_us, str(cause)
        self.tally["trade_gaps_opened"] += 1
        return self._event(raw, offset, start_us, start_us, None)

    def _close(self, raw: RawFrame, offset: int, end_us: int) -> Gap:
        assert self.gap_start_us is not None
        end_us = max(self.gap_start_us, end_us)
        event = self._event(raw, offset, end_us, self.gap_start_us, end_us)
        self.gap_start_us = self.gap_cause = None
        self.tally["trade_gaps_closed"] += 1
        return event

    def _event(self, raw: RawFrame, offset: int, effective_us: int, start_us: int, end_us: int | None) -> Gap:
        return Gap(
            self.ticker, 0, effective_us, TRADES, start_us, end_us, self.gap_cause or "", raw.recv_us, 0,
            raw.gatherer, raw.connection, raw.generation, offset,
        )  # fmt: skip

    def state(self) -> list[Any]:
        """Return what `restore` needs, as JSON can hold it."""
        vouchers = [(*each.life.name, each.since_us, each.vouches, each.heard_us) for each in self.vouchers.values()]
        return [self.spans, self.gap_start_us, self.gap_cause, vouchers, self.ended_us, self.begun_us]

    def restore(self, state: Sequence[Any], ended: bool) -> None:
        """Become the log that gave this state.

        The releases before wrote up to where all was vouched for, and delivered, in place of spans; the first not when the
        market had `ended`. They had one number more of each voucher, and those without spans not the last of ours.
        """
        if isinstance(state[0], list):
            spans, self.gap_start_us, self.gap_cause, vouchers, self.ended_us, self.begun_us = state
        else:
            since_us, until_us, self.gap_start_us, self.gap_cause, vouchers, *ended_us = state
            start_us = max(since_us, until_us) if self.gap_start_us is None else self.gap_start_us
            spans, self.begun_us = ([(start_us, _NEVER)], 0) if since_us else ([], _NEVER)
            self.ended_us = ended_us[0] if ended_us else int(ended)
            vouchers = [(*each[:5], 0) for each in vouchers]
        self.spans = [(start, end) for start, end in spans]
        self.vouchers = {(each[0], each[1]): Voucher(self._lives.of(*each[:3]), each[3], each[4], each[-1]) for each in vouchers}
