"""What a JVM would die of, or start slower with, is not offered to it."""

import asyncio
import hashlib
import os
from pathlib import Path

import pytest

from kalshibook_tools.stack import StackError, classes, jars


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A runtime, a folder of jars, and the file of classes that these make."""
    java, libraries = tmp_path / "java", tmp_path / "jars"
    java.write_text("#!/bin/sh\necho no >&2; exit 1\n")
    java.chmod(0o755)
    libraries.mkdir()
    (libraries / f"kafka_2.13-{jars.KAFKA_VERSION}.jar").write_text("jar")
    content = os.urandom(10_000)
    name = f"classes-{classes._makers(java, libraries)}-{hashlib.sha256(content).hexdigest()[:16]}.jsa"
    (libraries / name).write_bytes(content)
    return java, libraries, libraries / name


def test_what_these_made_is_found(made: tuple[Path, Path, Path]) -> None:
    java, libraries, path = made
    assert classes.kept(java, libraries) == path


@pytest.mark.parametrize("content", [b"", bytes(10_000)])
def test_what_is_damaged_is_not(made: tuple[Path, Path, Path], content: bytes) -> None:
    java, libraries, path = made
    path.write_bytes(content)
    assert classes.kept(java, libraries) is None


def test_what_is_cut_off_is_not(made: tuple[Path, Path, Path]) -> None:
    java, libraries, path = made
    os.truncate(path, 9_999)
    assert classes.kept(java, libraries) is None


@pytest.mark.parametrize("other", ["runtime", "jar", "place"])
def test_what_others_made_is_not(made: tuple[Path, Path, Path], other: str) -> None:
    java, libraries, _ = made
    if other == "runtime":
        java.write_text("another, of a later version")
    elif other == "jar":
        os.utime(next(libraries.glob("*.jar")), (1, 1))
    else:
        libraries = libraries.rename(libraries.with_name("moved"))
    assert classes.kept(java, libraries) is None


def test_where_nothing_can_be_read_there_is_none(made: tuple[Path, Path, Path]) -> None:
    java, libraries, path = made
    path.unlink()
    path.mkdir()
    assert classes.kept(java, libraries) is None
    assert classes.kept(java.with_name("none"), libraries) is None
    assert classes.kept(java, libraries.with_name("none")) is None


def test_a_runtime_that_cannot_make_them_leaves_nothing(made: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    java, libraries, path = made
    path.unlink()

    async def these(progress: object) -> tuple[Path, Path]:
        return java, libraries

    monkeypatch.setattr(jars, "fetch", these)
    with pytest.raises(StackError, match="kafka-format ended with code 1: no"):
        asyncio.run(classes.keep(lambda line: None))
    assert {each.suffix for each in libraries.iterdir()} == {".jar", ".lock"}
