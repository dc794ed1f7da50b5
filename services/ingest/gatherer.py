"""One gatherer: what markets there are (REST and lifecycle), which connection captures which, and the connections.

Nothing waits for the REST list: every page of it, and every lifecycle frame, is acted on at once.
"""

import asyncio
import random
from collections import Counter
from typing import Final

import structlog

from kalshibook_core.kalshi.messages import Lifecycle, UnparsableFrame
from kalshibook_core.runtime import clock, logs
from kalshibook_core.wire import codec
from kalshibook_core.wire.events import Cause, RawFrame, RawKind
from services.ingest.connection import Connection
from services.ingest.outbox import Outbox
from services.ingest.pace import backoff
from services.ingest.plan import Limits, plan
from services.ingest.registry import Registry
from services.ingest.rest import Answer, Refused, Rest
from services.ingest.settings import Settings

PAGE: Final = 1000
"""The most markets GET /markets returns at once."""

LOOKUP: Final = 50
"""Markets asked about in one request; with the longest tickers its address stays under 4 kB."""

LOOKUP_TRIES: Final = 12
PLAN_SECONDS: Final = 0.02
REPLAN_SECONDS: Final = 5.0

_log = structlog.get_logger()


class Gatherer:
    """See the module."""

    def __init__(self, settings: Settings, outbox: Outbox, rest: Rest, counts: Counter[str], rng: random.Random) -> None:
        """Make a gatherer that knows no market and has no connection."""
        self.connections: dict[int, Connection] = {}
        self.registry = Registry()
        self._settings = settings
        self._outbox = outbox
        self._rest = rest
        self._counts = counts
        self._rng = rng
        self._placed: dict[str, int] = {}
        self._limits = Limits(settings.connections, settings.subscriptions_per_connection)
        self._changed = asyncio.Event()
        self._missed = asyncio.Event()
        self._lookups: dict[str, tuple[float, int]] = {}  # ticker -> (not before, failures)
        self._asked = asyncio.Event()
        self._synced = False
        self._was_ready = False

    @property
    def ready(self) -> bool:
        """True from when the first list of markets was subscribed, for as long as a connection lives."""
        alive = [connection for connection in self.connections.values() if connection.connected]
        self._was_ready = self._was_ready or (
            self._synced and not self._changed.is_set() and bool(alive) and all(c.settled for c in self.connections.values())
        )
        return self._was_ready and bool(alive)

    @property
    def captured(self) -> int:
        """How many markets are placed on connections."""
        return len(self._placed)

    async def run(self, stop: asyncio.Event) -> None:
        """Capture until `stop` is set; then return when every connection has said its breaks and is closed."""
        async with asyncio.TaskGroup() as tasks:
            self._connect(0, tasks, stop)
            background = [tasks.create_task(part) for part in (self._steer(tasks, stop), self._sync(), self._look_up())]
            await stop.wait()
            for task in background:
                task.cancel()

    # Markets onto connections.

    async def _steer(self, tasks: asyncio.TaskGroup, stop: asyncio.Event) -> None:
        while True:
            try:
                async with asyncio.timeout(REPLAN_SECONDS):  # time alone changes what is wanted: see Registry.wanted
                    await self._changed.wait()
            except TimeoutError:
                self.registry.forget(clock.now_us())
            self._changed.clear()
            began = clock.monotonic()
            wanted = self.registry.wanted(clock.now_us())
            changes = plan(wanted, self._placed, self._limits)
            self._counts["left_out"] = changes.left_out
            for number, tickers in changes.unsubscribe.items():
                self.connections[number].release([ticker for ticker in tickers if ticker not in wanted])
                self.connections[number].release([ticker for ticker in tickers if ticker in wanted], Cause.NOT_SUBSCRIBED)
                for ticker in tickers:
                    del self._placed[ticker]
            for number, tickers in changes.subscribe.items():
                if number not in self.connections:
                    self._connect(number, tasks, stop)
                self.connections[number].place({ticker: self.registry.markets[ticker].skew_us for ticker in tickers})
                self._placed.update(dict.fromkeys(tickers, number))
            await asyncio.sleep(
                max(PLAN_SECONDS, 10 * (clock.monotonic() - began))
            )  # with very many markets, a tenth of the core

    def _connect(self, number: int, tasks: asyncio.TaskGroup, stop: asyncio.Event) -> None:
        first = number == 0
        self.connections[number] = Connection(
            number,
            self._settings,
            self._outbox,
            self._counts,
            self._rng,
            on_lifecycle=self._hear if first else None,
            on_missed=self._missed.set if first else None,
        )
        tasks.create_task(self.connections[number].run(stop), name=f"connection-{number}")

    # What markets there are.

    def _hear(self, events: list[Lifecycle]) -> None:
        for event in events:
            if self.registry.hear(event, clock.now_us()):
                self._lookups[event.market_ticker] = (0.0, 0)
        self._asked.set()
        asyncio.get_running_loop().call_later(0.1, self._changed.set)
        self._changed.set()

    async def _sync(self) -> None:
        """Read the whole list, then again every so often, and at once where lifecycle frames were missed."""
        while True:
            self._missed.clear()
            listed: set[str] = set()
            for status in self._settings.statuses:
                cursor = ""
                while True:
                    answer = await self._get(limit=str(PAGE), status=status, cursor=cursor)
                    if answer is None:
                        break
                    listed |= await self._read(answer)
                    cursor = answer.body.get("cursor") or ""
                    if not cursor:
                        break
            for ticker in set(self.registry.running()) - listed:
                self._lookups.setdefault(ticker, (0.0, 0))  # not in the list any more: what became of it?
            self._asked.set()
            self._synced = True
            try:
                async with asyncio.timeout(self._settings.reconcile_seconds):
                    await self._missed.wait()
            except TimeoutError:
                continue

    async def _look_up(self) -> None:
        """Ask for single markets. One that was `created` a moment ago may be unknown to REST (Kalshi docs): ask again, later."""
        while True:
            self._asked.clear()
            now = clock.monotonic()
            due = [ticker for ticker, (at, _) in self._lookups.items() if at <= now][:LOOKUP]
            if not due:
                try:
                    async with asyncio.timeout(min((at for at, _ in self._lookups.values()), default=now + 60) - now):
                        await self._asked.wait()
                except TimeoutError:
                    pass
                continue
            tried = {ticker: self._lookups.pop(ticker)[1] + 1 for ticker in due}
            answer = await self._get(limit=str(LOOKUP), tickers=",".join(due))
            found = await self._read(answer) if answer is not None else set()
            for ticker in [ticker for ticker in tried if ticker not in found or self.registry.behind(ticker)]:
                if answer is not None:
                    self.registry.answered(ticker, answer.skew_us)
                if tried[ticker] < LOOKUP_TRIES:
                    wait = backoff(tried[ticker], self._rng)
                    self._lookups.setdefault(ticker, (clock.monotonic() + wait, tried[ticker]))
            self._changed.set()

    async def _get(self, **query: str) -> Answer | None:
        try:
            answer = await self._rest.get("/markets", **query)
        except Refused as error:
            self._tell("rest_refused", str(error))
            return None
        if not isinstance(answer.body, dict) or not isinstance(answer.body.get("markets"), list):
            self._tell("rest_unparsable", f"GET {answer.path}: no list of markets")
            return None
        return answer

    async def _read(self, answer: Answer) -> set[str]:
        """Take a page; publish what is new in it. Return the tickers it has."""
        seen = set()
        for body in answer.body["markets"]:
            try:
                news = self.registry.read(body, answer.skew_us, answer.at_us)
            except UnparsableFrame as error:
                self._tell("rest_unparsable", str(error))
                continue
            seen.add(body["ticker"])
            if news is not None:
                self._publish(answer, *news)
        self._changed.set()
        await self._outbox.room()
        return seen

    def _publish(self, answer: Answer, ticker: str, payload: bytes) -> None:
        self._counts["rest_records"] += 1
        clock_us = answer.at_us + (answer.skew_us or 0)
        record = RawFrame(
            RawKind.REST, self._settings.gatherer, -1, 0, "", -1, -1, False, ticker, answer.at_us, clock_us, answer.path, payload
        )
        self._outbox.add(ticker.encode(), codec.encode(record), answer.at_us // 1000)

    def _tell(self, kind: str, why: str) -> None:
        self._counts[kind] += 1
        if logs.once_a_minute(kind):
            _log.warning(kind, why=why)
