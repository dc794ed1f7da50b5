"""A supervised process: nothing that runs is forgotten, no stranger is ended, and a failure is explained."""

import asyncio
import dataclasses
import json
import os
import signal
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil
import pytest

from kalshibook_tools.stack.process import LOG_LIMIT, Process, ProcessExited, Program, StackError, stop_leftover

SLEEP = ("sleep", "60")


def program(folder: Path, *command: str) -> Program:
    return Program("part", command, log=folder / "part.log", pid_file=folder / "pids" / "part")


def shell(folder: Path, script: str) -> Program:
    return program(folder, "sh", "-c", script)


async def test_stop_ends_it_and_forgets_it(tmp_path: Path) -> None:
    part = Process(program(tmp_path, *SLEEP), progress=pytest.fail)
    await part.start()
    pid = part.pid
    assert pid is not None and psutil.pid_exists(pid)
    assert json.loads((tmp_path / "pids" / "part").read_text())["pid"] == pid
    await part.stop()
    assert part.pid is None and not psutil.pid_exists(pid)
    assert not (tmp_path / "pids" / "part").exists()


async def test_past_its_deadline_it_is_killed_with_its_children_and_told(tmp_path: Path) -> None:
    told: list[str] = []
    deaf = shell(tmp_path, "trap '' TERM; sleep 60 & echo $! > child; echo up; wait")
    part = Process(dataclasses.replace(deaf, cwd=tmp_path, stop_within=0.2), told.append)
    await part.start()
    await part.ready(_logged(tmp_path / "part.log", b"up\n"), within=60)
    child = psutil.Process(int((tmp_path / "child").read_text()))
    await part.stop()
    assert told == ["part did not stop within 0.2 s and is killed"]
    child.wait(30)  # the whole group is gone


async def test_ctrl_c_of_the_terminal_does_not_reach_it(tmp_path: Path) -> None:
    part = Process(program(tmp_path, *SLEEP), pytest.fail)
    await part.start()
    assert part.pid is not None and os.getpgid(part.pid) != os.getpgid(0)
    await part.stop()


async def test_an_end_nobody_asked_for_is_told_with_the_line_that_explains_it(tmp_path: Path) -> None:
    (tmp_path / "part.log").write_text("an earlier run: error: not this one\n")
    failing = shell(tmp_path, "echo starting; echo 'error: the disk is full' >&2; echo bye; exit 3")
    with pytest.raises(ProcessExited, match=r"part ended with code 3: error: the disk is full \(log: .*part.log\)") as told:
        await Process(failing, pytest.fail).run()
    assert told.value.reason == "error: the disk is full"


async def test_of_our_own_services_the_event_and_its_cause_are_told(tmp_path: Path) -> None:
    line = '{"status":401,"said":"NOT_FOUND","do":"name another key","event":"error_of_a_handshake","level":"warning"}'
    with pytest.raises(ProcessExited) as told:
        await Process(shell(tmp_path, f"echo '{line}'; exit 1"), pytest.fail).run()
    assert told.value.reason == "error_of_a_handshake: NOT_FOUND: name another key"


async def test_without_a_telling_line_the_last_one_is_told(tmp_path: Path) -> None:
    (tmp_path / "part.log").write_text("an earlier run: error: not this one\n")
    with pytest.raises(ProcessExited, match=r"was ended by signal 9: two \("):
        await Process(shell(tmp_path, "echo one; echo two; kill -9 $$"), pytest.fail).run()


async def test_not_ready_in_time_is_told(tmp_path: Path) -> None:
    part = Process(shell(tmp_path, "echo error: still thinking; sleep 60"), pytest.fail)

    async def never() -> bool:
        return False

    await part.start()
    try:
        await part.ready(_logged(tmp_path / "part.log", b"error: still thinking\n"), within=60)
        with pytest.raises(StackError, match=r"part is not ready after 0.1 s: error: still thinking"):
            await part.ready(never, within=0.1)
    finally:
        await part.stop()


async def test_ready_fails_at_once_when_it_ended(tmp_path: Path) -> None:
    part = Process(shell(tmp_path, "exit 1"), pytest.fail)

    async def never() -> bool:
        return False

    await part.start()
    with pytest.raises(ProcessExited, match="ended with code 1"):
        await part.ready(never, within=60)
    await part.stop()


async def test_a_missing_program_is_told(tmp_path: Path) -> None:
    with pytest.raises(StackError, match=r"part cannot be started: .*no-such-program"):
        await Process(program(tmp_path, "/no-such-program"), pytest.fail).start()


async def test_what_a_killed_supervisor_left_is_stopped_first(tmp_path: Path) -> None:
    told: list[str] = []
    left = Process(program(tmp_path, *SLEEP), pytest.fail)
    await left.start()  # its supervisor would die here, leaving the pid file
    pid = left.pid
    successor = Process(program(tmp_path, *SLEEP), told.append)
    await successor.start()
    assert told == [f"part still runs from an earlier start (pid {pid}) and is stopped"]
    assert await left.wait() == -signal.SIGTERM
    await left.stop()
    await successor.stop()


@pytest.mark.parametrize("born", ["another boot/1", None])
def test_a_stranger_with_the_same_pid_is_left_alone(tmp_path: Path, born: str | None) -> None:
    with subprocess.Popen(SLEEP) as stranger:
        try:
            what = program(tmp_path, *SLEEP)
            what.pid_file.parent.mkdir()
            what.pid_file.write_text(json.dumps({"pid": stranger.pid, "born": born}))
            asyncio.run(stop_leftover(what, pytest.fail))
            assert stranger.poll() is None
            assert not what.pid_file.exists()
        finally:
            stranger.kill()


@pytest.mark.parametrize("content", ["", "{", "12", "[]", '{"pid": 99999999, "born": "x"}'])
async def test_a_spoilt_or_stale_pid_file_does_not_stand_in_the_way(tmp_path: Path, content: str) -> None:
    what = program(tmp_path, "true")
    what.pid_file.parent.mkdir()
    what.pid_file.write_text(content)
    await Process(what, pytest.fail).run()
    assert not what.pid_file.exists()


async def test_logs_are_bounded(tmp_path: Path) -> None:
    log = tmp_path / "part.log"
    log.write_bytes(b"x" * (LOG_LIMIT + 1))
    await Process(shell(tmp_path, "echo fresh"), pytest.fail).run()
    assert log.read_text() == "fresh\n"
    assert (tmp_path / "part.log.1").stat().st_size == LOG_LIMIT + 1


def _logged(log: Path, content: bytes) -> Callable[[], Awaitable[bool]]:
    async def probe() -> bool:
        return log.read_bytes().endswith(content)

    return probe
