"""KB_HOME tells the truth about its supervisor, killed or not, and about what it left behind."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kalshibook_tools.stack import remember
from kalshibook_tools.supervisor.home import Home, SupervisorError


@pytest.fixture
def home(tmp_path: Path) -> Home:
    (tmp_path / "pids").mkdir()
    return Home(tmp_path)


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def known(home: Home, pid: int) -> None:
    service = {"pid": pid, "state": "running", "restarts": 2, "counters": {"frames_total": 7}}
    gap = {"market_ticker": "KXA-1", "start": "2025-11-03T00:00:00.000000Z", "end": None, "cause": "disconnect"}
    content = {"state": "running", "pid": pid, "gateway": {"url": "http://127.0.0.1:1"}, "demo_key": "kb_demo_x"}
    home.write(home.state_file, content | {"services": {"ingest": service}, "recording": None, "gaps": [gap], "trade_gaps": []})


def test_nothing_was_ever_here(tmp_path: Path) -> None:
    state = Home(tmp_path / "none").state()
    assert (state["state"], state["services"], state["gateway"]) == ("stopped", {}, {"url": None})


def test_a_living_supervisors_file_is_believed(home: Home) -> None:
    remember(home.pid_file("kb"), os.getpid())
    known(home, os.getpid())
    assert home.state()["state"] == "running"
    assert home.state()["gateway"]["url"] == "http://127.0.0.1:1"


def test_an_earlier_runs_file_is_not_the_living_supervisors(home: Home) -> None:
    known(home, 1)
    remember(home.pid_file("kb"), os.getpid())
    assert home.state()["state"] == "starting"


def test_a_killed_supervisor_is_stopped_and_its_leftovers_are_named(home: Home, sleeper: subprocess.Popen[bytes]) -> None:
    known(home, 999_999)
    remember(home.pid_file("deduplicator"), sleeper.pid)
    state = home.state()
    assert (state["state"], state["gateway"]["url"]) == ("stopped", None)
    assert state["services"]["ingest"] == {"pid": None, "state": "stopped", "restarts": 2, "counters": {"frames_total": 7}}
    assert (state["services"]["deduplicator"]["pid"], state["services"]["deduplicator"]["state"]) == (sleeper.pid, "leftover")
    assert [gap["market_ticker"] for gap in state["gaps"]] == ["KXA-1"]


async def test_leftovers_are_stopped_and_strangers_are_not(home: Home, sleeper: subprocess.Popen[bytes]) -> None:
    home.pid_file("ingest").write_text(json.dumps({"pid": os.getpid(), "born": "somebody else's"}))
    remember(home.pid_file("persister"), sleeper.pid)
    await home.stop_leftovers(lambda line: None)
    assert sleeper.wait(60) == -15
    assert home.leftovers() == {}


def test_two_supervisors_do_not_share_a_folder(home: Home) -> None:
    with home.alone():
        assert home.supervisor() == os.getpid()
        with pytest.raises(SupervisorError, match=rf"already runs in .* \(pid {os.getpid()}\).*kb down"), home.alone():
            pass
    assert home.supervisor() is None


def test_secrets_are_the_owners(home: Home) -> None:
    home.write(home.account_file, {"key": "kb_demo_x"})
    assert home.account_file.stat().st_mode & 0o777 == 0o600


def test_a_folder_that_cannot_be_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SupervisorError, match="set KB_HOME"), Home(tmp_path / "file").alone():
        pass
    with pytest.raises(SupervisorError, match="KB_HOME"):
        Home(tmp_path).write(tmp_path / "none" / "state.json", {})
