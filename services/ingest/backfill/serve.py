"""The whole process: look for what was missed, read it, until told to stop."""

import asyncio
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Generic, TypeVar

import structlog

from kalshibook_core.postgres import pool
from kalshibook_core.postgres.partitions import DAY_US
from kalshibook_core.runtime import clock, health, logs
from services.ingest.backfill import fill, missing
from services.ingest.backfill.settings import Settings
from services.ingest.pace import backoff

LONGEST_SECONDS: Final = 86_400.0
LOOKUPS: Final = 500
"""Markets asked for by name between two looks for gaps."""

_log = structlog.get_logger()
K = TypeVar("K")


class Turns(Generic[K]):
    """When what was asked for, and is missing all the same, is asked for again: after twice the time each time. Pure."""

    def __init__(self, first_seconds: float) -> None:
        """The second time comes `first_seconds` after the first."""
        self._first = first_seconds
        self._turns: dict[K, tuple[float, float]] = {}  # when, and how long after that the next

    def due(self, wanted: Iterable[K], now: float, most: int | None = None) -> list[K]:
        """Return those whose turn it is, `most` of them; what is not wanted any more is forgotten."""
        self._turns = {each: self._turns.get(each, (now, self._first)) for each in wanted}
        found = [each for each, (at, _) in self._turns.items() if at <= now][:most]
        for each in found:
            pause = self._turns[each][1]
            self._turns[each] = now + pause, min(LONGEST_SECONDS, 2 * pause)
        return found


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """Fill until `stop` is set, then deliver what was read."""
    work = _Work(settings)
    async with health.serve(settings.exchange.health, lambda: work.ready, work.shown, service="backfill"):
        if settings.every_seconds is None:
            work.ready, work.state = True, "KB_BACKFILL is off"
            await stop.wait()
            return
        async with fill.opened(settings.exchange, work.told) as filling, asyncio.TaskGroup() as tasks:
            task = tasks.create_task(work.run(filling, settings.every_seconds))
            await stop.wait()
            task.cancel()


class _Work:
    """What is done, and how far it is."""

    def __init__(self, settings: Settings) -> None:
        self.told = fill.Told()
        self.ready = False
        self.state = "starting"
        self._settings = settings
        self._unfilled = self._unresolved = self._failed = self._database_retries = 0

    def shown(self) -> Mapping[str, int | float | str]:
        """Return the counters by short metric name."""
        told = self.told
        return {
            "trades_total": told.trades,
            "gaps_total": told.gaps,
            "markets_total": told.markets,
            "events_total": told.events,
            "unreadable_total": told.unreadable,
            "failed_total": self._failed,
            "rest_requests_total": told.counts["rest_requests"],
            "rest_retries_total": told.counts["rest_retries"],
            "database_retries_total": self._database_retries,
            "unfilled_gaps": self._unfilled,
            "unresolved_markets": self._unresolved,
            "state": self.state,
        }

    async def run(self, filling: fill.Backfill, every_seconds: float) -> None:
        """Look, and look again."""
        gaps, markets = Turns[missing.Hole](every_seconds), Turns[missing.Unresolved](every_seconds)
        rng, failures = random.Random(), 0
        self.ready = True
        while True:
            try:
                await self._look(filling, gaps, markets)
                self.state, failures = "waiting", 0
                await asyncio.sleep(every_seconds)
            except (*pool.UNREACHABLE, pool.DatabaseUnreachable) as error:
                self.state, failures = "the database is away", failures + 1
                self._database_retries += 1
                if logs.once_a_minute("database_away"):
                    _log.warning("database_away", why=str(error), then="trying again")
                await asyncio.sleep(backoff(failures, rng))

    async def _look(self, filling: fill.Backfill, gaps: Turns[missing.Hole], markets: Turns[missing.Unresolved]) -> None:
        dsn = self._settings.postgres_dsn
        self.state = "asking the exchange for its clock"
        now_us = await filling.now_us()
        span_us = now_us - self._settings.days * DAY_US, now_us - round(self._settings.age_seconds * 1e6)

        async def known(tickers: list[str]) -> Sequence[str]:
            return await missing.known_events(dsn, tickers)

        holes = await missing.holes(dsn, *span_us)
        self._unfilled = len(holes)
        for absent in fill.absences(gaps.due(holes, clock.monotonic())):
            self.state = f"filling {len(absent.holes)} gaps"
            await filling.absence(absent, known)
            self._tell()
        unresolved = await missing.unresolved(dsn, *span_us)
        self._unresolved = len(unresolved)
        if wanted := markets.due(unresolved, clock.monotonic(), LOOKUPS):
            self.state = f"asking for {len(wanted)} markets"
            await filling.look_up(wanted, known)
            self._tell()

    def _tell(self) -> None:
        failed = self.told.failed
        self._failed += len(failed)
        if failed and logs.once_a_minute("not_read"):
            _log.warning("not_read", count=len(failed), why=failed[0], then="asked for again, after twice the time")
        failed.clear()
