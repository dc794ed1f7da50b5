"""What of a connection is wanted, asked for and subscribed, without I/O: the commands, their answers, and what time does to them.

A market whose book is not known waits for its snapshot. What heals one, in order: `get_snapshot`, a second time, subscribing it
anew, and where it was known before, reconnecting. Nothing answered raises.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from kalshibook_core.kalshi import commands, messages
from kalshibook_core.kalshi.channels import BOOK, COMBO_LIFECYCLE, LIFECYCLES, OF_MARKETS, TRADES
from kalshibook_core.kalshi.messages import Envelope

BREAK: Final = "BREAK"
RESUME: Final = "RESUME"

SEQUENCE_GAP: Final = "upstream_sequence_gap"
SUBSCRIPTION_ERROR: Final = "terminal_subscription_error"
MARKET_CLOSED: Final = "market_closed"

BUFFER_OVERFLOW: Final = 25
TERMINAL_ERRORS: Final = frozenset({10, 17, BUFFER_OVERFLOW})
"""Channel error, internal error, buffer overflow: the subscription is dead (Kalshi docs, "Error codes")."""

TOO_MANY_MARKETS: Final = 26
TOO_MANY_REQUESTS: Final = 27
"""Kalshi docs, "Error codes"; neither number is published."""

BATCH: Final = 500
"""Tickers in one command. The exchange publishes no limit; 60 were seen to work, others shard at 256 and more."""

REPLY_US: Final = 15_000_000
"""How long an answer may take: the greatest lag seen on the wire is 10 s."""

ASK_AGAIN_US: Final = 5_000_000
"""After which a snapshot is asked for a second time: its reply may have been lost with the frames before it."""

GIVEN_UP_US: Final = 300_000_000
SLOWER_US: Final = 2_000_000
"""After which a command is sent again that came too fast."""


@dataclass(slots=True)
class Wait:
    """A market of which a snapshot is due."""

    due_us: int
    asked: int = 0  # get_snapshot commands sent for it since it was last known
    held: bool = True  # its book was known on this connection before


@dataclass(slots=True)
class Subscription:
    """One sid. `markets` holds each market's levels (by 2 * price + side), None while its book is unknown."""

    channel: str
    sid: int
    markets: dict[str, dict[int, int] | None]
    seq: int = 0
    newest_us: int = 0  # the greatest exchange timestamp received in order
    stale_run: int = 0
    waiting: dict[str, Wait] = field(default_factory=dict)


@dataclass(slots=True)
class Pending:
    """A command that was not answered yet."""

    action: str
    tickers: Sequence[str]
    due_us: int
    channels: set[str]  # those of which no `subscribed` came; of an update, its one channel
    tries: int = 1
    again: bool = False  # it was not carried out: send it once more when due


class Subscriptions:
    """The subscriptions of one connection. `session.Session` is these and the frames: `_note` and `_break` are its to do."""

    def __init__(self, counts: Counter[str]) -> None:
        """Want nothing yet."""
        self.failed: str | None = None
        self.stirred = False  # there is more to take away than records; for the caller to set back
        self.too_fast = False  # the exchange wants fewer commands a second; for the caller to set back
        self.turned_away: list[str] = []  # markets that found no room here; for the caller to place elsewhere and to clear
        self.most_markets: int | None = None  # where some were turned away: how many the connection holds
        self.overflowed = False  # the exchange could not send as fast as things happened; for the caller to set back
        self._counts = counts
        self._commands: list[bytes] = []
        self._troubles: list[tuple[str, str]] = []
        self._next_id = 1
        self._pending: dict[int, Pending] = {}
        self._by_sid: dict[int, Subscription] = {}
        self._by_channel: dict[str, Subscription] = {}
        self._wanted: dict[str, int | None] = {}  # ticker -> least skew for its first snapshot
        self._leaving: dict[str, str] = {}  # markets given up, with the cause to say
        self._back: set[tuple[str, str]] = set()  # channel and market: wanted again before the exchange has let it go
        self._queued: dict[str, dict[str, None]] = {channel: {} for channel in OF_MARKETS}

    def commands_to_send(self) -> list[bytes]:
        """Return the texts to send, in this order."""
        out, self._commands = self._commands, []
        return out

    def troubles_seen(self) -> list[tuple[str, str]]:
        """Return (kind, why) of what was wrong with frames since the last call, for the log; all of it is counted already."""
        out, self._troubles = self._troubles, []
        return out

    @property
    def settled(self) -> bool:
        """True when every command was answered and every wanted market is subscribed."""
        return not any(self._queued.values()) and all(p.action == commands.GET_SNAPSHOT for p in self._pending.values())

    @property
    def markets(self) -> int:
        """How many markets are wanted of this connection."""
        return len(self._wanted)

    # What the caller wants.

    def subscribe_lifecycle(self, now_us: int) -> None:
        """Subscribe to the changes of all markets' definitions."""
        for channel in LIFECYCLES:
            self._send_subscribe((channel,), (), now_us)

    def subscribe(self, tickers: Mapping[str, int | None], now_us: int) -> None:
        """Want these markets' books, trades and tickers, each with the least skew that its first snapshot is to be told with.

        That is the exchange's clock minus the local one as the REST answer that made the market known showed it, None where
        none did: the handshake may be long ago, and a book must not be claimed for an instant before it was known.
        """
        for ticker, skew_us in tickers.items():
            if ticker not in self._wanted:
                if self._leaving.pop(ticker, None) is not None:
                    self._back.update((s.channel, ticker) for s in self._by_channel.values() if ticker in s.markets)
                for queue in self._queued.values():
                    queue[ticker] = None
            self._wanted[ticker] = skew_us
        self._advance(now_us)

    def unsubscribe(self, tickers: Iterable[str], now_us: int, cause: str) -> None:
        """Want these markets no longer. They get a BREAK of this cause when the exchange has answered: after the last frame that
        could be believed."""
        gone = [ticker for ticker in tickers if self._wanted.pop(ticker, _ABSENT) is not _ABSENT]
        self._leaving.update(dict.fromkeys(gone, cause))
        for queue in self._queued.values():
            for ticker in gone:
                queue.pop(ticker, None)
        for subscription in self._by_channel.values():
            self._update(subscription, commands.DELETE, [t for t in gone if t in subscription.markets], now_us)

    def due(self, now_us: int) -> None:
        """Do what time asks for: commands that were not answered, snapshots that did not come. Call it every second or so."""
        for command_id, pending in [item for item in self._pending.items() if item[1].due_us <= now_us]:
            del self._pending[command_id]
            subscription = next((self._by_channel[c] for c in pending.channels if c in self._by_channel), None)
            if pending.action == commands.GET_SNAPSHOT:
                continue  # its markets are still waiting, each with its own time
            if pending.again:
                self._send_again(pending, subscription, now_us)
                continue
            if subscription is None or pending.tries > 1:
                self._fail(SUBSCRIPTION_ERROR, f"no answer to {pending.action}")
            else:
                self._update(subscription, pending.action, pending.tickers, now_us, pending.tries + 1)
        for subscription in list(self._by_sid.values()):
            self._heal(subscription, now_us)

    # Commands and their answers.

    def _meet(self, message: Envelope, now_us: int, clock_us: int) -> Subscription | None:
        """A sid nobody announced, at its very beginning: the `subscribed` was lost, but the type tells the channel as well."""
        channel = messages.CHANNEL_OF_TYPE.get(message.type)
        if message.sid < 0 or channel is None or message.seq not in (-1, 1):
            return None
        if not any(p.action == SUBSCRIBE and channel in p.channels for p in self._pending.values()):
            return None
        return self._bind(channel, message.sid, now_us, clock_us)

    def _bind(self, channel: str, sid: int, now_us: int, clock_us: int) -> Subscription | None:
        """A subscribe command of ours was answered for `channel` by `sid`, whose seq now starts at 1."""
        command = next((i for i, p in self._pending.items() if p.action == SUBSCRIBE and channel in p.channels), None)
        if command is None:
            if sid not in self._by_sid:
                self._fail(SUBSCRIPTION_ERROR, f"{channel} was announced as sid {sid}, and nothing asked for it")
            return self._by_sid.get(sid)
        pending = self._pending[command]
        pending.channels.discard(channel)
        if not pending.channels:
            del self._pending[command]
        subscription = Subscription(channel, sid, dict.fromkeys(pending.tickers))
        self._by_sid[sid] = self._by_channel[channel] = subscription
        self._joined(subscription, pending.tickers, now_us, clock_us)
        if channel == BOOK:
            subscription.waiting = {ticker: Wait(now_us + REPLY_US, held=False) for ticker in pending.tickers}
        self._update(subscription, commands.DELETE, [t for t in pending.tickers if t not in self._wanted], now_us)
        self._advance(now_us)
        return subscription

    def _advance(self, now_us: int) -> None:
        """Subscribe what is queued: by a new subscription where the channel has none, else by adding to it."""
        starts: dict[tuple[str, ...], list[str]] = {}
        for channel, queue in self._queued.items():
            if not queue or any(p.action == SUBSCRIBE and channel in p.channels for p in self._pending.values()):
                continue
            subscription = self._by_channel.get(channel)
            if subscription is None:
                first = tuple(queue)[:BATCH]
                starts.setdefault(first, []).append(channel)
                for ticker in first:
                    del queue[ticker]
            else:
                self._update(subscription, commands.ADD, list(queue), now_us)
                queue.clear()
        for tickers, channels in starts.items():
            self._send_subscribe(channels, tickers, now_us)

    def _send_subscribe(self, channels: Sequence[str], tickers: Sequence[str], now_us: int) -> None:
        self._commands.append(commands.subscribe(self._next_id, channels, tickers))
        self.stirred = True
        self._pending[self._next_id] = Pending(SUBSCRIBE, tickers, now_us + REPLY_US, set(channels))
        self._next_id += 1

    def _update(self, subscription: Subscription, action: str, tickers: Sequence[str], now_us: int, tries: int = 1) -> None:
        for start in range(0, len(tickers), BATCH):
            batch = tickers[start : start + BATCH]
            self._commands.append(commands.update(self._next_id, subscription.sid, action, batch))
            self.stirred = True
            self._pending[self._next_id] = Pending(action, batch, now_us + REPLY_US, {subscription.channel}, tries)
            self._next_id += 1
        if action == commands.ADD:
            # Held from here on and not from the `ok`: should the sid lose a frame meanwhile, it may have been this market's.
            for ticker in tickers:
                subscription.markets.setdefault(ticker, None)
                if subscription.channel == BOOK and ticker not in subscription.waiting:
                    subscription.waiting[ticker] = Wait(now_us + REPLY_US, held=False)

    def _send_again(self, pending: Pending, subscription: Subscription | None, now_us: int) -> None:
        if pending.action == SUBSCRIBE:
            self._send_subscribe([c for c in _CHANNELS if c in pending.channels], pending.tickers, now_us)
        elif subscription is not None:
            self._update(subscription, pending.action, pending.tickers, now_us, pending.tries)

    def _ask(self, subscription: Subscription, tickers: Sequence[str], now_us: int) -> None:
        for ticker in tickers:
            wait = subscription.waiting.setdefault(ticker, Wait(0))
            wait.asked += 1
            wait.due_us = now_us + (REPLY_US if wait.asked > 1 else ASK_AGAIN_US)
        self._counts["snapshots_requested"] += len(tickers)
        self._update(subscription, commands.GET_SNAPSHOT, tickers, now_us)

    def _done(self, pending: Pending, now_us: int, clock_us: int) -> None:
        for channel in pending.channels:
            subscription = self._by_channel.get(channel)
            if subscription is None:
                continue
            if pending.action == commands.ADD:
                self._joined(subscription, pending.tickers, now_us, clock_us)
            elif pending.action == commands.DELETE:
                for ticker in pending.tickers:
                    if (channel, ticker) in self._back:  # what happens from here on until it has it again is lost
                        self._back.discard((channel, ticker))
                        subscription.markets[ticker] = None
                        self._gave_up(subscription, ticker, _NOTSUBSCRIBED, now_us, clock_us)
                for ticker in [ticker for ticker in pending.tickers if ticker not in self._wanted]:
                    if ticker in self._leaving:
                        self._gave_up(subscription, ticker, self._leaving[ticker], now_us, clock_us)
                    subscription.markets.pop(ticker, None)
                    subscription.waiting.pop(ticker, None)
                    if not any(ticker in each.markets for each in self._by_channel.values()):
                        self._leaving.pop(ticker, None)

    def _gave_up(self, subscription: Subscription, ticker: str, cause: str, now_us: int, clock_us: int) -> None:
        if subscription.channel in (BOOK, TRADES):
            self._counts["breaks"] += cause != MARKET_CLOSED
            self._note(BREAK, subscription, [ticker], clock_us, now_us, detail=cause)

    def _joined(self, subscription: Subscription, tickers: Iterable[str], now_us: int, clock_us: int) -> None:
        if subscription.channel == TRADES:
            self._note(RESUME, subscription, tickers, clock_us, now_us)

    def _error(self, subscription: Subscription | None, message: Envelope, now_us: int, clock_us: int) -> None:
        msg = message.msg if type(message.msg) is dict else {}
        code = msg.get("code")
        why = f"error {code}: {str(msg.get('msg', ''))[:100]}"
        self._trouble("error", why)
        if type(code) is int and code in TERMINAL_ERRORS:
            self.overflowed |= code == BUFFER_OVERFLOW
            if subscription is None or subscription.channel not in OF_MARKETS:
                self._fail(SUBSCRIPTION_ERROR, why)  # whatever died, a new connection has it again
            else:
                self.too_fast |= not subscription.newest_us  # nothing had happened on it: not again and again at full speed
                self._renew(subscription, now_us)
            return
        pending = self._pending.pop(message.id, None)
        if code == TOO_MANY_REQUESTS:
            self.too_fast = self.stirred = True
            if pending is not None:
                pending.due_us, pending.again = now_us + SLOWER_US, True
                self._pending[message.id] = pending
            return
        if pending is None:
            return
        if code == TOO_MANY_MARKETS and pending.tickers:
            self._turn_away(pending, now_us)
            return
        named = [message.market_ticker] if message.market_ticker else msg.get("market_tickers")
        refused = {t for t in named if type(t) is str} if type(named) is list else set()
        if pending.action == commands.GET_SNAPSHOT:
            return  # due() asks again for what is still waiting
        if pending.action == commands.DELETE:
            return self._done(pending, now_us, clock_us)  # what cannot be deleted is not there
        if pending.channels == {COMBO_LIFECYCLE}:
            return  # an exchange without that channel; it is told
        if not refused:
            # Not about a market: let due() come to it a second later, and give the connection up if that fails as well.
            pending.due_us = now_us + 1_000_000
            self._pending[message.id] = pending
            return
        self._counts["refused_markets"] += len(refused)
        for ticker in refused:
            self._wanted.pop(ticker, None)
            for held in self._by_channel.values():
                held.markets.pop(ticker, None)
                held.waiting.pop(ticker, None)
            for queue in self._queued.values():
                queue.pop(ticker, None)
        for channel in pending.channels & self._queued.keys():
            self._queued[channel].update(dict.fromkeys(t for t in pending.tickers if t not in refused))
        self._advance(now_us)

    def _turn_away(self, pending: Pending, now_us: int) -> None:
        """The subscription is full: what it did not take goes elsewhere, and the channels that did take it let go of it."""
        full = [subscription for subscription in self._by_channel.values() if subscription.channel in pending.channels]
        for subscription in full:
            for ticker in pending.tickers:
                subscription.markets.pop(ticker, None)
                subscription.waiting.pop(ticker, None)
        self.most_markets = max(1, min((len(s.markets) for s in full), default=len(pending.tickers) // 2))
        self._counts["turned_away"] += len(pending.tickers)
        self.turned_away += pending.tickers
        self.stirred = True
        self.unsubscribe(pending.tickers, now_us, _NOTSUBSCRIBED)
        self._advance(now_us)

    def _renew(self, subscription: Subscription, now_us: int) -> None:
        """The exchange ended a subscription (terminal error): break its markets and subscribe them anew, under a new sid."""
        self._break(subscription, SUBSCRIPTION_ERROR, now_us)
        del self._by_sid[subscription.sid], self._by_channel[subscription.channel]
        moot = [i for i, p in self._pending.items() if p.action != SUBSCRIBE and subscription.channel in p.channels]
        for command_id in moot:
            del self._pending[command_id]
        self._queued[subscription.channel].update(dict.fromkeys(t for t in subscription.markets if t in self._wanted))
        self._advance(now_us)

    def _heal(self, subscription: Subscription, now_us: int) -> None:
        late = {t: w for t, w in subscription.waiting.items() if w.due_us <= now_us}
        if not late:
            return
        self._ask(subscription, [t for t, w in late.items() if w.asked < 2], now_us)
        stuck = [t for t, w in late.items() if w.due_us <= now_us]
        anew = [t for t in stuck if late[t].asked == 2]
        for ticker in anew:
            late[ticker].asked, late[ticker].due_us = 3, now_us + REPLY_US
        self._update(subscription, commands.DELETE, anew, now_us)
        self._update(subscription, commands.ADD, anew, now_us)
        for ticker in stuck:
            if late[ticker].due_us > now_us:
                continue
            if late[ticker].held:
                self._fail(SEQUENCE_GAP, f"no snapshot of {ticker} came")
            else:  # a market that never was: no reason to disturb the others
                late[ticker].asked, late[ticker].due_us = 0, now_us + GIVEN_UP_US
                self._trouble("unanswered", f"no snapshot of {ticker} came")

    # For the session to say.

    def _note(
        self, kind: str, subscription: Subscription, tickers: Iterable[str], clock_us: int, now_us: int, *, detail: str = ""
    ) -> None:
        """Publish a record of that kind for each of the tickers."""
        raise NotImplementedError

    def _break(self, subscription: Subscription, cause: str, now_us: int) -> None:
        """Say that of every market of the subscription something may have been lost."""
        raise NotImplementedError

    def _trouble(self, kind: str, why: str) -> None:
        self._counts[kind] += 1
        self._troubles.append((kind, why))
        self.stirred = True

    def _fail(self, cause: str, why: str) -> None:
        self._trouble("failed", why)
        self.failed = self.failed or cause


SUBSCRIBE: Final = "subscribe"
_CHANNELS: Final = (*OF_MARKETS, *LIFECYCLES)
_NOTSUBSCRIBED: Final = "not_yet_subscribed"
_ABSENT: Final = object()
