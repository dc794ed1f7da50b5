"""REST: the book of a market now and at an instant, and pages of its events, trades and gaps."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated, Any

import orjson
import structlog
from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from kalshibook_core.kalshi.markets import ENDED
from kalshibook_core.kalshi.numbers import format_price, format_size
from kalshibook_core.orderbook.checksum import to_hex, to_signed
from kalshibook_core.postgres import levels
from kalshibook_core.postgres.runs import DELTA, SNAPSHOT, Event
from kalshibook_core.wire.events import BOOK, TRADES, Checkpoint
from kalshibook_core.wire.quality import Quality
from services.gateway import completeness, forms, instants, models, pages
from services.gateway.completeness import Measure, Strict
from services.gateway.errors import ApiError, invalid, unknown_market
from services.gateway.history import points
from services.gateway.history.fold import CorruptHistory, State
from services.gateway.history.store import Store
from services.gateway.history.views import View, shown, whole
from services.gateway.parameters import TICKER, Cursor, Instant, Limit, Ticker, instant

log = structlog.get_logger()

Found = tuple[State, int, Quality]
"""A book, how many microseconds ago its last event was, and what is to be said of it."""

Depth = Annotated[int | None, Query(ge=1, le=10_001, description="Only the best so many levels of each side.")]
AsSeen = Annotated[
    View | None,
    Query(
        description="`yes`: both sides of YES, best first, with mid and spread; without it: the bids of both sides, ascending."
    ),
]


async def recorded(store: Store, ticker: str) -> int:
    """Return the id of a market; raise the 404 of one that was never recorded."""
    market_id = await store.market_id(ticker) if TICKER.fullmatch(ticker) else None
    if market_id is None:
        raise unknown_market(ticker)
    return market_id


def routes(
    store: Store,
    latest: Callable[[str], Awaitable[Checkpoint | None]],
    whole_through: Callable[[str], int],
    measure: Measure,
    now_us: Callable[[], int],
) -> APIRouter:
    """Return the room's routes.

    `latest` gives the live book of a ticker or None; `whole_through` the instant up to which everything received for the
    ticker's partition is stored (0: unknown); `measure` the quality of a market's record in a span.
    """
    router = APIRouter(prefix="/v1")

    known = partial(recorded, store)

    async def gap_of(market_id: int, state: State, at_us: int, since_us: int) -> tuple[int, int | None, str] | None:
        """Return the gap, begun no later than `since_us`, that an instant lies in of which the state is the book.

        A checkpoint may be stored before the gap it tells of, and then knows it alone. A gap that corrects the record begins
        before the event that opens it.
        """
        if not state.in_gap:
            for start_us, end_us, cause, opened in await store.gaps_between(market_id, at_us, at_us):
                if opened > state.version and start_us <= since_us and (end_us is None or end_us > at_us):
                    return start_us, end_us, cause
            return None
        stored = await store.gap_at(market_id, at_us)
        if state.gap is not None and (stored is None or stored[0] != state.gap[0]):
            return state.gap[0], None, state.gap[1]
        return stored

    async def book_now(ticker: str) -> Found:
        checkpoint = await latest(ticker) if TICKER.fullmatch(ticker) else None
        if checkpoint is not None:
            state = State()
            gap: tuple[int, int | None, str] | None = None
            state.restore_live(checkpoint)
            if checkpoint.gap_start_us is not None:
                gap = (checkpoint.gap_start_us, None, checkpoint.gap_cause or "")
        else:
            market_id = await known(ticker)
            found = await store.book_at(market_id, instants.LAST_US)
            if found is None:
                raise not_recorded(ticker, None, None, pending=False)
            state = found
            gap = await gap_of(market_id, state, state.effective_us, state.effective_us - 1)
        # "Now" is the instant of the last event: of a later one nothing is claimed, staleness tells how long ago it was.
        staleness = max(0, now_us() - state.effective_us)
        return state, staleness, completeness.at_instant(state.effective_us, state.effective_us, gap)

    async def book_at(ticker: str, at_us: int) -> Found:
        market_id = await known(ticker)
        through = whole_through(ticker)  # before the query: what is stored only grows
        state = await store.book_at(market_id, at_us)
        if state is None:
            first = await store.first_recorded(market_id)
            raise not_recorded(ticker, at_us, first, pending=first is None and await store.checkpointed(market_id))
        # That an event is stored, or a checkpoint made after it, says that all before its microsecond is known, and no more: the
        # next event may be of the same one. A checkpoint may also be stored before events that it holds.
        through = max(through, state.effective_us - 1)
        if at_us > through and (later := state.later_us or await store.recorded_later(market_id, at_us)) is not None:
            through = later - 1
        gap = await gap_of(market_id, state, at_us, at_us)
        ended = at_us > through and await over(market_id)
        return state, at_us - state.effective_us, completeness.at_instant(at_us, through, gap, ended)

    async def book_received(ticker: str, received_us: int) -> Found:
        market_id = await known(ticker)
        through = whole_through(ticker)
        state, later = await points.as_received(store, market_id, received_us)
        if state is None:
            first = await store.first_recorded(market_id)
            raise not_recorded(ticker, None, first, pending=first is None and await store.checkpointed(market_id))
        gap = await gap_of(market_id, state, state.effective_us, state.effective_us - 1)
        quality = completeness.at_instant(state.effective_us, max(through, state.effective_us), gap)
        if not later and received_us > through - points.DISORDER_US:
            quality = completeness.later(quality, await over(market_id))
        return state, 0, quality

    async def book_after(ticker: str, version: int) -> Found:
        market_id = await known(ticker)
        through = whole_through(ticker)
        state = await points.after_version(store, market_id, version)
        if state is None:
            raise ApiError(
                404, "version_not_recorded",
                "No event with this version is stored: it has not happened, or is not stored yet. Without `version` the answer "
                "is the book now and says its version.",
                market_ticker=ticker, version=version,
            )  # fmt: skip
        gap = await gap_of(market_id, state, state.effective_us, state.effective_us - 1)
        return state, 0, completeness.at_instant(state.effective_us, max(through, state.effective_us), gap)

    async def over(market_id: int) -> bool:
        return await store.status(market_id) in ENDED

    @router.get("/orderbook/{ticker}", response_model=models.Book | models.YesBook, name="orderbook")
    async def orderbook(
        request: Request,
        ticker: Ticker,
        at: Instant = None,
        received_at: Annotated[
            Instant, Query(description="An instant of our clock: the book as it was known to us then.")
        ] = None,
        version: Annotated[int | None, Query(ge=1, lt=2**31, description="The book exactly after this version.")] = None,
        depth: Depth = None,
        view: AsSeen = None,
        strict: Strict = False,
    ) -> Response:
        """The full book of a market: now, at any recorded instant, as we knew it at any instant, or after any version.

        With `at`, the answer is the fold of every event whose effective time is not after it, checked against the recorded
        checksum. With `received_at` it is the fold of the longest run of versions 1, 2, … of which none was received later.
        `proof` says how it was made and `quality` what is not known about it. Prices are dollars, sizes contracts. With `depth`
        only the best levels are shown and `cut` says how many are not; the checksum is always of the whole book.
        """
        given = [name for name, value in (("at", at), ("received_at", received_at), ("version", version)) if value is not None]
        if len(given) > 1:
            raise invalid(" and ".join(given), "give one of at, received_at and version, or none for the book now")
        request.state.endpoint = "orderbook_at" if given else "orderbook"
        try:
            if at is not None:
                found = await book_at(ticker, instant("at", at, 0))
            elif received_at is not None:
                found = await book_received(ticker, instant("received_at", received_at, 0))
            elif version is not None:
                found = await book_after(ticker, version)
            else:
                found = await book_now(ticker)
        except CorruptHistory as error:
            raise corrupt(ticker, error) from error
        return answer(ticker, *found, depth, view, strict)

    @router.get("/deltas/{ticker}", response_model=models.Deltas, name="deltas")
    async def deltas(
        request: Request,
        ticker: Ticker,
        from_: Annotated[Instant, Query(alias="from")] = None,
        to: Instant = None,
        after_version: Annotated[int, Query(ge=0, lt=2**31, description="Only events with a greater version.")] = 0,
        limit: Limit = 100,
        cursor: Cursor = None,
        strict: Strict = False,
    ) -> Response:
        """Every book event of a market, by version: snapshots, deltas and gaps, with `from` <= effective_at < `to`.

        Folding them gives any book we serve: a snapshot replaces the book, a delta is added to its level, a gap says that from
        `start` on the book is not known until the next snapshot.
        """
        market_id = await known(ticker)
        from_us, to_us = instant("from", from_, 0), instant("to", to, instants.LAST_US + 1)
        since = None if from_ is None else from_us
        if cursor is not None:
            from_us, after_version = pages.decode(cursor, int, int)
            since = from_us
        through = await measure.through(ticker, market_id, BOOK, since, None if to is None else to_us)
        try:
            events = await store.events(market_id, from_us, to_us, min(after_version, 2**31 - 1), limit + 1)
        except CorruptHistory as error:
            raise corrupt(ticker, error) from error
        rows, more = pages.cut(events, limit)
        found: list[tuple[int, int | None, str, int]] = []
        if any(row.kind != DELTA for row in rows):
            found = await store.gaps_between(market_id, rows[0].effective_us, rows[-1].effective_us)
        request.state.rows = len(rows)
        if rows:
            through = max(through, rows[-1].effective_us - 1)
        if since is None and after_version:
            since = rows[0].effective_us if rows else through
        until = rows[-1].effective_us if more else None if to is None else to_us
        quality = await measure.quality(market_id, BOOK, since, until, through)
        following = pages.encode(rows[-1].effective_us, rows[-1].version) if more else None
        opened = {gap[3]: gap[:3] for gap in found}
        return page([event_row(row, opened) for row in rows], following, completeness.checked(quality, strict))

    @router.get("/trades/{ticker}", response_model=models.Trades, name="trades")
    async def trades(
        request: Request,
        ticker: Ticker,
        from_: Annotated[Instant, Query(alias="from")] = None,
        to: Instant = None,
        limit: Limit = 100,
        cursor: Cursor = None,
        strict: Strict = False,
    ) -> Response:
        """Every trade of a market, by exchange time, with `from` <= exchange_at < `to`. Each trade once."""
        market_id = await known(ticker)
        after, to_us = (instant("from", from_, 0), ""), instant("to", to, instants.LAST_US + 1)
        since = None if from_ is None else after[0]
        if cursor is not None:
            after = tuple(pages.decode(cursor, int, str))
            since = after[0]
        through = await measure.through(ticker, market_id, TRADES, since, None if to is None else to_us)
        rows, more = pages.cut(await store.trades(market_id, to_us, after, limit + 1), limit)
        request.state.rows = len(rows)
        until = rows[-1]["exchange_us"] if more else None if to is None else to_us
        quality = await measure.quality(market_id, TRADES, since, until, through)
        following = pages.encode(rows[-1]["exchange_us"], rows[-1]["trade_id"]) if more else None
        return page([trade_row(ticker, row) for row in rows], following, completeness.checked(quality, strict))

    @router.get("/gaps", response_model=models.Gaps, name="gaps")
    async def gaps(
        ticker: Annotated[str | None, Query(description="Only of this market.")] = None,
        from_: Annotated[Instant, Query(alias="from")] = None,
        to: Instant = None,
        limit: Limit = 100,
        cursor: Cursor = None,
    ) -> Response:
        """Where our record is not whole: every gap that touches [`from`, `to`), by start. Free of charge."""
        market_id = None if ticker is None else await known(ticker)
        after = (-1, 0, "", 0)
        if cursor is not None:
            after = tuple(pages.decode(cursor, int, int, str, int))
            if not all(-(2**31) <= number < 2**31 for number in after[1::2]):
                raise invalid("cursor", "pass next_cursor of the previous page as it was given")
        from_us, to_us = instant("from", from_, 0), instant("to", to, instants.LAST_US + 1)
        rows, more = pages.cut(await store.gaps(market_id, from_us, to_us, after, limit + 1), limit)
        last = ("start_us", "market_id", "channel", "opened_version")
        following = pages.encode(*(rows[-1][name] for name in last)) if more else None
        return page([gap_row(row) for row in rows], following)

    return router


def answer(
    ticker: str,
    state: State,
    staleness_us: int,
    quality: Quality,
    depth: int | None,
    view: View | None,
    strict: bool,
) -> Response:
    """Return a book with its proof and quality; raise the 409 where `strict` does not take it."""
    start = state.start
    assert start is not None  # a state with events began somewhere
    received = instants.optional_text(state.recv_us)
    return _json({
        "market_ticker": ticker,
        "at": instants.text(quality.from_us),
        "version": state.version,
        "checksum": to_hex(to_signed(state.book.checksum)),
        **shown(state.book.sides, depth, view),
        **whole(state.book.sides, depth, view),
        "proof": {
            "checkpoint": {
                "version": start.version, "effective_at": instants.text(start.effective_us), "source": start.source,
            },
            "events_applied": state.applied,
            "last_event_at": instants.text(state.effective_us),
            "last_event_received_at": received,
            "staleness_us": staleness_us,
            "recorded_through": instants.text(quality.through_us),
        },
        "quality": completeness.checked(quality, strict),
    })  # fmt: skip


def corrupt(ticker: str, error: CorruptHistory) -> ApiError:
    """Return the 500 for history that must not be served, and tell us."""
    log.error("gateway.history.corrupt", market_ticker=ticker, why=str(error))
    message = "The stored history contradicts itself here and is not served. We have been told."
    return ApiError(500, "corrupt_history", message, market_ticker=ticker)


def not_recorded(ticker: str, at_us: int | None, first_us: int | None, *, pending: bool) -> ApiError:
    """Return the 404 for a known market without a book (yet) at the instant; `pending` if there may be one when all is stored."""
    if pending:
        message = "The book of this market was received, but what it was up to this instant is not stored yet. Ask again shortly."
        return ApiError(404, "not_recorded_yet", message, market_ticker=ticker, reason="pending", first_recorded_at=None)
    if first_us is None:
        message = "No book of this market is recorded yet: it is known, but its first snapshot has not been received."
        return ApiError(
            404, "not_recorded_yet", message, market_ticker=ticker, reason="not_yet_subscribed", first_recorded_at=None
        )
    return ApiError(
        404, "not_recorded_yet", "The instant lies before the first snapshot we received of this market.",
        market_ticker=ticker, at=instants.optional_text(at_us), reason="not_yet_subscribed",
        first_recorded_at=instants.text(first_us),
    )  # fmt: skip


Spans = dict[int, tuple[int, int | None, str]]


def event_row(row: Event, gaps: Spans) -> dict[str, Any]:
    """Return a book event as customers see it, given the gaps by the version that opened them."""
    version, effective_us, exchange_us, recv_us, kind, side, price, delta, checksum, packed = row
    if kind == DELTA:
        return forms.delta_row(version, effective_us, exchange_us, recv_us, side, price, delta, checksum)
    if kind == SNAPSHOT:
        # Inside a gap nothing takes a version, so the snapshot that ends it is the very next one.
        ended = gaps.get(version - 1)
        yes, no = levels.unpack(packed)
        return forms.snapshot_row(
            version,
            effective_us,
            recv_us,
            yes,
            no,
            checksum,
            None if ended is None else forms.gap(ended[0], effective_us, ended[2]),
        )
    start_us, end_us, cause = gaps.get(version, (effective_us, None, "unknown"))
    return forms.gap_row(version, effective_us, recv_us, checksum, start_us, end_us, cause)


def trade_row(ticker: str, row: Any) -> dict[str, Any]:
    """Return a row of `trades` as customers see it."""
    return {
        "trade_id": row["trade_id"], "market_ticker": ticker,
        "exchange_at": instants.text(row["exchange_us"]), "recv_at": instants.text(row["recv_us"]),
        "yes_price": format_price(row["yes_price"]), "no_price": format_price(row["no_price"]),
        "count": format_size(row["count"]), "taker_side": forms.SIDES[row["taker_side"]], "is_block_trade": row["is_block_trade"],
        "origin": row["origin"],
    }  # fmt: skip


def gap_row(row: Any) -> dict[str, Any]:
    """Return a row of `gaps` as customers see it."""
    return {
        "market_ticker": row["ticker"], "channel": row["channel"], **forms.gap(row["start_us"], row["end_us"], row["cause"]),
        "filled": row["filled_from"], "filled_at": instants.optional_text(row["filled_us"]),
    }  # fmt: skip


def page(rows: list[dict[str, Any]], next_cursor: str | None, quality: dict[str, Any] | None = None) -> Response:
    """Return a list answer; `quality` is the block of the span that the page covers."""
    told = {} if quality is None else {"quality": quality}
    return _json({"data": rows, "next_cursor": next_cursor, **told})


def _json(content: dict[str, Any]) -> Response:
    return Response(orjson.dumps(content), media_type="application/json")
