"""Events and series, which markets belong to: read whole at the first start, then what has changed; published where it is new.

The lists of combos' events (KXMVE…) can be read neither by status nor by change (Kalshi docs, GET /events/multivariate), so they
are not: their markets name their legs themselves.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, NamedTuple

from kalshibook_core.kalshi import messages
from kalshibook_core.runtime import clock
from kalshibook_core.wire.events import EVENT, SERIES
from services.ingest.registry import Registry, digest_of, packed
from services.ingest.rest import Answer, Refused, Rest
from services.ingest.settings import Settings

WHOLE_SECONDS: Final = 3600.0
"""How often a list is read whole, at most: between, only what changed in it."""

SHARE: Final = 20
"""And it takes at most so small a part of the time."""

MARGIN_S: Final = 60
"""How far before the last reading the next one asks for changes: the exchange's own machines may lag each other."""

SOON_SECONDS: Final = 5.0
"""How long after a message about an event the lists are asked for changes: REST lags, and more such messages may follow."""

BARREN_PAGES: Final = 3
"""So many pages in a row without anything that this list had not had before are no list."""

MOST: Final = 3_000_000
"""More than that is no list either, but an answer without end."""

SLICE: Final = 200
"""Objects taken before frames get their turn again."""


class Family(NamedTuple):
    """One list: its channel in our records, its path and pages, and the statuses by which it may be read."""

    channel: str
    path: str
    rows: str
    key: str
    page: str
    statuses: frozenset[str]


FAMILIES: Final = (
    Family(SERIES, "/series", "series", "ticker", "", frozenset()),
    Family(EVENT, "/events", "events", "event_ticker", "200", frozenset({"unopened", "open", "closed", "settled"})),
)
"""Kalshi docs, "Get Series List" (which has no pages) and "Get Events"."""


class Families:
    """See the module. `since_s`: up to when what is known of a list holds (the exchange's clock, Unix seconds), by channel."""

    def __init__(
        self,
        settings: Settings,
        rest: Rest,
        registry: Registry,
        since_s: Mapping[str, int],
        publish: Callable[[Answer, str, str, bytes], None],
        room: Callable[[], Awaitable[None]],
        tell: Callable[[str, str], None],
    ) -> None:
        """Go on from what the registry has.

        `publish(answer, channel, ticker, object)` is called for what is new, `tell(kind, why)` for trouble.
        """
        self.since_s = dict(since_s)
        self._known = registry.families
        self._whole_at: dict[str, float] = {}  # when to read the list whole again
        self._settings = settings
        self._rest = rest
        self._publish = publish
        self._room = room
        self._tell = tell
        self._stirred = asyncio.Event()

    def stir(self) -> None:
        """Something was said of an event: look what."""
        self._stirred.set()

    async def run(self) -> None:
        """Read, again and again."""
        while True:
            for family in FAMILIES:
                await self._read(family)
            self._stirred.clear()
            try:
                async with asyncio.timeout(self._settings.reconcile_seconds):
                    await self._stirred.wait()
            except TimeoutError:
                continue
            await asyncio.sleep(SOON_SECONDS)

    async def _read(self, family: Family) -> None:
        """Read a list, whole if that is due."""
        channel, began = family.channel, clock.monotonic()
        since_s, now_s = self.since_s.get(channel), (clock.now_us() + (self._rest.skew_us or 0)) // 1_000_000
        if since_s is not None and began < self._whole_at.setdefault(channel, began + WHOLE_SECONDS):
            if await self._list(family, {}, min_updated_ts=str(since_s - MARGIN_S)):
                self.since_s[channel] = now_s
            return
        fresh: dict[str, int] = {}
        statuses = [status for status in self._settings.statuses if status in family.statuses] or [""]
        if all([await self._list(family, fresh, status=status) for status in statuses]):
            self._known[channel], self.since_s[channel] = fresh, now_s  # what is not listed any more is forgotten
            self._whole_at[channel] = clock.monotonic() + max(WHOLE_SECONDS, SHARE * (clock.monotonic() - began))

    async def _list(self, family: Family, found: dict[str, int], **query: str) -> bool:
        """Read a list to its end, into `found` as well; return whether there was one."""
        cursor, barren = "", 0
        while True:
            try:
                answer = await self._rest.get(family.path, limit=family.page, cursor=cursor, **query)
            except Refused as error:
                self._tell("rest_refused", str(error))
                return False
            rows = answer.body.get(family.rows) if isinstance(answer.body, dict) else None
            if not isinstance(rows, list):
                self._tell("rest_unparsable", f"GET {answer.path}: no list of {family.rows}")
                return False
            before = len(found)
            for start in range(0, len(rows), SLICE):
                for body in rows[start : start + SLICE]:
                    self._take(family, answer, body, found)
                await self._room()
                await asyncio.sleep(0)
            barren = 0 if len(found) > before else barren + 1
            cursor = answer.body.get("cursor") or ""
            if not cursor:
                return True
            if barren == BARREN_PAGES or type(cursor) is not str or len(found) > MOST:
                self._tell("rest_endless", f"GET {answer.path}: the list has no end; {len(found)} {family.rows} so far")
                return False

    def _take(self, family: Family, answer: Answer, body: Any, found: dict[str, int]) -> None:
        ticker = body.get(family.key) if type(body) is dict else None
        if not messages.is_word(ticker):
            self._tell("rest_unparsable", f"GET {answer.path}: an object without {family.key}")
            return
        try:
            payload, known = packed(body), self._known[family.channel]
        except messages.UnparsableFrame as error:
            self._tell("rest_unparsable", f"GET {answer.path}: {error}")
            return
        digest = found[ticker] = digest_of(payload)
        if known.get(ticker) != digest:
            known[ticker] = digest
            self._publish(answer, family.channel, ticker, payload)
