"""Queries on the persister's tables, all read-only: events, checkpoints, trades and gaps of one market.

What retention dropped from them is read from the archive (`cold`), and the answer is the same.

Every query is bounded by a LIMIT and walks an index; a point-in-time book is one round trip, two for a market
that was quiet the day before, plus one for each further `CHUNK` rows where checkpoints are missing.
"""

from collections.abc import AsyncIterator
from typing import Any, Final, TypeAlias

import asyncpg

from kalshibook_core.archive.columns import Books
from kalshibook_core.postgres import levels, runs
from kalshibook_core.postgres.partitions import DAY_US
from kalshibook_core.postgres.runs import Event, EventColumns
from kalshibook_core.wire.events import BOOK
from services.gateway.history.cold import LAST, TIMEOUT, Cold
from services.gateway.history.fold import CorruptHistory, State

CHUNK: Final = 1_000
"""Rows of events fetched at once for a book."""
MAX_IDS: Final = 200_000
"""Market ids remembered; when full, the memory starts over."""

Piece: TypeAlias = list[Any] | Books
"""Events of one market in order of version: rows of book_events, or columns of the archive."""

_ROW: Final = ", ".join(runs.COLUMNS)
_ORDER: Final = "ORDER BY effective_us, version"
_BACK: Final = "ORDER BY effective_us DESC, version DESC"

# With each row comes the last version up to the instant that was dropped, since the archive has it: in one statement, so that an
# event is either among the rows or among what was dropped. The checkpoint comes back as a row of kind 0. Its own event may lie
# inside a row, which then begins on the same UTC day: a run never leaves its day. $4, the beginning of a day, is there for the
# planner: it has to look at the partitions from it on only.
POINT: Final = f"""
WITH start AS MATERIALIZED (
    SELECT version, effective_us, checksum, levels, gap_start_us, gap_cause FROM checkpoints
    WHERE market_id = $1 AND effective_us <= $2 {_BACK} LIMIT 1
), first AS MATERIALIZED (
    SELECT effective_us FROM book_events
    WHERE market_id = $1 AND effective_us <= $2 AND effective_us >= $4
      AND effective_us <= (SELECT effective_us FROM start) AND version <= (SELECT version FROM start)
      AND effective_us >= (SELECT effective_us - effective_us % {DAY_US} FROM start)
    {_BACK} LIMIT 1
)
SELECT * FROM (
    SELECT effective_us, $1 AS market_id, version, 0::smallint AS events, 0::smallint AS kind, levels AS packed,
           checksum, gap_start_us, gap_cause, {LAST} AS dropped FROM start
    UNION ALL
    (SELECT {_ROW}, NULL, NULL, NULL, {LAST} FROM book_events
     WHERE market_id = $1 AND effective_us <= $2 AND effective_us >= $4
       AND effective_us >= coalesce((SELECT effective_us FROM first), (SELECT effective_us FROM start), 0)
       AND version + events > coalesce((SELECT version FROM start), 0)
     {_ORDER} LIMIT $3)
) rows ORDER BY kind > 0, version"""

_NEXT: Final = f"""
SELECT {_ROW} FROM book_events
WHERE market_id = $1 AND effective_us <= $2 AND effective_us >= $4 AND version > $5 {_ORDER} LIMIT $3"""

_FIRST: Final = """
SELECT least((SELECT effective_us FROM book_events WHERE market_id = $1 ORDER BY effective_us LIMIT 1),
             (SELECT first_us FROM cold_spans WHERE market_id = $1 AND table_name = 'book_events' ORDER BY first_us LIMIT 1))"""
_LATER: Final = "SELECT effective_us FROM book_events WHERE market_id = $1 AND effective_us > $2 ORDER BY effective_us LIMIT 1"
_CHECKPOINTED: Final = """
SELECT EXISTS (SELECT FROM checkpoints WHERE market_id = $1)
    OR EXISTS (SELECT FROM cold_spans WHERE market_id = $1 AND table_name = 'checkpoints')"""

# From the row that begins before the instant, on its UTC day, and may reach into it.
_EVENTS: Final = f"""
SELECT {_ROW} FROM book_events
WHERE market_id = $1 AND effective_us < $3 AND version + events - 1 > $4 AND effective_us >= $2 - $2 % {DAY_US}
  AND effective_us >= coalesce((SELECT effective_us FROM book_events
                                WHERE market_id = $1 AND effective_us < $2 AND effective_us >= $2 - $2 % {DAY_US}
                                ORDER BY effective_us DESC LIMIT 1), $2)
{_ORDER} LIMIT $5"""

# version alone is in no index of book_events; the last checkpoint not after it bounds the walk to the events of one checkpoint.
_EFFECTIVE_OF: Final = "SELECT coalesce(max(effective_us), 0) FROM checkpoints WHERE market_id = $1 AND version <= $2"

_GAPS_BETWEEN: Final = """
SELECT start_us, end_us, cause, opened_version FROM gaps
WHERE market_id = $1 AND channel = $4 AND start_us <= $3 AND (end_us IS NULL OR end_us >= $2)"""

_GAP_AT: Final = """
SELECT start_us, end_us, cause FROM gaps
WHERE market_id = $1 AND channel = 'orderbook_delta' AND start_us <= $2 ORDER BY start_us DESC, opened_version DESC LIMIT 1"""

_TRADES: Final = """
SELECT trade_id, exchange_us, recv_us, yes_price, no_price, count, taker_side, is_block_trade, origin FROM trades
WHERE market_id = $1 AND exchange_us < $2 AND exchange_us >= $3 AND (exchange_us, trade_id) > ($3, $4)
ORDER BY exchange_us, trade_id LIMIT $5"""

_GAPS: Final = """
SELECT m.ticker, g.market_id, g.channel, g.start_us, g.end_us, g.cause, g.opened_version, g.filled_us,
       g.filled_from
FROM gaps g JOIN markets m ON m.id = g.market_id
WHERE g.start_us < $1 AND (g.end_us IS NULL OR g.end_us > $2)
  AND (g.start_us, g.market_id, g.channel, g.opened_version) > ($3, $4, $5, $6) {of_one}
ORDER BY g.start_us, g.market_id, g.channel, g.opened_version LIMIT $7"""
_GAPS_OF_ALL: Final = _GAPS.format(of_one="")
_GAPS_OF_ONE: Final = _GAPS.format(of_one="AND g.market_id = $8")


def yesterday(at_us: int) -> int:
    """Return the beginning of the UTC day before an instant's: an active market's last checkpoint is no older."""
    return max(0, at_us - at_us % DAY_US - DAY_US)


def events_of(piece: Piece) -> list[Any]:
    """Return the events of a piece, each the values of an `Event`; raise CorruptHistory."""
    if isinstance(piece, Books):
        return piece.rows(levels.pack)
    try:
        return [event for row in piece for event in runs.unpack(*row)]
    except runs.DamagedRow as error:
        raise CorruptHistory(str(error)) from error


def columns_of(piece: Piece) -> EventColumns:
    """Return the events of a piece as columns; raise CorruptHistory."""
    if isinstance(piece, Books):
        version, effective_us, _, recv_us, *rest, _ = piece
        packed = [levels.pack(*both) for both in piece.snapshots()]
        return EventColumns._make([version, effective_us, recv_us, *rest, packed])
    try:
        return runs.unpack_columns(piece)
    except runs.DamagedRow as error:
        raise CorruptHistory(str(error)) from error


class Store:
    """History of all markets, read from one pool."""

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]", cold: Cold | None = None) -> None:
        """Read the tables through `pool`, and what was dropped from them through `cold`."""
        self._pool, self._cold = pool, cold or Cold(pool, None)
        self._ids: dict[str, int] = {}

    async def market_id(self, ticker: str) -> int | None:
        """Return the id of a market, None if it was never recorded. Ids never change, so a known one is remembered."""
        if (known := self._ids.get(ticker)) is not None:
            return known
        found: int | None = await self._pool.fetchval("SELECT id FROM markets WHERE ticker = $1", ticker, timeout=TIMEOUT)
        if found is not None:
            if len(self._ids) >= MAX_IDS:
                self._ids.clear()
            self._ids[ticker] = found
        return found

    async def status(self, market_id: int) -> str | None:
        """Return the exchange's word for the market's state, as last heard."""
        status: str | None = await self._pool.fetchval("SELECT status FROM markets WHERE id = $1", market_id, timeout=TIMEOUT)
        return status

    async def book_at(self, market_id: int, at_us: int) -> State | None:
        """Return the book after every event with effective_us <= at_us, None if there is none; raise CorruptHistory."""
        since = yesterday(at_us)
        rows: list[Any] = await self._pool.fetch(POINT, market_id, at_us, CHUNK, since, timeout=TIMEOUT)
        began = rows[0]["effective_us"] if rows and rows[0]["kind"] == 0 else 0
        if began < since:  # a market that has been quiet, or one without checkpoints
            since = began - began % DAY_US
            rows = await self._pool.fetch(POINT, market_id, at_us, CHUNK, since, timeout=TIMEOUT)
        dropped = rows[0]["dropped"] if rows else await self._cold.last_version(market_id, at_us)
        if not rows and dropped is None:
            return None
        state = State()
        if rows and rows[0]["kind"] == 0:
            effective_us, _, version, _, _, packed, *rest = rows.pop(0)
            checksum, gap_start_us, gap_cause, _ = rest
            state.restore(version, effective_us, checksum, packed, gap_start_us, gap_cause)
        if dropped is not None and dropped > state.version:
            return await self._cold_book_at(market_id, at_us, state)
        state.fold_rows((row[: len(runs.COLUMNS)] for row in rows), at_us)
        while len(rows) == CHUNK:
            rows = await self._pool.fetch(_NEXT, market_id, at_us, CHUNK, state.effective_us, state.version, timeout=TIMEOUT)
            state.fold_rows(rows, at_us)
        return state

    async def _cold_book_at(self, market_id: int, at_us: int, state: State) -> State:
        """Return the book at an instant to which the archive has something to say; `state` is where the tables would begin."""
        archived = await self._cold.checkpoint(market_id, at_us)
        if archived is not None and archived.version > state.version:
            packed = levels.pack(archived.yes, archived.no)
            state.restore(
                archived.version, archived.effective_us, archived.checksum, packed, archived.gap_start_us, archived.gap_cause
            )
        # From its own event on, which says whether the checkpoint is of this book.
        after = max(0, state.version - 1)
        async for piece in self._pieces(market_id, state.effective_us, at_us + 1, after, CHUNK):
            state.fold_after(events_of(piece), at_us)
        return state

    async def first_recorded(self, market_id: int) -> int | None:
        """Return the effective time of the market's first event."""
        found: int | None = await self._pool.fetchval(_FIRST, market_id, timeout=TIMEOUT)
        return found

    async def recorded_later(self, market_id: int, than_us: int) -> int | None:
        """Return the effective time of the market's first event after an instant."""
        later: int | None = await self._pool.fetchval(_LATER, market_id, than_us, timeout=TIMEOUT)
        return await self._cold.recorded_later(market_id, than_us, later)

    async def checkpointed(self, market_id: int) -> bool:
        """Return whether there is a checkpoint of the market, and so had been events, which may be stored after it."""
        found: bool = await self._pool.fetchval(_CHECKPOINTED, market_id, timeout=TIMEOUT)
        return found

    async def gap_at(self, market_id: int, at_us: int) -> tuple[int, int | None, str] | None:
        """Return (start, end, cause) of the book's last gap that began at or before an instant."""
        row = await self._pool.fetchrow(_GAP_AT, market_id, at_us, timeout=TIMEOUT)
        return None if row is None else (row[0], row[1], row[2])

    async def events(self, market_id: int, from_us: int, to_us: int, after_version: int, limit: int) -> list[Event]:
        """Return book events with from_us <= effective_us < to_us and version > after_version, in order; raise CorruptHistory."""
        if from_us == 0 and after_version:
            from_us = await self._pool.fetchval(_EFFECTIVE_OF, market_id, after_version, timeout=TIMEOUT)
        if from_us == 0:
            from_us = await self.first_recorded(market_id) or 0
        found: list[Event] = []
        async for piece in self._pieces(market_id, from_us, to_us, after_version, limit // 16 + 2):
            events = map(Event._make, events_of(piece))
            found += (event for event in events if event.version > after_version and from_us <= event.effective_us < to_us)
            if len(found) >= limit:
                break
        return found[:limit]

    async def scan(self, market_id: int, from_us: int, to_us: int) -> tuple[State | None, AsyncIterator[EventColumns]]:
        """Return the book at from_us as `book_at` does, and an iterator of the events after it with effective_us <= to_us.

        The events come in order of version, as many at once as suits the storage, and begin with the version after the
        state's, or with the market's first. Whether they fit the state and each other is for the reader to check
        (`walk.Walk`). Raise CorruptHistory, the iterator too, for what cannot be read.
        """
        state = await self.book_at(market_id, from_us)
        return state, self._scan(market_id, state, to_us)

    async def _scan(self, market_id: int, state: State | None, to_us: int) -> AsyncIterator[EventColumns]:
        version = 0 if state is None else state.version
        since = (await self.first_recorded(market_id) or 0) if state is None else state.effective_us
        async for piece in self._pieces(market_id, since, to_us + 1, version, CHUNK):
            events = columns_of(piece)
            first, end = int(events.version.searchsorted(version + 1)), int(events.effective_us.searchsorted(to_us, "right"))
            if first < end:
                yield events.cut(first, end)

    async def _pieces(self, market_id: int, from_us: int, to_us: int, after_version: int, at_once: int) -> AsyncIterator[Piece]:
        """Yield what events lie in with from_us <= effective_us < to_us and version > after_version, in order, each version once.

        Rows of the table, and columns of the archive for what was dropped. What is dropped while this runs is found in the one or
        the other, since what was dropped is asked for after the rows that would have it.
        """
        hot = self._rows(market_id, from_us, to_us, after_version, at_once)
        rows = await anext(hot, None)
        spans = await self._cold.spans(market_id, from_us, to_us, after_version)
        reached = 0
        while True:
            following = min([row["version"] for row in (rows or ())[:1]] + [span.first_version for span in spans[:1]], default=0)
            if reached and following != reached + 1:  # the end; or what comes next was dropped meanwhile
                spans = await self._cold.spans(market_id, from_us, to_us, reached)
            if spans and (rows is None or spans[0].first_version <= rows[0]["version"]):
                span = spans.pop(0)
                async for books in self._cold.books(span, max(after_version, reached), from_us, to_us):
                    yield books
                    reached = int(books.version[-1])
                reached = reached and max(reached, span.last_version)
            elif rows is not None:
                rows = [row for row in rows if row["version"] + row["events"] - 1 > reached]
                if rows:
                    yield rows
                    reached = rows[-1]["version"] + rows[-1]["events"] - 1
                rows = await anext(hot, None)
            else:
                return

    async def _rows(self, market_id: int, from_us: int, to_us: int, after_version: int, at_once: int) -> AsyncIterator[list[Any]]:
        """Yield the rows in which events lie with from_us <= effective_us < to_us and version > after_version, in order."""
        # Days are asked for a few at a time, then more: a query costs by the partitions it may have to look into.
        days = 2
        while True:
            until = min(to_us, from_us - from_us % DAY_US + days * DAY_US)
            rows = await self._pool.fetch(_EVENTS, market_id, from_us, until, after_version, at_once, timeout=TIMEOUT)
            if rows:
                yield rows
            if len(rows) == at_once:
                from_us, after_version = max(from_us, rows[-1]["effective_us"]), rows[-1]["version"] + rows[-1]["events"] - 1
                at_once = min(at_once * 4, CHUNK)
            elif until == to_us:
                return
            else:
                from_us, days = until, days * 8

    async def gaps_between(
        self, market_id: int, from_us: int, to_us: int, channel: str = BOOK
    ) -> list[tuple[int, int | None, str, int]]:
        """Return (start, end, cause, version that opened it) of a channel's gaps that touch [from_us, to_us]."""
        rows = await self._pool.fetch(_GAPS_BETWEEN, market_id, from_us, to_us, channel, timeout=TIMEOUT)
        return [tuple(row) for row in rows]

    async def trades(self, market_id: int, to_us: int, after: tuple[int, str], limit: int) -> list[Any]:
        """Return trades after the position (exchange_us, trade_id) and before to_us, in that order."""
        rows: list[Any] = await self._pool.fetch(_TRADES, market_id, to_us, *after, limit, timeout=TIMEOUT)
        return rows

    async def gaps(
        self, market_id: int | None, from_us: int, to_us: int, after: tuple[int, int, str, int], limit: int
    ) -> list[Any]:
        """Return gaps that touch [from_us, to_us), by (start, market id, channel, opened_version); of all markets where market_id
        is None."""
        statement, one = (_GAPS_OF_ALL, ()) if market_id is None else (_GAPS_OF_ONE, (market_id,))
        rows: list[Any] = await self._pool.fetch(statement, to_us, from_us, *after, limit, *one, timeout=TIMEOUT)
        return rows
