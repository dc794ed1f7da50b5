"""One connection's subscriptions, without I/O: a command in, the exchange's answers out, one `seq` per sid.

Promises (Kalshi docs, asyncapi, and what was seen on the wire): a sid is one channel; sids are 1, 2, … on each connection and
are never used again on it; a sid's seq begins at 1, has no hole, covers all its markets, and is consumed by snapshots,
deltas, trades, `ok`, `unsubscribed` and errors scoped to the sid. `subscribed`, the `ticker` channel and errors of no sid
consume none.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import orjson

from kalshibook_core.kalshi.channels import BOOK, LIFECYCLES, OF_MARKETS, TICKERS
from kalshibook_tools.simulator.frames import Frame

FILTERED = frozenset(OF_MARKETS)
PUBLIC = FILTERED.union(LIFECYCLES)
PRIVATE = frozenset(
    {
        "fill",
        "market_positions",
        "communications",
        "order_group_updates",
        "user_orders",
        "cfbenchmarks_value",
        "cfbenchmarks_value_5hz",
        "pyth_value",
    }
)
"""Channels that are acknowledged and then silent: nobody trades with an account here, and no index is published."""

ERRORS = {
    1: "Unable to process message",
    2: "Params required",
    3: "Channels required",
    4: "Subscription IDs required",
    5: "Unknown command",
    7: "Unknown subscription ID",
    8: "Unknown channel name",
    10: "Channel error",
    11: "Invalid parameter",
    12: "Exactly one subscription ID is required",
    13: "Unsupported action",
    14: "Market Ticker required",
    15: "Action required",
    17: "Internal error",
    25: "Subscription buffer overflow",
}


class Subscription:
    """One sid: a channel, the markets it covers (None: all), and its counter."""

    __slots__ = ("channel", "connection", "owed", "seq", "sequenced", "sid", "skip_ack", "tickers", "yes_price")

    def __init__(self, connection: Any, sid: int, channel: str, yes_price: bool, skip_ack: bool) -> None:
        self.connection = connection
        self.sid = sid
        self.channel = channel
        self.sequenced = channel != TICKERS
        self.yes_price = yes_price
        self.skip_ack = skip_ack
        self.tickers: dict[str, None] | None = {}
        self.seq = 0
        self.owed: set[str] = set()  # markets whose book the client lost to a fault, and has not asked for again

    def payload(self, frame: Frame) -> bytes:
        """Return the frame as this subscription gets it, consuming a seq if its channel has one."""
        if self.yes_price:
            frame = frame.in_yes_price()
        if frame.sequenced:
            self.seq += 1
        return frame.render(self.sid, self.seq)


class Markets(Protocol):
    """What a subscription asks of the exchange's markets, and tells it."""

    def snapshot(self, ticker: str, command_id: int | None) -> Frame | None:
        """Return the market's book now, None where it has none yet (its first snapshot will answer the subscription)."""

    def ticker_frame(self, ticker: str) -> Frame | None:
        """Return the market's summary now."""

    def joined(self, subscription: Subscription, ticker: str | None) -> None:
        """From here on the subscription gets the market's frames (None: of all markets)."""

    def left(self, subscription: Subscription, ticker: str | None, *, asked: bool) -> None:
        """From here on it does not; `asked`: the client wanted that, and no error ended it."""


class Refused(Exception):
    """A command that is answered by an error. `subscription`: the sid it is scoped to, which consumes a seq."""

    def __init__(self, code: int, subscription: Subscription | None = None) -> None:
        super().__init__(ERRORS[code])
        self.code = code
        self.subscription = subscription


class Subscriptions:
    """All subscriptions of one connection."""

    def __init__(self, connection: Any, markets: Markets) -> None:
        self.by_sid: dict[int, Subscription] = {}
        self._connection = connection
        self._markets = markets
        self._last_sid = 0

    def receive(self, text: bytes) -> list[bytes]:
        """Obey one command and return its answers in order."""
        try:
            command = orjson.loads(text)
        except orjson.JSONDecodeError:
            return [_error(1, None, None)]
        if not isinstance(command, dict):
            return [_error(1, None, None)]
        number = command.get("id")
        command_id = number if isinstance(number, int) and number > 0 else None
        try:
            match command.get("cmd"):
                case "subscribe":
                    return self._subscribe(_params(command), command_id)
                case "unsubscribe":
                    return self._unsubscribe(_params(command), command_id)
                case "update_subscription":
                    return self._update(_params(command), command_id)
                case "list_subscriptions":
                    rows = [{"channel": s.channel, "sid": s.sid} for s in self.by_sid.values()]
                    return [_reply({"id": command_id, "type": "ok", "msg": rows})]
                case _:
                    raise Refused(5)
        except Refused as refusal:
            return [_error(refusal.code, command_id, refusal.subscription)]

    def end(self, subscription: Subscription, code: int) -> bytes:
        """End a subscription by a terminal error (10, 17, 25) and return the frame that says so."""
        payload = _error(code, None, subscription)
        self._remove(subscription, asked=False)
        return payload

    def _subscribe(self, params: Mapping[str, Any], command_id: int | None) -> list[bytes]:
        channels = params.get("channels")
        if not isinstance(channels, list) or not channels:
            raise Refused(3)
        if any(channel not in PUBLIC | PRIVATE for channel in channels):
            raise Refused(8)
        tickers = _tickers(params)
        if tickers is None and BOOK in channels:
            raise Refused(14)
        answers: list[bytes] = []
        fresh: list[tuple[Subscription, list[str]]] = []
        for channel in dict.fromkeys(channels):
            wanted = tickers if channel in FILTERED else None
            subscription = next((s for s in self.by_sid.values() if s.channel == channel), None)
            if subscription is not None:
                # A second subscribe on a channel merges into its sid (changelog, Oct 1 2025).
                fresh.append((subscription, self._add(subscription, wanted)))
                answers.append(self._ok(subscription, command_id))
                continue
            self._last_sid += 1
            yes_price, skip_ack = params.get("use_yes_price") is True, params.get("skip_ticker_ack") is True
            subscription = Subscription(self._connection, self._last_sid, channel, yes_price, skip_ack)
            self.by_sid[subscription.sid] = subscription
            fresh.append((subscription, self._add(subscription, wanted)))
            answers.append(_reply({"type": "subscribed", "id": command_id, "msg": {"channel": channel, "sid": subscription.sid}}))
        for subscription, added in fresh:
            answers += self._first_frames(subscription, added, params.get("send_initial_snapshot") is True)
        return answers

    def _unsubscribe(self, params: Mapping[str, Any], command_id: int | None) -> list[bytes]:
        sids = params.get("sids")
        if not isinstance(sids, list) or not sids:
            raise Refused(4)
        answers = []
        for sid in sids:
            subscription = self.by_sid.get(sid) if isinstance(sid, int) else None
            if subscription is None:
                answers.append(_error(7, command_id, None))
                continue
            self._remove(subscription, asked=True)
            answers.append(_reply({"id": command_id, "sid": sid, **_next_seq(subscription), "type": "unsubscribed"}))
        return answers

    def _update(self, params: Mapping[str, Any], command_id: int | None) -> list[bytes]:
        sids = params["sids"] if "sids" in params else [params["sid"]] if "sid" in params else []
        if not isinstance(sids, list) or len(sids) != 1:
            raise Refused(12)
        subscription = self.by_sid.get(sids[0]) if isinstance(sids[0], int) else None
        if subscription is None:
            raise Refused(7)
        action = params.get("action")
        if not action:
            raise Refused(15)
        allowed = (
            ("add_markets", "delete_markets", "get_snapshot")
            if subscription.channel == BOOK
            else ("add_markets", "delete_markets")
        )
        if action not in allowed or subscription.channel not in FILTERED:
            raise Refused(13, subscription)
        tickers = _tickers(params)
        if tickers is None:
            raise Refused(14, subscription)
        if action == "get_snapshot":
            # No `ok`: the snapshots are the answer, in the order asked for (seen on the wire).
            subscription.owed.difference_update(tickers)
            asked = (self._markets.snapshot(ticker, command_id) for ticker in tickers)
            return [subscription.payload(frame) for frame in asked if frame is not None]
        if action == "delete_markets":
            for ticker in tickers:
                if subscription.tickers is not None and ticker in subscription.tickers:
                    del subscription.tickers[ticker]
                    subscription.owed.discard(ticker)
                    self._markets.left(subscription, ticker, asked=True)
            return [self._ok(subscription, command_id)]
        added = self._add(subscription, tickers)
        return [self._ok(subscription, command_id), *self._first_frames(subscription, added, False)]

    def _add(self, subscription: Subscription, tickers: list[str] | None) -> list[str]:
        """Let the subscription cover these markets (None: all) and return the ones that are new to it."""
        if subscription.tickers is None:
            return []
        if tickers is None:
            for ticker in subscription.tickers:
                self._markets.left(subscription, ticker, asked=False)
            subscription.tickers = None
            self._markets.joined(subscription, None)
            return []
        added = [ticker for ticker in dict.fromkeys(tickers) if ticker not in subscription.tickers]
        for ticker in added:
            subscription.tickers[ticker] = None
            self._markets.joined(subscription, ticker)
        return added

    def _first_frames(self, subscription: Subscription, added: Iterable[str], initial_ticker: bool) -> list[bytes]:
        """Return what new markets begin with. Initial snapshots come sorted by ticker (seen on the wire)."""
        if subscription.channel == BOOK:
            frames = [self._markets.snapshot(ticker, None) for ticker in sorted(added)]
        elif subscription.channel == TICKERS and initial_ticker:
            frames = [self._markets.ticker_frame(ticker) for ticker in added]
        else:
            return []
        return [subscription.payload(frame) for frame in frames if frame is not None]

    def _remove(self, subscription: Subscription, *, asked: bool) -> None:
        del self.by_sid[subscription.sid]
        for ticker in [None] if subscription.tickers is None else list(subscription.tickers):
            self._markets.left(subscription, ticker, asked=asked)

    def _ok(self, subscription: Subscription, command_id: int | None) -> bytes:
        body = {"id": command_id, "sid": subscription.sid, **_next_seq(subscription), "type": "ok"}
        if not subscription.skip_ack:
            body["msg"] = {"market_tickers": list(subscription.tickers or ())}
        return _reply(body)


def _params(command: Mapping[str, Any]) -> Mapping[str, Any]:
    params = command.get("params")
    if not isinstance(params, dict):
        raise Refused(2)
    return params


def _tickers(params: Mapping[str, Any]) -> list[str] | None:
    """Read `market_ticker` or `market_tickers`; None where neither is given. Both, or anything but strings, is refused."""
    one, many = params.get("market_ticker"), params.get("market_tickers")
    if one and many:
        raise Refused(11)
    tickers = [one] if one else many
    if not tickers:
        return None
    if not isinstance(tickers, list) or not all(isinstance(ticker, str) and ticker for ticker in tickers):
        raise Refused(11)
    return tickers


def _next_seq(subscription: Subscription) -> dict[str, Any]:
    if not subscription.sequenced:
        return {}
    subscription.seq += 1
    return {"seq": subscription.seq}


def _error(code: int, command_id: int | None, subscription: Subscription | None) -> bytes:
    scope = {"sid": subscription.sid, **_next_seq(subscription)} if subscription else {}
    return _reply({"id": command_id, "type": "error", **scope, "msg": {"code": code, "msg": ERRORS[code]}})


def _reply(body: dict[str, Any]) -> bytes:
    return orjson.dumps({key: value for key, value in body.items() if value is not None}) + b"\n"
