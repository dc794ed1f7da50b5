"""REST: a market over a range of time, each page out of one walk over its events: books at many instants, each change of the
best levels, candles.
"""

import asyncio
from collections import defaultdict
from typing import Annotated, Any, Final

import numpy as np
import orjson
from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from kalshibook_core.kalshi.markets import ENDED
from kalshibook_core.wire.columns import Longs
from kalshibook_core.wire.events import BOOK, TRADES
from services.gateway import completeness, instants, models, pages
from services.gateway.completeness import Measure, Strict
from services.gateway.errors import invalid
from services.gateway.history import candles, intervals, sampling, tops
from services.gateway.history.fold import CorruptHistory
from services.gateway.history.routes import AsSeen, Depth, corrupt, not_recorded, page, recorded
from services.gateway.history.store import Store
from services.gateway.history.walk import Walk
from services.gateway.parameters import Cursor, Instant, Ticker, instant

AT_ONCE: Final = 4
"""Pages made at once in this process; further ones wait for their turn, so that what they walk over stays bounded."""
MAX_SAMPLES: Final = 100_000
MAX_ROWS: Final = 10_000
TRADES_AT_ONCE: Final = 5_000

From = Annotated[Instant, Query(alias="from")]
Interval = Annotated[
    str, Query(description="A number and its unit: ms, s, m, h or d.", examples=["100ms", "1s", "5m", "1h", "1d"])
]
Rows = Annotated[int, Query(ge=1, le=MAX_ROWS, description="Rows per page.")]


def routes(store: Store, measure: Measure) -> APIRouter:
    """Return the room's routes over ranges; `measure` finds the quality of a market's record in a span."""
    router, turn = APIRouter(prefix="/v1"), asyncio.Semaphore(AT_ONCE)

    async def refuse_unless_recorded(ticker: str, market_id: int, to_us: int) -> None:
        first = await store.first_recorded(market_id)
        if first is None or first >= to_us:
            raise not_recorded(ticker, to_us, first, pending=first is None and await store.checkpointed(market_id))

    async def beyond(market_id: int) -> str:
        """Return the state of what is later than what is recorded."""
        return "ended" if await store.status(market_id) in ENDED else "pending"

    @router.get("/orderbooks/{ticker}", response_model=models.Samples, name="orderbooks")
    async def orderbooks(
        request: Request,
        ticker: Ticker,
        from_: From = None,
        to: Instant = None,
        interval: Interval = "1m",
        depth: Depth = None,
        view: AsSeen = None,
        changes_only: Annotated[bool, Query(description="Leave out samples that show what the one before them shows.")] = False,
        limit: Annotated[int, Query(ge=1, le=MAX_SAMPLES, description="Instants per page.")] = 1_000,
        cursor: Cursor = None,
        strict: Strict = False,
    ) -> Response:
        """The book at many instants: `from`, `from` + `interval`, … before `to`, each as `/v1/orderbook/{ticker}?at=` gives it.

        A page answers `limit` instants; it ends sooner where its rows take 24 MiB or it walked over a million events, and
        `next_cursor` goes on. `state` is of each instant: `not_recorded` lies before the market's first snapshot.
        """
        from_us, to_us = span(from_, to)
        step = intervals.parse(interval, "1ms", "31d")
        market_id = await recorded(store, ticker)
        from_us = resumed(cursor, from_us, to_us)
        left = -(-(to_us - from_us) // step)
        asked = sampling.Asked(from_us, step, min(limit, left), depth, view, changes_only)
        last_us = from_us + (asked.number - 1) * step
        async with turn:
            through = await measure.through(ticker, market_id, BOOK, from_us, last_us + 1)
            try:
                state, batches = await store.scan(market_id, from_us, last_us)
                samples = sampling.Samples(asked, state, await store.gaps_between(market_id, from_us, last_us))
                if await samples.walk(batches):
                    if not samples.version:
                        await refuse_unless_recorded(ticker, market_id, to_us)
                    through, later = max(through, samples.effective_us - 1), await beyond(market_id)
                    while samples.done < asked.number:
                        if not samples.answer("complete" if samples.instants[samples.done] <= through else later):
                            break
            except CorruptHistory as error:
                raise corrupt(ticker, error) from error
        request.state.rows = len(samples.rows)
        following = from_us + samples.done * step
        quality = await measure.quality(market_id, BOOK, from_us, following - step + 1, through)
        next_cursor = pages.encode(following) if samples.done < left else None
        return rows_page(samples.rows, next_cursor, completeness.checked(quality, strict))

    @router.get("/bbo/{ticker}", response_model=models.Tops, name="bbo")
    async def bbo(
        request: Request,
        ticker: Ticker,
        from_: From = None,
        to: Instant = None,
        limit: Rows = 1_000,
        cursor: Cursor = None,
        strict: Strict = False,
    ) -> Response:
        """The best bid and ask of YES with their sizes: as they are at `from`, then each change after it and before `to`.

        By version, so a level that was best for no time at all is told too. The first row of the first page has the last version
        at `from`. A gap begins with a row of state `gap`, in which nothing is known, and ends with the next row; `effective_at`
        is where the gap begins, though it may have been found out later.
        """
        from_us, to_us = span(from_, to)
        market_id, version, since = await recorded(store, ticker), 0, from_us
        if cursor is not None:
            since, version = pages.decode(cursor, int, int)
            if not from_us <= since < to_us:
                raise invalid("cursor", OTHER_RANGE)
        async with turn:
            through = await measure.through(ticker, market_id, BOOK, since, to_us)
            try:
                # What is of the cursor's microsecond is walked over again: the version tells which of it was answered.
                state, batches = await store.scan(market_id, since - (version > 0), to_us - 1)
                gaps, walk, begun = tops.Gaps(await store.gaps_between(market_id, since - 1, to_us - 1)), Walk(state), None
                if state is not None:
                    begun = gaps.told(tops.Change(state.version, state.effective_us, walk.top()), 0 if version else from_us)
                found, following = await tops.changes(walk, batches, version, limit, gaps, begun)
            except CorruptHistory as error:
                raise corrupt(ticker, error) from error
        if state is None and not version and not found:
            await refuse_unless_recorded(ticker, market_id, to_us)
        if begun is not None and not version:
            found.insert(0, begun)
        request.state.rows = len(found)
        through = max(through, found[-1].effective_us - 1 if found else 0)
        quality = await measure.quality(market_id, BOOK, since, to_us if following is None else following[0], through)
        next_cursor = None if following is None else pages.encode(*following)
        return page([tops.row(change) for change in found], next_cursor, completeness.checked(quality, strict))

    @router.get("/candles/{ticker}", response_model=models.Candles, name="candles")
    async def candle(
        request: Request,
        ticker: Ticker,
        from_: From = None,
        to: Instant = None,
        interval: Interval = "1m",
        limit: Rows = 1_000,
        cursor: Cursor = None,
        strict: Strict = False,
    ) -> Response:
        """Open, high, low and close of trades, best bid, best ask and mid, in intervals from `from` on that begin before `to`.

        A book's are over what it is at every instant of the interval, carried over quiet ones but never through a gap; null where
        there is nothing. Block trades are counted and in nothing else. An interval reaches its full length, also past `to`.
        """
        from_us, to_us = span(from_, to)
        step = intervals.parse(interval, "1s", "1d")
        market_id = await recorded(store, ticker)
        from_us = resumed(cursor, from_us, to_us)
        left = -(-(to_us - from_us) // step)
        edges = from_us + step * np.arange(min(limit, left) + 1)
        async with turn:
            through = [await measure.through(ticker, market_id, channel, from_us, int(edges[-1])) for channel in (BOOK, TRADES)]
            try:
                state, batches = await store.scan(market_id, from_us, int(edges[-1]) - 1)
                points, number, last_us = await candles.gather(state, batches, edges)
            except CorruptHistory as error:
                raise corrupt(ticker, error) from error
            edges = edges[: number + 1]
            traded = await trades_in(market_id, edges)
        if not last_us and not traded:
            await refuse_unless_recorded(ticker, market_id, to_us)
        through[0] = max(through[0], last_us - 1)
        books, until_us, later = candles.Candles(edges, points), int(edges[-1]), await beyond(market_id)
        gaps = [await store.gaps_between(market_id, from_us, until_us - 1, channel) for channel in (BOOK, TRADES)]
        in_gap = [candles.flagged(edges, found) for found in gaps]
        in_gap[0] |= books.in_gap
        none, texts = candles.Traded(), intervals.texts(edges)
        rows = [
            {
                "at": texts[n],
                "state": "gap" if in_gap[0][n] else "not_recorded" if books.early[n] else known(edges[n + 1], through[0], later),
                **candles.book_row(books.bid[n], books.ask[n], books.mid[n]),
                "trades": {
                    "state": "gap" if in_gap[1][n] else known(edges[n + 1], through[1], later),
                    **traded.get(n, none).row(),
                },
            }
            for n in range(number)
        ]
        request.state.rows = number
        of_book, of_trades = [
            completeness.checked(
                await measure.quality(market_id, channel, from_us, min(until_us, instants.LAST_US), known_through), strict
            )
            for channel, known_through in zip((BOOK, TRADES), through, strict=True)
        ]
        next_cursor = pages.encode(until_us) if number < left else None
        return rows_page([orjson.dumps(row) for row in rows], next_cursor, of_book, trades_quality=of_trades)

    async def trades_in(market_id: int, edges: Longs) -> dict[int, candles.Traded]:
        """Return the trades of each interval that has any."""
        found: dict[int, candles.Traded] = defaultdict(candles.Traded)
        from_us, until_us = int(edges[0]), int(edges[-1])
        step, after = int(edges[1]) - from_us, (from_us, "")
        while True:
            rows = await store.trades(market_id, until_us, after, TRADES_AT_ONCE)
            for row in rows:
                found[(row["exchange_us"] - from_us) // step].add(row["yes_price"], row["count"], row["is_block_trade"])
            if len(rows) < TRADES_AT_ONCE:
                return found
            after = rows[-1]["exchange_us"], rows[-1]["trade_id"]

    return router


def known(end_us: int, through_us: int, later: str) -> str:
    """Return the state of what ends before `end_us`, where all is recorded through `through_us` and what follows is `later`."""
    return "complete" if end_us - 1 <= through_us else later


OTHER_RANGE: Final = "it is of another range: pass the from and to of the first page with it"


def resumed(cursor: str | None, from_us: int, to_us: int) -> int:
    """Return where a page begins: at the cursor, where there is one."""
    if cursor is None:
        return from_us
    (since,) = pages.decode(cursor, int)
    if not from_us <= since < to_us:
        raise invalid("cursor", OTHER_RANGE)
    return int(since)


def span(from_: str | None, to: str | None) -> tuple[int, int]:
    """Return the range asked for, both of its ends given; raise the 422 where it is none."""
    from_us, to_us = instant("from", from_, -1), instant("to", to, -1)
    if from_us < 0 or to_us < 0:
        raise invalid("from" if from_us < 0 else "to", "give both ends of the range, from and to")
    if from_us >= to_us:
        raise invalid("to", "it must be later than from")
    return from_us, to_us


def rows_page(rows: list[bytes], next_cursor: str | None, quality: dict[str, Any], **more: Any) -> Response:
    """Return a list answer of rows that are JSON already."""
    rest = orjson.dumps({"next_cursor": next_cursor, "quality": quality, **more})
    return Response(b"".join((b'{"data":[', b",".join(rows), b"],", rest[1:])), media_type="application/json")
