"""What retention dropped from the tables, read from the archive instead: which days of a market these are, and its rows of them.

The tables say what they lack (cold_spans), in the transaction that dropped it: nobody has to look into the archive to know what
is there, and what is said to be there and is not is an error, never a shorter answer. The archive is read by a few threads; who
finds them busy waits, for `TIMEOUT` at the most.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Final, NamedTuple, TypeVar

import asyncpg
import structlog

from kalshibook_core.archive.columns import Books
from kalshibook_core.archive.past import Past, Place
from kalshibook_core.archive.reader import Damaged
from kalshibook_core.archive.tables import BOOKS
from kalshibook_core.postgres.partitions import DAY_US
from kalshibook_core.runtime.logs import once_a_minute
from kalshibook_core.wire.events import Checkpoint
from services.gateway.errors import ApiError
from services.gateway.history.fold import CorruptHistory

TIMEOUT: Final = 10.0
"""Seconds a query may take before it is given up (the customer gets a 503)."""
THREADS: Final = 4

LAST: Final = """(SELECT last_version FROM cold_spans WHERE market_id = $1 AND table_name = 'book_events' AND first_us <= $2
    ORDER BY first_us DESC, last_version DESC LIMIT 1)"""
"""The last version that was dropped of a market's day up to an instant; of the market $1, the instant $2."""

_SPAN: Final = """
SELECT m.ticker, s.partition, s.first_us, s.last_us, s.first_version, s.last_version, s.rows, s.table_name
FROM cold_spans s JOIN markets m ON m.id = s.market_id WHERE s.market_id = $1"""
_BOOKS: Final = f"""{_SPAN} AND s.table_name = 'book_events' AND s.first_us < $3 AND s.last_us >= $2 AND s.last_version > $4
ORDER BY s.first_version"""
_NEWEST: Final = " UNION ALL ".join(
    f"({_SPAN} AND s.table_name = '{table}' AND s.first_us <= $2 ORDER BY s.first_us DESC, s.last_version DESC LIMIT 1)"
    for table in ("checkpoints", "book_events")
)
_LATER: Final = f"{_SPAN} AND s.table_name = 'book_events' AND s.last_us > $2 ORDER BY s.first_us, s.first_version LIMIT 1"

Answer = TypeVar("Answer")
log = structlog.get_logger()


class Span(NamedTuple):
    """Rows of a market and a UTC day that were dropped: where the archive has them, and what they are."""

    ticker: str
    partition: int
    first_us: int
    last_us: int
    first_version: int
    last_version: int
    rows: int
    table: str

    @property
    def place(self) -> Place:
        """Where the archive has them."""
        return Place(self.partition, self.first_us // DAY_US, self.ticker)


class Cold:
    """What was dropped, of all markets."""

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]", past: Past | None) -> None:
        """Know by `pool` what was dropped, and read it from `past`; None: nobody named an archive."""
        self._pool, self._past = pool, past
        self._threads = ThreadPoolExecutor(THREADS, "archive")

    async def last_version(self, market_id: int, at_us: int) -> int | None:
        """Return the last version that was dropped of the last day up to an instant; None if nothing was."""
        found: int | None = await self._pool.fetchval(f"SELECT {LAST}", market_id, at_us, timeout=TIMEOUT)
        return found

    async def spans(self, market_id: int, from_us: int, to_us: int, after_version: int) -> list[Span]:
        """Return what was dropped of a market's book events, from one instant to before another and after a version, in order."""
        return [Span(*row) for row in await self._pool.fetch(_BOOKS, market_id, from_us, to_us, after_version, timeout=TIMEOUT)]

    async def checkpoint(self, market_id: int, at_us: int) -> Checkpoint | None:
        """Return the newest checkpoint that was dropped and is not after an instant. Raise CorruptHistory.

        The events that will be folded into it are meanwhile fetched, so that a storage far away is waited for once.
        """
        rows = await self._pool.fetch(_NEWEST, market_id, at_us, timeout=TIMEOUT)
        newest = {span.table: span for span in (Span(*row) for row in rows)}
        if (span := newest.get("checkpoints")) is None:
            return None
        reading = self._read(span, lambda past: past.checkpoint(span.place, at_us, span.rows))
        found, _ = await asyncio.gather(reading, self._fetch(newest.get("book_events"), at_us))
        return found

    async def _fetch(self, span: Span | None, at_us: int) -> None:
        """Have the file at hand that tells of a span at an instant; what is wrong with it is told to who reads it."""
        if span is None:
            return
        last_us = min(at_us, span.last_us)
        with suppress(Damaged, ApiError):
            await self._raw(lambda past: past.parts(span.place, span.first_version, span.last_version, last_us, last_us + 1))

    async def books(self, span: Span, after_version: int, from_us: int, to_us: int) -> AsyncIterator[Books]:
        """Yield what a span has after a version and in [from_us, to_us), some at a time, in order. Raise CorruptHistory."""
        reached, again = after_version, False
        ask = partial(
            Past.parts, place=span.place, first=span.first_version, last=span.last_version, from_us=from_us, to_us=to_us
        )
        while True:
            parts = await self._read(span, ask)
            for part in parts:
                try:
                    found = (await self._raw(partial(Past.books, part=part))).within(reached, from_us, to_us)
                except Damaged as damaged:
                    if again:
                        raise await self._corrupt(span, damaged) from damaged
                    again = True  # the file may have been merged into another since it was listed
                    await self._raw(lambda past: past.forget(BOOKS, span.place))
                    break
                if len(found.version):
                    yield found
                    reached = int(found.version[-1])
            else:
                return

    async def recorded_later(self, market_id: int, than_us: int, hot_us: int | None) -> int | None:
        """Return when a market's first event after an instant took effect, if its first in the tables did at `hot_us`."""
        row = await self._pool.fetchrow(_LATER, market_id, than_us, timeout=TIMEOUT)
        if row is None or (hot_us is not None and hot_us <= row["first_us"]):
            return hot_us
        span = Span(*row)
        if span.first_us > than_us:
            return span.first_us
        async for books in self.books(span, 0, than_us + 1, span.last_us + 1):
            first = int(books.effective_us[0])
            return first if hot_us is None else min(first, hot_us)
        raise CorruptHistory(f"{span.ticker}: what was dropped does not reach to {span.last_us}")

    async def _read(self, span: Span, ask: Callable[[Past], Answer]) -> Answer:
        try:
            return await self._raw(ask)
        except Damaged as damaged:
            raise await self._corrupt(span, damaged) from damaged

    async def _corrupt(self, span: Span, damaged: Damaged) -> CorruptHistory:
        await self._raw(Past.present)  # a folder that is not mounted has no files, and they are not damaged
        log.error("gateway.archive.damaged", market_ticker=span.ticker, path=damaged.path, why=damaged.why)
        return CorruptHistory(f"{span.ticker}: archived versions {span.first_version} to {span.last_version}: {damaged}")

    async def _raw(self, ask: Callable[[Past], Answer]) -> Answer:
        if self._past is None:
            log.error("gateway.archive.unnamed", then="set KB_ARCHIVE to where retention found these days")
            raise _unavailable()
        try:
            async with asyncio.timeout(TIMEOUT):
                return await asyncio.get_running_loop().run_in_executor(self._threads, ask, self._past)
        except OSError as error:  # that it takes too long is one
            if once_a_minute("gateway.archive.away"):
                log.error("gateway.archive.away", why=str(error) or type(error).__name__)
            raise _unavailable() from error


def _unavailable() -> ApiError:
    message = "This part of the history lies in the archive, which is not there; try again later."
    return ApiError(503, "storage_unavailable", message)
