"""Books by version and by receipt, samples, top-of-book series and candles, from a real process, against the obvious fold."""

import random
from bisect import bisect_right
from itertools import accumulate
from typing import Any

import httpx

from kalshibook_core.kalshi.numbers import format_price, format_size
from kalshibook_core.orderbook import Book
from kalshibook_core.orderbook.checksum import to_signed
from kalshibook_core.wire.events import BOOK, BookDelta, BookEvent, BookSnapshot, Gap
from services.gateway import instants, models
from tests.integration.test_gateway_history import MIDNIGHT, history, shown
from tests.support import gateway
from tests.support.canonical import Market


def received(events: list[BookEvent], dice: random.Random, *, replayed: bool) -> list[BookEvent]:
    """Return the events with times of receipt: as they came, by gatherers up to 5 minutes apart, or of a replay years after."""
    if replayed:
        return [event._replace(recv_us=MIDNIGHT + 10**15 + 700_000_000 * event.version) for event in events]
    return [event._replace(recv_us=event.effective_us + dice.choice((0, 900, 2_000_000, 299_000_000))) for event in events]


async def test_the_book_after_a_version_and_as_it_was_known(served: tuple[httpx.AsyncClient, Any]) -> None:
    client, connection = served
    dice = random.Random(11)
    for ticker, every in (("KXLIVE", 60), ("KXREPLAY", 60), ("KXNONE", 0)):
        events = received(history(every + 1, ticker, 400), dice, replayed=ticker == "KXREPLAY")
        await gateway.write(connection, await gateway.add_market(connection, ticker), events, every)
        for version in (1, 2, 59, 60, 61, 400, *dice.choices(range(1, 401), k=4)):
            body = (await client.get(f"/v1/orderbook/{ticker}", params={"version": version})).json()
            models.Book.model_validate(body)
            wanted = shown(events[:version], instants.LAST_US)
            assert (body["yes"], body["no"], body["version"], body["checksum"]) == wanted[:4]
            assert (body["quality"]["state"] == "gap") == (wanted[4] is not None)
        answer = await client.get(f"/v1/orderbook/{ticker}", params={"version": 401})
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "version_not_recorded")
        latest = list(accumulate((event.recv_us for event in events), max))
        asked = [dice.choice(latest) + step for step in (-1, 0, 1) for _ in range(4)]
        for at_us in (latest[0], latest[-1], latest[-1] + 10**9, *asked):
            answer = await client.get(f"/v1/orderbook/{ticker}", params={"received_at": at_us})
            version = bisect_right(latest, at_us)
            if not version:
                assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_recorded_yet")
                continue
            body, wanted = answer.json(), shown(events[:version], instants.LAST_US)
            assert (body["yes"], body["no"], body["version"], body["checksum"]) == wanted[:4], (ticker, at_us)
            assert body["quality"]["state"] == ("gap" if wanted[4] else "pending" if version == 400 else "complete")
    body = (await client.get("/v1/orderbook/KXLIVE", params={"version": 400, "depth": 1, "view": "yes"})).json()
    models.YesBook.model_validate(body)
    whole = (await client.get("/v1/orderbook/KXLIVE", params={"version": 400})).json()
    assert (body["checksum"], body["bids"]) == (whole["checksum"], whole["yes"][-1:])
    for params in ({"at": 1, "version": 1}, {"at": 1, "received_at": 1}, {"received_at": 1, "version": 2}):
        answer = await client.get("/v1/orderbook/KXLIVE", params=params)
        assert answer.status_code == 422
        assert "give one of at, received_at and version" in answer.json()["error"]["message"]


MODELS = {"orderbooks": models.Samples, "bbo": models.Tops, "candles": models.Candles}


async def every(client: httpx.AsyncClient, path: str, **params: Any) -> list[dict[str, Any]]:
    """Return the rows of all pages."""
    rows, cursor = list[dict[str, Any]](), None
    while True:
        answer = await client.get(path, params=params | ({"cursor": cursor} if cursor else {}))
        assert answer.status_code == 200, answer.text
        MODELS[path.split("/")[2]].model_validate(answer.json())
        rows += answer.json()["data"]
        if (cursor := answer.json()["next_cursor"]) is None:
            return rows


async def test_samples_are_the_books_at_their_instants(served: tuple[httpx.AsyncClient, Any]) -> None:
    client, connection = served
    dice = random.Random(5)
    for ticker, checkpoints in (("KXA", 60), ("KXB", 0)):
        events = history(checkpoints + 3, ticker, 300)
        await gateway.write(connection, await gateway.add_market(connection, ticker), events, checkpoints)
        first, last = events[0].effective_us, events[-1].effective_us
        ranges = [
            (dice.choice(events).effective_us + dice.choice((-1, 0, 1)), dice.choice((250_000, 60_000_000))) for _ in range(6)
        ]
        ranges += [(first - 2 * 3_600_000_000, 3_600_000_000), (last - 1, 1_000), (events[100].effective_us, 1_000)]
        for from_us, step in ranges:
            number = dice.randint(1, 120)
            params = {"from": from_us, "to": from_us + number * step - dice.randrange(step), "interval": f"{step // 1000}ms"}
            if from_us + number * step < first:
                continue
            rows = await every(client, f"/v1/orderbooks/{ticker}", **params, limit=dice.choice((17, 1_000)))
            assert [row["at"] for row in rows] == [instants.text(from_us + k * step) for k in range(number)]
            for row in rows:
                at_us = instants.parse(row["at"])
                if at_us < first:
                    assert (row["state"], row["version"], row["checksum"], row["yes"]) == ("not_recorded", None, None, None)
                    continue
                wanted = shown(events, at_us)
                assert (row["yes"], row["no"], row["version"], row["checksum"]) == wanted[:4]
                assert row["state"] == ("gap" if wanted[4] else "complete" if at_us < last else "pending")
            best = await every(client, f"/v1/orderbooks/{ticker}", **params, depth=1, view="yes")
            assert [row["bids"] for row in best] == [row["yes"] and row["yes"][-1:] for row in rows]
            changes = await every(
                client, f"/v1/orderbooks/{ticker}", **params, depth=1, view="yes", changes_only=True, limit=1_000
            )
            kept = [row for n, row in enumerate(best) if not n or content(row) != content(best[n - 1])]
            assert changes == kept


def content(row: dict[str, Any]) -> Any:
    return [row[name] for name in ("state", "bids", "asks", "mid", "spread")]


async def test_the_best_levels_and_candles_tell_the_same_story(served: tuple[httpx.AsyncClient, Any]) -> None:
    client, connection = served
    dice = random.Random(8)
    events = history(9, "KXA", 400)
    market_id = await gateway.add_market(connection, "KXA")
    await gateway.write(connection, market_id, events, 50)
    first, last, step = events[0].effective_us, events[-1].effective_us, 600_000_000
    trades = [
        (dice.randrange(first, last), 1, dice.randint(1, 9_000), market_id, dice.randint(1, 9_999), 0, 0, n % 5 == 0, f"t{n}")
        for n in range(300)
    ]
    names = ("exchange_us", "recv_us", "count", "market_id", "yes_price", "no_price", "taker_side", "is_block_trade", "trade_id")
    await connection.copy_records_to_table("trades", columns=names, records=trades)
    await connection.execute("INSERT INTO gaps VALUES ($1, $2, $3, 0, 'trade', 'disconnect')", first, first + step, market_id)
    whole = {"from": first - 1, "to": last + 1}

    rows = await every(client, "/v1/bbo/KXA", **whole, limit=7)
    assert [row["version"] for row in rows] == sorted({row["version"] for row in rows})
    number, shown_last = 0, None
    for event in events:
        found = gateway.brute_force(events[: event.version], event.effective_us)
        assert found is not None
        book, at_gap = found[0], isinstance(event, Gap)
        yes, no = (max(side.items(), default=None) for side in book.sides)
        now = None if at_gap else (yes and (yes[0], yes[1]), no and (10_000 - no[0], no[1]))
        if number and now == shown_last:
            continue
        row = rows[number]
        levels = (None, None) if now is None else now
        wanted = [level and [format_price(level[0]), format_size(level[1])] for level in levels]
        assert (row["version"], [row["bid"], row["ask"]], row["state"] == "gap") == (event.version, wanted, at_gap)
        number, shown_last = number + 1, now
    assert number == len(rows)
    [opening] = (await client.get("/v1/bbo/KXA", params={"from": last, "to": last + 1})).json()["data"]
    assert (opening["version"], opening["bid"], opening["ask"]) == (400, rows[-1]["bid"], rows[-1]["ask"])

    params = {"from": first - 3 * step, "to": last + 1, "interval": "10m"}
    candles = await every(client, "/v1/candles/KXA", **params, limit=17)
    books = await every(client, "/v1/orderbooks/KXA", **params, depth=1, view="yes")
    assert [candle["at"] for candle in candles] == [book["at"] for book in books]
    for n, (candle, book) in enumerate(zip(candles, books, strict=True)):
        begin = first + (n - 3) * step
        touched = [event for event in events if begin <= event.effective_us < begin + step]
        if book["state"] == "complete" and book["bids"]:
            assert candle["bid"]["open"] == book["bids"][0][0]
        if begin <= first:
            assert (candle["state"] == "not_recorded") == (begin < first)
        elif begin > last:
            assert candle["state"] == "pending"
        elif any(isinstance(event, Gap) for event in touched) or book["state"] == "gap":
            assert candle["state"] == "gap"
        if book["state"] == "gap" and not touched:
            assert [candle[name]["open"] for name in ("bid", "ask", "mid")] == [None] * 3
        inside = sorted((t for t in trades if begin <= t[0] < begin + step and not t[7]), key=lambda t: (t[0], t[8]))
        got = candle["trades"]
        assert (got["count"], got["volume"]) == (len(inside), format_size(sum(t[2] for t in inside)))
        assert got["open"] == (format_price(inside[0][4]) if inside else None)
        assert got["close"] == (format_price(inside[-1][4]) if inside else None)
        assert (got["state"] == "gap") == (n == 3)
    assert sum(candle["trades"]["block_count"] for candle in candles) == 60


def short_day() -> list[BookEvent]:
    """Return events by hand: an empty book, one side, both, a best level for no time, one side, a gap, another book."""
    book, events = Book(), list[BookEvent]()

    def add(second: float, change: tuple[int, int, int] | None = None, yes: tuple[tuple[int, int], ...] = ()) -> None:
        nonlocal book
        version, at_us = len(events) + 1, MIDNIGHT + int(second * 1_000_000)
        opened = events[-1].start_us if events and isinstance(events[-1], Gap) else None
        if change is not None:
            book.apply(*change)
            event: BookEvent = BookDelta(
                "KXA", version, at_us, at_us, at_us, *change, to_signed(book.checksum), "g", 0, 1, 1, 1, 0
            )
        elif version == 1 or opened is not None:
            book = Book(yes)
            checksum, cause = to_signed(book.checksum), None if opened is None else "disconnect"
            event = BookSnapshot("KXA", version, at_us, at_us, list(yes), [], checksum, opened, cause, "g", 0, 1, 1, 1, 0)
        else:
            event = Gap("KXA", version, at_us, BOOK, at_us, None, "disconnect", at_us, to_signed(book.checksum), "g", 0, 1, 0)
        events.append(event)

    add(10)
    add(10.5, (0, 4_800, 1_200))
    add(11, (1, 5_100, 300))
    add(11.25, (0, 4_850, 100))
    add(11.25, (0, 4_850, -100))
    add(12, (0, 4_800, -1_200))
    add(13)
    add(14.5, yes=((4_700, 500),))
    return events


async def test_a_short_day_by_hand(served: tuple[httpx.AsyncClient, Any]) -> None:
    client, connection = served
    market_id = await gateway.add_market(connection, "KXA", status="determined")
    await gateway.write(connection, market_id, short_day())
    trades = [(10.5, 4_800, 100, False), (11, 4_900, 200, None), (11, 4_000, 9_900, True), (11.999999, 4_700, 100, False)]
    for number, (second, price, size, block) in enumerate(trades):
        at_us = MIDNIGHT + round(second * 1_000_000)
        row = (at_us, at_us, size, market_id, price, 10_000 - price, 0, block, f"t{number}")
        await connection.execute("INSERT INTO trades VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)", *row)
    params = {"from": MIDNIGHT + 9_000_000, "to": MIDNIGHT + 16_000_000, "interval": "1s"}
    states = ["not_recorded", "complete", "complete", "complete", "gap", "gap", "ended"]

    samples = await every(client, "/v1/orderbooks/KXA", **params)
    bid, ask, new = ["0.4800", "12.00"], ["0.5100", "3.00"], ["0.4700", "5.00"]
    assert [row["state"] for row in samples] == states
    assert [row["version"] for row in samples] == [None, 1, 3, 6, 7, 7, 8]
    assert [row["yes"] for row in samples] == [None, [], [bid], [], [], [], [new]]
    assert [row["no"] for row in samples] == [None, [], [ask], [ask], [ask], [ask], []]

    tops = await every(client, "/v1/bbo/KXA", **params)
    assert [
        (row["version"], row["state"], row["bid"] and row["bid"][0], row["ask"] and row["ask"][0], row["mid"]) for row in tops
    ] == [
        (1, "complete", None, None, None),
        (2, "complete", "0.4800", None, None),
        (3, "complete", "0.4800", "0.4900", "0.48500"),
        (4, "complete", "0.4850", "0.4900", "0.48750"),
        (5, "complete", "0.4800", "0.4900", "0.48500"),
        (6, "complete", None, "0.4900", None),
        (7, "gap", None, None, None),
        (8, "complete", "0.4700", None, None),
    ]

    candles = await every(client, "/v1/candles/KXA", **params)
    assert [row["state"] for row in candles] == states
    for name, values in (
        ("bid", [None, "0.4800", "0.4800", None, None, "0.4700", "0.4700"]),
        ("ask", [None, None, "0.4900", "0.4900", None, None, None]),
        ("mid", [None, None, "0.48500", None, None, None, None]),
    ):
        assert [row[name] for row in candles] == [dict.fromkeys(("open", "high", "low", "close"), value) for value in values]
    assert candles[2]["trades"] == {
        "state": "ended", "open": "0.4900", "high": "0.4900", "low": "0.4700", "close": "0.4700", "volume": "3.00",
        "notional": "1.450000", "vwap": "0.483333", "count": 2, "block_volume": "99.00", "block_count": 1,
    }  # fmt: skip
    assert [row["trades"]["count"] for row in candles] == [0, 1, 2, 0, 0, 0, 0]


async def test_a_gap_that_corrects_the_record_is_told_from_where_it_begins(served: tuple[httpx.AsyncClient, Any]) -> None:
    client, connection = served
    market = Market("KXA", MIDNIGHT)
    events = [market.event(roll, 1_000_000) for roll in (3, 4, 5, 4, 26, 4, 7)]  # at 5 s a gap, at 6 s a snapshot
    market_id = await gateway.add_market(connection, "KXA")
    await gateway.write(connection, market_id, events)
    start = MIDNIGHT + 3_000_000
    await connection.execute("UPDATE gaps SET start_us = $1", start)
    params = {"from": MIDNIGHT + 1_000_000, "to": MIDNIGHT + 7_000_000, "interval": "1s"}
    rows = await every(client, "/v1/orderbooks/KXA", **params)
    assert [row["state"] for row in rows] == ["complete", "complete", "gap", "gap", "gap", "complete"]
    for row in rows:
        single = (await client.get("/v1/orderbook/KXA", params={"at": row["at"]})).json()
        assert (single["quality"]["state"], single["version"]) == (row["state"], row["version"])
    candles = await every(client, "/v1/candles/KXA", **params)
    assert [candle["state"] for candle in candles] == [row["state"] for row in rows]
    tops = await every(client, "/v1/bbo/KXA", **{name: params[name] for name in ("from", "to")}, limit=1)
    assert [(row["version"], row["state"]) for row in tops] == [(1, "complete"), (4, "gap"), (6, "complete")]
    assert tops[1]["effective_at"] == instants.text(start) and tops[1]["bid"] is tops[1]["ask"] is None
    refused = await client.get("/v1/candles/KXA", params=params | {"strict": "true"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "incomplete")
    await connection.execute("UPDATE gaps SET start_us = $1", start - 500_000)  # between two events
    inside = (await client.get("/v1/bbo/KXA", params={"from": start - 1, "to": start + 2})).json()["data"]
    assert [(row["state"], row["effective_at"]) for row in inside] == [("gap", instants.text(start - 500_000))]


REFUSED = [
    ("/v1/orderbooks/KXA?from=1&to=2&interval=1w", 422, "expected a number and its unit"),
    ("/v1/orderbooks/KXA?from=1&to=2&interval=0s", 422, "from 1ms to 31d"),
    ("/v1/orderbooks/KXA?from=1&interval=1s", 422, "give both ends"),
    ("/v1/orderbooks/KXA?from=2&to=1", 422, "later than from"),
    ("/v1/orderbooks/KXA?from=1&to=2&cursor=WzVd", 422, "of another range"),
    ("/v1/orderbooks/KXA?from=1&to=2&limit=100001", 422, "100000"),
    ("/v1/orderbook/KXA?depth=0", 422, "greater than or equal to 1"),
    ("/v1/orderbook/KXA?view=no", 422, "yes"),
    ("/v1/candles/KXA?from=1&to=2&interval=999ms", 422, "from 1s to 1d"),
    ("/v1/bbo/KXNONE?from=1&to=2", 404, "ever recorded"),
    ("/v1/bbo/KXA?from=1&to=2", 404, "first snapshot"),
    ("/v1/candles/KXA?from=1&to=2", 404, "first snapshot"),
    ("/v1/orderbooks/KXA?from=1&to=2", 404, "first snapshot"),
]


async def test_what_cannot_be_answered_says_why(served: tuple[httpx.AsyncClient, Any]) -> None:
    client, connection = served
    await gateway.write(connection, await gateway.add_market(connection, "KXA"), history(4, "KXA", 60))
    end = "from=9999-12-31T23:59:59Z&to=9999-12-31T23:59:59.999999Z"
    for path in (f"/v1/candles/KXA?{end}&interval=1d", f"/v1/bbo/KXA?{end}", f"/v1/orderbooks/KXA?{end}&interval=1ms&limit=2"):
        answer = await client.get(path)
        assert (answer.status_code, answer.json()["quality"]["state"]) == (200, "pending"), answer.text
    for path, status, words in REFUSED:
        answer = await client.get(path)
        assert (answer.status_code, words in answer.json()["error"]["message"]) == (status, True), answer.text
