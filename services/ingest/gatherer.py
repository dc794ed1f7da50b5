"""One gatherer: what markets there are (REST and lifecycle), which connection captures which, and the connections.

Nothing waits for the REST list: every page of it, and every lifecycle frame, is acted on at once. The whole list is read at the
first start and then so seldom that it takes a twentieth of the time at most; between, and after a restart that finds the registry
on disk, only what the exchange says has changed.
"""

import asyncio
import gc
import itertools
import random
from collections import Counter
from typing import Any, Final

import structlog

from kalshibook_core.kafka.cluster import keys_of_partitions
from kalshibook_core.kalshi import messages
from kalshibook_core.kalshi.markets import DATE_RESOLUTION_US
from kalshibook_core.kalshi.messages import Lifecycle, UnparsableFrame
from kalshibook_core.runtime import clock, logs
from kalshibook_core.wire import codec
from kalshibook_core.wire.events import AUDIT, BOOK, LAG_US, Cause, RawFrame, RawKind
from services.ingest import catalogue
from services.ingest.audits import Audits
from services.ingest.catalogue import Extent
from services.ingest.connection import Connection
from services.ingest.families import Families
from services.ingest.outbox import Outbox
from services.ingest.pace import backoff
from services.ingest.plan import Changes, Limits, Plan
from services.ingest.registry import Registry
from services.ingest.rest import Answer, Refused, Rest
from services.ingest.settings import Settings

PAGE: Final = 1000
"""The most markets GET /markets returns at once."""

LOOKUP: Final = 50
"""Markets asked about in one request; with the longest tickers its address stays under 4 kB."""

LOOKUP_TRIES: Final = 12
PLAN_SECONDS: Final = 0.02
PLAN_SLICE: Final = 2000
"""Markets planned before frames get their turn again."""

REPLAN_SECONDS: Final = 5.0
MOVE_SECONDS: Final = 0.1
"""How often is looked whether a market on the move has arrived."""

_OPENED: Final = frozenset({"active", "inactive", "closed"})
"""REST statuses of a market that has opened and not ended."""

OVERLAP_US: Final = LAG_US + 5_000_000
"""How long two connections have a market that is moved: all that the old one can still deliver is younger than the new one's
beginning then. Each knows the exchange's clock to a second only, and in a quiet market seconds pass before anything shows it."""

LEAST_RELIEVED: Final = 100
"""Active markets of a connection that is worth relieving: with fewer it was not their number that made it overflow."""

FULL_SHARE: Final = 20
MARGIN_S: Final = 60
"""How far before the last reading the next one asks for changes: the exchange's own machines may lag each other."""

MOST_MARKETS: Final = 3_000_000
"""More than that is no list of markets but an answer without end."""

BARREN_PAGES: Final = 3
"""So many pages in a row without a market that this list had not had before are no list either."""

FEW, SHOWN = 20, 1000
"""Markets without a place that a line names, and that /status lists."""

_log = structlog.get_logger()


class Gatherer:
    """See the module."""

    def __init__(self, settings: Settings, outbox: Outbox, rest: Rest, counts: Counter[str], rng: random.Random) -> None:
        """Make a gatherer that knows no market and has no connection."""
        self.connections: dict[int, Connection] = {}
        self.registry = Registry()
        self._families: Families | None = None
        self._extent = Extent(settings.rest_url, settings.statuses, 0)
        self._settings = settings
        self._outbox = outbox
        self._rest = rest
        self._counts = counts
        self._rng = rng
        self._plan = Plan(Limits(settings.connections, settings.subscriptions_per_connection))
        self._tasks: asyncio.TaskGroup | None = None
        self._stops: dict[int, asyncio.Event] = {}  # of each connection
        self._ears = 0  # the connection that carries the lifecycle channels
        self._complete_us: dict[
            int, int
        ] = {}  # a connection that takes over -> when it had all it asked for, by the exchange's clock
        self._successors: dict[int, int] = {}  # a connection that is given up -> the one that takes over
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
    def trouble(self) -> str:
        """What keeps a connection from the exchange, and what to do about it; "" where nothing does."""
        return next((connection.trouble for connection in self.connections.values() if connection.trouble), "")

    @property
    def clock_skew_seconds(self) -> float:
        """How far the exchange's clock is ahead of ours, by its last Date (which names the second only); 0 before any."""
        return 0.0 if self._rest.skew_us is None else round((self._rest.skew_us - DATE_RESOLUTION_US / 2) / 1e6, 1)

    @property
    def captured(self) -> int:
        """How many markets are placed on connections."""
        return len(self._plan.placed)

    @property
    def left_out(self) -> str:
        """Which markets are not captured, and why; "" when all are."""
        left = self._plan.left_out
        if not left:
            return ""
        some = ", ".join(itertools.islice(left, FEW))
        return f"no place on {self._plan.limits.connections} x {self._plan.limits.markets_per_connection}: {len(left)} ({some})"

    @property
    def left_out_tickers(self) -> list[str]:
        """Their tickers, of many the first SHOWN; how many there are is counted."""
        return list(itertools.islice(self._plan.left_out, SHOWN))

    async def run(self, stop: asyncio.Event) -> None:
        """Capture until `stop` is set; then return when every connection has said its breaks and is closed."""
        if self._settings.registry is not None:
            found = catalogue.load(self._settings.registry, self._settings.rest_url, self._settings.statuses)
            if found is not None:
                self.registry, self._extent = found
                _log.info("registry_restored", markets=len(self.registry.markets))
                self._changed.set()
        self._say_started()
        self._families = Families(
            self._settings, self._rest, self.registry, self._extent.families, self._publish, self._outbox.room, self._tell
        )
        audits = Audits(
            self._settings.audits_per_minute, self._rest, self._audited, self._publish_book, self._outbox.room, self._tell
        )
        async with asyncio.TaskGroup() as self._tasks:
            self._connect(self._ears)
            parts = (self._steer(), self._sync(), self._look_up(), self._families.run(), audits.run())
            background = [self._tasks.create_task(part) for part in parts]
            await stop.wait()
            for task in background:
                task.cancel()
            for each in self._stops.values():
                each.set()

    # Markets onto connections.

    async def _steer(self) -> None:
        while True:
            try:  # time alone changes what is wanted: see Registry.stirred
                async with asyncio.timeout(MOVE_SECONDS if self._plan.moving or self._successors else REPLAN_SECONDS):
                    await self._changed.wait()
            except TimeoutError:
                pass
            self._changed.clear()
            stirred = self.registry.stirred(clock.now_us())
            for start in range(0, len(stirred), PLAN_SLICE):
                self._replan(stirred[start : start + PLAN_SLICE])
                await asyncio.sleep(0)
            self._finish_moves()
            self._renew()
            self._counts["left_out"] = len(self._plan.left_out)
            if self._plan.left_out and logs.once_a_minute("left_out"):
                _log.warning("left_out", why=self.left_out, do="raise KB_CONNECTIONS, or let another gatherer capture them")
            await asyncio.sleep(PLAN_SECONDS)

    def _replan(self, tickers: list[str]) -> None:
        now_us = clock.now_us()
        for ticker in tickers:
            rank = self.registry.rank(ticker, now_us)
            if rank is None:
                self._plan.drop(ticker)
            else:
                self._plan.want(ticker, rank)
        self._apply(self._plan.changes())

    def _apply(self, changes: Changes) -> None:
        for number, moved in changes.leave.items():
            self.connections[number].release(moved, Cause.MOVED)
        for number, gone in changes.unsubscribe.items():
            self.connections[number].release([ticker for ticker in gone if ticker not in changes.ousted], Cause.MARKET_CLOSED)
            self.connections[number].release([ticker for ticker in gone if ticker in changes.ousted], Cause.NOT_SUBSCRIBED)
        for number, come in changes.subscribe.items():
            if number not in self.connections:
                self._connect(number)
            self.connections[number].place({ticker: self.registry.markets[ticker].skew_us for ticker in come})

    def _connect(self, number: int) -> None:
        ears = number == self._ears
        self._stops[number] = asyncio.Event()
        self.connections[number] = Connection(
            number,
            self._settings,
            self._outbox,
            self._counts,
            self._rng,
            on_lifecycle=self._hear if ears else None,
            on_missed=self._missed.set if ears else None,
            on_turned_away=self._turned_away,
            on_overflow=self._relieve,
            on_ended=self._ended,
        )
        assert self._tasks is not None
        self._tasks.create_task(self._hold(number), name=f"connection-{number}")

    async def _hold(self, number: int) -> None:
        await self.connections[number].run(self._stops[number])
        if number in self._successors:
            del self._successors[number], self.connections[number], self._stops[number]
            self._plan.closed(number)
            self._changed.set()

    def _turned_away(self, number: int, tickers: list[str], most: int) -> None:
        """The exchange takes no more markets on a connection (its error 26): place these elsewhere, and plan for that."""
        plan = self._plan
        plan.lower(most)
        back = [ticker for ticker in tickers if ticker in plan.moving and plan.placed[ticker] == number]
        if back:
            plan.stay(back)
            self._successors.clear()
        self._apply(plan.arrived([ticker for ticker in tickers if plan.moving.get(ticker) == number]))
        elsewhere = [ticker for ticker in tickers if plan.placed.get(ticker) == number]
        for ticker in elsewhere:
            plan.drop(ticker)
        self.registry.stir(elsewhere)
        self._changed.set()
        if logs.once_a_minute("turned_away"):
            _log.warning("turned_away", markets=len(tickers), markets_per_connection=most)

    def _ended(self, number: int) -> None:
        """A connection died. What was to leave it, or has ended, need not come back there."""
        self._complete_us.pop(number, None)
        self._apply(self._plan.arrived([ticker for ticker, old in self._plan.moving.items() if old == number]))
        for ticker in self.registry.let_go(self.connections[number].markets, clock.now_us()):
            self._plan.drop(ticker)
        self._apply(self._plan.changes())

    # Planned moves: what takes over has the books before what is given up lets go of them.

    def _renew(self) -> None:
        """Replace the oldest connection if it is too old, one at a time: what it knows of the exchange's clock is as old."""
        if not self._settings.renew_seconds or self._successors or self._plan.moving or not self.ready:
            return
        number = max(self.connections, key=lambda number: self.connections[number].age_seconds)
        if self.connections[number].age_seconds > self._settings.renew_seconds and (spare := self._spare()) is not None:
            self._ears = spare if number == self._ears else self._ears
            self._successors[number] = spare
            self._connect(spare)
            self._apply(self._plan.renew(number, self.connections[number].markets, spare))
            _log.info("renewing", connection=number, by=spare, markets=len(self._plan.moving))

    def _relieve(self, number: int) -> None:
        """The exchange could not send a connection's frames as fast as things happened: another one takes half of them over."""
        if self._successors or self._plan.moving or (spare := self._spare()) is None:
            return
        self._apply(self._plan.relieve(number, self.connections[number].markets, spare, LEAST_RELIEVED))
        if self._plan.moving:
            _log.warning("relieving", connection=number, by=spare, markets=len(self._plan.moving))
            self._changed.set()

    def _spare(self) -> int | None:
        spare = self._plan.spare(self.connections)
        if spare is None and logs.once_a_minute("no_spare"):
            _log.warning("no_spare_connection", connections=len(self.connections), do="raise KB_CONNECTIONS")
        return spare

    def _finish_moves(self) -> None:
        """Let go of what another connection has by now, and close the connection that has nothing left.

        It misses nothing after OVERLAP_US.
        """
        plan, connections = self._plan, self.connections
        if not plan.moving and not self._successors:
            self._complete_us.clear()
            return
        for number in set(map(plan.placed.__getitem__, plan.moving)):
            if connections[number].settled and number not in self._complete_us:
                self._complete_us[number] = max(connections[number].exchange_us, clock.now_us() + (self._rest.skew_us or 0))
        proved = {
            (old, new)
            for old in set(plan.moving.values())
            for new, since_us in self._complete_us.items()
            if connections[old].exchange_us > since_us + OVERLAP_US
        }
        arrived = [
            ticker
            for ticker, old in plan.moving.items()
            if (old, new := plan.placed[ticker]) in proved
            and (connections[new].knows(ticker) or not connections[old].knows(ticker))
        ]
        if arrived:
            self._counts["moved"] += len(arrived)
            self._apply(plan.arrived(arrived))
        for number, successor in self._successors.items():
            if not connections[number].markets and connections[number].settled and connections[successor].settled:
                self._stops[number].set()

    # What markets there are.

    def _hear(self, events: list[Lifecycle]) -> None:
        for event in events:
            if self.registry.hear(event, clock.now_us()):
                self._lookups[event.market_ticker] = (0.0, 0)
            elif self._families is not None:
                self._families.stir()
        self._asked.set()
        asyncio.get_running_loop().call_later(0.1, self._changed.set)
        self._changed.set()

    async def _sync(self) -> None:
        """Read the whole list or what has changed in it, again and again, and at once where lifecycle frames were missed."""
        requests = len(self.registry.markets) / PAGE
        full_due = clock.monotonic()
        if self._extent.since_s:
            full_due += FULL_SHARE * max(self._extent.full_took, requests / self._settings.requests_per_second)
        number = 0
        while True:
            self._missed.clear()
            began, since_s, took = clock.monotonic(), self._exchange_s(), self._extent.full_took
            number += 1
            if began >= full_due:
                whole = all([await self._list(number, status=status) for status in self._settings.statuses])
                took = clock.monotonic() - began
                if whole:
                    full_due = clock.monotonic() + FULL_SHARE * took
                    for ticker in self.registry.unlisted(number):
                        self._lookups.setdefault(ticker, (0.0, 0))  # not in the list any more: what became of it?
                _log.info("list_read", markets=len(self.registry.markets), seconds=round(took, 1), whole=whole)
            else:
                whole = await self._list(number, min_updated_ts=str(self._extent.since_s - MARGIN_S))
            if whole:
                families = dict(self._families.since_s) if self._families is not None else {}
                self._extent = Extent(self._settings.rest_url, self._settings.statuses, since_s, took, families)
                if self._settings.registry is not None:
                    try:
                        await catalogue.save(self._settings.registry, self._extent, self.registry, self._outbox.safe)
                    except OSError as error:
                        if logs.once_a_minute("registry_not_saved"):
                            _log.error("registry_not_saved", why=str(error), do="make room; a restart would ask for more")
            self._asked.set()
            if not self._synced:
                gc.freeze()  # else the collector walks over a million markets again and again, 60 ms each time
            self._synced = True
            try:
                async with asyncio.timeout(self._settings.reconcile_seconds):
                    await self._missed.wait()
            except TimeoutError:
                continue

    def _exchange_s(self) -> int:
        return (clock.now_us() + (self._rest.skew_us or 0)) // 1_000_000

    async def _list(self, number: int, **query: str) -> bool:
        """Read a list to its end; return whether there was one."""
        cursor, barren = "", 0
        while True:
            answer = await self._get(limit=str(PAGE), cursor=cursor, **query)
            if answer is None:
                return False
            barren = 0 if self.registry.unmet(answer.body["markets"], number) else barren + 1
            await self._read(answer, number)
            cursor = answer.body.get("cursor") or ""
            if not cursor:
                return True
            if barren == BARREN_PAGES or type(cursor) is not str or len(self.registry.markets) > MOST_MARKETS:
                self._tell("rest_endless", f"GET {answer.path}: the list has no end; {len(self.registry.markets)} markets so far")
                return False

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

    async def _read(self, answer: Answer, number: int = 0) -> set[str]:
        """Take a page; publish what is new in it. Return the tickers it has."""
        seen = set()
        for body in answer.body["markets"]:
            late = type(body) is dict and self.registry.late(body.get("ticker"))
            try:
                news = self.registry.read(body, answer.skew_us, answer.at_us, number)
            except UnparsableFrame as error:
                self._tell("rest_unparsable", str(error))
                continue
            seen.add(body["ticker"])
            if news is not None:
                self._publish(answer, "", *news)
            if late and body.get("status") in _OPENED:
                self._say_late(answer, body)
        self._changed.set()
        await self._outbox.room()
        return seen

    def _publish(self, answer: Answer, channel: str, ticker: str, payload: bytes) -> None:
        self._counts["rest_records"] += 1
        clock_us = answer.at_us + (answer.skew_us or 0)
        self._add(RawKind.REST, channel, ticker, answer.at_us, clock_us, answer.path, payload)

    def _audited(self) -> list[str]:
        markets, placed = self.registry.markets, self._plan.placed
        return [ticker for ticker in placed if (known := markets.get(ticker)) is not None and known.status == "active"]

    def _publish_book(self, answer: Answer, ticker: str, payload: bytes) -> None:
        self._counts["audited"] += 1
        clock_us = answer.at_us + (answer.skew_us or 0)
        path = answer.path.partition("?")[0]  # with a hundred tickers in the query it is longer than most books
        self._add(RawKind.REST, AUDIT, ticker, answer.at_us, clock_us, path, payload, answer.sent_us)

    def _say_late(self, answer: Answer, body: dict[str, Any]) -> None:
        """A market that trades already is heard of only now: what its book was since it opened, nobody here has seen.

        A BREAK of no generation, before its first snapshot, with the time it opened at. Who knows the market already ignores it.
        """
        try:
            open_us = messages.time_us(body["open_time"])
        except (KeyError, TypeError, ValueError):
            return  # since when is not known either
        self._counts["late_markets"] += 1
        self._add(RawKind.BREAK, BOOK, body["ticker"], answer.at_us, open_us, Cause.NOT_SUBSCRIBED, b"")

    def _say_started(self) -> None:
        """Once in every partition, before all else: no connection of an earlier process lives, whether or not it could say so."""
        now_us = clock.now_us()
        for key in keys_of_partitions(f"@{self._settings.gatherer}", self._settings.cluster.partitions):
            self._add(RawKind.START, "", key, now_us, now_us, "", b"")

    def _add(
        self, kind: str, channel: str, ticker: str, recv_us: int, clock_us: int, detail: str, payload: bytes, asked_us: int = 0
    ) -> None:
        nowhere = (-1, asked_us, channel, -1, -1, False)
        record = RawFrame(kind, self._settings.gatherer, *nowhere, ticker, recv_us, clock_us, detail, payload)
        self._outbox.add(ticker.encode(), codec.encode(record), recv_us // 1000)

    def _tell(self, kind: str, why: str) -> None:
        self._counts[kind] += 1
        if logs.once_a_minute(kind):
            _log.warning(kind, why=why)
