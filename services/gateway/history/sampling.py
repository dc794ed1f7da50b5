"""A market's book at many instants out of one walk over its events. No I/O but the events' own iterator.

A sample is what `at` gives for its instant. It is written once an event later than its instant was seen, or none is left to come;
what changed nothing since the sample before is not written again but repeated as bytes.
"""

from collections.abc import AsyncIterator, Iterable
from typing import Any, Final, NamedTuple

import numpy as np
import orjson

from kalshibook_core.postgres.runs import EventColumns
from services.gateway.history import intervals
from services.gateway.history.fold import State
from services.gateway.history.views import View, shown, written
from services.gateway.history.walk import Walk
from services.gateway.instants import LAST_US

MAX_BYTES: Final = 24 * 2**20
"""What the rows of a page may take together; past it the page ends."""
MAX_EVENTS: Final = 1_000_000
"""Events a page may walk over; past it the page ends."""


NOT_RECORDED: Final = "not_recorded"
"""The state of an instant before the market's first snapshot; there is no book to show."""


class Asked(NamedTuple):
    """`number` instants from `from_us` on, `interval_us` apart, and how the books are shown."""

    from_us: int
    interval_us: int
    number: int
    depth: int | None
    view: View | None
    changes_only: bool


class Samples:
    """The rows of one page, as JSON; `done` instants are answered, with a row or, where only changes are wanted, by silence."""

    def __init__(self, asked: Asked, state: State | None, gaps: Iterable[tuple[int, int | None, str, int]]) -> None:
        """`gaps`: (start, end, cause, version that opened it) of those that touch the instants."""
        self.rows: list[bytes] = []
        self.done = 0
        self.effective_us = 0 if state is None else state.effective_us
        self.instants = asked.from_us + asked.interval_us * np.arange(asked.number)
        self._asked, self._walk = asked, Walk(state)
        gaps_at = np.zeros(asked.number, np.int64)  # the version that opens a gap in which the instant lies
        for start, end, _, version in gaps:
            inside = (self.instants >= start) & (self.instants < (LAST_US if end is None else end))
            gaps_at[inside] = np.maximum(gaps_at[inside], version)
        self._gaps = gaps_at.tolist()
        self._texts = intervals.texts(self.instants)
        self._head, self._levels, self._last, self._size = "", "", ("", ""), 0
        self._version = -1

    @property
    def version(self) -> int:
        """Of the last event walked over; 0 before the market's first."""
        return self._walk.version

    async def walk(self, batches: AsyncIterator[EventColumns]) -> bool:
        """Answer every instant that an event follows; return whether all events were seen, False if the page is full."""
        walk, first = self._walk, self._walk.version
        async for events in batches:
            walk.take(events)
            followed = int(self.instants.searchsorted(int(events.effective_us[-1])))
            for place in events.effective_us.searchsorted(self.instants[self.done : followed], "right").tolist():
                walk.until(place)
                if not self.answer("complete"):
                    return False
            walk.until(len(events.version))
            self.effective_us = int(events.effective_us[-1])
            if walk.version - first > MAX_EVENTS:
                return False
        return True

    def answer(self, quality: str) -> bool:
        """Answer the next instant with the book as it is, of this quality unless it is in a gap; return whether there is room."""
        walk = self._walk
        if walk.version != self._version:
            self._version = walk.version
            content = self._content()
            if walk.version:
                self._head = f'"version":{walk.version},"checksum":"{walk.checksum:016x}"'
            else:
                self._head, content = '"version":null,"checksum":null', dict.fromkeys(content)
            self._levels = orjson.dumps(content)[1:].decode()
        # A gap that corrects what was led by a liar begins before its event: what was known then is known to be wrong.
        in_gap = walk.in_gap or walk.version < self._gaps[self.done]
        state = NOT_RECORDED if not walk.version else "gap" if in_gap else quality
        if not self._asked.changes_only or (state, self._levels) != self._last:
            row = f'{{"at":"{self._texts[self.done]}","state":"{state}",{self._head},{self._levels}'.encode()
            self.rows.append(row)
            self._last = state, self._levels
            self._size += len(row)
        self.done += 1
        return self._size < MAX_BYTES

    def _content(self) -> dict[str, Any]:
        depth, view = self._asked.depth, self._asked.view
        if depth != 1:
            return shown(self._walk.sides, depth, view)
        _, yes, yes_size, no, no_size, _ = self._walk.top()
        return written([(yes, yes_size)] if yes_size else [], [(no, no_size)] if no_size else [], view)
