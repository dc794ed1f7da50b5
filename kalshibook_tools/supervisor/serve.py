"""A supervisor's whole life: start everything in order, keep it, tell how it is, drain it in the direction of the flow.

Start: the stack; then the database's tables, the topics and the demo account; then all that must be there before the first
frame comes; ingest last, so that nothing waits half ready for a recording that is already playing.
Stop: each service is asked to end when the one before it has ended and it has caught up with what that one left
(or a deadline has passed: then the rest stays in the broker, and the next start takes it from there).
"""

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Coroutine, Iterator
from contextlib import AsyncExitStack
from typing import Any, TypeVar

import httpx

from kalshibook_core.kafka import admin
from kalshibook_core.kafka.errors import KafkaFault
from kalshibook_core.postgres import migrate, pool
from kalshibook_core.runtime import clock, settings
from kalshibook_tools.stack import Addresses, Process, ProcessExited, Stack, StackError, local_stack, probe
from kalshibook_tools.supervisor import account, faults, recording, screen, services
from kalshibook_tools.supervisor.history import History
from kalshibook_tools.supervisor.home import FLOW, GATHERERS, SupervisorError
from kalshibook_tools.supervisor.kept import Ask, Kept, Report, over_http
from kalshibook_tools.supervisor.services import Options

GATEWAY_PORT = 8420
"""The gateway's port where nobody asked for another and it is free."""

HURRIED_WITHIN = 5.0
"""Seconds a service has to end after a failure or a second Ctrl-C; then it is killed, which loses nothing that Kafka holds."""
CATCH_UP_WITHIN = 20.0
"""Seconds a service gets, on the way down, to catch up with what was handed to it."""

DATA_WITHIN = 30.0
"""Seconds the first screen waits for a market with a book, to print queries that answer."""

_PORT_TRIES = 4
_T = TypeVar("_T")
_DATABASE_AWAY = (*pool.UNREACHABLE, pool.DatabaseUnreachable)


async def serve(options: Options) -> int:
    """Run everything until a signal, or until the recording can be read back; return the exit code.

    Raises SupervisorError or StackError, told in one line, for what a person must act on.
    """
    with options.home.alone(), screen.Screen() as told, _signals() as (stop, hurry):
        run = _Supervisor(options, told, hurry)
        try:
            code = await run.live(stop)
            told.tell("stopped; the next start continues with what stands here")
            return code
        except* (SupervisorError, StackError, settings.ConfigurationError) as failed:
            raise _first(failed) from failed
        finally:
            run.write("stopped")


class _Supervisor:
    def __init__(self, options: Options, told: screen.Screen, hurry: asyncio.Event) -> None:
        self.options, self.home, self.told, self.hurry = options, options.home, told, hurry
        self.state = "starting"
        self.kept: dict[str, Kept] = {}
        self.addresses: Addresses | None = None
        self.gateway: str | None = None
        self.demo_key: str | None = None
        self.recording: recording.Played | None = None
        self.gaps: list[dict[str, Any]] = []
        self.trade_gaps: list[dict[str, Any]] = []
        self.greeted = False
        self.draining = False
        asked = {"gateway": options.gateway_port, "simulator": options.simulator_port}
        self._asked_ports = {name: port for name, port in asked.items() if port}
        self._background: list[asyncio.Task[None]] = []

    async def live(self, stop: asyncio.Event) -> int:
        self.write("starting")
        for name, port in self._asked_ports.items():
            if probe.free_port(port) != port:
                raise SupervisorError(f"port {port} is in use: stop what listens there, or choose another --{name}-port")
        await self.home.stop_leftovers(self.told.tell)
        self.told.show("starting the broker, the database and the cache …")
        async with AsyncExitStack() as exits:
            stack = await _unless(stop, exits.enter_async_context(self._stack()))
            if stack is None:
                return 0
            self.addresses = stack.addresses
            exits.push_async_callback((history := History(stack.addresses.postgres)).close)
            client = await exits.enter_async_context(httpx.AsyncClient())
            # Behind the group, so that whatever ends it cannot cut the drain short.
            exits.push_async_callback(self._drain)
            async with asyncio.TaskGroup() as tasks:
                self._background.append(tasks.create_task(self._look(client, history)))
                try:
                    return await self._work(tasks, stop, stack, client, history)
                except BaseException:
                    self.hurry.set()  # what failed may be what the drain would wait for; Kafka keeps the rest for the next start
                    raise
                finally:
                    for task in self._background:
                        task.cancel()

    async def _work(
        self, tasks: asyncio.TaskGroup, stop: asyncio.Event, stack: Stack, client: httpx.AsyncClient, history: History
    ) -> int:
        if await _unless(stop, self._start(tasks, stack, client, history)) is None:
            return 0
        self.write("running")
        playing = self.recording
        if playing is None:
            await _unless(stop, self._greet(client, history))
        else:
            self._show_addresses()
            self.greeted = True
            summary = await _unless(stop, playing.follow(client, history, self.kept, self.told))
            if summary is None:
                return 0
            self.gaps, self.trade_gaps = await history.gaps()
            await asyncio.gather(*(kept.look() for kept in list(self.kept.values())))
            self.write("running")  # whoever waits for the summary and then asks for the state finds it there
            self.told.tell(summary)
            if told := self._faults():
                self.told.tell(faults.line(told))
            if not self.options.keep_running:
                return 0
            await _unless(stop, self._show_queries(client, history))
        await stop.wait()
        return 0

    def _stack(self) -> Any:
        return local_stack(self.home.path, external=self.options.external, progress=self.told.tell)

    async def _start(self, tasks: asyncio.TaskGroup, stack: Stack, client: httpx.AsyncClient, history: History) -> bool:
        await self._prepare(stack)
        for name, process in stack.processes.items():
            self.kept[name] = part = Kept(name, lambda process=process: (process, _port_open(process)), self.told.tell)  # type: ignore[misc]
            await part.adopt()
            self._background.append(tasks.create_task(part.keep()))
        self.told.show("starting the services …")
        first = [] if self.options.exchange else ["simulator"]
        async with asyncio.TaskGroup() as starting:
            archive = ["archive"] if self.options.env.get("KB_ARCHIVE") else []
            if archive and self.options.env.get("KB_HOT_DAYS", "0") != "0":
                archive.append("retention")
            for name in (*first, "deduplicator", "persister", "reconstructor", *archive, "gateway"):
                starting.create_task(self._up(name, client))
        if self.options.recordings:
            simulator = self.options.simulator_info()["control_url"]
            self.recording = recording.Played(simulator, f"{self.gateway}", f"{self.demo_key}", self.options)
            await self.recording.begin(client, history)
        self.told.show("connecting to the exchange …")
        # A recording that is played has no history besides what is played.
        backfill = self.options.env.get("KB_BACKFILL", "off" if self.options.recordings else "") != "off"
        async with asyncio.TaskGroup() as starting:
            for name in (*GATHERERS[: self.options.gatherers], *["backfill"] * backfill):
                starting.create_task(self._up(name, client))
        for name in FLOW:
            if name in self.kept:
                self._background.append(tasks.create_task(self.kept[name].keep()))
        return True

    async def _prepare(self, stack: Stack) -> None:
        try:
            await migrate.migrate(stack.addresses.postgres, self.told.tell)
            self.demo_key = await account.demo_key(self.home, stack.addresses.postgres)
        except (migrate.MigrationError, pool.DatabaseUnreachable) as error:
            raise SupervisorError(str(error)) from error
        env = dict(self.options.env) | stack.addresses.environment()
        try:
            await admin.ensure_topics(settings.cluster(env))
        except KafkaFault as error:
            raise SupervisorError(str(error)) from error

    async def _up(self, name: str, client: httpx.AsyncClient) -> None:
        # Between finding a port free and listening on it somebody else may: then, unless it was asked for, another is taken.
        for left in range(_PORT_TRIES - 1, -1, -1):
            try:
                return await self._try(name, client)
            except ProcessExited as error:
                if not left or name in self._asked_ports or "in use" not in error.reason:
                    raise

    async def _try(self, name: str, client: httpx.AsyncClient) -> None:
        port = self._fixed_port(name)

        def make() -> tuple[Process, Ask]:
            assert self.addresses is not None
            # Another port each time, so that a stranger who took the old one meanwhile cannot keep a service from coming back.
            here = port or probe.free_port()
            if name == "simulator":
                (self.home.path / "simulator.json").unlink(missing_ok=True)
                return Process(services.simulator(self.options, here), self.told.tell), self._simulator_answers(client)
            process = Process(services.service(self.options, self.addresses, name, here), self.told.tell)
            return process, lambda: over_http(client, f"http://127.0.0.1:{here}/status", process.pid)

        self.kept[name] = kept = Kept(name, make, self.told.tell)
        await kept.start(services.START_WITHIN)

    def _simulator_answers(self, client: httpx.AsyncClient) -> Ask:
        async def ask() -> Report:
            if not (info := self.options.simulator_info()):
                return Report(False, {})
            return await recording.simulator_report(client, info["control_url"])

        return ask

    def _fixed_port(self, name: str) -> int:
        # Customers know the gateway's port and ingest the simulator's: both keep theirs over a restart.
        if name not in ("gateway", "simulator"):
            return 0
        known = self.home.ports()
        port = self._asked_ports.get(name) or probe.free_port(known.get(name, GATEWAY_PORT if name == "gateway" else 0))
        self.home.remember_ports(known | {name: port})
        if name == "gateway":
            self.gateway = f"http://127.0.0.1:{port}"
        return port

    async def _drain(self) -> None:
        self.draining = True
        self.told.tell("stopping: each service drains what it accepted")
        for name in FLOW:
            if (kept := self.kept.get(name)) is None:
                continue
            self.told.show(f"stopping {name} …")
            deadline, still = clock.monotonic() + CATCH_UP_WITHIN, 0
            # Twice no lag: the first may have been said before the last records of the one before it came in sight.
            while still < 2 and kept.state == "running" and clock.monotonic() < deadline and not self.hurry.is_set():
                await asyncio.sleep(0.1)
                await kept.look()
                still = 0 if kept.lag() else still + 1
            await kept.stop(HURRIED_WITHIN if self.hurry.is_set() else None)
            with contextlib.suppress(SupervisorError):  # a full disk is told already, and must not keep the rest running
                self.write(self.state)

    async def _look(self, client: httpx.AsyncClient, history: History) -> None:
        loop = asyncio.get_running_loop()
        before, frames = loop.time(), 0
        while True:
            await asyncio.gather(*(kept.look() for kept in list(self.kept.values())))
            if self.state != "starting":
                with contextlib.suppress(*_DATABASE_AWAY):  # it is started again; the gaps known stay true
                    self.gaps, self.trade_gaps = await history.gaps()
                now, counted = loop.time(), self._captured()
                rate = max(0, counted - frames) / (now - before)
                before, frames = now, counted
                if self.greeted and not self.draining and (self.recording is None or self.recording.done):
                    self.told.show(self._line(rate))
            try:
                self.write(self.state)
            except SupervisorError as full:  # what runs goes on, and is told of again when there is room
                self.told.show(str(full))
            await asyncio.sleep(1)

    def _counter(self, name: str, *counters: str) -> int:
        return sum(int(self.kept[name].counters.get(counter, 0)) for counter in counters) if name in self.kept else 0

    def _captured(self) -> int:
        return sum(self._counter(name, "frames_total") for name in GATHERERS)

    def _faults(self) -> dict[str, Any] | None:
        if self.options.faults is None:
            return None
        counters = {name: kept.counters for name, kept in self.kept.items()}
        return faults.told(self.options, counters, self.gaps, self.trade_gaps)

    def _line(self, rate: float) -> str:
        lag = sum(kept.lag() for kept in self.kept.values())
        ill = [f"{kept.name} {kept.state}" for kept in self.kept.values() if kept.state != "running"]
        frames = self._captured()
        events = self._counter("deduplicator", "snapshots_total", "deltas_total", "trades_total")
        parts = [f"capturing {rate:,.0f} frames/s", f"{frames:,} frames", f"{events:,} events"]
        return " · ".join([*parts, f"lag {lag:,}", f"{len(self.gaps):,} gaps", *ill])

    async def _greet(self, client: httpx.AsyncClient, history: History) -> None:
        self._show_addresses()
        await self._show_queries(client, history)

    def _show_addresses(self) -> None:
        assert self.addresses is not None
        exchange = f"Kalshi ({self.options.exchange})" if self.options.exchange else self.options.simulator_info()["rest_url"]
        rows = [("exchange", exchange, "" if self.options.exchange else "the simulator, not Kalshi")]
        rows += [("kafka", self.addresses.kafka, ""), ("postgres", pool.describe(self.addresses.postgres), "")]
        rows += [("redis", self.addresses.redis.rpartition("@")[2].removeprefix("redis://"), "")]
        rows += [(name, f"pid {self.kept[name].pid}", str(self.home.log(name))) for name in FLOW if name in self.kept]
        self.told.tell(f"\nKalshiBook runs. Everything it keeps lies under {self.home.path}\n\n{screen.table(rows)}\n")
        self.told.tell(f"  gateway   {self.gateway}\n  demo key  {self.demo_key}\n")

    async def _show_queries(self, client: httpx.AsyncClient, history: History) -> None:
        lively = await self._first_book(client, history)
        for line in screen.queries(f"{self.gateway}", f"{self.demo_key}", lively):
            self.told.tell(f"  {line}")
        self.told.tell("" if lively else "  (no market has a book yet: `kb status` tells what comes in)\n")
        self.greeted = True
        self.write(self.state)

    async def _first_book(self, client: httpx.AsyncClient, history: History) -> tuple[str, str] | None:
        """Return a market and an instant that the gateway was just seen to answer for; None if none comes in time."""
        self.told.show("waiting for the first book …")
        deadline = clock.monotonic() + DATA_WITHIN
        headers = {"X-API-Key": f"{self.demo_key}"}
        while clock.monotonic() < deadline:
            try:
                for ticker, instant in await history.lively():
                    book = f"{self.gateway}/v1/orderbook/{ticker}"
                    answers = [(await client.get(url, headers=headers)).status_code for url in (book, f"{book}?at={instant}")]
                    if answers == [200, 200]:
                        return ticker, instant
            except (httpx.HTTPError, *_DATABASE_AWAY):
                pass  # what died is being started again
            await asyncio.sleep(0.2)
        return None

    def write(self, state: str) -> None:
        """Write the state file, whole or not at all."""
        self.state = state
        content: dict[str, Any] = {"state": state, "home": str(self.home.path), "pid": self.home.supervisor()}
        content |= {"gateway": {"url": self.gateway}, "demo_key": self.demo_key}
        content |= {"services": {name: kept.told() for name, kept in self.kept.items()}}
        content |= {"recording": self.recording.told() if self.recording else None}
        content |= {"gaps": self.gaps, "trade_gaps": self.trade_gaps, "faults": self._faults()}
        content |= {"addresses": self.addresses.environment() if self.addresses else {}, "greeted": self.greeted}
        self.home.write(self.home.state_file, content)


def _port_open(process: Process) -> Ask:
    async def ask() -> Report:
        return Report(process.pid is not None, {})

    return ask


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, _T] | Awaitable[_T]) -> _T | None:
    """Return what `work` returns; None, having cancelled it, if `stop` is set first."""
    task, stopped = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        return None
    finally:
        stopped.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait({task})


@contextlib.contextmanager
def _signals() -> Iterator[tuple[asyncio.Event, asyncio.Event]]:
    """Yield two events: the first SIGINT or SIGTERM sets `stop`, a second one `hurry`."""
    stop, hurry = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def came() -> None:
        (hurry if stop.is_set() else stop).set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, came)
    try:
        yield stop, hurry
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def _first(failed: BaseExceptionGroup[Any]) -> Exception:
    """Return the first plain exception of a group."""
    inner = failed.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner
