"""Plays a recording as the exchange would have sent it: paced by its receive times, held while nobody listens, nothing missed at
any speed.

Each frame waits until the subscriptions that it answers are there. A market appears when its recording begins: first in REST,
then as `created` on the lifecycle channel, then its first recorded snapshot answers whoever subscribed. Where the recorder's
connection had died every connection is reset, once the clients have read all that came before, and until its next recorded
snapshot no market has a book.
"""

import asyncio
from collections import deque

import structlog

from kalshibook_core.kalshi import channels, messages
from kalshibook_core.runtime import clock
from kalshibook_tools.simulator import frames
from kalshibook_tools.simulator.exchange import Exchange
from kalshibook_tools.simulator.hurting import Hurting
from kalshibook_tools.simulator.market import Delta, Notice, Trade, created_frame, lifecycle_frame
from kalshibook_tools.simulator.recording import Recorded, Recording, play
from kalshibook_tools.simulator.server import Server

LONGEST_SILENCE = 60.0
"""A longer pause (wall time, after speed) is cut to this, and told."""

BATCH = 256
HELD_TOLD_AFTER = 5.0
_log = structlog.get_logger()


class RecordingClock:
    """The exchange's clock in a replay: the receive time reached, running on by speed while the next frame is awaited."""

    def __init__(self, first_ms: int, speed: float | None) -> None:
        self._reached_us = first_ms * 1000
        self._since = 0.0
        self._until_us = self._reached_us
        self._speed = speed

    def now_us(self) -> int:
        """Return the recording's clock, microseconds."""
        if self._speed is None or self._until_us <= self._reached_us:
            return self._reached_us
        elapsed = round((clock.monotonic() - self._since) * self._speed * 1_000_000)
        return min(self._reached_us + elapsed, self._until_us)

    def reach(self, us: int) -> None:
        """Stand at this instant; never go back (an exchange timestamp may lie before the receipt of another)."""
        self._reached_us = self._until_us = max(us, self._reached_us)

    def run_until(self, us: int) -> None:
        """Run from now on, up to this instant."""
        self._reached_us, self._until_us, self._since = self.now_us(), max(us, self._reached_us), clock.monotonic()


class Playback:
    """One replay of one recording."""

    def __init__(
        self,
        recording: Recording,
        server: Server,
        play_clock: RecordingClock,
        speed: float | None,
        hurting: Hurting | None = None,
    ) -> None:
        """`speed` None: as fast as the sockets take it."""
        self._recording = recording
        self._server = server
        self._exchange: Exchange = server.exchange
        self._clock = play_clock
        self._speed = speed
        self._hurting = hurting
        self._left = {ticker: market.frames for ticker, market in recording.markets.items()}
        self._subscribed = asyncio.Event()
        self._exchange.on_subscribed = self._subscribed.set
        self._due_at = clock.monotonic()
        self._due_ms = recording.first_ms

    async def run(self) -> None:
        """Play everything, then say so when every client has read it; the sockets stay."""
        server, exchange, deaths, hurting = self._server, self._exchange, deque(self._recording.deaths), self._hurting
        for n, (recv_ms, event) in enumerate(play(self._recording), 1):
            if self._speed is not None:
                await self._pace(recv_ms, self._speed)
            if not server.unpaused.is_set():
                await server.drained()
                await server.unpaused.wait()
                self._restart_pace(recv_ms)
            self._clock.reach(recv_ms * 1000)
            ticker = event.ticker
            if hurting is not None and n >= hurting.next:
                await hurting.step(n)
            while deaths and recv_ms > deaths[0]:
                await self._drop(deaths.popleft())
            if ticker not in exchange.markets:
                self._appear(self._recording.markets[ticker])
                if hurting is not None:
                    # Everybody has it from its beginning, so that what a fault does to whom does not hang on who was faster.
                    for channel in (channels.BOOK, channels.TRADES):
                        await self._hold(channel, ticker, recv_ms)
            if not exchange.heard(event.frame.channel, ticker):
                await self._hold(event.frame.channel, ticker, recv_ms)
            if isinstance(event, Delta | Trade):
                self._clock.reach(event.ts_us)
            exchange.publish(event)
            self._left[ticker] -= 1
            if not self._left[ticker]:
                self._end(self._recording.markets[ticker])
            if n % BATCH == 0:
                await server.drained()
                await asyncio.sleep(0)
        if hurting is not None:
            await hurting.heal()
        await server.drained()
        await server.read_by_all()
        exchange.done = True
        _log.info("recording played", frames=exchange.frames, markets=len(exchange.markets))

    async def _pace(self, recv_ms: int, speed: float) -> None:
        """Wait until this receive time is due."""
        delay = self._due_at + (recv_ms - self._due_ms) / 1000 / speed - clock.monotonic()
        if delay < 0.001:
            return
        await self._server.drained()
        if delay > LONGEST_SILENCE:
            _log.info("silence cut", seconds=round(delay), cut_to=LONGEST_SILENCE)
            delay = LONGEST_SILENCE
            self._restart_pace(recv_ms, delay)
        self._clock.run_until(recv_ms * 1000)
        await asyncio.sleep(delay)

    def _restart_pace(self, recv_ms: int, delay: float = 0.0) -> None:
        self._due_at, self._due_ms = clock.monotonic() + delay, recv_ms

    async def _hold(self, channel: str, ticker: str, recv_ms: int) -> None:
        """Wait until this channel of the market is subscribed to by every gatherer."""
        exchange = self._exchange
        await self._server.drained()
        exchange.waiting = {"market_ticker": ticker, "channel": channel}
        told = False
        while not exchange.heard(channel, ticker):
            self._subscribed.clear()
            try:
                await asyncio.wait_for(self._subscribed.wait(), None if told else HELD_TOLD_AFTER)
            except TimeoutError:
                told = True
                _log.info("playback waits for a subscription", market_ticker=ticker, channel=channel)
        exchange.waiting = None
        self._restart_pace(recv_ms)

    async def _drop(self, died_ms: int) -> None:
        """The recorder's connection died: so do ours. A market whose recording goes on with a snapshot has no book until then."""
        _log.info("the recorder's connection had died here: connections are dropped", recv_ms=died_ms)
        await self._server.drop_connections()
        self._exchange.forget_books(
            ticker for ticker, market in self._recording.markets.items() if market.begins_anew_after(died_ms)
        )

    def _appear(self, market: Recorded) -> None:
        exchange = self._exchange
        # To whoever asks REST what has changed since, it is new now.
        body = market.body | {"updated_time": frames.rfc3339(self._clock.now_us())}
        listed = exchange.list_market(body, market.event, market.market_id)
        open_us, close_us = (messages.time_us(str(market.body[key])) for key in ("open_time", "close_time"))
        exchange.publish(Notice(listed.ticker, created_frame(listed.body, listed.event, open_us, close_us), {}))

    def _end(self, market: Recorded) -> None:
        """After a market's last frame: determined, settled and final, where its settlement is known."""
        final = market.final
        if final is None:
            return
        ticker = str(final["ticker"])
        settled_s = messages.time_us(str(final.get("settlement_ts") or final["updated_time"])) // 1_000_000
        determined = lifecycle_frame(
            ticker,
            "determined",
            result=final.get("result", ""),
            determination_ts=settled_s,
            settlement_value=final.get("settlement_value_dollars", ""),
        )
        self._exchange.publish(Notice(ticker, determined, {"status": "determined", "result": final.get("result", "")}))
        settled = lifecycle_frame(ticker, "settled", settled_ts=settled_s)
        self._exchange.publish(Notice(ticker, settled, {**final, "status": "finalized"}))
