"""The gatherer as a process: killed, stopped, refused, told wrong; and spread over several connections."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import orjson
import pytest

from kalshibook_core.kafka import admin, topics
from kalshibook_core.kafka.cluster import Cluster
from kalshibook_core.kafka.consumer import Consumer
from kalshibook_core.kalshi import signing
from kalshibook_core.wire.events import RawFrame
from kalshibook_tools import simulator
from tests.integration import test_ingest_capture as capture_tests
from tests.integration.test_ingest_capture import BOOK, TRADE, Capture, capturing

pytestmark = pytest.mark.stack


def environment(cluster: Cluster, exchange: simulator.Running) -> dict[str, str]:
    return {
        "PATH": os.defpath,
        "KB_KAFKA_BROKERS": cluster.brokers,
        "KB_TOPIC_PREFIX": cluster.prefix,
        "KB_KALSHI_WS_URL": exchange.ws_url,
        "KB_KALSHI_REST_URL": exchange.rest_url,
        "KALSHI_API_KEY_ID": exchange.key_id,
        "KALSHI_PRIVATE_KEY_PATH": str(exchange.private_key_path),
    }


@asynccontextmanager
async def process(env: dict[str, str]) -> AsyncIterator[asyncio.subprocess.Process]:
    running = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.ingest", env=env, stderr=asyncio.subprocess.PIPE, limit=1 << 20
    )
    try:
        yield running
    finally:
        if running.returncode is None:
            running.kill()
        await running.communicate()


async def event(running: asyncio.subprocess.Process, name: str) -> dict[str, object]:
    """Return the first log line of this name."""
    assert running.stderr is not None
    async with asyncio.timeout(60):
        async for line in running.stderr:
            if line.startswith(b"{") and (said := orjson.loads(line))["event"] == name:
                return dict(said)
    raise AssertionError(f"the process ended without saying {name}")


@asynccontextmanager
async def watched(cluster: Cluster, key_dir: Path) -> AsyncIterator[Capture]:
    """Run the simulator and a reader of the raw topic; the gatherer is the test's."""
    await admin.ensure_topics(cluster)
    async with (
        simulator.serve(simulator.Config(key_dir, markets=6, rate=400.0, seed=5, window=capture_tests.ALWAYS)) as exchange,
        Consumer(cluster, [topics.RAW]) as consumer,
        asyncio.TaskGroup() as tasks,
    ):
        capture = Capture(exchange, None, asyncio.Event())  # type: ignore[arg-type]  # the gatherer is a process here
        reading = tasks.create_task(capture_tests._follow(consumer, capture))
        yield capture
        await capture_tests._read_up(consumer, reading, capture)


async def test_killed_it_comes_back_as_a_new_generation(cluster: Cluster, tmp_path: Path) -> None:
    """kill -9 leaves whole records only, no BREAK, and the next life begins with a snapshot of every book."""
    async with watched(cluster, tmp_path) as capture:
        env = environment(cluster, capture.exchange)
        async with process(env) as running:
            await capture.begun()
            running.kill()
            await running.wait()
        markets, first = set(capture.tickers), {r.generation for r in capture.of("FRAME")}
        async with process(env):
            await capture.until(lambda: {r.generation for r in capture.of("FRAME")} - first, "a new generation")
            new = max(r.generation for r in capture.of("FRAME"))
            assert new > max(first)
            await capture.until(lambda: _known(capture, new) >= markets, "every book anew")
        assert not capture.of("BREAK")
        capture_tests.assert_contiguous(capture)
        for ticker in markets:
            begun = next(r for r in capture.of("FRAME") if r.market_ticker == ticker and r.generation == new)
            assert b"orderbook_snapshot" in begun.payload


def _known(capture: Capture, generation: int) -> set[str]:
    return {r.market_ticker for r in capture.of("FRAME") if r.generation == generation and b"_snapshot" in r.payload}


async def test_sigterm_breaks_what_is_held_and_exits_0(cluster: Cluster, tmp_path: Path) -> None:
    async with watched(cluster, tmp_path) as capture:
        async with process(environment(cluster, capture.exchange)) as running:
            await capture.begun()
            running.send_signal(signal.SIGTERM)
            async with asyncio.timeout(60):
                assert await running.wait() == 0
        markets = set(capture.tickers)
        await capture.until(lambda: capture_tests.broken(capture, "disconnect") >= markets, "a break of every book")
        await capture.until(
            lambda: capture_tests.broken(capture, "disconnect", TRADE) >= markets, "a break of every market's trades"
        )


@pytest.mark.parametrize(
    ("wrong", "said", "do"),
    [
        ({"KALSHI_API_KEY_ID": "nobody"}, "NOT_FOUND", "KALSHI_API_KEY_ID"),
        ({"KALSHI_PRIVATE_KEY_PATH": "other.pem"}, "INCORRECT_API_KEY_SIGNATURE", "KALSHI_PRIVATE_KEY_PATH"),
    ],
)
async def test_a_refused_key_is_told_with_what_to_do(
    cluster: Cluster, tmp_path: Path, wrong: dict[str, str], said: str, do: str
) -> None:
    async with watched(cluster, tmp_path) as capture:
        async with simulator.serve(simulator.Config(key_dir=tmp_path / "other", markets=1)) as another:
            wrong = {name: str(another.private_key_path) if value == "other.pem" else value for name, value in wrong.items()}
        async with process(environment(cluster, capture.exchange) | wrong) as running:
            refused = await event(running, "handshake_refused")
            assert refused["status"] == 401 and said in str(refused["said"]) and do in str(refused["do"])
            assert running.returncode is None


async def test_a_log_of_every_detail_shows_no_signature(cluster: Cluster, tmp_path: Path) -> None:
    async with watched(cluster, tmp_path) as capture:
        env = environment(cluster, capture.exchange) | {"KB_LOG_LEVEL": "debug"}
        running = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "services.ingest", env=env, stderr=asyncio.subprocess.PIPE, limit=1 << 20
        )
        said = asyncio.gather(running.communicate())
        await capture.begun()
        running.terminate()
        ((_, log),) = await said
        assert b"capturing" in log and signing.SIGNATURE.lower().encode() not in log.lower()
        assert b'"> GET' not in log  # the websocket library's own account of a handshake, which goes on with the headers


async def test_a_wrong_clock_is_told(cluster: Cluster, tmp_path: Path) -> None:
    async with watched(cluster, tmp_path) as capture:
        capture.exchange.inject(kind="clock_skew", seconds=60)
        async with process(environment(cluster, capture.exchange)) as running:
            refused = await event(running, "handshake_refused")
            assert "clock" in str(refused["do"])


async def test_a_missing_setting_is_exit_2_and_its_name(cluster: Cluster, tmp_path: Path) -> None:
    env = {"PATH": os.defpath, "KB_KAFKA_BROKERS": cluster.brokers}
    running = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.ingest", env=env, stderr=asyncio.subprocess.PIPE
    )
    _, said = await running.communicate()
    assert (running.returncode, said) == (2, b"configuration: KALSHI_API_KEY_ID is not set\n")


async def test_a_spool_that_cannot_be_had_is_exit_2_and_why(cluster: Cluster, tmp_path: Path) -> None:
    """A file where the folder should be; then the folder of a gatherer that runs."""
    (tmp_path / "file").touch()
    async with watched(cluster, tmp_path) as capture:
        env = environment(cluster, capture.exchange)
        for folder, why in (
            (tmp_path / "file", b"Not a directory"),
            (tmp_path / "spool", b"used by another gatherer of that name"),
        ):
            async with process(env | {"KB_SPOOL": str(tmp_path / "spool")}) as first:
                await event(first, "capturing")
                running = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "services.ingest", env=env | {"KB_SPOOL": str(folder)}, stderr=asyncio.subprocess.PIPE
                )
                _, said = await running.communicate()
                assert running.returncode == 2
                assert said.splitlines()[-1].startswith(b"configuration: KB_SPOOL: ") and why in said


async def test_it_is_ready_once_the_first_markets_are_subscribed(cluster: Cluster, tmp_path: Path, free_tcp_port: int) -> None:
    async with (
        watched(cluster, tmp_path) as capture,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{free_tcp_port}", timeout=60) as health,
    ):
        env = environment(cluster, capture.exchange) | {"KB_HEALTH_PORT": str(free_tcp_port)}
        async with process(env) as running:
            async with asyncio.timeout(60):
                await event(running, "capturing")
                while (await health.get("/readyz")).status_code != httpx.codes.OK:  # noqa: ASYNC110  (a status to be polled)
                    await asyncio.sleep(0.02)
            await capture.begun()
            counters = (await health.get("/status")).json()["counters"]
    assert counters["subscriptions"] == counters["markets"] == len(capture.tickers)
    assert counters["connections"] == 1 and counters["book_frames_total"] > 0 and counters["breaks_total"] == 0


async def test_several_connections_share_the_markets(cluster: Cluster, tmp_path: Path) -> None:
    """Each market on one connection; one that dies breaks its own markets and no others."""
    changed = {"subscriptions_per_connection": 2}
    async with capturing(cluster, tmp_path, change=lambda settings: replace(settings, **changed)) as capture:
        await capture.begun()
        places: dict[str, set[int]] = {}
        for r in capture.of("FRAME"):
            places.setdefault(r.market_ticker, set()).add(r.connection)
        assert all(len(where) == 1 for where in places.values())
        loads = [sum(where == {n} for where in places.values()) for n in {n for where in places.values() for n in where}]
        assert len(loads) >= 3 and max(loads) == 2
        capture.exchange.inject(kind="reset", connection=1)
        await capture.until(lambda: capture.of("BREAK"), "a break")
        victim = capture.of("BREAK")[0].connection
        mine = {ticker for ticker, where in places.items() if where == {victim}}
        await capture.until(lambda: capture_tests.broken(capture, "disconnect") >= mine, "its breaks")
        assert capture_tests.broken(capture, "disconnect") == mine


async def test_rest_that_refuses_for_a_while_is_asked_again(cluster: Cluster, tmp_path: Path) -> None:
    async with watched(cluster, tmp_path) as capture:
        capture.exchange.inject(kind="http_429", count=3)
        async with process(environment(cluster, capture.exchange)):
            await capture.begun()
            rest: list[RawFrame] = [r for r in capture.records if r.kind == "REST" and not r.channel]
            assert {r.market_ticker for r in rest} >= capture.tickers and BOOK in {r.channel for r in capture.records}
