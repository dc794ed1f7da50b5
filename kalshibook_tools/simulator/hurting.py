"""Carries a schedule of faults out, round by round: hurts, waits until everybody is whole again, and lets them be for a while.

A client is whole when it has subscribed again to every market that is traded, and has been sent a book wherever it lost one.
So that a loss of one client is over for all of them before the next begins, every round starts when everybody has read what was
sent. Where faults must not overlap it waits for events that are `SETTLE_US` younger than the end of the last round and the
beginning of any market: sooner, nobody could prove that what one has of it follows on what another had. (Where markets begin all
the time a round comes in the end, and may leave a gap of some milliseconds in a market that had only just begun.)
"""

import asyncio
from collections.abc import Iterator, Set

import structlog

from kalshibook_core.kalshi.channels import BOOK, TRADES
from kalshibook_tools.simulator.exchange import Exchange
from kalshibook_tools.simulator.faults import Fault
from kalshibook_tools.simulator.schedule import Hurt, Round
from kalshibook_tools.simulator.server import Connection, Server

SETTLE_US = 12_000_000
"""More than the longest lag between the markets of one subscription that was seen on the wire (10 s)."""

SETTLE_SECONDS = 0.25
"""At full speed the exchange's time is no time: so long a client has to pass on what it has read, before another is hurt."""

LATE_SECONDS = 5.0
"""A delay ends with its round, and no later than this: after 30 s a client takes the connection for dead."""

AWAY = frozenset({"reset", "delay"})
"""Whoever is hurt so is not waited for until the round is over: what is sent meanwhile it misses, or gets late."""

_log = structlog.get_logger()


class Hurting:
    """The rounds of one exchange. `next` is the frame at which `step` must be called again."""

    def __init__(self, server: Server, rounds: Iterator[Round], *, settle: bool, patient: bool) -> None:
        """`settle`: leave room between rounds. `patient`: `step` waits until everybody is whole, and else looks again later."""
        self._server = server
        self._exchange: Exchange = server.exchange
        self._rounds = rounds
        self._settle_us = SETTLE_US if settle else 0
        self._patient = patient
        self._round = next(rounds)
        self._healed_us = 0
        self._waits_since = 0
        self._begun = False
        self._armed: list[Fault] = []
        self._held: dict[int, Set[tuple[str, str]]] = {}  # what a client that was hurt had subscribed to
        self.next = self._round.at

    async def step(self, frame: int) -> None:
        """Do what is due at this frame of the exchange."""
        if self._begun:
            await self.heal()
            self._waits_since = frame
        elif self._may_begin(frame):
            await self._server.drained()
            await self._server.read_by_all()
            if self._settle_us:
                await asyncio.sleep(SETTLE_SECONDS)
            if self._may_begin(frame):  # somebody may have come to a market meanwhile
                self._begin(frame)

    async def heal(self) -> None:
        """End the round, if there is one: what was delayed comes, and everybody becomes whole."""
        if not self._begun:
            return
        exchange = self._exchange
        self._server.release()  # the exchange's clock stands now: whoever comes back is told the time of what he missed
        for fault in self._armed:
            exchange.faults.disarm(fault)
            victim = fault.victim
            if victim is not None and victim.connection.alive and victim.seq == fault.lost_seq:
                # No frame came that could show the loss, and perhaps none will: the exchange says itself that there is one.
                self._end_subscription(victim.connection, Hurt(victim.connection.client, "error_25", victim.channel))
        self._armed.clear()
        while missing := self._missing():
            if not self._patient:
                return
            exchange.waiting = missing
            await asyncio.sleep(0.002)
        exchange.waiting = None
        self._begun = False
        self._held.clear()
        self._healed_us = exchange.clock_us()
        self._round = next(self._rounds)
        self.next = self._round.at

    def _may_begin(self, frame: int) -> bool:
        """Return whether everybody has heard something later of each channel than what began, or was healed, last."""
        settled_us = max(self._healed_us, self._exchange.begun_us) + self._settle_us
        patience = max(self._round.at, self._waits_since) + self._round.patience
        return not self._settle_us or min(self._exchange.newest_us.values()) >= settled_us or frame > patience

    def _begin(self, frame: int) -> None:
        for hurt in self._round.hurts:
            _log.info("hurt", gatherer=hurt.client, kind=hurt.kind, channel=hurt.channel, frame=frame, frames=self._round.frames)
            self._held[hurt.client] = self._exchange.subscribed(hurt.client)
            if hurt.kind in AWAY:
                self._exchange.away.add(hurt.client)
            for connection in [each for each in self._server.connections.values() if each.client == hurt.client]:
                self._hurt(connection, hurt)
        self._begun = True
        self.next = frame + self._round.frames

    def _hurt(self, connection: Connection, hurt: Hurt) -> None:
        match hurt.kind:
            case "reset":
                connection.reset()
            case "error_25":
                self._end_subscription(connection, hurt)
                return
            case "delay":
                connection.hold()
                asyncio.get_running_loop().call_later(LATE_SECONDS, connection.release)
            case _:
                fault = Fault(hurt.kind, channel=hurt.channel, connection=connection.number)
                self._armed.append(fault)
                self._exchange.faults.arm(fault)
                return
        self._exchange.faults.tell(hurt.client, hurt.kind)

    def _end_subscription(self, connection: Connection, hurt: Hurt) -> None:
        if any(each.channel == hurt.channel for each in connection.subscriptions.by_sid.values()):
            self._exchange.faults.tell(hurt.client, hurt.kind)
            connection.end_subscriptions(25, hurt.channel)

    def _missing(self) -> dict[str, str] | None:
        """Return what somebody has not done yet to be whole, None if everybody is."""
        exchange = self._exchange
        traded = [ticker for ticker, market in exchange.markets.items() if not market.ended]
        for client in sorted(exchange.clients):
            held = self._held.get(client, ())
            for channel in (BOOK, TRADES):
                for ticker in traded:
                    if ((channel, ticker) in held or exchange.audience(channel, ticker)) and not exchange.heard_by(
                        client, channel, ticker
                    ):
                        return {"gatherer": str(client), "to": "subscribe", "market_ticker": ticker, "channel": channel}
        for connection in self._server.connections.values():
            for subscription in connection.subscriptions.by_sid.values():
                for ticker in subscription.owed:
                    return {"gatherer": str(connection.client), "to": "get_snapshot", "market_ticker": ticker, "channel": BOOK}
        return None
