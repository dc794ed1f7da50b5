"""REST: what the calling account used this month."""

from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response

from services.gateway import instants, models
from services.gateway.accounts import Caller, period_start


def routes(by_day: Callable[[str, int], Awaitable[list[Any]]], now_us: Callable[[], int]) -> APIRouter:
    """Return the room's routes; `by_day(account, µs)` gives (day, endpoint, calls, credits) rows."""
    router = APIRouter(prefix="/v1")

    @router.get("/usage", response_model=models.Usage, name="usage")
    async def usage(request: Request) -> Response:
        """What your account used since the month began (UTC), by day and endpoint, as the ledger has it. Free of charge."""
        caller: Caller = request.state.caller
        start_us = period_start(now_us())
        rows = await by_day(caller.account_id, start_us)
        used, allowed = sum(row["credits"] for row in rows), caller.allowance
        content = {
            "account": caller.account,
            "plan": caller.plan,
            "period_start": instants.text(start_us),
            "credits_used": used,
            "credits_allowed": allowed,
            "credits_remaining": None if allowed is None else max(0, allowed - used),
            "data": [dict(row) for row in rows],
        }
        return Response(orjson.dumps(content), media_type="application/json")

    return router
