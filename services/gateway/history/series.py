"""REST: a market over a range of time, each page one walk over its events: books at many instants."""

import asyncio
from collections.abc import Callable
from typing import Annotated, Final

import orjson
from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from services.gateway import models, pages
from services.gateway.completeness import OVER
from services.gateway.errors import invalid
from services.gateway.history import intervals, sampling
from services.gateway.history.fold import CorruptHistory
from services.gateway.history.routes import (
    AsSeen,
    Cursor,
    Depth,
    Instant,
    Ticker,
    corrupt,
    instant,
    not_recorded,
    recorded,
)  # fmt: skip
from services.gateway.history.store import Store

AT_ONCE: Final = 4
"""Pages made at once in this process; further ones wait for their turn, so that what they walk over stays bounded."""
MAX_SAMPLES: Final = 100_000

From = Annotated[Instant, Query(alias="from")]
Interval = Annotated[
    str, Query(description="A number and its unit: ms, s, m, h or d.", examples=["100ms", "1s", "5m", "1h", "1d"])
]


def routes(store: Store, whole_through: Callable[[str], int]) -> APIRouter:
    """Return the room's routes over ranges; `whole_through` as for the others."""
    router, turn = APIRouter(prefix="/v1"), asyncio.Semaphore(AT_ONCE)

    async def tail(market_id: int, through_us: int, last_event_us: int, until_us: int) -> tuple[int, str]:
        """Return through when all is known of a range whose events were all read, and the state of what lies after that.

        `through_us` was known before they were read; the last event read proves what came before its microsecond, and one that is
        stored behind the range the whole of it.
        """
        through = max(through_us, last_event_us - 1)
        if until_us > through and (later := await store.recorded_later(market_id, until_us)) is not None:
            through = later - 1
        if until_us <= through:
            return through, "complete"
        return through, "ended" if await store.status(market_id) in OVER else "pending"

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
    ) -> Response:
        """The book at many instants: `from`, `from` + `interval`, … before `to`, each as `/v1/orderbook/{ticker}?at=` gives it.

        A page answers `limit` instants; it ends sooner where its rows take 32 MiB or it walked over a million events, and
        `next_cursor` goes on. `state` is of each instant: `not_recorded` lies before the market's first snapshot.
        """
        from_us, to_us = span(from_, to)
        step = intervals.parse(interval, "1ms", "31d")
        market_id = await recorded(store, ticker)
        if cursor is not None:
            (from_us,) = pages.decode(cursor, int)
            if not 0 <= from_us < to_us:
                raise invalid("cursor", "it is of another range: pass the from and to of the first page with it")
        left = -(-(to_us - from_us) // step)
        asked = sampling.Asked(from_us, step, min(limit, left), depth, view, changes_only)
        through = whole_through(ticker)  # before the query: what is stored only grows
        async with turn:
            try:
                state, batches = await store.scan(market_id, from_us, from_us + (asked.number - 1) * step)
                samples = sampling.Samples(asked, state)
                if await samples.walk(batches) and samples.done < asked.number:
                    if not samples.version:
                        await refuse_unless_recorded(ticker, market_id, to_us)
                    until_us = int(samples.instants[-1])
                    through, beyond = await tail(market_id, through, samples.effective_us, until_us)
                    while samples.done < asked.number:
                        if not samples.answer("complete" if samples.instants[samples.done] <= through else beyond):
                            break
            except CorruptHistory as error:
                raise corrupt(ticker, error) from error
        request.state.rows = len(samples.rows)
        following = from_us + samples.done * step
        return rows_page(samples.rows, pages.encode(following) if samples.done < left else None)

    async def refuse_unless_recorded(ticker: str, market_id: int, to_us: int) -> None:
        first = await store.first_recorded(market_id)
        if first is None or first >= to_us:
            raise not_recorded(ticker, to_us, first, pending=first is None and await store.checkpointed(market_id))

    return router


def span(from_: str | None, to: str | None) -> tuple[int, int]:
    """Return the range asked for, both of its ends given; raise the 422 where it is none."""
    from_us, to_us = instant("from", from_, -1), instant("to", to, -1)
    if from_us < 0 or to_us < 0:
        raise invalid("from" if from_us < 0 else "to", "give both ends of the range, from and to")
    if from_us >= to_us:
        raise invalid("to", "it must be later than from")
    return from_us, to_us


def rows_page(rows: list[bytes], next_cursor: str | None) -> Response:
    """Return a list answer of rows that are JSON already."""
    body = b'{"data":[' + b",".join(rows) + b'],"next_cursor":' + orjson.dumps(next_cursor) + b"}"
    return Response(body, media_type="application/json")
