"""Keys, prices, cursors and errors: the small rules that money and secrets hang on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kalshibook_core.wire.events import Usage
from services.gateway import app, pages
from services.gateway.accounts import PLANS, Caller, period_start
from services.gateway.errors import ApiError
from services.gateway.instants import LAST_US, text
from services.gateway.keys import credentials
from services.gateway.keys.lookup import MAX_REMEMBERED, TTL, Lookup
from services.gateway.metering import prices
from services.gateway.metering.outbox import MAX_WAITING, Outbox

CALLER = Caller("acct_1", "one", "free", "key_1")


@given(st.binary(max_size=80))
def test_no_header_gets_in_or_is_repeated_in_the_refusal(value: bytes) -> None:
    with pytest.raises(ApiError) as refused:
        credentials.of_request([(b"x-api-key", value)])
    assert refused.value.status == 401
    assert len(value) < 12 or value.decode("latin-1") not in refused.value.body().decode()


@pytest.mark.parametrize("plan", PLANS)
def test_a_key_is_found_in_both_headers_and_shown_in_part(plan: str) -> None:
    key = credentials.mint(plan)
    assert key != credentials.mint(plan)
    assert key.startswith("kb_demo_" if plan == "demo" else "kb_live_")
    assert len(credentials.shown(key)) < 14
    for header in (
        (b"authorization", b"Bearer " + key.encode()),
        (b"authorization", b"bearer  " + key.encode()),
        (b"x-api-key", key.encode()),
    ):
        assert credentials.of_request([(b"host", b"x"), header]) == key
    assert credentials.digest(key) != credentials.digest(key.swapcase())


async def test_a_lookup_is_remembered_briefly_and_bounded() -> None:
    now, live, asked = [0.0], set[bytes](), 0

    async def find(digest: bytes) -> Caller | None:
        nonlocal asked
        asked += 1
        return CALLER if digest in live else None

    lookup, key = Lookup(find, lambda: now[0]), credentials.mint("free")
    headers = [(b"x-api-key", key.encode())]
    for _ in range(2):
        with pytest.raises(ApiError):
            await lookup.caller(headers)
    live.add(credentials.digest(key))  # an unknown key is not remembered: it works from the moment it is made
    for _ in range(5):
        assert await lookup.caller(headers) == CALLER
    assert asked == 3
    live.clear()
    now[0] = TTL
    with pytest.raises(ApiError):
        await lookup.caller(headers)
    lookup._remembered = dict.fromkeys((b"%d" % i for i in range(MAX_REMEMBERED)), (CALLER, 99.0))
    live.add(credentials.digest(key))
    await lookup.caller(headers)
    assert len(lookup._remembered) == MAX_REMEMBERED


@given(st.integers(0, 10_000))
def test_rows_are_billed_by_begun_hundreds_and_at_least_one(rows: int) -> None:
    assert prices.credits("deltas", rows) == max(1, (rows + 99) // 100)
    assert (prices.credits("orderbook", rows), prices.credits("orderbook_at", rows), prices.credits("gaps", rows)) == (1, 2, 0)


def test_every_route_has_a_price_and_an_unknown_plan_gets_nothing() -> None:
    from services.gateway.history import routes as history
    from services.gateway.history import series
    from services.gateway.live import stream
    from services.gateway.markets import families
    from services.gateway.markets import routes as markets
    from services.gateway.quality import routes as quality
    from services.gateway.usage import routes as usage

    nothing = None
    routers = [
        history.routes(nothing, nothing, nothing, nothing, nothing),  # type: ignore[arg-type]
        series.routes(nothing, nothing),  # type: ignore[arg-type]
        markets.routes(nothing),  # type: ignore[arg-type]
        families.routes(nothing),  # type: ignore[arg-type]
        quality.routes(nothing, nothing),  # type: ignore[arg-type]
        usage.routes(nothing, nothing),  # type: ignore[arg-type]
        stream.routes(nothing),  # type: ignore[arg-type]
    ]
    document = app.create(routers).openapi()
    names = {route.name for router in routers for route in router.routes}  # type: ignore[attr-defined]
    assert names | {"orderbook_at"} == set(prices.CREDITS)
    for path, methods in document["paths"].items():
        assert path.startswith("/v1/")
        assert {"200", "401", "404", "422"} <= set(methods["get"]["responses"])
        assert methods["get"]["description"]
    assert document["security"] == [{"bearer": []}, {"header": []}]
    assert CALLER._replace(plan="gone").allowance == 0


def test_a_full_outbox_refuses_rather_than_serve_unmetered() -> None:
    outbox = Outbox(None, "", lambda: 0)  # type: ignore[arg-type]
    usage = Usage("u", "acct_1", "key_1", "orderbook", 1, 0, 200)
    with outbox.room():
        outbox.put(usage)
    outbox._waiting.extend([usage] * (MAX_WAITING - 2))
    with outbox.room():
        with pytest.raises(ApiError) as refused, outbox.room():
            outbox.put(usage)
        assert (refused.value.status, refused.value.code) == (503, "metering_unavailable")
    assert len(outbox) == MAX_WAITING - 1


@given(st.integers(-(2**63), 2**63 - 1), st.text().filter(lambda text: "\0" not in text))
def test_a_cursor_reads_back(number: int, word: str) -> None:
    cursor = pages.encode(number, word)
    if len(cursor) <= pages.MAX_CURSOR:
        assert pages.decode(cursor, int, str) == [number, word]


@given(st.text() | st.sampled_from([pages.encode(2**63), pages.encode("\0"), pages.encode(1, 2), "bnVsbA", "dHJ1ZQ", "x" * 9999]))
def test_no_other_cursor_is_taken(cursor: str) -> None:
    try:
        (position,) = pages.decode(cursor, int)
        assert isinstance(position, int)
    except ApiError as error:
        assert (error.status, error.code) == (422, "invalid_parameter")


@given(st.integers(0, LAST_US))
def test_a_period_is_the_calendar_month(us: int) -> None:
    start = period_start(us)
    assert start <= us
    assert text(start) == text(us)[:8] + "01T00:00:00.000000Z"
