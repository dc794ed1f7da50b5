"""REST: the list of recorded markets, one market, and whose data it is."""

import re
from typing import Annotated, Any, Final

import orjson
from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from services.gateway import instants, models, pages
from services.gateway.errors import unknown_market
from services.gateway.markets.store import Store

SOURCE: Final = {
    "exchange": "Kalshi",
    "terms": "https://kalshi.com/terms",
    "note": "Recorded from Kalshi's public market-data websocket and REST API; Kalshi's terms for its data apply to what is made "
    "of it. Not affiliated with or endorsed by Kalshi.",
}

TICKER: Final = re.compile(r"[A-Za-z0-9._\-]{1,200}", re.ASCII)
_WORD: Final = r"^[A-Za-z0-9._\-]{1,200}$"


def routes(store: Store) -> APIRouter:
    """Return the room's routes."""
    router = APIRouter(prefix="/v1")

    @router.get("/markets", response_model=models.Markets, name="markets")
    async def markets(
        request: Request,
        status: Annotated[str | None, Query(pattern=_WORD, description="The exchange's word.", examples=["active"])] = None,
        event_ticker: Annotated[str | None, Query(pattern=_WORD)] = None,
        series_ticker: Annotated[str | None, Query(pattern=_WORD)] = None,
        limit: Annotated[int, Query(ge=1, le=pages.MAX_LIMIT, description="Rows per page.")] = 100,
        cursor: Annotated[str | None, Query(description="next_cursor of the previous page.")] = None,
    ) -> Response:
        """Every market ever recorded, by ticker."""
        after = "" if cursor is None else pages.decode(cursor, str)[0]
        rows, more = pages.cut(await store.markets(after, status, event_ticker, series_ticker, limit + 1), limit)
        request.state.rows = len(rows)
        following = pages.encode(rows[-1]["ticker"]) if more else None
        content = {"data": [_market(row) for row in rows], "next_cursor": following, "source": SOURCE}
        return Response(orjson.dumps(content), media_type="application/json")

    @router.get("/markets/{ticker}", response_model=models.OneMarket, name="market")
    async def market(ticker: Annotated[str, Path(description="The market's ticker.")]) -> Response:
        """One market, with the exchange's own object as last read."""
        row = await store.market(ticker) if TICKER.fullmatch(ticker) else None
        if row is None:
            raise unknown_market(ticker)
        # The body is the exchange's bytes: passed on as they are, not read and written again.
        body = orjson.Fragment(row["body"] if row["body"] is not None else "null")
        content = {**_market(row), "exchange_object": body, "source": SOURCE}
        return Response(orjson.dumps(content), media_type="application/json")

    @router.get("/source", response_model=models.Source, name="source")
    async def source() -> Response:
        """Whose data this is and which terms apply. Free of charge."""
        return Response(orjson.dumps(SOURCE), media_type="application/json")

    return router


def _market(row: Any) -> dict[str, Any]:
    return {
        "ticker": row["ticker"],
        "event_ticker": row["event_ticker"],
        "series_ticker": row["series_ticker"],
        "title": row["title"],
        "status": row["status"],
        "result": row["result"],
        "open_at": instants.optional_text(row["open_us"]),
        "close_at": instants.optional_text(row["close_us"]),
        "settled_at": instants.optional_text(row["settled_us"]),
        "updated_at": instants.text(row["updated_us"]),
    }
