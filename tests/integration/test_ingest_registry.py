"""The gatherer's list of markets as a process has it: over a restart, and where there are more markets than places."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from kalshibook_core.kafka.cluster import Cluster
from kalshibook_core.runtime import clock
from tests.integration.test_ingest_process import environment, process, watched

pytestmark = pytest.mark.stack


async def status(port: int) -> dict[str, Any]:
    async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
        counters: dict[str, Any] = (await client.get(f"http://127.0.0.1:{port}/status")).json()["counters"]
    return counters


async def test_a_restart_captures_what_was_known_without_asking_for_it(
    cluster: Cluster, tmp_path: Path, free_tcp_port: int
) -> None:
    """REST refuses everything the second time."""
    async with watched(cluster, tmp_path) as capture:
        file = tmp_path / "registry"
        env = environment(cluster, capture.exchange) | {"KB_REGISTRY": str(file), "KB_HEALTH_PORT": str(free_tcp_port)}
        async with process(env):
            await capture.begun()
            await capture.until(file.exists, "the registry on disk")
        markets, first = set(capture.tickers), {r.generation for r in capture.of("FRAME")}
        again_us = clock.now_us()
        capture.exchange.inject(kind="http_429", count=1000)
        async with process(env):
            await capture.until(
                lambda: {r.market_ticker for r in capture.of("FRAME") if r.generation not in first} >= markets, "every book anew"
            )
            counters = await status(free_tcp_port)
            assert counters["markets"] >= len(markets) and counters["rest_records_total"] == 0
    assert not [r for r in capture.records if r.kind == "REST" and not r.channel and r.recv_us > again_us]


async def test_a_market_that_was_paused_or_closed_before_it_was_heard_of_is_captured(cluster: Cluster, tmp_path: Path) -> None:
    """Whoever lost it has its book again, also without a registry on disk."""
    async with watched(cluster, tmp_path) as capture:
        markets = capture.exchange.exchange.markets
        for ticker, status in zip(markets, ("closed", "inactive"), strict=False):
            markets[ticker].body["status"] = status
        async with process(environment(cluster, capture.exchange)):
            await capture.until(lambda: capture.tickers >= set(markets), "a book of every market")


async def test_what_finds_no_place_is_said(cluster: Cluster, tmp_path: Path, free_tcp_port: int) -> None:
    async with watched(cluster, tmp_path) as capture:
        env = environment(cluster, capture.exchange) | {
            "KB_HEALTH_PORT": str(free_tcp_port), "KB_CONNECTIONS": "2", "KB_SUBSCRIPTIONS_PER_CONNECTION": "2",
        }  # fmt: skip
        async with process(env), asyncio.timeout(60):
            await capture.until(lambda: len(capture.tickers) >= 4, "four books")
            while (counters := await status(free_tcp_port))["markets"] < capture.held:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert (counters["subscriptions"], counters["left_out_markets"]) == (4, capture.held - 4)
        assert counters["left_out"].startswith(f"no place on 2 x 2: {capture.held - 4} (")
        told = counters["left_out_tickers"]
        assert len(set(told)) == len(told) == capture.held - 4 and not set(told) & capture.tickers
