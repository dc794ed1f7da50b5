"""The application: where the rooms meet. Routes, the error envelope of everything, the OpenAPI document."""

from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any, Final

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from services.gateway import models
from services.gateway.errors import ApiError
from services.gateway.metering import prices

ABOUT: Final = f"""
The full order book of any Kalshi market at any recorded instant, every change and trade it is made of, and a live stream.

**Key.** Send it as `Authorization: Bearer <key>` or `X-API-Key: <key>`; never in the URL.

**Units.** Prices are dollars with four decimals (`"0.4800"`), sizes contracts with two (`"12.00"`), both strings, because they
are exact.

**Times** are RFC 3339 in UTC with microseconds. `effective_at` orders our record (it never decreases in a market), `exchange_at`
is what the exchange wrote, `recv_at` is our clock at receipt. Parameters take RFC 3339 with any offset, or Unix seconds (below
10^11), milliseconds (below 10^14) or microseconds (below 10^17). Ranges include `from` and exclude `to`; `at` includes its
instant.

**A book** is bids only, on a yes ladder and a no ladder, ascending; the YES ask is 1 minus the best NO bid. Its checksum is the
sum over levels of `size * weight(side, price)` modulo 2^64, size in 1/100 contract, price in 1/10,000 dollar, side 0 yes and 1
no; `weight` is one step of SplitMix64 over `side * 65536 + price`, with its lowest bit set.

**What we do not know** we say: `quality` in every answer with data and in streams, `gap` events in deltas and streams, and
`/v1/gaps`; `/v1/quality`, `/v1/conditions` and `/v1/incidents` sum it up. With `strict=true` an answer that touches a gap, or
is later than what is recorded, is a 409 `incomplete` instead.

**Credits.** Charged for answers with status 2xx only: a book now {prices.CREDITS["orderbook"][0]}, a book at an instant
{prices.CREDITS["orderbook_at"][0]}, books at many instants {prices.CREDITS["orderbooks"][0]} and other lists 1 per
{prices.PER_ROWS} rows begun, streams 1 per {prices.STREAM_MESSAGES:,} messages
begun; what tells of our record (gaps, quality, conditions, incidents), usage and source are free. The headers
`x-credits-charged`, `x-credits-remaining` and `x-request-id` tell of each call.

**Errors** are always `{{"error": {{"code", "message", "details"}}}}`; switch on `code`.

**Stream.** `GET /v1/stream` is a websocket. Send `{{"action": "subscribe", "tickers": ["…"]}}`; each market begins with a
`snapshot` message and goes on with the rows of `/v1/deltas`, by version, without a hole. A client that reads too slowly is closed
with 1008.

Source: Kalshi. Kalshi's terms for its data apply; see `/v1/source`. Not affiliated with or endorsed by Kalshi.
"""

_PROBLEMS: Final[dict[int | str, dict[str, Any]]] = {
    401: {"model": models.Envelope, "description": "No key (`missing_key`) or not a live one (`unknown_key`)."},
    402: {"model": models.Envelope, "description": "`out_of_credits`."},
    404: {"model": models.Envelope, "description": "`unknown_market`, or `not_recorded_yet` with the first instant recorded."},
    409: {"model": models.Envelope, "description": "`incomplete`: with `strict=true`; `details.quality` says what is missing."},
    422: {"model": models.Envelope, "description": "`invalid_parameter`: the message says what is expected."},
    500: {"model": models.Envelope, "description": "`internal`, or `corrupt_history`: what is stored contradicts itself."},
    503: {"model": models.Envelope, "description": "`storage_unavailable`, `metering_unavailable`, `not_measured`: try again."},
}
_CODES: Final = {404: "not_found", 405: "method_not_allowed"}


def create(routers: Sequence[APIRouter]) -> FastAPI:
    """Return the application of these rooms' routes."""
    app = FastAPI(title="KalshiBook", version="1", description=ABOUT, docs_url="/docs", redoc_url=None, responses=_PROBLEMS)
    for router in routers:
        app.include_router(router)
    for kind, answer in (
        (ApiError, _api_error),
        (RequestValidationError, _validation_error),
        (HTTPException, _http_error),
    ):
        app.add_exception_handler(kind, answer)
    _describe_keys(app)
    return app


async def _api_error(_: Request, error: Any) -> Response:
    return ApiError.response(error)


async def _validation_error(_: Request, error: Any) -> Response:
    # What was sent is not repeated; where it was wrong and what is expected is enough.
    problems = [{"parameter": ".".join(str(part) for part in each["loc"][1:]), "message": each["msg"]} for each in error.errors()]
    message = "; ".join(f"{each['parameter']}: {each['message']}" for each in problems)
    return ApiError(422, "invalid_parameter", message, problems=problems).response()


async def _http_error(_: Request, error: Any) -> Response:
    status = error.status_code
    message = "No such path; /docs lists them." if status == HTTPStatus.NOT_FOUND else HTTPStatus(status).phrase
    return ApiError(status, _CODES.get(status, "http_error"), message).response()


def _describe_keys(app: FastAPI) -> None:
    written: Callable[[], dict[str, Any]] = app.openapi

    def openapi() -> dict[str, Any]:
        document = written()
        document.setdefault("components", {})["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        }
        document["security"] = [{"bearer": []}, {"header": []}]
        return document

    app.openapi = openapi  # type: ignore[method-assign]
