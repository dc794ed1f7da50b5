"""`kb` teaches, and refuses what makes no sense with exit code 2 and one line that names it."""

import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from kalshibook_tools.cli.command import kb
from kalshibook_tools.supervisor.home import Home


def ask(*words: str, env: dict[str, str] | None = None) -> Result:
    none = {"KALSHI_API_KEY_ID": None, "KALSHI_PRIVATE_KEY_PATH": None, "KB_POSTGRES_DSN": None, "KB_HOME": None}
    return CliRunner().invoke(kb, words, env=none | (env or {}))


def test_every_command_teaches() -> None:
    for name in ("up", "status", "down", "reset", "migrate", "keys", "simulator", "backfill", "import"):
        told = ask(name, "--help")
        assert told.exit_code == 0
        assert len(told.output) > 200, name


@pytest.mark.parametrize(
    ("words", "env", "says"),
    [
        (["up", "--speed", "0"], {}, "neither"),
        (["up", "--speed", "fast"], {}, "neither"),
        (["up", "--recording", "/no/such/file"], {}, "does not exist"),
        (["up", "--keep-running"], {}, "--recording"),
        (["up", "--env", "prod"], {}, "KALSHI_API_KEY_ID"),
        (["up"], {"KALSHI_API_KEY_ID": "x"}, "KALSHI_PRIVATE_KEY_PATH is not"),
        (["backfill", "trades", "--from", "2026-11-20"], {}, "--from and --to go together"),
        (["backfill", "trades", "--from", "yesterday"], {}, "is no instant"),
        (["import", ".", "--origin", "Not A Name"], {}, "lower case"),
        (["backfill", "trades"], {"KB_KAFKA_BROKERS": "x:1", "KB_POSTGRES_DSN": "x"}, "--env demo or --env prod"),
        (["import", "."], {}, "KB_KAFKA_BROKERS is not set"),
        (["keys", "create", "--account", "a"], {}, "--plan"),
    ],
)
def test_what_makes_no_sense_is_refused(words: list[str], env: dict[str, str], says: str) -> None:
    told = ask(*words, env=env)
    assert told.exit_code == 2
    assert says in told.output


def test_a_command_without_a_database_names_the_setting(tmp_path: Path) -> None:
    for words in (["migrate"], ["keys", "list"]):
        told = ask(*words, "--home", str(tmp_path))
        assert told.exit_code == 2
        assert "KB_POSTGRES_DSN is not set" in told.output


def test_status_and_down_of_nothing(tmp_path: Path) -> None:
    assert "stopped" in ask("status", "--home", str(tmp_path)).output
    assert '"state": "stopped"' in ask("status", "--json", "--home", str(tmp_path)).output
    assert "nothing runs" in ask("down", "--home", str(tmp_path)).output


def test_status_shows_what_is_wrong_as_it_is_told(tmp_path: Path) -> None:
    trouble = "the handshake is refused: HTTP 401 header_timestamp_expired: set this machine's clock"
    counters = {"frames_total": 1200, "clock_skew_seconds": -3600.5, "broker": "direct", "left_out": "", "trouble": trouble}
    ingest = {"pid": os.getpid(), "restarts": 0, "state": "running", "counters": counters}
    state = {"state": "running", "pid": os.getpid(), "gateway": {"url": None}, "services": {"ingest": ingest}, "recording": None}
    here = Home(tmp_path)
    with here.alone():
        here.write(here.state_file, state | {"faults": None, "gaps": [], "trade_gaps": []})
        lines = ask("status", "--home", str(tmp_path)).output.splitlines()
    assert "frames 1,200  clock_skew_seconds -3,600.5  broker direct" in lines[1]
    assert lines[2] == f"  ingest: trouble: {trouble}"


def test_reset_removes_only_what_kb_made(tmp_path: Path) -> None:
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    for folder in (theirs, ours):
        (folder / "pids").mkdir(parents=True)
    (ours / "state.json").write_text("{}")
    assert ask("reset", "--yes", "--home", str(theirs)).exit_code == 1
    assert theirs.exists()
    assert ask("reset", "--home", str(ours)).exit_code == 1  # asked, and nobody answered
    assert ours.exists()
    assert ask("reset", "--yes", "--home", str(ours)).exit_code == 0
    assert not ours.exists()
