"""REST: what markets belong to. A market has an event, an event a series."""

from typing import Annotated, Any, Final

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from services.gateway import instants, models, pages
from services.gateway.errors import unknown
from services.gateway.markets.routes import Word, after, listed, whole
from services.gateway.markets.store import Store
from services.gateway.parameters import TICKER, Cursor, Limit

_CATEGORY: Final = Query(
    max_length=200, pattern=r"^[^\x00]*$", description="The exchange's word.", examples=["Climate and Weather"]
)

Category = Annotated[str | None, _CATEGORY]


def routes(store: Store) -> APIRouter:
    """Return the room's routes about events and series."""
    router = APIRouter(prefix="/v1")

    @router.get("/events", response_model=models.Events, name="events")
    async def events(
        request: Request, series_ticker: Word = None, category: Category = None, limit: Limit = 100, cursor: Cursor = None
    ) -> Response:
        """Every event ever recorded, by ticker, as its definition was last read."""
        rows, more = pages.cut(await store.events(after(cursor), series_ticker, category, limit + 1), limit)
        return listed(request, [_event(row) for row in rows], pages.encode(rows[-1]["ticker"]) if more else None)

    @router.get("/events/{ticker}", response_model=models.OneEvent, name="event")
    async def event(ticker: Annotated[str, Path(description="The event's ticker.", examples=["KXHIGHNY-25NOV03"])]) -> Response:
        """One event, with the exchange's own object as last read. Its markets: `/v1/markets?event_ticker=`."""
        row = await store.event(ticker) if TICKER.fullmatch(ticker) else None
        if row is None:
            raise unknown("event", ticker)
        return whole(_event(row), row["body"])

    @router.get("/series", response_model=models.AllSeries, name="all_series")
    async def all_series(request: Request, category: Category = None, limit: Limit = 100, cursor: Cursor = None) -> Response:
        """Every series ever recorded, by ticker, as its definition was last read."""
        rows, more = pages.cut(await store.all_series(after(cursor), category, limit + 1), limit)
        return listed(request, [_series(row) for row in rows], pages.encode(rows[-1]["ticker"]) if more else None)

    @router.get("/series/{ticker}", response_model=models.OneSeries, name="series")
    async def series(ticker: Annotated[str, Path(description="The series' ticker.", examples=["KXHIGHNY"])]) -> Response:
        """One series, with the exchange's own object as last read. Its events: `/v1/events?series_ticker=`."""
        row = await store.series(ticker) if TICKER.fullmatch(ticker) else None
        if row is None:
            raise unknown("series", ticker)
        return whole(_series(row), row["body"])

    return router


def _event(row: Any) -> dict[str, Any]:
    return {**_series(row), "series_ticker": row["series_ticker"]}


def _series(row: Any) -> dict[str, Any]:
    return {
        "ticker": row["ticker"],
        "title": row["title"],
        "category": row["category"],
        "updated_at": instants.text(row["updated_us"]),
    }
