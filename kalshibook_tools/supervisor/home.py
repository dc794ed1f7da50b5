"""KB_HOME: the one folder that holds everything a supervisor starts, knows and leaves behind.

Promises: one supervisor at a time (a lock that the kernel drops with its holder); a file is replaced whole or not at all;
what holds a secret is readable by its owner only.
"""

import fcntl
import json
import os
import shutil
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kalshibook_tools.stack import Program, Progress, remember, running, stop_leftover

GATHERERS = ("ingest", "ingest-2", "ingest-3", "ingest-4", "ingest-5")
"""The processes that capture, as many of them as were asked for."""

FLOW = (*GATHERERS, "backfill", "deduplicator", "persister", "reconstructor", "archive", "retention", "gateway", "simulator")
"""Our processes, in the direction in which events flow: also the order in which they are stopped."""

STACK = ("redis", "postgres", "kafka")
"""What they stand on, stopped after them."""

FREE_BYTES = 512 * 1024 * 1024
"""Room that a start asks for on the disk: less would fill within minutes, and a full disk is better told early."""

_STATE_KEPT = ("demo_key", "recording", "gaps", "trade_gaps", "faults")


class SupervisorError(Exception):
    """Something a person must act on. The message is one line that says what failed and what to do."""


@dataclass(frozen=True, slots=True)
class Home:
    """The paths under KB_HOME, and what can be said of them from outside."""

    path: Path

    @property
    def logs(self) -> Path:
        """One file a process, and `kb.log` of a detached supervisor."""
        return self.path / "logs"

    @property
    def state_file(self) -> Path:
        """What the supervisor knows, rewritten every second."""
        return self.path / "state.json"

    @property
    def account_file(self) -> Path:
        """The demo account's key, 0600."""
        return self.path / "demo.json"

    def log(self, name: str) -> Path:
        """Return the log of a process."""
        return self.logs / f"{name}.log"

    def pid_file(self, name: str) -> Path:
        """Return where the process of that name is remembered; the supervisor's own is `kb`."""
        return self.path / "pids" / name

    def ports(self) -> dict[str, int]:
        """Return the ports that customers knew us by in the last run."""
        try:
            ports: dict[str, int] = json.loads((self.path / "service-ports.json").read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return ports

    def remember_ports(self, ports: Mapping[str, int]) -> None:
        """Keep ports for the next run, so that addresses outlive a restart where they can."""
        self.write(self.path / "service-ports.json", ports)

    def supervisor(self) -> int | None:
        """Return the running supervisor's pid, None if none runs."""
        process = running(self.pid_file("kb"))
        return process.pid if process else None

    def leftovers(self) -> dict[str, int]:
        """Return {name: pid} of our processes that run: of a living supervisor, or left behind by a killed one."""
        found = {name: running(self.pid_file(name)) for name in (*FLOW, *reversed(STACK))}
        return {name: process.pid for name, process in found.items() if process}

    def state(self) -> dict[str, Any]:
        """Return what is true now: the state file's content, corrected where its writer no longer lives."""
        state: dict[str, Any] = {
            "state": "stopped",
            "gateway": {"url": None},
            "demo_key": None,
            "services": {},
            "recording": None,
        }
        state |= {"gaps": [], "trade_gaps": [], "faults": None}
        try:
            known: dict[str, Any] = json.loads(self.state_file.read_text())
        except (FileNotFoundError, ValueError):
            known = {}
        supervisor = self.supervisor()
        if supervisor is not None:
            # Between a supervisor's first breath and its first state file there is an earlier run's: not its state.
            return known if known.get("pid") == supervisor else state | {"state": "starting", "pid": supervisor}
        state |= {key: known[key] for key in _STATE_KEPT if key in known}
        services = known.get("services", {})
        for service in services.values():
            service.update(pid=None, state="stopped")
        for name, pid in self.leftovers().items():
            services[name] = {"restarts": 0, "counters": {}} | services.get(name, {}) | {"pid": pid, "state": "leftover"}
        return state | {"services": services}

    def write(self, path: Path, content: Mapping[str, Any]) -> None:
        """Replace a JSON file at once, 0600. Raises SupervisorError if the disk does not take it."""
        temporary = path.with_name(path.name + ".new")
        try:
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
                json.dump(content, out)
            temporary.replace(path)
        except OSError as error:
            raise SupervisorError(
                f"cannot write {path}: {error.strerror}; make room, or set KB_HOME to another folder"
            ) from error

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the folder for one supervisor. Raises SupervisorError if another has it, or the folder cannot serve."""
        try:
            for folder in (self.path, self.logs, self.path / "pids"):
                folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.path).free
            lock = (self.path / "kb.lock").open("a")
        except OSError as error:
            raise SupervisorError(f"cannot use {self.path}: {error.strerror}; set KB_HOME to a folder of your own") from error
        if free < FREE_BYTES:
            raise SupervisorError(f"only {free >> 20} MB are free under {self.path}: make room, or set KB_HOME to another disk")
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                told = f"kb already runs in {self.path} (pid {self.supervisor()})"
                raise SupervisorError(f"{told}: `kb status` shows it, `kb down` stops it") from None
            remember(self.pid_file("kb"), os.getpid())
            try:
                yield
            finally:
                self.pid_file("kb").unlink(missing_ok=True)

    async def stop_leftovers(self, progress: Progress) -> None:
        """Stop what a killed supervisor left, in the direction of the flow, each with its own time to drain."""
        for name in (*FLOW, *reversed(STACK)):
            how = signal.SIGINT if name == "postgres" else signal.SIGTERM
            left = Program(name, (), self.log(name), self.pid_file(name), stop_signal=how, stop_within=30)
            await stop_leftover(left, progress)
