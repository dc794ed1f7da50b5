"""A broker, a database and a cache of one's own, on loopback, with all they keep under one folder.

Promises: what is given from outside is used and never touched; the rest is started, waited for until it answers in its
own protocol, and stopped in reverse order, however the block ends. A second start in the same folder continues on the
same data, on the same ports where they are still free. Two supervisors never share a folder.
"""

import asyncio
import contextlib
import fcntl
import json
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import asyncpg

from kalshibook_tools.stack import classes, jars, kafka, postgres, probe, redis
from kalshibook_tools.stack.process import Process, ProcessExited, Program, Progress, StackError

_PARTS = ("kafka", "postgres", "redis")  # first what the others' data comes from; stopped the other way round
_READY_WITHIN = 90.0
_PORT_TRIES = 5
_PORT_TAKEN = re.compile(r"address already in use|BindException|could not create any TCP", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class External:
    """Addresses given from outside; None: the stack starts its own."""

    kafka: str | None = None  # HOST:PORT,…
    postgres: str | None = None  # postgresql://…
    redis: str | None = None  # redis://…


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where everything answers."""

    kafka: str
    postgres: str
    redis: str

    def environment(self) -> dict[str, str]:
        """Return the variables our services and tests find these in."""
        named = {"KAFKA": self.kafka, "POSTGRES": self.postgres, "REDIS": self.redis}
        services = {"KB_KAFKA_BROKERS": self.kafka, "KB_POSTGRES_DSN": self.postgres, "KB_REDIS_URL": self.redis}
        return services | {f"KB_TEST_{name}": address for name, address in named.items()}


@dataclass(frozen=True, slots=True)
class Stack:
    """A running stack. `processes` are those it started, by name."""

    addresses: Addresses
    processes: dict[str, Process] = field(default_factory=dict)

    async def failed(self) -> StackError:
        """Wait until a part ends by itself, for ever if it started none, and return what to tell."""
        waits: dict[asyncio.Future[int], Process] = {asyncio.ensure_future(part.wait()): part for part in self.processes.values()}
        try:
            done, _ = await asyncio.wait(set(waits) or {asyncio.Future[int]()}, return_when=asyncio.FIRST_COMPLETED)
            return waits[done.pop()].exited()
        finally:
            for wait in waits:
                wait.cancel()


@asynccontextmanager
async def local_stack(
    home: Path, *, external: External = External(), progress: Progress = lambda line: None, kafka_heap: str = "1g"
) -> AsyncIterator[Stack]:
    """Run a stack in `home` for as long as the block lasts. Raises StackError, told in one line, if it cannot."""
    home = home.resolve()
    with _alone(home):
        start = _Start(home, progress, _Ports(home / "ports.json"))
        try:
            yield Stack(await start.everything(external, kafka_heap), start.processes)
        finally:
            for name in reversed(_PARTS):
                if name in start.processes:
                    await start.processes[name].stop()


@dataclass(slots=True)
class _Start:
    home: Path
    progress: Progress
    ports: "_Ports"
    processes: dict[str, Process] = field(default_factory=dict)

    async def everything(self, external: External, kafka_heap: str) -> Addresses:
        try:
            async with asyncio.TaskGroup() as group:
                addresses = [
                    group.create_task(_given(external.kafka) if external.kafka else self._kafka(kafka_heap)),
                    group.create_task(_given(external.postgres) if external.postgres else self._postgres()),
                    group.create_task(_given(external.redis) if external.redis else self._redis()),
                ]
        except* (StackError, OSError) as failed:
            told = [_unusable(self.home, error) if isinstance(error, OSError) else error for error in failed.exceptions]
            raise StackError("; ".join(map(str, told))) from failed
        return Addresses(*(address.result() for address in addresses))

    async def _kafka(self, heap: str) -> str:
        java, libraries = await jars.fetch(self.progress)
        shared = await asyncio.to_thread(classes.kept, java, libraries)
        await kafka.prepare(self.home, java, libraries, self.progress, classes=shared)

        def program() -> tuple[Program, Callable[[], Awaitable[bool]]]:
            port, controller = self.ports.choose("kafka"), self.ports.choose("kafka_controller")
            broker = kafka.program(self.home, java, libraries, port, controller, heap=heap, classes=shared)
            return broker, partial(probe.kafka_answers, port)

        await self._up("kafka", program)
        return f"127.0.0.1:{self.ports['kafka']}"

    async def _postgres(self) -> str:
        server = await postgres.prepare(self.home, self.progress)

        def program() -> tuple[Program, Callable[[], Awaitable[bool]]]:
            port = self.ports.choose("postgres")
            return postgres.program(self.home, server, port), partial(probe.postgres_answers, server.dsn(port, "postgres"))

        await self._up("postgres", program)
        port = self.ports["postgres"]
        connection = await asyncpg.connect(server.dsn(port, "postgres"))
        try:
            with contextlib.suppress(asyncpg.DuplicateDatabaseError):
                await connection.execute(f"CREATE DATABASE {postgres.DATABASE}")
        finally:
            await connection.close()
        return server.dsn(port)

    async def _redis(self) -> str:
        server = redis.find_server()

        def program() -> tuple[Program, Callable[[], Awaitable[bool]]]:
            port = self.ports.choose("redis")
            return redis.program(self.home, server, port), partial(probe.redis_answers, port)

        await self._up("redis", program)
        return f"redis://127.0.0.1:{self.ports['redis']}/0"

    async def _up(self, name: str, program: Callable[[], tuple[Program, Callable[[], Awaitable[bool]]]]) -> None:
        # Between finding a port free and the server's taking it somebody else may: then another one is tried.
        for attempt in range(1, _PORT_TRIES + 1):
            what, answers = program()
            part = self.processes[name] = Process(what, self.progress)
            await part.start()
            try:
                await part.ready(answers, _READY_WITHIN)
            except ProcessExited as error:
                if attempt == _PORT_TRIES or not _PORT_TAKEN.search(error.reason):
                    raise
                self.progress(f"{name}: its port was taken meanwhile, trying another")
                self.ports.forget()
            else:
                self.ports.save()
                return


async def _given(address: str) -> str:
    return address


class _Ports:
    """The ports of the last run, kept so that addresses outlive a restart where they can."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._chosen: dict[str, int] = {}
        try:
            self._last: dict[str, int] = json.loads(path.read_text())
        except (FileNotFoundError, ValueError):
            self._last = {}

    def choose(self, name: str) -> int:
        # A port we chose is free until its server binds it, so the next look may find the same one.
        others = {port for other, port in self._chosen.items() if other != name}
        port = probe.free_port(self._last.get(name, 0))
        while port in others:
            port = probe.free_port()
        self._chosen[name] = port
        return port

    def __getitem__(self, name: str) -> int:
        return self._chosen[name]

    def forget(self) -> None:
        self._last = {}

    def save(self) -> None:
        self._path.write_text(json.dumps(self._chosen))


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    # The kernel drops the lock with its holder, so a killed supervisor leaves none; children do not inherit it.
    try:
        home.mkdir(parents=True, exist_ok=True)
        for folder in ("logs", "pids"):
            (home / folder).mkdir(exist_ok=True)
        lock = (home / "lock").open("ab+", buffering=0)
    except OSError as error:
        raise _unusable(home, error) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().decode()
            raise StackError(
                f"a stack already runs in {home} (pid {holder}): stop it, or set KB_HOME to another folder"
            ) from None
        try:
            lock.truncate(0)
            lock.write(str(os.getpid()).encode())
        except OSError as error:
            raise _unusable(home, error) from error
        yield


def _unusable(home: Path, error: OSError) -> StackError:
    return StackError(f"cannot use {home}: {error.strerror}; set KB_HOME to a folder of your own, with room")
