"""What answers say of their own completeness, from a real gateway over real Postgres."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from kalshibook_core.kafka.cluster import Cluster
from kalshibook_core.postgres.pool import connect
from services.gateway import forms, instants, models
from tests.support import gateway
from tests.support.canonical import Market

MIDNIGHT = 1_762_128_000_000_000  # 2025-11-03T00:00:00Z
SECOND = 1_000_000


@pytest.fixture
async def served(cluster: Cluster, database: str, redis_url: str, tmp_path: Path) -> AsyncIterator[tuple[httpx.AsyncClient, Any]]:
    connection = await connect(database)
    async with gateway.running(cluster, database, redis_url, tmp_path) as process:
        headers = {"X-API-Key": await gateway.key(database)}
        async with httpx.AsyncClient(base_url=process.url, headers=headers, timeout=30) as client:
            yield client, connection
    await connection.close()


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
    assert trades["gaps"][0] == forms.gap(MIDNIGHT - SECOND, first_us + 15 * SECOND, "not_yet_subscribed")
    await connection.execute("UPDATE markets SET status = 'determined'")
    assert (await asked("deltas", **{"from": ended_us, "to": last_us + SECOND}))["state"] == "ended"

    async def metered() -> bool:
        return bool(await connection.fetchval("SELECT count(*) FROM usage_ledger") == answered)

    await gateway.eventually(metered)
