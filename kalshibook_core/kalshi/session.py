"""One life of one connection to the exchange, without I/O: what arrived, in which order, and what to say in answer.

Feed it every frame (`receive_frame`), the passing of time (`due`) and its end (`connection_lost`); say what is wanted
(`subscribe`, `unsubscribe`). After each call, take what it wants published (`records_to_publish`), sent (`commands_to_send`)
and known (`lifecycle_received`, `troubles_seen`), and look at `failed`: a cause there means that the connection must be given up.

It promises: every frame becomes exactly one record, in order of receipt, its bytes untouched. A sid's `seq` is contiguous over
all its markets (seen on the wire; `ok`, `unsubscribed` and errors consume one), so a hole in it may be any market's: every
market of the sid gets a BREAK record before the frame that showed the hole, and none gets one otherwise. Nothing fed to it
raises.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final, Generic, TypeVar

from kalshibook_core.kalshi import messages
from kalshibook_core.kalshi.channels import BOOK, LAG_US, LIFECYCLES, TICKERS, TRADES
from kalshibook_core.kalshi.messages import Envelope, Lifecycle, MalformedFrame, Snapshot, UnparsableFrame
from kalshibook_core.kalshi.subscriptions import BREAK, RESUME, SEQUENCE_GAP, SUBSCRIPTION_ERROR, Subscription, Subscriptions

FRAME: Final = "FRAME"
STALE: Final = "STALE"

STALE_RUN: Final = 64
"""So many stale frames with none in order between them: the sid's seq has been set back, or a bad one was believed."""

Record = TypeVar("Record")


class Session(Subscriptions, Generic[Record]):
    """One generation of one connection.

    `record` makes what is published out of the fields of kalshi.raw.v1 in their order. `skew_us` is the exchange's clock minus
    the local one, as the handshake's Date showed it. `counts` is the caller's, and outlives the session.
    """

    def __init__(
        self,
        record: Callable[..., Record],
        gatherer: str,
        connection: int,
        generation: int,
        *,
        skew_us: int,
        counts: Counter[str],
    ) -> None:
        """Make a session that has received nothing and wants nothing."""
        super().__init__(counts)
        self.missed_lifecycle = False  # lifecycle frames were lost: whoever keeps the markets should look them up
        self._record = record
        self._gatherer, self._connection, self._generation = gatherer, connection, generation
        self._nobody = f"@{gatherer}"
        self._skew_us = skew_us
        self._newest_us = 0  # the greatest exchange timestamp of the connection
        self._records: list[Record] = []
        self._lifecycle: list[Lifecycle] = []

    # What the caller takes away.

    def records_to_publish(self) -> list[Record]:
        """Return the records made since the last call; publish them in this order."""
        out, self._records = self._records, []
        return out

    def lifecycle_received(self) -> list[Lifecycle]:
        """Return the lifecycle messages received since the last call."""
        out, self._lifecycle = self._lifecycle, []
        return out

    def knows(self, ticker: str) -> bool:
        """Return whether the market's book is known here."""
        subscription = self._by_channel.get(BOOK)
        return subscription is not None and subscription.markets.get(ticker) is not None

    def exchange_us(self, now_us: int) -> int:
        """Return the exchange's clock as this connection knows it."""
        return max(now_us + self._skew_us, self._newest_us)

    # What happens.

    def receive_frame(self, frame: bytes, now_us: int) -> None:
        """Take one frame, as received at the local time `now_us`."""
        plain = messages.plain_delta(frame)
        if plain is not None and self._receive_plain(frame, plain, now_us):
            return
        clock_us = now_us + self._skew_us
        try:
            message = messages.envelope(frame)
        except MalformedFrame as error:
            self._trouble("malformed", str(error))
            message = _NO_MESSAGE
        kind, sid, seq, ticker, _, exchange_us, _ = message
        self._newest_us = max(self._newest_us, exchange_us)
        clock_us = max(clock_us, self._newest_us)
        subscription = self._by_sid.get(sid) or self._meet(message, now_us, clock_us)
        order = FRAME
        if subscription is None:
            channel = messages.CHANNEL_OF_TYPE.get(kind, "")
            if channel in (BOOK, TRADES):
                # Of a sid we do not follow (one that was ended, or one whose beginning we missed) no loss could be seen.
                order = STALE
                self._trouble("unannounced", f"a {kind} of sid {sid}")
        else:
            channel = subscription.channel
            if seq == subscription.seq + 1:
                subscription.seq = seq
                subscription.stale_run = 0
            elif seq > subscription.seq:
                self._hole(subscription, seq, exchange_us or clock_us, now_us)
            elif seq >= 0 or kind in _ORDERED:
                order = STALE
                self._stale(subscription)
            if order is FRAME and kind in _BOOK_TYPES and ticker not in subscription.markets:
                # A snapshot that was asked for and came after the market was given up: no delta will follow it.
                order = STALE
                self._trouble("unasked", f"a {kind} of a market that this connection did not subscribe")
            if order is FRAME and exchange_us > subscription.newest_us:
                subscription.newest_us = exchange_us
            if kind == messages.SNAPSHOT and order is FRAME and ticker in subscription.waiting:
                clock_us = self._first_known(subscription, ticker, now_us, clock_us)
        self._counts[_COUNTED.get(channel, "other_frames")] += 1
        self._records.append(
            self._record(
                order, self._gatherer, self._connection, self._generation, channel, sid, seq, False, ticker or self._nobody,
                now_us, clock_us, "", frame,
            )
        )  # fmt: skip
        if order is FRAME:
            if kind in _BOOK_TYPES:
                if subscription is not None:
                    self._book(subscription, message, now_us)
            elif kind not in _NO_CONTENT:
                self._control(subscription, message, now_us, clock_us)

    def _receive_plain(self, frame: bytes, delta: tuple[int, int, str, int, int, int, int], now_us: int) -> bool:
        """Take a delta in order, of a book that is known, that takes no more of a level than there is; else change nothing.

        Most frames are that, and this is all the long way would do with them.
        """
        sid, seq, ticker, side, price, change, exchange_us = delta
        subscription = self._by_sid.get(sid)
        if subscription is None or seq != subscription.seq + 1 or subscription.channel != BOOK:
            return False
        book = subscription.markets.get(ticker)
        if book is None:
            return False
        level = 2 * price + side
        size = book.get(level, 0) + change
        if size > 0:
            book[level] = size
        elif size == 0:
            book.pop(level, None)
        else:
            return False
        subscription.seq = seq
        subscription.stale_run = 0
        if exchange_us > subscription.newest_us:
            subscription.newest_us = exchange_us
            self._newest_us = max(self._newest_us, exchange_us)
        clock_us = max(now_us + self._skew_us, self._newest_us)
        self._counts["book_frames"] += 1
        self._records.append(
            self._record(
                FRAME, self._gatherer, self._connection, self._generation, BOOK, sid, seq, False, ticker,
                now_us, clock_us, "", frame,
            )
        )  # fmt: skip
        return True

    def connection_lost(self, cause: str, now_us: int) -> None:
        """The connection ended, or is about to be ended: break every market held. The session is over."""
        for subscription in self._by_sid.values():
            self._break(subscription, cause, now_us)
        self._by_sid.clear()
        self._by_channel.clear()

    # Order.

    def _hole(self, subscription: Subscription, seq: int, resumed_us: int, now_us: int) -> None:
        """Frames between the last and this one are missing, and could have been of any market of the sid."""
        self._trouble("sequence_gap", f"{subscription.channel} sid {subscription.sid}: {seq} after {subscription.seq}")
        self._break(subscription, SEQUENCE_GAP, now_us)
        subscription.seq = seq
        subscription.stale_run = 0
        if subscription.channel == BOOK:
            waiting = subscription.waiting
            self._ask(subscription, [t for t in subscription.markets if t not in waiting or not waiting[t].asked], now_us)
        elif subscription.channel == TRADES:
            # The stream of trades needs no snapshot, but what was lost of other markets may be younger than this frame.
            self._note(RESUME, subscription, subscription.markets, resumed_us + LAG_US, now_us)
        elif subscription.channel in LIFECYCLES:
            self.missed_lifecycle = self.stirred = True

    def _break(self, subscription: Subscription, cause: str, now_us: int) -> None:
        if subscription.channel in (BOOK, TRADES):
            self._counts["breaks"] += len(subscription.markets)
            self._note(BREAK, subscription, subscription.markets, subscription.newest_us, now_us, detail=cause)
        if subscription.channel == BOOK:
            subscription.markets = dict.fromkeys(subscription.markets)

    def _note(
        self, kind: str, subscription: Subscription, tickers: Iterable[str], clock_us: int, now_us: int, *, detail: str = ""
    ) -> None:
        life = (self._gatherer, self._connection, self._generation)
        where = (subscription.channel, subscription.sid, subscription.seq, False)
        self._records.extend(self._record(kind, *life, *where, ticker, now_us, clock_us, detail, b"") for ticker in tickers)

    def _stale(self, subscription: Subscription) -> None:
        self._trouble("stale", f"{subscription.channel} sid {subscription.sid}: no seq, or one at or before {subscription.seq}")
        subscription.stale_run += 1
        if subscription.stale_run == STALE_RUN:
            self._fail(SEQUENCE_GAP, f"{STALE_RUN} stale frames in a row")

    # Content.

    def _book(self, subscription: Subscription, message: Envelope, now_us: int) -> None:
        """Look at a book frame's content only to know whether the market needs a snapshot; its record is made already."""
        ticker = message.market_ticker
        try:
            content = messages.parse_book(message, False)
        except UnparsableFrame as error:
            self._trouble("unparsable", str(error))
        else:
            if type(content) is Snapshot:
                levels = {2 * price + messages.NO: size for price, size in content.no}
                levels.update((2 * price + messages.YES, size) for price, size in content.yes)
                subscription.markets[ticker] = levels
                subscription.waiting.pop(ticker, None)
                return
            book = subscription.markets[ticker]
            if book is None:
                return
            side, price, change, _ = content  # type: ignore[misc]  # not a Snapshot, so a Delta
            size = book.get(2 * price + side, 0) + change
            if size > 0:
                book[2 * price + side] = size
                return
            if size == 0:
                book.pop(2 * price + side, None)
                return
            self._trouble("negative_level", f"{ticker}: a level would hold {size}")
        subscription.markets[ticker] = None
        if ticker not in subscription.waiting:
            self._ask(subscription, [ticker], now_us)

    def _control(self, subscription: Subscription | None, message: Envelope, now_us: int, clock_us: int) -> None:
        kind, msg = message.type, message.msg
        if kind in messages.LIFECYCLE_TYPES:
            try:
                self._lifecycle.append(messages.parse_lifecycle(message))
                self.stirred = True
            except UnparsableFrame as error:
                self._trouble("unparsable", str(error))
        elif kind == "subscribed":
            channel, sid = (msg.get("channel"), msg.get("sid")) if type(msg) is dict else (None, None)
            if type(channel) is not str or type(sid) is not int or not 0 <= sid < 2**31:
                self._trouble("unparsable", "subscribed: no channel and sid")
            elif (known := self._by_sid.get(sid)) is not None and known.channel != channel:
                self._fail(SUBSCRIPTION_ERROR, f"sid {sid} of {known.channel} was announced for {channel} as well")
            else:
                self._bind(channel, sid, now_us, clock_us)
                if channel in LIFECYCLES:
                    self.missed_lifecycle = self.stirred = True  # what happened up to here: a list read before has it not
        elif kind == "ok":
            pending = self._pending.pop(message.id, None)
            if pending is not None:
                self._done(pending, now_us, clock_us)
        elif kind == "error":
            self._error(subscription, message, now_us, clock_us)
        elif kind != "unsubscribed":
            self._trouble("unknown_type", f"a message of type {kind[:40]!r}")

    # Commands and their answers.

    def _first_known(self, subscription: Subscription, ticker: str, now_us: int, clock_us: int) -> int:
        skew_us = None if subscription.waiting[ticker].held else self._wanted.get(ticker)
        return clock_us if skew_us is None else max(clock_us, now_us + skew_us)


_COUNTED: Final = {
    BOOK: "book_frames", TRADES: "trade_frames", TICKERS: "ticker_frames", **dict.fromkeys(LIFECYCLES, "lifecycle_frames"),
}  # fmt: skip
_NO_MESSAGE: Final = Envelope("", -1, -1, "", 0, 0, {})
_BOOK_TYPES: Final = frozenset({messages.DELTA, messages.SNAPSHOT})
_ORDERED: Final = frozenset({messages.DELTA, messages.SNAPSHOT, messages.TRADE})
"""Without a seq nobody could say what was lost before one of these."""

_NO_CONTENT: Final = frozenset({"", messages.TRADE, messages.TICKER})
