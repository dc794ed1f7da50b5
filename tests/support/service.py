"""One service of ours as a real process, with its own health port: start it, ask it, freeze it, kill it."""

import asyncio
import itertools
import os
import random
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Self

import httpx

from kalshibook_core.kafka.cluster import Cluster
from kalshibook_tools.stack.probe import free_port

WITHIN = 120.0
"""Seconds any condition may take; a slow machine only makes tests slow."""

_PORTS = itertools.count(random.randrange(10_000, 30_000))
"""Below those that a system gives to whoever asks for any: nobody is given one between its choice and its server's start."""


def own_port() -> int:
    """Return a loopback port for a server that is told which to take."""
    return next(port for port in _PORTS if free_port(port) == port)


async def until(condition: Callable[[], Awaitable[Any]], within: float = WITHIN) -> Any:
    """Return the first true answer of `condition`; raise TimeoutError with the last one."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within
    while not (answer := await condition()):
        if loop.time() > deadline:
            raise TimeoutError(f"still {answer!r} after {within:g} s")
        await asyncio.sleep(0.05)
    return answer


async def still(connection: Any, *services: "Service") -> bool:
    """Return whether all that these read is in the tables, and for a second nothing came."""
    query = "SELECT sum(next_offset) FROM consumer_offsets"
    before = await connection.fetchval(query)
    for _ in range(2):
        if any([await service.counter("lag_records") != 0 for service in services]):
            return False
        await asyncio.sleep(0.5)
    return bool(before == await connection.fetchval(query))


class Service:
    """`python -m services.<name>`; leaves nothing running behind its block."""

    def __init__(self, name: str, cluster: Cluster, log: Path, **env: str) -> None:
        self.name, self.log, self.port = name, log, own_port()
        self._env: Mapping[str, str] = {
            **os.environ,  # noqa: TID251
            "KB_KAFKA_BROKERS": cluster.brokers,
            "KB_TOPIC_PREFIX": cluster.prefix,
            "KB_KAFKA_PARTITIONS": str(cluster.partitions),
            "KB_HEALTH_PORT": str(self.port),
            "KB_DRAIN_SECONDS": "60",
            **env,
        }
        self._client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", timeout=30)
        self.process: subprocess.Popen[bytes] | None = None

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            sys.stdout.write(f"{self.name} said:\n{self.log.read_text()[-3000:]}")  # why a condition did not come, if it knows
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.kill()
        await self._client.aclose()

    def start(self) -> None:
        """Start it (again)."""
        with self.log.open("ab") as out:
            command = [sys.executable, "-m", f"services.{self.name}"]
            self.process = subprocess.Popen(command, env=dict(self._env), stdout=out, stderr=out)

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    async def drain(self) -> int:
        """SIGTERM, once it listens for one; return the exit code."""
        await until(self.status)
        assert self.process is not None
        self.process.terminate()
        return await asyncio.to_thread(self.process.wait, WITHIN)

    async def status(self) -> dict[str, Any]:
        """Return what /status says, {} while nobody answers; raise if the process has ended."""
        assert self.process is not None
        if self.process.poll() is not None:
            raise RuntimeError(f"{self.name} ended with {self.process.returncode}:\n{self.log.read_text()[-3000:]}")
        try:
            answer: dict[str, Any] = (await self._client.get("/status")).json()
        except httpx.TransportError:
            return {}
        return answer

    async def ready(self) -> None:
        """Wait until it says so."""

        async def said() -> bool:
            return bool((await self.status()).get("ready"))

        await until(said)

    async def counter(self, name: str) -> Any:
        """Return one of its counters, None while nobody answers."""
        return (await self.status()).get("counters", {}).get(name)
