"""The health server over real sockets: its four answers, and that no client can hold it up."""

import asyncio
import os

import httpx
import pytest

from kalshibook_core.runtime import health
from kalshibook_core.runtime.metrics import UnknownMetric
from kalshibook_core.runtime.settings import NOWHERE, Health
from kalshibook_tools.supervisor.kept import Report, over_http


def free_port() -> int:
    import socket

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


async def test_the_paths_answer_what_the_service_says_now() -> None:
    ready, frames = [False], [0]
    async with (
        health.serve(Health(free_port()), lambda: ready[0], lambda: {"frames_total": frames[0]}, service="ingest") as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        assert (await client.get("/healthz")).status_code == 200
        assert (await client.get("/readyz")).status_code == 503
        ready[0], frames[0] = True, 7
        assert (await client.get("/readyz")).status_code == 200
        assert (await client.get("/status?x=1")).json() == {"ready": True, "pid": os.getpid(), "counters": {"frames_total": 7}}
        url = f"{client.base_url}/status"
        assert await over_http(client, url, os.getpid()) == Report(True, {"frames_total": 7})
        assert await over_http(client, url, os.getpid() + 1) == Report(False, {})  # a stranger has the port
        assert "kb_ingest_frames_total 7.0" in (await client.get("/metrics")).text
        assert (await client.get("/other")).status_code == 404
        assert (await client.post("/healthz")).status_code == 405


async def test_a_client_that_says_nothing_or_too_much_holds_nobody_up() -> None:
    async with health.serve(Health(free_port()), lambda: True, dict, service="ingest") as port:
        _, silent = await asyncio.open_connection("127.0.0.1", port)
        reader, flood = await asyncio.open_connection("127.0.0.1", port)
        flood.write(b"x" * 20_000)
        assert await reader.read() == b""
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"http://127.0.0.1:{port}/healthz")).text == "ok\n"
        for writer in (silent, flood):
            writer.close()


async def test_port_0_means_no_server_but_names_are_checked_all_the_same() -> None:
    async with health.serve(NOWHERE, lambda: True, dict, service="ingest") as port:
        assert port == 0
    with pytest.raises(UnknownMetric):
        async with health.serve(NOWHERE, lambda: True, lambda: {"typo": 1}, service="ingest"):
            pass
