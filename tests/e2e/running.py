"""`kb up` as a real process in a folder of its own, asked as its users ask it: on the screen, by `kb status`, over HTTP."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

import httpx
import psutil

from tests.support.service import own_port, until

START_WITHIN = 300.0
"""Seconds for a start, with all that a recording has to play: ten alone, minutes on a machine that has others to serve."""
KB = [sys.executable, "-m", "kalshibook_tools.cli"]


def environment(home: Path) -> dict[str, str]:
    """Return the environment of a user who has set nothing but KB_HOME."""
    ours = ("KB_", "KALSHI_")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(ours) or name == "KB_CACHE"}  # noqa: TID251
    return inherited | {"KB_HOME": str(home)}


def kb(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a `kb` command to its end."""
    command = [*KB, *words]
    return subprocess.run(command, env=environment(home), capture_output=True, text=True, timeout=START_WITHIN * 2, check=False)


class Up:
    """A `kb up`. Its block leaves nothing running, however it is left."""

    def __init__(self, home: Path, *words: str, **env: str) -> None:
        self.home, self.words, self._env = home, words, environment(home) | env
        self.screen_file = home.with_name(home.name + ".screen")
        self.process: subprocess.Popen[bytes] | None = None
        # httpx closes a connection that was idle for longer even where it was just given a request, which fails then: where the
        # machine let this process stand still for the five seconds that are usual. The gateway keeps one for 75.
        self.client = httpx.AsyncClient(timeout=30, limits=httpx.Limits(max_connections=20, keepalive_expiry=60))
        self._headers: dict[str, str] = {}
        self._url = ""
        # Not the port that every first start chooses: while this gateway is killed, another worker's would take it, and keep it.
        ports = home / "service-ports.json"
        if not ports.exists():
            home.mkdir(parents=True, exist_ok=True)
            ports.write_text(json.dumps({"gateway": own_port()}))

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.aclose()
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                await asyncio.to_thread(self.process.wait, START_WITHIN)
            except subprocess.TimeoutExpired:
                self.process.kill()
        kb(self.home, "down")

    def start(self) -> None:
        """Start it (again)."""
        self._url = ""
        with self.screen_file.open("wb") as out:
            command = [*KB, "up", *self.words]
            self.process = subprocess.Popen(command, env=self._env, stdout=out, stderr=out, stdin=subprocess.DEVNULL)

    @property
    def screen(self) -> str:
        """What it printed so far."""
        return self.screen_file.read_text(errors="replace")

    def state(self) -> dict[str, Any]:
        """Return what the state file says."""
        try:
            state: dict[str, Any] = json.loads((self.home / "state.json").read_text())
        except FileNotFoundError:
            return {}
        return state

    def pids(self) -> dict[str, int]:
        """Return the pids of everything it runs."""
        return {name: each["pid"] for name, each in self.state()["services"].items() if each["pid"]}

    async def says(self, text: str) -> str:
        """Wait until the screen has this text, and return the screen."""

        async def said() -> bool:
            ended = self.process is not None and self.process.poll() is not None
            if ended and text not in self.screen:
                raise AssertionError(f"kb up ended with {self.process and self.process.returncode}:\n{self.screen}")
            return text in self.screen

        try:
            await until(said, START_WITHIN)
        except TimeoutError:
            raise AssertionError(f"no {text!r} on the screen:\n{self.screen}") from None
        return self.screen

    async def ended(self) -> int:
        """Wait for its end and return its exit code."""
        assert self.process is not None
        return await asyncio.to_thread(self.process.wait, START_WITHIN * 2)

    async def interrupt(self) -> int:
        """Ctrl-C; return the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGINT)
        return await self.ended()

    async def get(self, path: str, **params: str | int) -> httpx.Response:
        """Ask the gateway with the demo key."""
        if not self._url:
            state = self.state()
            self._url, self._headers = state["gateway"]["url"], {"X-API-Key": state["demo_key"]}
        return await self.client.get(self._url + path, params=params, headers=self._headers)

    async def list(self, path: str, **params: str | int) -> list[dict[str, Any]]:
        """Return all rows of a list, page by page."""
        rows: list[dict[str, Any]] = []
        cursor: dict[str, str | int] = {}
        while True:
            answer = await self.get(path, **params, **cursor)
            assert answer.status_code == 200, answer.text
            rows += answer.json()["data"]
            if not answer.json()["next_cursor"]:
                return rows
            cursor = {"cursor": answer.json()["next_cursor"]}


def alive(pids: dict[str, int]) -> dict[str, int]:
    """Return those of them that still run."""
    found = {}
    for name, pid in pids.items():
        try:
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                found[name] = pid
        except psutil.NoSuchProcess:
            continue
    return found
