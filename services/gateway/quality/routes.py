"""REST: how good a market's record is by hour or day, the condition of each day, and what happened to many markets at once."""

from collections.abc import Callable
from typing import Annotated, Any, Final, Literal

import orjson
from fastapi import APIRouter, Query
from starlette.responses import Response

from kalshibook_core.postgres.partitions import DAY_US
from kalshibook_core.wire.coverage import HOUR_US, MATCH, MISMATCH, UNKNOWN
from kalshibook_core.wire.events import BOOK, TRADES
from kalshibook_core.wire.quality import Record, of_span
from services.gateway import completeness, models
from services.gateway.errors import invalid, unknown_market
from services.gateway.instants import optional_text, text
from services.gateway.parameters import TICKER, Instant, Ticker, instant
from services.gateway.quality.incidents import incidents
from services.gateway.quality.store import Store
from services.gateway.quality.units import MISSING, PENDING, UNITS, Unit, condition, units

MAX_UNITS: Final = {"hour": 744, "day": 366}
USUAL_UNITS: Final = {"hour": 24, "day": 30}
MAX_DAYS: Final = 31
MAX_GAPS: Final = 100_000

From = Annotated[Instant, Query(alias="from")]


def routes(store: Store, now_us: Callable[[], int]) -> APIRouter:
    """Return the room's routes. All are free of charge."""
    router = APIRouter(prefix="/v1")

    async def known(ticker: str) -> tuple[int, int | None]:
        found = await store.market(ticker) if TICKER.fullmatch(ticker) else None
        if found is None:
            raise unknown_market(ticker)
        return found

    async def records(ticker: str, market_id: int, from_us: int, to_us: int) -> list[Record]:
        found = []
        for channel in (BOOK, TRADES):
            through = await store.through(ticker, market_id, channel, from_us, to_us)
            found.append(await store.record(market_id, channel, from_us, to_us, through))
        return found

    def span(from_: str | None, to: str | None, unit: str) -> tuple[int, int]:
        """Return the whole units of which the range has a part; as many as usual before its end where it does not begin."""
        length = UNITS[unit]
        to_us = instant("to", to, now_us())
        to_us += -to_us % length
        from_us = instant("from", from_, to_us - USUAL_UNITS[unit] * length)
        from_us -= from_us % length
        if not 0 < to_us - from_us <= MAX_UNITS[unit] * length:
            raise invalid("to", f"it must be later than from, and at most {MAX_UNITS[unit]} {unit}s are told at once")
        return from_us, to_us

    @router.get("/quality/{ticker}", response_model=models.MarketQuality, name="quality")
    async def quality(ticker: Ticker, from_: From = None, to: Instant = None, by: Literal["hour", "day"] = "hour") -> Response:
        """How good the record of a market is: covered time, gaps with their causes, audits and capture latency, by hour or day.

        Whole hours or days of UTC, the last 24 hours or 30 days without `from`. What is learnt later makes a further `revision`
        of an hour. A gap in which the market ended counts up to its end. Free of charge.
        """
        market_id, _ = await known(ticker)
        from_us, to_us = span(from_, to, by)
        # What is known before the counts are read: they only grow.
        book, trade = await records(ticker, market_id, from_us, to_us)
        told = units(book, trade, await store.hours(market_id, from_us, to_us), from_us, to_us, UNITS[by])
        return answer({
            "market_ticker": ticker, "by": by,
            "quality": completeness.block(of_span(book, from_us, to_us)),
            "trades_quality": completeness.block(of_span(trade, from_us, to_us)),
            "data": [unit_row(unit, UNITS[by]) for unit in told],
        })  # fmt: skip

    @router.get("/conditions", response_model=models.Conditions, name="conditions")
    async def conditions(from_: From = None, to: Instant = None) -> Response:
        """The condition of each UTC day over all markets, and when that was last changed. Free of charge.

        available: no gap of any market, no false book. degraded: some, see /v1/gaps and /v1/incidents. missing: nothing was
        recorded. pending: the day is not over, or not all of it is measured.
        """
        from_us, to_us = span(from_, to, "day")
        rows, closed_us, due = await store.conditions(from_us, to_us)
        said = {row["day_us"]: row for row in rows}
        days = range(from_us, min(to_us, now_us() + 1), DAY_US)
        return answer({"data": [condition_row(day, said.get(day), closed_us, day in due) for day in days]})

    @router.get("/conditions/{ticker}", response_model=models.MarketConditions, name="market_conditions")
    async def market_conditions(ticker: Ticker, from_: From = None, to: Instant = None) -> Response:
        """The condition of each UTC day of one market, from its opening to its end. Free of charge.

        Its own gaps and audits alone count; missing: it was open, and nothing of the day is known.
        """
        market_id, ended_us = await known(ticker)
        from_us, to_us = span(from_, to, "day")
        book, trade = await records(ticker, market_id, from_us, to_us)
        begun = [us for us in (book.opens_us, book.first_us) if us is not None]
        since = max(from_us, min(begun) - min(begun) % DAY_US) if begun else from_us
        until = min(to_us, (now_us() if ended_us is None else ended_us) + 1)
        until += -until % DAY_US
        told = units(book, trade, await store.hours(market_id, since, until), since, until, DAY_US) if since < until else []
        rows = [
            {"day": day_name(day.start_us), "condition": condition(day), "changed_at": optional_text(day.changed_us),
             "revision": day.revision, "quality": completeness.block(day.of_book)}
            for day in told
        ]  # fmt: skip
        return answer({"market_ticker": ticker, "data": rows})

    @router.get("/incidents", response_model=models.Incidents, name="incidents")
    async def incidents_(
        from_: From = None,
        to: Instant = None,
        channel: Annotated[Literal["orderbook_delta", "trade"], Query(description="Of which gaps.")] = "orderbook_delta",
        min_markets: Annotated[int, Query(ge=2, le=1_000_000, description="Fewest markets at once.")] = 10,
    ) -> Response:
        """Spans in all of which at least `min_markets` markets were in a gap of the same cause. Free of charge.

        The last 7 days without `from`. `markets` counts those that were in such a gap at any instant of it. A gap in which its
        market ended counts up to its end.
        """
        to_us = instant("to", to, now_us())
        from_us = instant("from", from_, to_us - 7 * DAY_US)
        if not 0 < to_us - from_us <= MAX_DAYS * DAY_US:
            raise invalid("to", f"it must be later than from, and by at most {MAX_DAYS} days")
        gaps = await store.gaps(channel, from_us, to_us, MAX_GAPS + 1)
        if len(gaps) > MAX_GAPS:
            raise invalid("to", f"more than {MAX_GAPS:,} gaps touch this range; ask for a shorter one")
        rows = [
            {"cause": each.cause, "channel": channel, "start": text(each.start_us), "end": optional_text(each.end_us),
             "markets": each.markets, "at_once": each.at_once}
            for each in incidents(gaps, min_markets)
        ]  # fmt: skip
        return answer({"data": rows})

    return router


def unit_row(unit: Unit, length_us: int) -> dict[str, Any]:
    """Return an hour or a day as customers see it."""
    latency = unit.latency
    return {
        "start": text(unit.start_us),
        "end": text(unit.start_us + length_us),
        "events": unit.events,
        "events_lost": None,
        "trades": unit.trades,
        "first_version": unit.first_version,
        "last_version": unit.last_version,
        "quality": completeness.block(unit.of_book),
        "trades_quality": completeness.block(unit.of_trades),
        "audits": {
            "matched": unit.audits.get(MATCH, 0),
            "mismatched": unit.audits.get(MISMATCH, 0),
            "unknown": unit.audits.get(UNKNOWN, 0),
        },
        "latency": {
            "events": sum(latency.buckets),
            "p50_us": latency.percentile(50),
            "p99_us": latency.percentile(99),
            "max_us": latency.max_us if sum(latency.buckets) else None,
        },
        "revision": unit.revision,
        "changed_at": optional_text(unit.changed_us),
    }


def condition_row(day_us: int, row: Any, closed_us: int, due: bool) -> dict[str, Any]:
    """Return the condition of a day over all markets, given what is said of it, if anything is."""
    if row is None:
        over = closed_us >= day_us + DAY_US - HOUR_US and not due
        return {
            "day": day_name(day_us), "condition": MISSING if over else PENDING, "changed_at": None, "revision": 0, "events": 0,
            "trades": 0, "markets": 0, "markets_with_gap": 0, "uncovered_us": 0, "audits": {"matched": 0, "mismatched": 0},
        }  # fmt: skip
    return {
        "day": day_name(day_us),
        "condition": row["condition"],
        "changed_at": text(row["changed_us"]),
        "revision": row["revision"],
        "events": row["events"],
        "trades": row["trades"],
        "markets": row["markets"],
        "markets_with_gap": row["markets_with_gap"],
        "uncovered_us": row["uncovered_us"],
        "audits": {"matched": row["matched"], "mismatched": row["mismatched"]},
    }


def day_name(day_us: int) -> str:
    """Return a UTC day as YYYY-MM-DD."""
    return text(day_us)[:10]


def answer(content: dict[str, Any]) -> Response:
    """Return it as JSON."""
    return Response(orjson.dumps(content), media_type="application/json")
