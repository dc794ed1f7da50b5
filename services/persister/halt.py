"""What happens where records are missing that the log cannot give again: nothing is written, and it is said until somebody acts.

Going on would make a hole that looks like quiet markets, so the process stays, is not ready, shows how many records are missing
(`lost_records`) and why (`halted`), says it in the log, and looks again every minute. What a person can do says the runbook.
"""

import asyncio
from contextlib import suppress
from typing import Protocol

import structlog

_EVERY_SECONDS = 60.0

_log = structlog.get_logger()


class Shown(Protocol):
    """Counters that can show it."""

    ready: bool
    halted: str
    lost_records: int


async def halt(why: Exception, records: int, shown: Shown, stop: asyncio.Event) -> None:
    """Return when it is time to look again, or when told to stop."""
    shown.ready, shown.halted, shown.lost_records = False, str(why), records
    _log.error("halted", why=str(why), lost_records=records, then="nothing is written until somebody acts: see the runbook")
    with suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), _EVERY_SECONDS)


def go_on(shown: Shown) -> None:
    """Show that nothing is missing (any more)."""
    shown.ready, shown.halted, shown.lost_records = True, "", 0
