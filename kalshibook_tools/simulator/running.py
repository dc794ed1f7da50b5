"""A running simulator: what it is told (Config), what it offers (Running), and how its parts are put together (serve)."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from kalshibook_core.runtime import clock
from kalshibook_tools.simulator import faults, keys, recording, schedule
from kalshibook_tools.simulator.exchange import LIVE_SECONDS, Exchange
from kalshibook_tools.simulator.flow import Flow
from kalshibook_tools.simulator.hurting import Hurting
from kalshibook_tools.simulator.playback import Playback, RecordingClock
from kalshibook_tools.simulator.server import WS_PATH, Server
from kalshibook_tools.simulator.trading import trade

TRUTH_EVENTS = 500_000
"""True events kept of all generated markets together, about 100 MB; a recording's are all kept up to this many a market."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Config:
    """What to simulate. `speed` and `rate` None: as fast as the sockets take it; `faults` a seed. Seconds, frames a second."""

    key_dir: Path
    recordings: tuple[Path, ...] = ()
    speed: float | None = 1.0
    gatherers: int = 1
    faults: int | None = None
    faults_overlap: bool = False
    markets: int = 200
    rate: float | None = 200.0
    seed: int = 1
    duration: float | None = None
    window: float = 900.0  # seconds between open and close of the short-lived generated markets
    live: float = LIVE_SECONDS  # seconds after which trades and settled markets are historical
    host: str = "127.0.0.1"
    port: int = 0


class Running:
    """A simulator that listens."""

    def __init__(self, config: Config, server: Server) -> None:
        self._server = server
        self._host = config.host
        self.exchange = server.exchange
        self.key_ids = server.key.key_ids
        self.key_id = self.key_ids[0]
        self.private_key_path = server.key.private_key_path

    @property
    def port(self) -> int:
        """The port it listens on."""
        return self._server.port

    @property
    def ws_url(self) -> str:
        """Where a client opens its websocket."""
        return f"ws://{self._host}:{self.port}{WS_PATH}"

    @property
    def rest_url(self) -> str:
        """The REST API's address, version included."""
        return f"http://{self._host}:{self.port}/trade-api/v2"

    @property
    def control_url(self) -> str:
        """Where /simulator/status, truth and faults are."""
        return f"http://{self._host}:{self.port}/simulator"

    def truth(self, ticker: str) -> list[dict[str, Any]]:
        """Return what was true of a market, in order: rows as GET /simulator/truth/{ticker} gives them."""
        return [event.row() for event in self.exchange.markets[ticker].truth]

    def inject(self, **fault: Any) -> None:
        """Let a fault happen, fields as in POST /simulator/faults. UnknownFault says what is wrong with it."""
        self._server.inject(faults.parse(fault))

    def pause(self, paused: bool = True) -> None:
        """Stop or continue trading."""
        self._server.pause(paused)


@asynccontextmanager
async def serve(config: Config) -> AsyncIterator[Running]:
    """Listen and play while the context lasts. UnreadableRecording before anything listens, OSError where the port is taken."""
    work: Callable[[], Awaitable[None]]
    played = recording.scan(config.recordings) if config.recordings else None
    key = keys.open_key(config.key_dir)
    shared: dict[str, Any] = {"clients": config.gatherers, "live": config.live}
    if played is not None:
        play_clock = RecordingClock(played.first_ms, config.speed)
        exchange = Exchange(clock_us=play_clock.now_us, source="recording", truth_limit=TRUTH_EVENTS, **shared)
        server = Server(exchange, key)
        work = Playback(played, server, play_clock, config.speed, _hurting(config, server, played.frames)).run
    else:
        limit = max(1_000, TRUTH_EVENTS // max(1, config.markets))
        exchange = Exchange(clock_us=clock.now_us, source="generated", truth_limit=limit, **shared)
        server = Server(exchange, key)
        flow = Flow(seed=config.seed, markets=config.markets, start_us=clock.now_us(), window_us=round(config.window * 1_000_000))
        work = partial(trade, flow, server, config.rate, config.duration, _hurting(config, server, None))
    async with server.listening(config.host, config.port), asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(_told(work, exchange)), tasks.create_task(server.heartbeats())]
        failure: BaseException | None = None
        try:
            yield Running(config, server)
        except BaseException as error:  # noqa: BLE001  (raised again below, as itself and not inside the task group's exception)
            failure = error
        for task in running:
            task.cancel()
    if failure is not None:
        raise failure


def _hurting(config: Config, server: Server, frames: int | None) -> Hurting | None:
    if config.faults is None:
        return None
    rounds = schedule.rounds(config.faults, config.gatherers, overlap=config.faults_overlap, total=frames)
    # A recording can wait for a client; the live market goes on without one that does not come back.
    return Hurting(server, rounds, settle=not config.faults_overlap, patient=frames is not None)


async def _told(work: Callable[[], Awaitable[None]], exchange: Exchange) -> None:
    """Run the source; if it fails, status and log say so, and clients see silence, not a closed port."""
    try:
        await work()
    except (recording.UnreadableRecording, OSError) as error:
        exchange.failed = str(error)
        _log.error("playback failed", error=str(error))
