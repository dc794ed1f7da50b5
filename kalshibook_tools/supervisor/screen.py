"""What a person sees of a running supervisor: one screen, then a line that lives.

On a terminal the line is redrawn in place and what is told scrolls above it; elsewhere (a pipe, a log) it is printed every
few seconds, so that a file of it stays small.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress

from rich.console import Console
from rich.live import Live
from rich.text import Text

PLAIN_EVERY = 10.0
"""Seconds between two counter lines where there is no terminal."""


class Screen:
    """The place where things are told. Use as a context manager: the terminal is left as it was found."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)
        self._live = Live(Text(), console=self.console, auto_refresh=False) if self.console.is_terminal else None
        self._plain_due = 0.0

    def __enter__(self) -> "Screen":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.update(Text(), refresh=True)
            self._live.stop()

    def tell(self, line: str) -> None:
        """Print a line that stays, if the disk it may go to is not full."""
        with suppress(OSError):
            self.console.print(line, markup=False)

    def show(self, line: str) -> None:
        """Show what is true now, in place of what was."""
        if self._live:
            self._live.update(Text(line, no_wrap=True, overflow="ellipsis"), refresh=True)
        elif (now := asyncio.get_running_loop().time()) >= self._plain_due:
            self._plain_due = now + PLAIN_EVERY
            self.tell(line)


def table(rows: Sequence[tuple[str, str, str]]) -> str:
    """Return (name, where, note) rows as aligned text."""
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(2)]
    return "\n".join(f"  {name:<{widths[0]}}  {where:<{widths[1]}}  {note}".rstrip() for name, where, note in rows)


def queries(gateway: str, key: str, lively: tuple[str, str] | None) -> list[str]:
    """Return three requests a shell can run as printed, given a market with a book and an instant it answers for."""
    calls = ["/healthz", "/v1/markets?limit=5", "/v1/usage"]
    if lively:
        ticker, instant = lively
        calls = ["/v1/markets?limit=5", f"/v1/orderbook/{ticker}", f"/v1/orderbook/{ticker}?at={instant}"]
    return [f"curl -H 'X-API-Key: {key}' '{gateway}{call}'" for call in calls]
