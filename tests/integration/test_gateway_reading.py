"""Books by version and by receipt, samples, top-of-book series and candles, from a real process, against the obvious fold."""

import random
from bisect import bisect_right
from collections.abc import AsyncIterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import httpx
import pytest

from kalshibook_core.kafka.cluster import Cluster
from kalshibook_core.postgres.pool import connect
from kalshibook_core.wire.events import BookEvent
from services.gateway import instants, models
from tests.integration.test_gateway_history import MIDNIGHT, history, shown
from tests.support import gateway


@pytest.fixture
async def served(cluster: Cluster, database: str, redis_url: str, tmp_path: Path) -> AsyncIterator[tuple[httpx.AsyncClient, Any]]:
    connection = await connect(database)
    async with gateway.running(cluster, database, redis_url, tmp_path) as process:
        headers = {"X-API-Key": await gateway.key(database)}
        async with httpx.AsyncClient(base_url=process.url, headers=headers, timeout=30) as client:
            yield client, connection
    await connection.close()


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
        for version in (1, 2, 59, 60, 61, 400, *dice.choices(range(1, 401), k=12)):
            body = (await client.get(f"/v1/orderbook/{ticker}", params={"version": version})).json()
            models.Book.model_validate(body)
            wanted = shown(events[:version], instants.LAST_US)
            assert (body["yes"], body["no"], body["version"], body["checksum"]) == wanted[:4]
            assert (body["quality"]["state"] == "gap") == (wanted[4] is not None)
        answer = await client.get(f"/v1/orderbook/{ticker}", params={"version": 401})
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "version_not_recorded")
        latest = list(accumulate((event.recv_us for event in events), max))
        asked = [dice.choice(latest) + step for step in (-1, 0, 1) for _ in range(8)]
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


async def every(client: httpx.AsyncClient, path: str, **params: Any) -> list[dict[str, Any]]:
    """Return the rows of all pages."""
    rows, cursor = list[dict[str, Any]](), None
    while True:
        answer = await client.get(path, params=params | ({"cursor": cursor} if cursor else {}))
        assert answer.status_code == 200, answer.text
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
                models.BidsSample.model_validate(row)
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
