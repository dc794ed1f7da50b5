"""The broker's classes, read and verified once for each Java runtime and kept among the jars: half the CPU of every later start.

Promises: a start neither makes them nor waits for them. What is kept has its own SHA-256 in its name, since a JVM that maps a
damaged file dies of it; what does not fit its name, and what another runtime or other jars made, is not used. Where they
cannot be made, the broker starts as slowly as without.
"""

import contextlib
import hashlib
import os
import tempfile
from functools import partial
from pathlib import Path

from kalshibook_tools.stack import jars, kafka, probe
from kalshibook_tools.stack.process import Process, Progress, StackError

_READY_WITHIN = 90.0


def kept(java: Path, libraries: Path) -> Path | None:
    """Return the file of this runtime's classes, None where there is none that is whole."""
    with contextlib.suppress(OSError):
        for path in libraries.glob(f"classes-{_makers(java, libraries)}-*.jsa"):
            if path.stem.endswith(_digest(path)):
                return path
    return None


async def keep(progress: Progress) -> None:
    """Make them, unless they are there. Raises StackError, OSError."""
    java, libraries = await jars.fetch(progress)
    if not os.access(libraries, os.W_OK):
        raise StackError(f"{libraries} cannot be written to")
    with jars.locked(libraries / "classes.lock"):
        if kept(java, libraries) is None:
            progress("reading Kafka's classes once, so that every start of the broker takes half as long")
            with tempfile.TemporaryDirectory(dir=libraries) as folder:
                await _make(Path(folder), java, libraries, progress)


async def _make(home: Path, java: Path, libraries: Path, progress: Progress) -> None:
    # 1. A broker starts, lists what it needs, and stops.
    (home / "pids").mkdir()
    await kafka.prepare(home, java, libraries, progress)
    port, controller = probe.free_port(), probe.free_port()
    broker = Process(kafka.program(home, java, libraries, port, controller, heap="256m", listing=True), progress)
    try:
        await broker.start()
        await broker.ready(partial(probe.kafka_answers, port), _READY_WITHIN)
    finally:
        await broker.stop()
    # 2. What is listed is read into a file.
    await Process(kafka.reader(home, java, libraries), progress).run()
    # 3. On the disk, then in place: a crash before leaves none, and a folder that nobody looks into.
    made = home / "kafka" / kafka.CLASSES
    with made.open("rb") as content:
        os.fsync(content.fileno())
    makers = _makers(java, libraries)
    for damaged in libraries.glob(f"classes-{makers}-*.jsa"):
        damaged.unlink()
    made.rename(libraries / f"classes-{makers}-{_digest(made)}.jsa")


def _makers(java: Path, libraries: Path) -> str:
    # A JVM takes only what itself read from these very jars; one that is offered another's starts slower than without.
    files = [java.resolve(), *sorted(libraries.glob("*.jar"))]
    told = [f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]


def _digest(path: Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()[:16]
