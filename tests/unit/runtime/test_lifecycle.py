"""How a service starts and ends, seen from outside: real processes, real signals, exit codes."""

import asyncio
import json
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

SERVICE = '''
"""Reads nothing, writes nothing."""
import asyncio, sys, time
from kalshibook_core.runtime import lifecycle, settings

def from_env(env):
    return settings.required(env, "KB_MODE")

async def serve(mode, stop):
    print("ready", flush=True)
    if mode == "raises":
        raise RuntimeError("it broke")
    if mode == "misconfigured":
        raise settings.ConfigurationError("KB_KEY is no key")
    await stop.wait()
    if mode == "drains":
        await asyncio.sleep(0.05)
        print("drained", flush=True)
    if mode == "fails":
        raise RuntimeError("could not flush")
    if mode == "hangs":
        await asyncio.Event().wait()

lifecycle.run("tested", from_env, serve)
'''


async def started(tmp_path: Path, env: Mapping[str, str], *arguments: str) -> asyncio.subprocess.Process:
    script = tmp_path / "service.py"
    script.write_text(SERVICE)
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        sys.executable, str(script), *arguments, env=dict(env), stdout=pipe, stderr=pipe, stdin=asyncio.subprocess.DEVNULL
    )


async def ended(process: asyncio.subprocess.Process) -> tuple[int | None, str, str]:
    async with asyncio.timeout(30):
        out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def ready(process: asyncio.subprocess.Process) -> None:
    assert process.stdout is not None
    async with asyncio.timeout(30):
        assert await process.stdout.readline() == b"ready\n"


async def told(process: asyncio.subprocess.Process, event: str) -> None:
    assert process.stderr is not None
    async with asyncio.timeout(30):
        while json.loads(await process.stderr.readline())["event"] != event:
            pass


async def test_a_missing_setting_is_named_on_one_line_and_ends_with_2(tmp_path: Path) -> None:
    assert await ended(await started(tmp_path, {})) == (2, "", "configuration: KB_MODE is not set\n")


async def test_a_wrong_log_level_ends_with_2(tmp_path: Path) -> None:
    code, _, err = await ended(await started(tmp_path, {"KB_MODE": "drains", "KB_LOG_LEVEL": "loud"}))
    assert (code, err) == (2, "configuration: KB_LOG_LEVEL is 'loud'; it must be one of debug, info, warning, error\n")


async def test_a_setting_found_wrong_while_serving_ends_with_2(tmp_path: Path) -> None:
    code, _, err = await ended(await started(tmp_path, {"KB_MODE": "misconfigured"}))
    assert code == 2
    assert err.endswith("configuration: KB_KEY is no key\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_and_ends_with_0(tmp_path: Path, number: signal.Signals) -> None:
    process = await started(tmp_path, {"KB_MODE": "drains"})
    await ready(process)
    process.send_signal(number)
    code, out, err = await ended(process)
    assert (code, out) == (0, "drained\n")
    assert [json.loads(line)["event"] for line in err.splitlines()] == ["starting", "draining", "stopped"]


@pytest.mark.parametrize("mode", ["raises", "fails"])
async def test_a_failure_is_logged_with_its_traceback_and_ends_with_1(tmp_path: Path, mode: str) -> None:
    process = await started(tmp_path, {"KB_MODE": mode})
    await ready(process)
    if mode == "fails":
        process.terminate()
    code, _, err = await ended(process)
    last = json.loads(err.splitlines()[-1])
    assert (code, last["event"], last["level"], last["service"]) == (1, "failed", "error", "tested")
    assert "Traceback" in last["exception"]
    assert "RuntimeError: " in last["exception"]


async def test_a_drain_past_its_deadline_is_cut_and_ends_with_1(tmp_path: Path) -> None:
    process = await started(tmp_path, {"KB_MODE": "hangs", "KB_DRAIN_SECONDS": "0.1"})
    await ready(process)
    process.terminate()
    code, _, err = await ended(process)
    assert code == 1
    assert json.loads(err.splitlines()[-1])["event"] == "drain_overdue"


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_ends_it_at_once(tmp_path: Path, second: signal.Signals) -> None:
    process = await started(tmp_path, {"KB_MODE": "hangs", "KB_DRAIN_SECONDS": "600"})
    await ready(process)
    process.terminate()
    await told(process, "draining")
    process.send_signal(second)
    code, _, _ = await ended(process)
    assert code == -second


async def test_help_tells_the_variables_and_needs_none(tmp_path: Path) -> None:
    code, out, err = await ended(await started(tmp_path, {}, "--help"))
    assert (code, err) == (0, "")
    assert "Reads nothing, writes nothing." in out
    assert "KB_KAFKA_BROKERS" in out


async def test_an_argument_is_refused(tmp_path: Path) -> None:
    code, _, err = await ended(await started(tmp_path, {}, "--port=1"))
    assert code == 2
    assert "environment variables" in err
