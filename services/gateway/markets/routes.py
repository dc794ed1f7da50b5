"""REST: the list of recorded markets, one market, what happened to it, and whose data it is."""

from typing import Annotated, Any, Final

import orjson
from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from kalshibook_core.kalshi.numbers import format_price
from services.gateway import instants, models, pages
from services.gateway.errors import invalid, unknown_market
from services.gateway.markets.store import Store
from services.gateway.parameters import TICKER, Cursor, Instant, Limit, Ticker, instant

SOURCE: Final = {
    "exchange": "Kalshi",
    "terms": "https://kalshi.com/terms",
    "note": "Recorded from Kalshi's public market-data websocket and REST API; Kalshi's terms for its data apply to what is made "
    "of it. Not affiliated with or endorsed by Kalshi.",
}

_WORD: Final = r"^[A-Za-z0-9._\-]{1,200}$"
_ASKED: Final = {"settled": ["settled", "finalized"]}
"""Statuses that the exchange is asked for by another word than it writes (Kalshi docs, Get Markets)."""

Word = Annotated[str | None, Query(pattern=_WORD)]


def routes(store: Store) -> APIRouter:
    """Return the room's routes."""
    router = APIRouter(prefix="/v1")

    @router.get("/markets", response_model=models.Markets, name="markets")
    async def markets(
        request: Request,
        status: Annotated[
            str | None,
            Query(pattern=_WORD, description="The exchange's word; `settled` finds `finalized` too.", examples=["active"]),
        ] = None,
        event_ticker: Word = None,
        series_ticker: Word = None,
        settled_from: Instant = None,
        settled_to: Instant = None,
        limit: Limit = 100,
        cursor: Cursor = None,
    ) -> Response:
        """Every market ever recorded, by ticker. With `settled_from` <= settled_at < `settled_to`, those settled then."""
        rows, more = pages.cut(
            await store.markets(
                after(cursor),
                limit + 1,
                status=None if status is None else _ASKED.get(status, [status]),
                event_ticker=event_ticker,
                series_ticker=series_ticker,
                settled_from=None if settled_from is None else instant("settled_from", settled_from, 0),
                settled_to=None if settled_to is None else instant("settled_to", settled_to, 0),
            ),
            limit,
        )
        return listed(request, [_market(row) for row in rows], pages.encode(rows[-1]["ticker"]) if more else None)

    @router.get("/markets/{ticker}", response_model=models.OneMarket, name="market")
    async def market(ticker: Ticker) -> Response:
        """One market, with the exchange's own object as last read."""
        row = await store.market(ticker) if TICKER.fullmatch(ticker) else None
        if row is None:
            raise unknown_market(ticker)
        return whole(_market(row), row["body"])

    @router.get("/lifecycle/{ticker}", response_model=models.Lifecycles, name="lifecycle")
    async def lifecycle(
        request: Request,
        ticker: Ticker,
        from_: Annotated[Instant, Query(alias="from")] = None,
        to: Instant = None,
        event_type: Word = None,
        limit: Limit = 100,
        cursor: Cursor = None,
    ) -> Response:
        """What happened to a market, by the exchange's clock, with `from` <= at < `to`: lifecycle frames and definitions."""
        from_us, past = (instant("from", from_, 0), 0) if cursor is None else pages.decode(cursor, int, int)
        if past < 0:
            raise invalid("cursor", "pass next_cursor of the previous page as it was given")
        to_us = instant("to", to, instants.LAST_US + 1)
        known = TICKER.fullmatch(ticker) is not None
        found = await store.lifecycle(ticker, from_us, to_us, event_type, limit + 1, past) if known else None
        if found is None:
            raise unknown_market(ticker)
        rows, more = pages.cut(found, limit)
        following = None
        if more:
            last_us = rows[-1]["clock_us"]
            of_it = sum(row["clock_us"] == last_us for row in rows)
            following = pages.encode(last_us, of_it + (past if last_us == from_us else 0))
        return listed(request, [_lifecycle(row) for row in rows], following)

    @router.get("/source", response_model=models.Source, name="source")
    async def source() -> Response:
        """Whose data this is and which terms apply. Free of charge."""
        return Response(orjson.dumps(SOURCE), media_type="application/json")

    return router


def after(cursor: str | None) -> str:
    """Return the ticker that a page of a list by ticker begins after."""
    return "" if cursor is None else str(pages.decode(cursor, str)[0])


def listed(request: Request, rows: list[dict[str, Any]], following: str | None) -> Response:
    """Return a page, of so many rows that are charged."""
    request.state.rows = len(rows)
    content = {"data": rows, "next_cursor": following, "source": SOURCE}
    return Response(orjson.dumps(content), media_type="application/json")


def whole(row: dict[str, Any], body: str | None) -> Response:
    """Return one thing with the exchange's object: its bytes are passed on as they are, not read and written again."""
    content = {**row, "exchange_object": orjson.Fragment(body if body is not None else "null"), "source": SOURCE}
    return Response(orjson.dumps(content), media_type="application/json")


def _lifecycle(row: Any) -> dict[str, Any]:
    return {
        "event_type": row["event_type"],
        "at": instants.text(row["clock_us"]),
        "recv_at": instants.text(row["recv_us"]),
        "exchange_object": orjson.Fragment(row["body"]),
    }


def _market(row: Any) -> dict[str, Any]:
    return {
        "ticker": row["ticker"],
        "event_ticker": row["event_ticker"],
        "series_ticker": row["series_ticker"],
        "title": row["title"],
        "status": row["status"],
        "result": row["result"],
        "settlement_value": None if row["settlement_value"] is None else format_price(row["settlement_value"]),
        "open_at": instants.optional_text(row["open_us"]),
        "close_at": instants.optional_text(row["close_us"]),
        "settled_at": instants.optional_text(row["settled_us"]),
        "updated_at": instants.text(row["updated_us"]),
    }
