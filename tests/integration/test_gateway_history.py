"""The gateway's answers about the past, from a real process over real Postgres, against the obvious fold of the same events."""

import random
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis.asyncio

from kalshibook_core.kafka import topics
from kalshibook_core.kafka.cluster import Cluster, partition_of
from kalshibook_core.kafka.producer import Producer
from kalshibook_core.kalshi.numbers import price, size
from kalshibook_core.orderbook import Book
from kalshibook_core.orderbook.checksum import to_hex, to_signed
from kalshibook_core.postgres import levels
from kalshibook_core.wire import codec
from kalshibook_core.wire.events import BookDelta, BookEvent, BookSnapshot, Checkpoint, Gap
from services.gateway import forms, instants, models
from tests.support import gateway
from tests.support.canonical import Market

MIDNIGHT = 1_762_128_000_000_000  # 2025-11-03T00:00:00Z
FORMS = (str, instants.text, lambda us: f"{us // 1_000_000}.{us % 1_000_000:06d}")


def history(seed: int, ticker: str, events: int) -> list[BookEvent]:
    """Return a market's events around a UTC midnight, bursts in one microsecond included."""
    dice = random.Random(seed)
    market = Market(ticker, MIDNIGHT - events * 75_000_000)
    pauses = (0, 0, 1, 1_000, 300_000_000, 600_000_000)
    made: list[BookEvent] = []
    for _ in range(events):
        # A gap takes time: the snapshot that ends it never falls into the microsecond it began in.
        pause = dice.choice(pauses[2:] if market.gap is not None else pauses)
        made.append(market.event(dice.randrange(200), pause))
    assert made[0].effective_us < MIDNIGHT < made[-1].effective_us
    return made


def shown(events: list[BookEvent], at_us: int) -> tuple[Any, ...]:
    """Return what the answer at an instant must say."""
    found = gateway.brute_force(events, at_us)
    assert found is not None
    book, last = found
    gap = None
    if isinstance(last, Gap):
        end = next((event.effective_us for event in events if event.version == last.version + 1), None)
        gap = forms.gap(last.start_us, end, last.cause)
    return forms.levels(book.yes), forms.levels(book.no), last.version, f"{book.checksum:016x}", gap


async def test_book_at_any_instant_equals_the_fold(served: tuple[httpx.AsyncClient, Any]) -> None:
    client, connection = served
    dice = random.Random(7)
    for ticker, every in (("KXA-25.5", 100), ("KXB", 0), ("K" + "X" * 56, 7)):
        events = history(every, ticker, 700)
        await gateway.write(connection, await gateway.add_market(connection, ticker), events, every)
        first, last = events[0].effective_us, events[-1].effective_us
        asked = [dice.randrange(first, last + 1) for _ in range(150)]
        asked += [dice.choice(events).effective_us + step for step in (-1, 0, 1) for _ in range(25)]
        asked += [first, last, last + 10**12, MIDNIGHT - 1, MIDNIGHT, MIDNIGHT + 1]
        for at_us in asked:
            if at_us < first:
                continue
            answer = await client.get(f"/v1/orderbook/{ticker}", params={"at": dice.choice(FORMS)(at_us)})
            assert answer.status_code == 200, answer.text
            body = answer.json()
            models.Book.model_validate(body)
            got = (body["yes"], body["no"], body["version"], body["checksum"], body["quality"]["gap"])
            assert got == shown(events, at_us)
            assert body["at"] == instants.text(at_us)
            state = "gap" if got[4] else "complete" if at_us < last else "pending"  # of the last microsecond more may come
            assert body["quality"]["state"] == state
            proof = body["proof"]
            before = 0 if proof["checkpoint"]["source"] == "snapshot" else proof["checkpoint"]["version"]
            assert before + proof["events_applied"] == body["version"]
            assert proof["events_applied"] < every or not every or proof["checkpoint"]["source"] == "snapshot"


async def test_before_the_first_snapshot_and_without_any(served: tuple[httpx.AsyncClient, Any]) -> None:
    client, connection = served
    events = history(1, "KXA", 100)
    await gateway.write(connection, await gateway.add_market(connection, "KXA"), events, 10)
    await gateway.add_market(connection, "KXNEW")
    answer = await client.get("/v1/orderbook/KXA", params={"at": events[0].effective_us - 1})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (404, "not_recorded_yet")
    assert error["details"]["first_recorded_at"] == instants.text(events[0].effective_us)
    answer = await client.get("/v1/orderbook/KXNEW")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_recorded_yet")
    now = (await client.get("/v1/orderbook/KXA")).json()  # nothing in Redis: Postgres answers
    assert (now["version"], now["at"]) == (100, instants.text(events[-1].effective_us))


async def test_an_ended_market_is_not_pending(served: tuple[httpx.AsyncClient, Any]) -> None:
    client, connection = served
    events = history(3, "KXA", 60)
    while isinstance(events[-1], Gap):
        events.pop()
    await gateway.write(connection, await gateway.add_market(connection, "KXA", status="determined"), events)
    body = (await client.get("/v1/orderbook/KXA", params={"at": events[-1].effective_us + 1})).json()
    assert (body["quality"]["state"], body["proof"]["recorded_through"]) == ("ended", instants.text(events[-1].effective_us - 1))


async def test_damaged_history_is_never_served_as_good(served: tuple[httpx.AsyncClient, Any]) -> None:
    client, connection = served
    damages = [
        "UPDATE book_events SET packed = set_byte(packed, 20, get_byte(packed, 20) # 4) WHERE version = 93",
        "UPDATE book_events SET packed = substring(packed FOR 30) WHERE version = 93",
        "UPDATE book_events SET events = events - 1 WHERE version = 93",
        "DELETE FROM book_events WHERE version = 70",
        "UPDATE book_events SET packed = '\\x00' WHERE kind = 1",
        "UPDATE checkpoints SET checksum = checksum + 1 WHERE true",
    ]
    for number, damage in enumerate(damages):
        ticker = f"KXA{number}"
        market = Market(ticker, MIDNIGHT)
        events = [market.event(11, 1), *(market.event(1 + i % 10, 1) for i in range(99))]  # no snapshot but the first, no gap
        market_id = await gateway.add_market(connection, ticker)
        await gateway.write(connection, market_id, events, 1000 if "kind" in damage else 90)
        assert (await client.get(f"/v1/orderbook/{ticker}", params={"at": events[-1].effective_us})).status_code == 200, damage
        await connection.execute(f"{damage} AND market_id = {market_id}")
        answer = await client.get(f"/v1/orderbook/{ticker}", params={"at": events[-1].effective_us})
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "corrupt_history"), damage
        if "packed" in damage:
            answer = await client.get(f"/v1/deltas/{ticker}", params={"limit": 200})
            assert (answer.status_code, answer.json()["error"]["code"]) == (500, "corrupt_history"), damage


async def put_checkpoint(connection: Any, market_id: int, events: list[BookEvent], book: Book | None = None) -> None:
    """Store a checkpoint after the events, and nothing else; `book`: another one than theirs."""
    last = events[-1]
    found = gateway.brute_force(events, last.effective_us)
    assert found is not None
    book = book or found[0]
    row = (last.effective_us, to_signed(book.checksum), None, market_id, last.version, None, levels.pack(book.yes, book.no))
    if isinstance(last, Gap):
        row = (*row[:2], last.start_us, *row[3:5], last.cause, row[6])
    await connection.copy_records_to_table("checkpoints", records=[row])


async def test_a_checkpoint_stored_before_its_events_is_not_taken_for_all_there_is(
    served: tuple[httpx.AsyncClient, Any],
) -> None:
    client, connection = served
    market = Market("KXA", MIDNIGHT)
    events = [market.event(11, 1), *(market.event(1 + i % 10, 0 if i == 40 else 1_000_000) for i in range(70))]
    at = [event.effective_us for event in events]
    assert at[39] < at[40] == at[41] == at[42] - 1_000_000  # version 41 is checkpointed, 42 is of its microsecond
    market_id = await gateway.add_market(connection, "KXA")
    await put_checkpoint(connection, market_id, events[:41])

    async def asked(at_us: int) -> tuple[Any, ...]:
        body = (await client.get("/v1/orderbook/KXA", params={"at": at_us})).json()
        if "error" in body:
            return body["error"]["code"], body["error"]["details"]["reason"]
        assert (body["yes"], body["no"], body["version"], body["checksum"]) == shown(events[: body["version"]], at_us)[:4]
        return body["version"], body["quality"]["state"]

    assert await asked(at[30]) == ("not_recorded_yet", "pending")
    assert await asked(at[40]) == await asked(at[60]) == (41, "pending")
    await gateway.write(connection, market_id, events[:31])
    assert await asked(at[29]) == (30, "complete")
    assert await asked(at[35]) == (31, "pending")
    assert await asked(at[40]) == (41, "pending")
    await gateway.write(connection, market_id, events[31:])
    assert await asked(at[35]) == (36, "complete")
    assert await asked(at[40] - 1) == (40, "complete")
    assert await asked(at[40]) == (42, "complete")
    assert await asked(at[60]) == (61, "complete")


async def test_a_gap_that_only_a_checkpoint_knows_is_told_and_not_another(served: tuple[httpx.AsyncClient, Any]) -> None:
    client, connection = served
    market = Market("KXA", MIDNIGHT)
    events = [market.event(roll, 1_000) for roll in (3, 4, 26, 4, 7, 39)]  # a gap that was closed, and the last one
    last = events[-1]
    assert isinstance(last, Gap)
    market_id = await gateway.add_market(connection, "KXA")
    await gateway.write(connection, market_id, events[:5])
    await put_checkpoint(connection, market_id, events)
    body = (await client.get("/v1/orderbook/KXA", params={"at": last.effective_us + 5})).json()
    gap = forms.gap(last.start_us, None, last.cause)
    assert (body["quality"]["state"], body["quality"]["gap"], body["quality"]["gaps"]) == ("gap", gap, [gap])


async def test_a_checkpoint_of_another_book_than_its_event_is_never_served(served: tuple[httpx.AsyncClient, Any]) -> None:
    client, connection = served
    market = Market("KXA", MIDNIGHT)
    events = [market.event(11, 1), *(market.event(1 + i % 10, 1) for i in range(40))]
    market_id = await gateway.add_market(connection, "KXA")
    await gateway.write(connection, market_id, events)
    await put_checkpoint(connection, market_id, events[:30], Book([(100, 5)], []))  # its own checksum is right
    answer = await client.get("/v1/orderbook/KXA", params={"at": events[29].effective_us})
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "corrupt_history")


async def test_pages_begin_inside_a_row_and_inside_a_microsecond_and_reach_over_quiet_weeks(
    served: tuple[httpx.AsyncClient, Any],
) -> None:
    client, connection = served
    market = Market("KXA", MIDNIGHT - 100)
    pauses = {60: 100, 250: 40 * 86_400_000_000}
    events = [market.event(11, 1), *(market.event(1 + i % 10, pauses.get(i, i // 90)) for i in range(399))]
    await gateway.write(connection, await gateway.add_market(connection, "KXA"), events, 250, 300)
    for event in (events[10], events[63], events[64], events[65], events[200], events[399]):
        for limit in (1, 7, 1000):
            wanted = [each.version for each in events if each.effective_us >= event.effective_us][:limit]
            page = (await client.get("/v1/deltas/KXA", params={"from": event.effective_us, "limit": limit})).json()
            assert [row["version"] for row in page["data"]] == wanted
            params = {"after_version": event.version, "limit": limit}
            page = (await client.get("/v1/deltas/KXA", params=params)).json()
            wanted = [each.version for each in events[event.version :]][:limit]
            assert [row["version"] for row in page["data"]] == wanted


async def test_pages_of_deltas_hold_every_event_and_fold_to_every_checksum(served: tuple[httpx.AsyncClient, Any]) -> None:
    client, connection = served
    events = history(5, "KXA", 500)
    await gateway.write(connection, await gateway.add_market(connection, "KXA"), events, 50)
    rows: list[dict[str, Any]] = []
    cursor: str | None = None
    while True:
        page = (await client.get("/v1/deltas/KXA", params={"limit": 37} | ({"cursor": cursor} if cursor else {}))).json()
        models.Deltas.model_validate(page)
        rows += page["data"]
        if (cursor := page["next_cursor"]) is None:
            break
    book = Book()
    for row, event in zip(rows, events, strict=True):
        if row["type"] == "snapshot":
            book = Book(*([(price(p), size(s)) for p, s in row[side]] for side in ("yes", "no")))
            assert isinstance(event, BookSnapshot)
            opened = next((each for each in events if each.version == event.version - 1 and isinstance(each, Gap)), None)
            assert row["gap"] == (None if opened is None else forms.gap(opened.start_us, event.effective_us, opened.cause))
        elif row["type"] == "delta":
            assert isinstance(event, BookDelta)
            book.apply(("yes", "no").index(row["side"]), price(row["price"]), size(row["delta"]))
        else:
            assert isinstance(event, Gap)
            assert row["cause"] == event.cause
        assert row["version"] == event.version
        assert row["checksum"] == to_hex(event.checksum) == f"{book.checksum:016x}"
    later = (await client.get("/v1/deltas/KXA", params={"after_version": 321, "limit": 5})).json()["data"]
    assert [row["version"] for row in later] == [322, 323, 324, 325, 326]
    bounds = {"from": events[200].effective_us, "to": events[260].effective_us, "limit": 1000}
    between = (await client.get("/v1/deltas/KXA", params=bounds)).json()["data"]
    within = [event.version for event in events if bounds["from"] <= event.effective_us < bounds["to"]]
    assert [row["version"] for row in between] == within


async def test_trades_markets_and_gaps_are_paged_whole(served: tuple[httpx.AsyncClient, Any]) -> None:
    client, connection = served
    ids = [
        await gateway.add_market(
            connection, f"KX{i}", status="active" if i % 2 else "settled", event_ticker="E", body='{"a":"\\u0000"}'
        )
        for i in range(9)
    ]
    trades = [(MIDNIGHT + i // 3, MIDNIGHT, 1200 + i, ids[0], 4800, 5200, i % 2, None, f"t{i:03d}", "rest") for i in range(50)]
    await connection.copy_records_to_table("trades", records=trades)
    gaps = [(MIDNIGHT, MIDNIGHT, ids[0], 7 + i, "trade", "disconnect") for i in range(5)]  # of one start, a page's end among them
    gaps += [(MIDNIGHT + i // 2, None if i % 3 else MIDNIGHT + 100, ids[i], i, "orderbook_delta", "disconnect") for i in range(9)]
    columns = ("start_us", "end_us", "market_id", "opened_version", "channel", "cause")
    await connection.copy_records_to_table("gaps", records=gaps, columns=columns)
    filled = "INSERT INTO gaps VALUES ($1, $2, $3, 0, 'trade', 'disconnect', $4, 'rest')"
    await connection.execute(filled, MIDNIGHT + 300, MIDNIGHT + 400, ids[8], MIDNIGHT + 900)

    pages = []

    async def every(path: str, **params: Any) -> list[dict[str, Any]]:
        rows, cursor = [], None
        while True:
            page = (await client.get(path, params=params | {"limit": 4} | ({"cursor": cursor} if cursor else {}))).json()
            rows += page["data"]
            pages.append(page)
            if (cursor := page["next_cursor"]) is None:
                return rows

    got = await every("/v1/trades/KX0")
    assert [row["trade_id"] for row in got] == [f"t{i:03d}" for i in range(50)]
    for page in pages:
        models.Trades.model_validate(page)
    assert got[0]["origin"] == "rest"
    assert (got[1]["yes_price"], got[1]["no_price"], got[1]["count"], got[1]["taker_side"]) == ("0.4800", "0.5200", "12.01", "no")
    some = await every("/v1/trades/KX0", **{"from": MIDNIGHT + 2, "to": MIDNIGHT + 4})
    assert [row["trade_id"] for row in some] == [f"t{i:03d}" for i in range(6, 12)]
    assert [row["ticker"] for row in await every("/v1/markets")] == [f"KX{i}" for i in range(9)]
    assert [row["ticker"] for row in await every("/v1/markets", status="active")] == ["KX1", "KX3", "KX5", "KX7"]
    assert await every("/v1/markets", series_ticker="NONE") == []
    one = (await client.get("/v1/markets/KX3")).json()
    models.OneMarket.model_validate(one)
    assert one["exchange_object"] == {"a": "\0"}
    *found, healed = await every("/v1/gaps")
    assert (healed["channel"], healed["filled"], healed["filled_at"][-7:]) == ("trade", "rest", "000900Z")
    assert [row["market_ticker"] for row in found] == [*["KX0"] * 6, *[f"KX{i}" for i in range(1, 9)]]
    models.Gaps.model_validate({"data": [*found, healed], "next_cursor": None})
    assert [row["market_ticker"] for row in await every("/v1/gaps", ticker="KX4")] == ["KX4"]
    late = await every("/v1/gaps", **{"from": MIDNIGHT + 100, "to": MIDNIGHT + 200})
    assert [row["market_ticker"] for row in late] == [f"KX{i}" for i in range(9) if i % 3]


async def test_what_markets_belong_to_what_happened_to_them_and_how_they_settled(served: tuple[httpx.AsyncClient, Any]) -> None:
    client, connection = served
    source = (await client.get("/v1/source")).json()
    await connection.copy_records_to_table(
        "series", columns=("updated_us", "ticker", "title", "category", "body"),
        records=[(MIDNIGHT, f"KXS{i}", "A series", f"C{i % 2}", f'{{"ticker":"KXS{i}","tags":["\\u0000"]}}') for i in range(6)],
    )  # fmt: skip
    await connection.copy_records_to_table(
        "events", columns=("updated_us", "ticker", "series_ticker", "title", "category", "body"),
        records=[(MIDNIGHT, f"KXS{i // 3}-{i}", f"KXS{i // 3}", None, "C0", f'{{"event_ticker":"e{i}"}}') for i in range(9)],
    )  # fmt: skip
    ids = [
        await gateway.add_market(
            connection, f"KXS{i // 3}-{i}-T1", event_ticker=f"KXS{i // 3}-{i}", status="active" if i > 5 else "finalized",
            result=None if i > 5 else "yes", settlement_value=None if i > 5 else 10_000 - i,
            settled_us=None if i > 5 else MIDNIGHT + i,
        )
        for i in range(9)
    ]  # fmt: skip
    told = [(MIDNIGHT + i // 4, MIDNIGHT + 9, ids[0], "market" if i % 5 else "activated", f'{{"n":{i}}}') for i in range(20)]
    await connection.copy_records_to_table(
        "lifecycle", columns=("clock_us", "recv_us", "market_id", "event_type", "body"), records=told
    )

    async def every(path: str, model: Any, **params: Any) -> list[dict[str, Any]]:
        rows, cursor = [], None
        while True:
            answer = await client.get(path, params=params | {"limit": 3} | ({"cursor": cursor} if cursor else {}))
            assert answer.headers["x-credits-charged"] == "1"
            page = model.model_validate(answer.json()).model_dump()
            assert page["source"] == source
            rows += page["data"]
            if (cursor := page["next_cursor"]) is None:
                return rows

    assert [row["ticker"] for row in await every("/v1/series", models.AllSeries)] == [f"KXS{i}" for i in range(6)]
    assert [row["ticker"] for row in await every("/v1/series", models.AllSeries, category="C1")] == ["KXS1", "KXS3", "KXS5"]
    one = (await client.get("/v1/series/KXS4")).json()
    assert models.OneSeries.model_validate(one).exchange_object == {"ticker": "KXS4", "tags": ["\0"]}
    assert [row["ticker"] for row in await every("/v1/events", models.Events, category="C0")] == [
        f"KXS{i // 3}-{i}" for i in range(9)
    ]
    assert [row["ticker"] for row in await every("/v1/events", models.Events, series_ticker="KXS1")] == [
        "KXS1-3",
        "KXS1-4",
        "KXS1-5",
    ]
    assert models.OneEvent.model_validate((await client.get("/v1/events/KXS1-3")).json()).exchange_object == {
        "event_ticker": "e3"
    }

    settled = await every("/v1/markets", models.Markets, status="settled", series_ticker="KXS1")
    assert [
        (row["ticker"], row["series_ticker"], row["result"], row["settlement_value"], row["settled_at"]) for row in settled
    ] == [(f"KXS1-{i}-T1", "KXS1", "yes", f"0.{10_000 - i}", instants.text(MIDNIGHT + i)) for i in (3, 4, 5)]
    then = {"settled_from": MIDNIGHT + 1, "settled_to": instants.text(MIDNIGHT + 5)}
    assert [row["ticker"][-4] for row in await every("/v1/markets", models.Markets, **then)] == ["1", "2", "3", "4"]
    assert [row["ticker"] for row in await every("/v1/markets", models.Markets, event_ticker="KXS2-8", status="active")] == [
        "KXS2-8-T1"
    ]

    happened = await every("/v1/lifecycle/KXS0-0-T1", models.Lifecycles)
    assert [row["at"] for row in happened] == [instants.text(MIDNIGHT + i // 4) for i in range(20)]
    assert sorted(row["exchange_object"]["n"] for row in happened) == list(range(20))
    some = await every(
        "/v1/lifecycle/KXS0-0-T1", models.Lifecycles, event_type="activated", **{"from": MIDNIGHT + 1, "to": MIDNIGHT + 4}
    )
    assert [row["exchange_object"]["n"] for row in some] == [5, 10, 15]
    assert await every("/v1/lifecycle/KXS0-1-T1", models.Lifecycles) == []


async def test_now_is_the_live_book_and_coverage_follows_the_persister(
    served: tuple[httpx.AsyncClient, Any], cluster: Cluster, redis_url: str
) -> None:
    client, connection = served
    market = Market("KXA", MIDNIGHT)
    events = [market.event(1 + number % 10, 20_000_000) for number in range(20)]
    await gateway.write(connection, await gateway.add_market(connection, "KXA"), events[:5])
    cache = redis.asyncio.from_url(redis_url)
    name, last = f"{cluster.prefix}kb:book:KXA", events[-1]
    book = Checkpoint(
        "KXA", 20, last.effective_us, list(market.book.yes), list(market.book.no), last.checksum, None, None, "g1", 0, 1, 0, 0
    )
    await cache.set(name, codec.encode(book))
    now = (await client.get("/v1/orderbook/KXA")).json()
    models.Book.model_validate(now)
    assert (now["version"], now["at"], now["yes"]) == (20, instants.text(last.effective_us), forms.levels(market.book.yes))
    assert (now["proof"]["checkpoint"]["source"], now["quality"]["state"], now["quality"]["gap"]) == ("live", "complete", None)
    await cache.set(name, codec.encode(book._replace(gap_start_us=MIDNIGHT, gap_cause="disconnect")))
    quality = (await client.get("/v1/orderbook/KXA")).json()["quality"]
    assert (quality["state"], quality["gap"]) == ("gap", forms.gap(MIDNIGHT, None, "disconnect"))
    await cache.set(name, codec.encode(book._replace(checksum=last.checksum ^ 1)))
    answer = await client.get("/v1/orderbook/KXA")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "corrupt_history")
    await cache.aclose()

    async with Producer(cluster) as producer:
        for event in events:
            producer.add(topics.BOOK, b"KXA", codec.encode(event))
            await producer.flush()

    async def state(at_us: int) -> str:
        return str((await client.get("/v1/orderbook/KXA", params={"at": at_us})).json()["quality"]["state"])

    partition, at_us = partition_of(b"KXA", cluster.partitions), events[9].effective_us
    await connection.execute("INSERT INTO consumer_offsets VALUES ($1, $2, 5)", cluster.topic(topics.BOOK), partition)

    async def offsets_were_read(us: int = at_us) -> bool:
        return await state(us) == "complete"

    with pytest.raises(TimeoutError):  # five are stored: what was at the tenth is not known
        await gateway.eventually(offsets_were_read, 3)
    await connection.execute("UPDATE consumer_offsets SET next_offset = 20")
    await gateway.eventually(lambda: offsets_were_read(last.effective_us - 10_000_000))
    assert await offsets_were_read()
    assert await state(last.effective_us - 9_999_999) == "pending"


async def test_a_port_in_use_is_one_line_that_says_what_to_do(
    served: tuple[httpx.AsyncClient, Any], cluster: Cluster, database: str, redis_url: str, tmp_path: Path
) -> None:
    client, _ = served
    folder = tmp_path / "second"
    folder.mkdir()
    with pytest.raises(AssertionError):
        async with gateway.running(cluster, database, redis_url, folder, KB_GATEWAY_PORT=str(client.base_url.port)):
            pass
    said = (folder / "gateway.log").read_text().splitlines()[-1]
    assert said.startswith("configuration: ") and "choose another port" in said


REFUSED = [
    ("/v1/orderbook/KXNONE", 404, "unknown_market"),
    ("/v1/orderbook/KXNONE?at=1762128000", 404, "unknown_market"),
    ("/v1/orderbook/no%00pe%27%3B", 404, "unknown_market"),
    ("/v1/deltas/KXNONE", 404, "unknown_market"),
    ("/v1/trades/KXNONE", 404, "unknown_market"),
    ("/v1/markets/KXNONE", 404, "unknown_market"),
    ("/v1/gaps?ticker=KXNONE", 404, "unknown_market"),
    ("/v1/lifecycle/KXNONE", 404, "unknown_market"),
    ("/v1/events/KXNONE", 404, "unknown_event"),
    ("/v1/series/no%00pe", 404, "unknown_series"),
    ("/v1/series?category=%00", 422, "invalid_parameter"),
    ("/v1/markets?settled_from=yesterday", 422, "invalid_parameter"),
    ("/v1/lifecycle/KXA?cursor=WzAsLTFd", 422, "invalid_parameter"),
    ("/v1/orderbook/KXA?at=yesterday", 422, "invalid_parameter"),
    ("/v1/orderbook/KXA?at=", 422, "invalid_parameter"),
    ("/v1/orderbook/KXA?at=2025-11-03T00:00:00", 422, "invalid_parameter"),
    ("/v1/deltas/KXA?from=1e9", 422, "invalid_parameter"),
    ("/v1/deltas/KXA?limit=1001", 422, "invalid_parameter"),
    ("/v1/deltas/KXA?limit=x", 422, "invalid_parameter"),
    ("/v1/deltas/KXA?cursor=%F0%9F", 422, "invalid_parameter"),
    ("/v1/markets?cursor=WzFd", 422, "invalid_parameter"),
    ("/v1/markets?status=%00", 422, "invalid_parameter"),
    ("/v1/nothing", 404, "not_found"),
    ("/nothing", 404, "not_found"),
    ("/v1/markets?cursor=" + "x" * 9000, 414, "uri_too_long"),
]


async def test_every_error_has_the_envelope(served: tuple[httpx.AsyncClient, Any]) -> None:
    client, connection = served
    await gateway.add_market(connection, "KXA")
    for path, status, code in REFUSED:
        answer = await client.get(path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
        models.Envelope.model_validate(answer.json())
        assert "x-credits-charged" not in answer.headers
    for method, path, status, code in (
        ("POST", "/v1/orderbook/KXA", 405, "method_not_allowed"),
        ("DELETE", "/v1/markets", 405, "method_not_allowed"),
    ):
        answer = await client.request(method, path, content=b"{}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    answer = await client.request("GET", "/v1/markets", content=b"x" * 70_000)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
