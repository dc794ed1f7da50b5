"""What answers say of their own completeness, from a real gateway over real Postgres."""

from typing import Any

import httpx

from kalshibook_core.postgres import pool
from kalshibook_core.wire.events import BookDelta
from services.gateway import forms, instants, models
from services.persister.coverage import SETTLE_US
from tests.support import gateway
from tests.support.canonical import Market
from tests.support.written import Written, audit, trade, word

MIDNIGHT = 1_762_128_000_000_000  # 2025-11-03T00:00:00Z
SECOND, HOUR, DAY = 1_000_000, 3_600_000_000, 86_400_000_000


async def test_every_answer_says_what_is_missing_and_strict_refuses_it_free_of_charge(
    served: tuple[httpx.AsyncClient, Any],
) -> None:
    client, connection = served
    market = Market("KXA", MIDNIGHT)
    snapshot, *deltas = [market.event(roll, SECOND) for roll in (1, 2, 3, 4)]
    gap, ended, last = (market.event(39, SECOND), market.event(1, 7 * SECOND), market.event(2, SECOND))
    assert (type(gap).__name__, type(ended).__name__) == ("Gap", "BookSnapshot")
    market_id = await gateway.add_market(connection, "KXA", open_us=MIDNIGHT - SECOND)
    await gateway.write(connection, market_id, [snapshot, *deltas, gap, ended, last])
    first_us, opened_us, ended_us, last_us = (event.effective_us for event in (snapshot, gap, ended, last))
    span = forms.gap(opened_us, ended_us, "disconnect")

    answered = 0

    async def asked(path: str, **params: Any) -> Any:
        answer = await client.get(f"/v1/{path}/KXA", params=params)
        nonlocal answered
        assert answer.status_code == 200, answer.text
        quality = answer.json()["quality"]
        models.Quality.model_validate(quality)
        strict = await client.get(f"/v1/{path}/KXA", params=params | {"strict": "true"})
        if quality["state"] in ("complete", "ended"):
            assert (strict.status_code, strict.json()["quality"]) == (200, quality)
        else:
            error = strict.json()["error"]
            assert (strict.status_code, error["code"], error["details"]["quality"]) == (409, "incomplete", quality)
        answered += 1 + (strict.status_code == 200)
        return quality

    whole = await asked("deltas", **{"from": first_us, "to": opened_us})
    assert (whole["state"], whole["gaps"], whole["completeness_ppm"], whole["pending"]) == ("complete", [], 1_000_000, False)
    # Nine seconds and a bit before the book began; seven of ten in the gap; of the last microsecond more may come.
    told = await asked("deltas")
    early = forms.gap(MIDNIGHT - SECOND, first_us, "not_yet_subscribed")
    assert (told["from"], told["to"]) == (instants.text(MIDNIGHT - SECOND), instants.text(last_us))
    assert (told["state"], told["gaps"], told["more"]) == ("gap", [early, span], False)
    missing = (first_us - MIDNIGHT + SECOND) + (ended_us - opened_us)
    assert told["uncovered_us"] == missing
    length = last_us - MIDNIGHT + SECOND
    assert told["completeness_ppm"] == 1_000_000 * (length - missing) // length
    page = await asked("deltas", **{"from": first_us, "limit": 2})  # it covers what lies before the next page
    assert (page["to"], page["state"]) == (instants.text(deltas[0].effective_us), "complete")
    assert (await asked("deltas", **{"from": ended_us, "to": last_us + SECOND}))["state"] == "pending"
    assert (await asked("orderbook", at=opened_us))["gaps"] == [span]
    assert (await asked("orderbook", at=opened_us - 1))["state"] == "complete"
    assert (await asked("orderbook", at=last_us + 1))["state"] == "pending"
    assert (await asked("orderbook"))["state"] == "complete"
    await connection.execute("INSERT INTO gaps VALUES ($1, $2, $3, 0, 'trade', 'silent_socket')", last_us, last_us, market_id)
    trades = await asked("trades", **{"from": last_us, "to": last_us + 1})
    assert (trades["state"], [each["cause"] for each in trades["gaps"]]) == ("gap", ["not_yet_subscribed", "silent_socket"])
    assert trades["gaps"][0] == forms.gap(MIDNIGHT - SECOND, first_us + 25 * SECOND, "not_yet_subscribed")
    await connection.execute("UPDATE markets SET status = 'determined'")
    assert (await asked("deltas", **{"from": ended_us, "to": last_us + SECOND}))["state"] == "ended"

    async def metered() -> bool:
        return bool(await connection.fetchval("SELECT count(*) FROM usage_ledger") == answered)

    await gateway.eventually(metered)


async def test_hours_days_conditions_and_incidents(served: tuple[httpx.AsyncClient, Any], database: str) -> None:
    client, connection = served
    calm, hurt = Market("KXCALM", MIDNIGHT), [Market(f"KXHURT{n}", MIDNIGHT) for n in range(3)]
    async with await pool.connect_pool(database, size=3) as connections:
        written = Written(connections, connection, MIDNIGHT + 1_000 * DAY)
        deltas = [calm.event(2 + n % 8, 600 * SECOND) for n in range(12)]
        delta = deltas[-1]
        assert isinstance(delta, BookDelta)
        deltas[-1] = delta._replace(recv_us=delta.effective_us + 70_000)
        await written.write(*deltas, trade("KXCALM", 1, MIDNIGHT + 3_000 * SECOND, 1_500_000), audit("KXCALM", MIDNIGHT + HOUR))
        await written.write(*(market.event(1, SECOND) for market in hurt))
        gaps = [market.event(39, SECOND * (1 + n)) for n, market in enumerate(hurt)]
        ended = [market.event(1, 4 * SECOND) for market in hurt]
        later = [market.event(2, DAY) for market in (calm, *hurt)]
        await written.write(*gaps, *ended, *later)
        await written.measure(MIDNIGHT + DAY + 2 * HOUR + SETTLE_US)

        async def told(path: str, model: type[models.Model], **params: Any) -> Any:
            answer = await client.get(f"/v1/{path}", params=params)
            assert answer.status_code == 200, answer.text
            model.model_validate(answer.json())
            assert "x-credits-charged" not in answer.headers
            return answer.json()

        days = {"from": MIDNIGHT, "to": MIDNIGHT + 4 * HOUR}
        by_hour = await told("quality/KXCALM", models.MarketQuality, **days)
        first, second, third, _ = by_hour["data"]
        assert [(row["events"], row["trades"], row["revision"]) for row in by_hour["data"]] == [
            *((5, 1, 1), (6, 0, 1), (1, 0, 1), (0, 0, 0))
        ]
        assert (first["first_version"], second["first_version"], third["last_version"]) == (1, 6, 12)
        assert first["latency"] == {"events": 5, "p50_us": 1_000, "p99_us": 1_500_000, "max_us": 1_500_000}
        assert third["latency"] == {"events": 1, "p50_us": 70_000, "p99_us": 70_000, "max_us": 70_000}
        assert second["audits"] == {"matched": 1, "mismatched": 0, "unknown": 0}
        early = 600 * SECOND  # when the market opened is not known, so it may have been open before its first book
        assert (first["quality"]["uncovered_us"], by_hour["quality"]["uncovered_us"]) == (early, early)
        assert first["quality"]["completeness_ppm"] == 1_000_000 * (HOUR - early) // HOUR
        (day,) = (await told("quality/KXCALM", models.MarketQuality, by="day", **days))["data"]
        assert (day["events"], day["revision"], day["latency"]["events"]) == (12, 3, 12)
        assert (await told("quality/KXHURT1", models.MarketQuality, **days))["data"][0]["quality"]["gaps"][1] == forms.gap(
            gaps[1].effective_us, ended[1].effective_us, "disconnect"
        )
        # What came after is measured when it is asked for, until it is measured for good.
        await written.write(trade("KXCALM", 2, MIDNIGHT + 5 * SECOND))
        first = (await told("quality/KXCALM", models.MarketQuality, **days))["data"][0]
        assert (first["trades"], first["revision"], first["events"]) == (2, 1, 5)
        await written.measure(MIDNIGHT + DAY + 2 * HOUR + SETTLE_US)
        first = (await told("quality/KXCALM", models.MarketQuality, **days))["data"][0]
        assert (first["trades"], first["revision"]) == (2, 2)

        two = {"from": MIDNIGHT - DAY, "to": MIDNIGHT + 2 * DAY}
        conditions = (await told("conditions", models.Conditions, **two))["data"]
        assert [(row["day"], row["condition"]) for row in conditions] == [
            *(("2025-11-02", "missing"), ("2025-11-03", "degraded"), ("2025-11-04", "pending"))
        ]
        assert (conditions[1]["markets"], conditions[1]["markets_with_gap"], conditions[1]["revision"]) == (4, 3, 2)
        of_one = (await told("conditions/KXHURT0", models.MarketConditions, **two))["data"]
        assert [(row["day"], row["condition"]) for row in of_one] == [("2025-11-03", "degraded"), ("2025-11-04", "pending")]
        incident = {
            "cause": "disconnect", "channel": "orderbook_delta", "start": instants.text(gaps[1].effective_us),
            "end": instants.text(ended[1].effective_us), "markets": 3, "at_once": 3,
        }  # fmt: skip
        found = await told("incidents", models.Incidents, min_markets=2, **two)
        assert found["data"] == [incident]
        assert (await told("incidents", models.Incidents, **two))["data"] == []
        for path, wrong in (("incidents", "32"), ("quality/KXCALM", "32"), ("conditions", "400")):
            answer = await client.get(f"/v1/{path}", params={"from": MIDNIGHT, "to": MIDNIGHT + int(wrong) * DAY})
            assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_parameter")
        assert (await client.get("/v1/quality/KXNONE")).status_code == 404

        # A gap that nothing ended lasts, as it is measured, until its market's end was heard. Of the book itself it has no end.
        lost = [market.event(39, HOUR) for market in hurt]
        end_us = lost[0].effective_us + 5 * SECOND
        heard = [word(market.ticker, "determined", end_us + n) for n, market in enumerate(hurt)]
        heard += [word(market.ticker, "settled", end_us + DAY) for market in hurt]
        await written.write(*lost, *heard, calm.event(2, DAY), calm.event(2, DAY))
        await written.measure(MIDNIGHT + 3 * DAY + SETTLE_US)
        three = {"from": MIDNIGHT + DAY, "to": MIDNIGHT + 3 * DAY}
        (found,) = (await told("incidents", models.Incidents, min_markets=2, **three))["data"]
        assert (found["end"], found["markets"]) == (instants.text(end_us + 1), 3)
        conditions = (await told("conditions", models.Conditions, **three))["data"]
        assert [(row["condition"], row["markets_with_gap"]) for row in conditions] == [("degraded", 3), ("available", 0)]
        of_one = (await told("conditions/KXHURT0", models.MarketConditions, **three))["data"]
        assert [row["quality"]["state"] for row in of_one] == ["gap", "ended"]
        span = {"from": end_us, "to": MIDNIGHT + 3 * DAY}
        first, second, *_ = (await told("quality/KXHURT0", models.MarketQuality, **span))["data"]
        assert (first["quality"]["gap"]["end"], second["quality"]["state"]) == (instants.text(end_us), "ended")
        await connection.execute("UPDATE markets SET ended_us = 1 WHERE ticker = 'KXHURT1'")  # it never ends before it begins
        (late,) = (await told("quality/KXHURT1", models.MarketQuality, **span))["data"][0]["quality"]["gaps"]
        assert late["start"] == late["end"] == instants.text(lost[1].effective_us)
        page = (await client.get("/v1/deltas/KXHURT0", params=span)).json()["quality"]
        assert (page["state"], page["gap"]["end"]) == ("gap", None)
        assert (await client.get("/v1/gaps", params={"ticker": "KXHURT0"})).json()["data"][-1]["end"] is None
