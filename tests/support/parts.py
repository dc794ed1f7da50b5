"""Where the tests' Kafka, Postgres and Redis come from, and that they are gone when the session is.

KB_TEST_KAFKA, KB_TEST_POSTGRES and KB_TEST_REDIS where set; for the rest containers where a Docker engine answers, else the
local stack's own processes. They are started by the first test that asks, in a process of their own (this module, run) that
all workers of the session share, and that ends by itself should the session be killed. A part that cannot be had fails the test.
"""

import asyncio
import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import psutil

_READY_SECONDS = 180
_GIVEN = {"kafka": "KB_TEST_KAFKA", "postgres": "KB_TEST_POSTGRES", "redis": "KB_TEST_REDIS"}


@dataclass(frozen=True, slots=True)
class Parts:
    """The addresses: host:port, postgresql://…, redis://…"""

    kafka: str
    postgres: str
    redis: str


class Session:
    """What the workers of one pytest session share: a folder, and in it the parts once somebody needed them."""

    def __init__(self, folder: Path, owner: int) -> None:
        self.folder = folder
        self.owner = owner  # pid of the session's controller: with it the parts end
        self._holder: subprocess.Popen[bytes] | None = None  # where this process is the one that started them

    def parts(self) -> Parts:
        """Return the parts, started if nobody did before."""
        given = {name: os.environ.get(variable) for name, variable in _GIVEN.items()}  # noqa: TID251
        if all(given.values()):
            return Parts(**given)  # type: ignore[arg-type]
        with self._alone("parts"):
            known = self.folder / "parts.json"
            if not known.exists():
                self._start(known)
            return Parts(**json.loads(known.read_text()))

    async def fresh_database(self) -> str:
        """Return the DSN of a database of one's own: a clone of one that was migrated once."""
        server = self.parts().postgres
        name = f"kb_test_{uuid.uuid4().hex[:12]}"
        with self._alone("template"):
            known = self.folder / "template"
            if not known.exists():
                await self._make_template(server, known)
            # CREATE DATABASE … TEMPLATE wants the template to itself, so this too is under the lock.
            await _execute(server, f"CREATE DATABASE {name} TEMPLATE {known.read_text()}")
        return _database(server, name)

    async def drop_database(self, dsn: str) -> None:
        """Remove a fresh database, whoever is still connected to it."""
        await _execute(self.parts().postgres, f"DROP DATABASE IF EXISTS {urlsplit(dsn).path[1:]} WITH (FORCE)")

    def end(self) -> None:
        """Stop what was started. Called once, by the controller, when no test runs any more."""
        template = self.folder / "template"
        if template.exists() and (server := os.environ.get(_GIVEN["postgres"])):  # noqa: TID251
            asyncio.run(_execute(server, f"DROP DATABASE IF EXISTS {template.read_text()} WITH (FORCE)"))
        pid_file = self.folder / "parts.pid"
        if self._holder is not None:
            self._holder.terminate()
            self._holder.wait(120)
        elif pid_file.exists():
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(int(pid_file.read_text()))
                process.terminate()
                process.wait(120)

    def _start(self, known: Path) -> None:
        log = self.folder / "parts.log"
        with log.open("ab") as out:
            process = self._holder = subprocess.Popen(
                [sys.executable, "-m", "tests.support.parts", str(self.folder), str(self.owner)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                cwd=Path(__file__).parents[2],
                start_new_session=True,
            )
        (self.folder / "parts.pid").write_text(str(process.pid))
        _wait_for(self.folder / "ready", process)
        if not known.exists():
            process.terminate()
            raise RuntimeError(f"no Kafka, Postgres and Redis for the tests:\n{log.read_text()[-4000:]}")

    async def _make_template(self, server: str, known: Path) -> None:
        from kalshibook_core.postgres import migrate

        name = f"kb_template_{uuid.uuid4().hex[:12]}"
        await _execute(server, f"CREATE DATABASE {name}")
        await migrate.migrate(_database(server, name))
        known.write_text(name)

    @contextlib.contextmanager
    def _alone(self, what: str) -> Iterator[None]:
        with (self.folder / f"{what}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _wait_for(ready: Path, process: "subprocess.Popen[bytes]") -> None:
    for _ in range(_READY_SECONDS * 20):
        if ready.exists() or process.poll() is not None:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.05)


async def _execute(server: str, statement: str) -> None:
    connection = await asyncpg.connect(server)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


def _database(server: str, name: str) -> str:
    return urlunsplit(urlsplit(server)._replace(path=f"/{name}"))


# --- the process that holds the parts ---------------------------------------------------------------------------------


async def _hold(folder: Path, owner: int) -> None:
    given = {name: os.environ.get(variable) for name, variable in _GIVEN.items()}  # noqa: TID251
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with contextlib.AsyncExitStack() as stack:
        if _docker_answers():
            parts = await asyncio.to_thread(_containers, stack, given)
        else:
            parts = await _processes(stack, given, folder)
        (folder / "parts.json").write_text(json.dumps(asdict(parts)))
        (folder / "ready").touch()
        while not stop.is_set() and psutil.pid_exists(owner):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), 1)
    if not stop.is_set():
        shutil.rmtree(folder, ignore_errors=True)  # nobody is left to do it


async def _processes(stack: contextlib.AsyncExitStack, given: dict[str, str | None], folder: Path) -> Parts:
    from kalshibook_tools.stack import External, local_stack

    running = await stack.enter_async_context(
        local_stack(folder / "stack", external=External(**given), progress=print, kafka_heap="512m")
    )
    addresses = running.addresses
    return Parts(addresses.kafka, addresses.postgres, addresses.redis)


def _docker_answers() -> bool:
    import docker
    from docker.errors import DockerException

    try:
        return bool(docker.from_env(timeout=2).ping())
    except (DockerException, OSError):
        return False


def _containers(stack: contextlib.AsyncExitStack, given: dict[str, str | None]) -> Parts:
    from testcontainers.community.kafka import KafkaContainer
    from testcontainers.community.postgres import PostgresContainer
    from testcontainers.community.redis import RedisContainer

    if given["kafka"] is None:
        broker = KafkaContainer("confluentinc/cp-kafka:8.0.0").with_kraft()
        for name, value in {
            "AUTO_CREATE_TOPICS_ENABLE": "false",
            "MESSAGE_MAX_BYTES": str(8 * 1024 * 1024),
            "TRANSACTION_STATE_LOG_REPLICATION_FACTOR": "1",
            "TRANSACTION_STATE_LOG_MIN_ISR": "1",
        }.items():
            broker.with_env(f"KAFKA_{name}", value)
        given = given | {"kafka": stack.enter_context(broker).get_bootstrap_server()}
    if given["postgres"] is None:
        server = stack.enter_context(PostgresContainer("postgres:17-alpine", driver=None))
        given = given | {"postgres": server.get_connection_url()}
    if given["redis"] is None:
        cache = stack.enter_context(RedisContainer("redis:7-alpine"))
        given = given | {"redis": f"redis://{cache.get_container_host_ip()}:{cache.get_exposed_port(6379)}/0"}
    return Parts(**given)  # type: ignore[arg-type]


def new_session() -> Session:
    """Return a session of this process, with a folder that `end_session` removes."""
    return Session(Path(tempfile.mkdtemp(prefix="kb-tests-")), os.getpid())


if __name__ == "__main__":
    asyncio.run(_hold(Path(sys.argv[1]), int(sys.argv[2])))
