"""One process that is kept running: asked every second how it is, started again with backoff when it dies.

Promises: a process that ends though nobody asked it to is told with the log line that explains it, counted, and started
again after 0.5 s, doubling to 30 s until it has lived a minute, and also where that failed, as on a full disk; a process that is
stopped is not started again.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import httpx

from kalshibook_tools.stack import Process, Progress, StackError

BACKOFF_SECONDS = (0.5, 30.0)
"""The first wait before a restart, and the longest."""

FORGIVEN_AFTER = 60.0
"""Seconds of life after which an earlier death no longer lengthens the wait."""


def backoff(deaths: int) -> float:
    """Return the seconds to wait before a start after so many deaths in a row."""
    first, longest = BACKOFF_SECONDS
    return min(longest, first * (1 << min(deaths - 1, 16)))


@dataclass(frozen=True, slots=True)
class Report:
    """What a process says of itself: its `/status`, or what can be seen of it from outside."""

    ready: bool
    counters: dict[str, Any]


Ask = Callable[[], Awaitable[Report]]


async def over_http(client: httpx.AsyncClient, url: str, pid: int | None) -> Report:
    """Return what a service's `/status` says; not ready if it does not answer, or another process does that has its port."""
    try:
        answer = (await client.get(url, timeout=2)).raise_for_status().json()
        if answer["pid"] != pid:
            return Report(False, {})
        return Report(bool(answer["ready"]), dict(answer["counters"]))
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return Report(False, {})


class Kept:
    """A process by name, what is known of it, and the loop that keeps it. `make` gives the process of each (re)start."""

    def __init__(self, name: str, make: Callable[[], tuple[Process, Ask]], progress: Progress) -> None:
        self.name = name
        self.state = "starting"
        self.restarts = 0
        self.counters: dict[str, Any] = {}
        self._make = make
        self._progress = progress
        self._stopping = asyncio.Event()
        self._starting = asyncio.Lock()
        self._process, self._ask = make()

    @property
    def pid(self) -> int | None:
        """The process id, None unless it runs."""
        return self._process.pid

    async def start(self, within: float) -> None:
        """Start it and wait until it is ready. Raises StackError, told in one line, if it does not come up."""
        await self._process.start()
        await self.ready(within)

    async def adopt(self) -> None:
        """Take over a process that was started already."""
        self.state = "running"

    async def ready(self, within: float) -> None:
        """Wait until it says that it is ready."""

        async def ready() -> bool:
            return (await self._ask()).ready

        await self._process.ready(ready, within)
        self.state = "running"

    async def look(self) -> None:
        """Ask it how it is."""
        if self._stopping.is_set() or self.pid is None:
            return
        report = await self._ask()
        if report.counters:
            self.counters = report.counters
        if not self._stopping.is_set() and self.pid is not None:
            self.state = "running" if report.ready else "starting"

    async def keep(self) -> None:
        """Start it again whenever it dies, until it is stopped."""
        deaths, clock = 0, asyncio.get_running_loop().time
        while not self._stopping.is_set():
            since = clock()
            await self._process.wait()
            if self._stopping.is_set():
                return
            deaths = 1 if clock() - since > FORGIVEN_AFTER else deaths + 1
            self.restarts += 1
            self.state = "restarting"
            why: StackError | None = self._process.exited()
            while why is not None:
                self._progress(f"{why}; started again in {backoff(deaths):g} s")
                try:
                    async with asyncio.timeout(backoff(deaths)):
                        await self._stopping.wait()
                        return
                except TimeoutError:
                    why = await self._again()
                    deaths += why is not None

    async def _again(self) -> StackError | None:
        """Start it once more; return what kept it from that."""
        async with self._starting:
            try:
                if not self._stopping.is_set():
                    self._process, self._ask = self._make()
                    await self._process.start()
            except StackError as error:
                return error
        return None

    async def stop(self, within: float | None = None) -> None:
        """Ask it to drain and end, past its deadline (or `within` seconds) kill it, and wait for the end."""
        self._stopping.set()
        async with self._starting:
            self.state = "stopping"
            await self._process.stop(within)
            self.state = "stopped"

    def lag(self) -> int:
        """Return how many records it has yet to read, 0 where it reads none."""
        return int(self.counters.get("lag_records", 0))

    def told(self) -> dict[str, Any]:
        """Return what the state file says of it."""
        return {"pid": self.pid, "state": self.state, "restarts": self.restarts, "counters": self.counters}
