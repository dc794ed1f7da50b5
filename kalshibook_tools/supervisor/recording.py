"""Follows a recording that is played, until its last event can be read back through the gateway.

Promises: "done" means read back, market by market: the book's version through the gateway's point-in-time answer (which comes
out of the database), trades by count. Where nothing moves for a minute, the stage that is stuck is named with its last log
line. A recording already played into this KB_HOME is played again behind what is there: its events are appended, at
effective times that never go back, and its trades, known by their ids, are not repeated.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from kalshibook_core.postgres import pool
from kalshibook_core.runtime import clock
from kalshibook_tools.supervisor.history import History, Reached
from kalshibook_tools.supervisor.home import FLOW, SupervisorError
from kalshibook_tools.supervisor.kept import Kept, Report
from kalshibook_tools.supervisor.screen import Screen
from kalshibook_tools.supervisor.services import Options

STUCK_AFTER = 60.0
"""Seconds without any movement after which the playback is given up."""

_LATEST = "9999-12-31T00:00:00Z"

_STILL_AFTER = 3.0
"""Seconds of stillness, everything read and nothing lagging, after which no further event is expected: a frame that told what was
known already (a snapshot somebody asked for) makes none."""


async def simulator_report(client: httpx.AsyncClient, control_url: str) -> Report:
    """Return how the simulator is."""
    try:
        status = (await client.get(f"{control_url}/status", timeout=5)).raise_for_status().json()
    except (httpx.HTTPError, ValueError):
        return Report(False, {})
    return Report(True, {name: status[name] for name in ("frames", "events", "markets", "injected")})


@dataclass(frozen=True, slots=True)
class Sent:
    """What the exchange sent of one market."""

    book_frames: int
    trades: int
    gaps: int


def expected(sent: Sent, before: Reached) -> Reached:
    """Return how far a market must be: every book frame and every gap is one version, every trade is one row whenever it came."""
    return Reached(before.version + sent.book_frames + sent.gaps, max(before.trades, sent.trades))


def behind(sent: Mapping[str, Sent], before: Mapping[str, Reached], now: Mapping[str, Reached]) -> list[str]:
    """Return the markets that are not as far as they must be."""
    nowhere = Reached()
    late = []
    for ticker, frames in sent.items():
        must, is_ = expected(frames, before.get(ticker, nowhere)), now.get(ticker, nowhere)
        if is_.version < must.version or is_.trades < must.trades:
            late.append(ticker)
    return late


@dataclass(slots=True)
class Played:
    """A playback: what it is told as, and the way to its end."""

    control_url: str
    gateway: str
    key: str
    options: Options
    done: bool = False
    frames: int = 0
    events: int = 0
    _before: dict[str, Reached] = field(default_factory=dict)

    def told(self) -> dict[str, Any]:
        """Return what the state file says of it."""
        return {"done": self.done, "frames": self.frames, "events": self.events}

    async def begin(self, client: httpx.AsyncClient, history: History) -> None:
        """Take note of what was there before the first frame."""
        self._before = await history.reached(list(_sent(await self._status(client))))

    async def follow(self, client: httpx.AsyncClient, history: History, kept: Mapping[str, Kept], screen: Screen) -> str:
        """Return the summary, one line, once the last event can be read back. Raises SupervisorError if it gets stuck."""
        if any(reached.version for reached in self._before.values()):
            screen.tell("markets of this recording have a history here already: it is appended, at times that never go back")
        began = moved_at = clock.monotonic()
        first_frame_at: float | None = None
        seen: tuple[object, ...] = ()
        with _bar(screen) as bar:
            task = bar.add_task("playing", total=None, lag=0, rate=0)
            while True:
                status = await self._status(client)
                self.frames, self.events = int(status["frames"]), int(status["events"])
                sent, now = _sent(status), clock.monotonic()
                if first_frame_at is None and self.events:
                    first_frame_at = now
                seconds = max(now - (first_frame_at or began), 1e-3)
                reached = await self._reached(history, sent)
                lag = sum(process.lag() for process in kept.values())
                bar.update(task, completed=self.frames, lag=lag, rate=self.frames / seconds)
                late = behind(sent, self._before, reached)
                if status["done"] and not late and await self._readable(client, reached):
                    break
                moved = (self.frames, lag, sorted((name, at.version, at.trades) for name, at in reached.items()))
                if moved != seen:
                    seen, moved_at = moved, now
                still = now - moved_at
                if status["done"] and not lag and still > _STILL_AFTER and await self._readable(client, reached):
                    break
                # A recording has silences of its own; it is stuck where the exchange waits for us, or is done.
                if status.get("error") or (still > STUCK_AFTER and (status["done"] or status.get("waiting"))):
                    raise SupervisorError(self._stuck(status, kept, late))
                await asyncio.sleep(0.05)
        self.done = True
        gaps, trade_gaps = await history.gaps()
        told = f"{len(gaps):,} gap{'s' * (len(gaps) != 1)}" + (f", {len(trade_gaps):,} of trades" if trade_gaps else "")
        return (
            f"played {self.frames:,} frames of {len(sent):,} markets: {self.events:,} events, {told}, "
            f"{self.frames / seconds:,.0f} frames/s ({seconds:.1f} s from the first event to its last read back)"
        )

    async def _status(self, client: httpx.AsyncClient) -> dict[str, Any]:
        try:
            status: dict[str, Any] = (await client.get(f"{self.control_url}/status", timeout=10)).raise_for_status().json()
        except (httpx.HTTPError, ValueError) as error:
            log = self.options.home.log("simulator")
            raise SupervisorError(f"the simulator ended while it played the recording: {last_line(log)} (log: {log})") from error
        return status

    async def _reached(self, history: History, sent: Mapping[str, Sent]) -> dict[str, Reached]:
        try:
            return await history.reached(list(sent))
        except (*pool.UNREACHABLE, pool.DatabaseUnreachable):
            return {}

    async def _readable(self, client: httpx.AsyncClient, reached: Mapping[str, Reached]) -> bool:
        """Tell whether the gateway's point-in-time answer has every market as far as the database has it."""
        headers = {"X-API-Key": self.key}
        try:
            for ticker, at in reached.items():
                answer = await client.get(f"{self.gateway}/v1/orderbook/{ticker}", params={"at": _LATEST}, headers=headers)
                if at.version and (answer.status_code != 200 or answer.json()["version"] < at.version):
                    return False
        except (httpx.HTTPError, ValueError, KeyError):
            return False
        return True

    def _stuck(self, status: Mapping[str, Any], kept: Mapping[str, Kept], late: list[str]) -> str:
        if status.get("error"):
            return f"the simulator cannot play the recording: {status['error']}"
        lagging = [name for name in FLOW if name in kept and kept[name].lag()]
        stage = "ingest" if not status["done"] else (lagging or ["persister"])[0]
        log = self.options.home.log(stage)
        waits = (
            f"{len(late)} markets are behind, {late[0]} among them" if late else f"the exchange waits for {status.get('waiting')}"
        )
        return f"nothing moved for {STUCK_AFTER:g} s: {stage} is stuck ({waits}); its last line: {last_line(log)} (log: {log})"


def last_line(log: Path) -> str:
    """Return the last line of a log."""
    try:
        with log.open("rb") as lines:
            lines.seek(max(0, log.stat().st_size - 4096))
            return (lines.read().decode(errors="replace").strip().splitlines() or ["nothing"])[-1][:500]
    except FileNotFoundError:
        return "nothing"


def _sent(status: Mapping[str, Any]) -> dict[str, Sent]:
    markets = status["per_market"]
    return {ticker: Sent(each["book_frames"], each["trades"], each["gaps"]) for ticker, each in markets.items()}


def _bar(screen: Screen) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:,.0f} frames"))
    more = (TextColumn("{task.fields[rate]:,.0f}/s"), TextColumn("lag {task.fields[lag]:,.0f}"), TimeElapsedColumn())
    return Progress(*columns, *more, console=screen.console, disable=not screen.console.is_terminal, transient=True)
