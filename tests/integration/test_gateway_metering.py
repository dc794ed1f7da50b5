"""Keys and credits of a real gateway process: every answered call once in the ledger, through kill -9.

And no key in a log.
"""

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import redis.asyncio
from websockets.asyncio.client import connect as connect_stream

from kalshibook_core.kafka import topics
from kalshibook_core.kafka.cluster import Cluster
from kalshibook_core.kafka.producer import Producer
from kalshibook_core.postgres.pool import connect
from kalshibook_core.wire import codec
from kalshibook_core.wire.events import Usage
from services.gateway import models
from services.gateway.keys import store as keys
from tests.support import gateway
from tests.support.canonical import Market

AT = 1_762_128_000_000_000


@contextlib.asynccontextmanager
async def connected(database: str) -> Any:
    connection = await connect(database)
    try:
        yield connection
    finally:
        await connection.close()


async def one_market(connection: "asyncpg.Connection[Any]") -> None:
    market = Market("KXA", AT)
    await gateway.write(connection, await gateway.add_market(connection, "KXA"), [market.event(1, 1) for _ in range(250)])


async def there(connection: "asyncpg.Connection[Any]", expected: int) -> bool:
    return bool(await connection.fetchval("SELECT count(*) FROM usage_ledger") >= expected)


async def ledger(connection: "asyncpg.Connection[Any]", expected: int) -> list[Any]:
    """Return the ledger's rows once there are as many as expected, or as many as there are after a while."""
    with contextlib.suppress(TimeoutError):
        await gateway.eventually(lambda: there(connection, expected))
    return list(await connection.fetch("SELECT * FROM usage_ledger"))


async def test_each_answered_call_is_in_the_ledger_once_through_kills(
    cluster: Cluster, database: str, redis_url: str, tmp_path: Path
) -> None:
    secret = await gateway.key(database)
    answered: dict[str, int] = {}
    async with connected(database) as connection, gateway.running(cluster, database, redis_url, tmp_path) as process:
        await one_market(connection)

        async def call(client: httpx.AsyncClient, number: int) -> None:
            path = ("/v1/orderbook/KXA", f"/v1/orderbook/KXA?at={AT + 90}", "/v1/deltas/KXA?limit=250", "/v1/orderbook/KXNONE")
            with contextlib.suppress(httpx.TransportError):
                answer = await client.get(process.url + path[number % 4], headers={"Authorization": f"Bearer {secret}"})
                assert answer.status_code == (404 if number % 4 == 3 else 200), answer.text
                if answer.status_code == 200:
                    assert int(answer.headers["x-credits-charged"]) == (1, 2, 3)[number % 4]
                    assert answer.headers["x-request-id"] not in answered
                    answered[answer.headers["x-request-id"]] = (1, 2, 3)[number % 4]

        for _ in range(2):
            async with httpx.AsyncClient(timeout=300) as client, asyncio.TaskGroup() as tasks:

                async def stream_of_calls(first: int, client: httpx.AsyncClient = client) -> None:
                    for number in range(first, first + 60):
                        await call(client, number)

                async def enough(goal: int) -> bool:
                    return len(answered) >= goal

                async def kill_in_the_middle(goal: int) -> None:
                    await gateway.eventually(lambda: enough(goal))
                    process.kill()

                goal = len(answered) + 150
                for first in range(8):
                    tasks.create_task(stream_of_calls(first))
                tasks.create_task(kill_in_the_middle(goal))
            await process.start()
        async with httpx.AsyncClient(timeout=300) as client, asyncio.TaskGroup() as tasks:
            for number in range(200):
                tasks.create_task(call(client, number))
        cache = redis.asyncio.from_url(redis_url)

        async def credits() -> list[int]:
            return [int(await cache.get(name)) async for name in cache.scan_iter(f"{cluster.prefix}kb:credits:*")]

        async def settled() -> bool:
            return await credits() == [await connection.fetchval("SELECT sum(credits) FROM usage_ledger")]

        await gateway.eventually(settled)  # what a killed gateway left as well, which nobody was answered
        assert await process.stop() == 0
        rows = await connection.fetch("SELECT * FROM usage_ledger")
        billed = {row["usage_id"]: row["credits"] for row in rows}
        assert len(billed) == len(rows)
        assert answered.items() <= billed.items()
        # More than was answered only where a kill fell between taking the credits and the answer: at most the calls under way.
        assert len(billed) - len(answered) <= 2 * 8
        assert secret not in process.log() and secret[8:] not in process.log()
        assert await cache.hlen(f"{cluster.prefix}kb:usage:pending") == 0
        assert await credits() == [sum(billed.values())]
        await cache.aclose()


async def test_two_gateways_share_credits_and_ledger(cluster: Cluster, database: str, redis_url: str, tmp_path: Path) -> None:
    secret = await gateway.key(database)
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    async with connected(database) as connection, gateway.running(cluster, database, redis_url, folders[0]) as first:
        await one_market(connection)
        ids = set()
        async with httpx.AsyncClient(timeout=30, headers={"X-API-Key": secret}) as client:

            async def call(process: gateway.Gateway) -> None:
                answer = await client.get(f"{process.url}/v1/orderbook/KXA")
                assert answer.status_code == 200
                ids.add(answer.headers["x-request-id"])

            async with gateway.running(cluster, database, redis_url, folders[1]) as second:
                for _ in range(40):  # the group's partitions move from one to both meanwhile
                    await asyncio.gather(call(first), call(second))
                assert await second.stop() == 0
            for _ in range(20):
                await call(first)
        assert {row["usage_id"] for row in await ledger(connection, 100)} == ids
        assert len(ids) == 100


async def test_a_plan_ends_exactly_at_its_allowance_and_usage_shows_ones_own(
    cluster: Cluster, database: str, redis_url: str, tmp_path: Path
) -> None:
    free, other = await gateway.key(database, "free one", "free"), await gateway.key(database, "other")
    async with connected(database) as connection:
        await one_market(connection)
        account = await connection.fetchval("SELECT id FROM accounts WHERE name = 'free one'")
        # 9,980 of 10,000 credits are used already, by the ledger; Redis knows nothing of it.
        await connection.execute(
            "INSERT INTO usage_ledger (at_us, credits, status, usage_id, account_id, key_id, endpoint) "
            "SELECT (extract(epoch FROM now()) * 1e6)::bigint, 9980, 200, 'before', $1, 'key', 'orderbook'",
            account,
        )
        async with gateway.running(cluster, database, redis_url, tmp_path) as process, httpx.AsyncClient(timeout=30) as client:
            headers, path = {"X-API-Key": free}, f"{process.url}/v1/orderbook/KXA"
            async with asyncio.TaskGroup() as tasks:
                calls = [tasks.create_task(client.get(path, headers=headers)) for _ in range(50)]
            answers = [each.result() for each in calls]
            assert sorted(each.status_code for each in answers) == [200] * 20 + [402] * 30
            refused = next(each for each in answers if each.status_code == 402).json()
            assert refused["error"]["code"] == "out_of_credits" and "yes" not in refused
            assert min(int(each.headers["x-credits-remaining"]) for each in answers if each.status_code == 200) == 0
            assert (await client.get(path, headers={"X-API-Key": other})).status_code == 200
            assert (await client.get(f"{process.url}/v1/gaps", headers=headers)).status_code == 200  # free of charge
            await ledger(connection, 22)
            usage = (await client.get(f"{process.url}/v1/usage", headers=headers)).json()
            models.Usage.model_validate(usage)
            assert (usage["credits_used"], usage["credits_remaining"]) == (10_000, 0)
            assert sum(row["calls"] for row in usage["data"]) == 21
            others = (await client.get(f"{process.url}/v1/usage", headers={"X-API-Key": other})).json()
            assert (others["account"], others["credits_used"], others["credits_remaining"]) == ("other", 1, None)


async def test_without_redis_calls_are_served_and_still_metered(cluster: Cluster, database: str, tmp_path: Path) -> None:
    secret = await gateway.key(database)
    async with connected(database) as connection:
        await one_market(connection)
        async with (
            gateway.running(cluster, database, "redis://127.0.0.1:1/0", tmp_path) as process,
            httpx.AsyncClient(timeout=30, headers={"X-API-Key": secret}) as client,
        ):
            for _ in range(20):
                assert (await client.get(f"{process.url}/v1/orderbook/KXA")).status_code == 200
            status = (await client.get(f"{process.url}/status")).json()
            assert status["counters"]["calls_without_redis_total"] == 20
            assert await process.stop() == 0  # the drain flushes usage to Kafka
        async with gateway.running(cluster, database, "redis://127.0.0.1:1/0", tmp_path):
            assert len(await ledger(connection, 20)) == 20


async def test_keys_open_and_revoked_keys_close(cluster: Cluster, database: str, redis_url: str, tmp_path: Path) -> None:
    async with (
        connected(database) as connection,
        gateway.running(cluster, database, redis_url, tmp_path, KB_LOG_LEVEL="debug") as process,
    ):
        account = await keys.create_account(connection, "a", "pro", 1)
        made = await keys.create_key(connection, account, 1)
        async with httpx.AsyncClient(base_url=process.url, timeout=30) as client:

            async def code(headers: dict[str, str], path: str = "/v1/markets") -> tuple[int, str]:
                answer = await client.get(path, headers=headers)
                return answer.status_code, answer.json().get("error", {}).get("code", "")

            assert await code({}) == (401, "missing_key")
            assert await code({}, f"/v1/markets?key={made.secret}&api_key={made.secret}") == (401, "missing_key")
            assert await code({}, "/v1/nothing") == (401, "missing_key")
            assert await code({"X-API-Key": "kb_live_" + "x" * 32}) == (401, "unknown_key")
            assert await code({"X-API-Key": "'; DROP TABLE accounts; --"}) == (401, "unknown_key")
            assert await code({"Authorization": "Basic abc"}) == (401, "missing_key")
            assert await code({"Authorization": f"bearer {made.secret}"}) == (200, "")
            assert await code({"X-API-Key": made.secret}) == (200, "")
            stream = process.url.replace("http", "ws") + f"/v1/stream?key={made.secret}"
            async with connect_stream(stream, additional_headers={"X-API-Key": made.secret}):
                pass
            assert await keys.revoke_key(connection, made.id, 2)
            assert not await keys.revoke_key(connection, made.id, 2)

            async def closed() -> bool:
                return await code({"X-API-Key": made.secret}) == (401, "unknown_key")

            await gateway.eventually(closed)
            for path in ("/healthz", "/readyz", "/metrics", "/status", "/docs", "/openapi.json"):
                assert (await client.get(path)).status_code == 200
        assert made.secret not in process.log()
        stored = await connection.fetchrow("SELECT * FROM api_keys")
        assert made.secret not in str(dict(stored))


async def test_a_repeated_or_foreign_usage_event_changes_nothing(
    cluster: Cluster, database: str, redis_url: str, tmp_path: Path
) -> None:
    usage = Usage("u1", "acct", "key", "orderbook", 1, AT, 200)
    async with connected(database) as connection, gateway.running(cluster, database, redis_url, tmp_path):
        async with Producer(cluster) as producer:
            for value in (codec.encode(usage), b"\x00\x00\x00\x00\x09broken", b"foreign", codec.encode(usage)):
                producer.add(topics.USAGE, b"acct", value)
            await producer.flush()
            producer.add(topics.USAGE, b"acct", codec.encode(usage._replace(usage_id="u2")))
        assert [row["usage_id"] for row in sorted(await ledger(connection, 2))] == ["u1", "u2"]
