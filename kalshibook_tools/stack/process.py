"""One supervised child process: started with a log and a pid file, waited for, stopped with a deadline.

Promises: whatever was started is known on disk by pid *and* birth, so that a later run finds what a killed supervisor
left behind and never ends a stranger that was given the same pid; a failure is told with the log line that explains it.
Children live in a session of their own: Ctrl-C reaches the supervisor alone, which then stops them in its own order.
"""

import asyncio
import contextlib
import errno
import json
import os
import re
import signal
import subprocess
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

Progress = Callable[[str], None]

LOG_LIMIT = 16 * 1024 * 1024
"""A log larger than this (bytes) at a start is moved to `NAME.log.1`; so two runs' logs are kept at most."""

_TAIL = 256 * 1024
_POLL_SECONDS = 0.02


class StackError(Exception):
    """Something a person must act on. The message is one line that says what failed, why, and what to do."""


class ProcessExited(StackError):
    """The process ended though nobody asked it to. `reason` is the log line that explains it, "" if none."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Program:
    """What to run, where its traces go, and how it is asked to stop."""

    name: str
    command: Sequence[str | Path]
    log: Path  # standard output and error, appended
    pid_file: Path
    cwd: Path | None = None
    env: Mapping[str, str] | None = None  # None: the supervisor's own
    stop_signal: signal.Signals = signal.SIGTERM
    stop_within: float = 20.0  # seconds until SIGKILL
    explains: re.Pattern[str] = re.compile("error|exception|fatal", re.IGNORECASE)  # a log line that tells why


class Process:
    """A `Program`, run. `start` and `stop` may be called again and again, by one task at a time."""

    def __init__(self, program: Program, progress: Progress) -> None:
        self.program = program
        self._progress = progress
        self._child: asyncio.subprocess.Process | None = None
        self._log_start = 0

    @property
    def pid(self) -> int | None:
        """The process id, None unless it runs."""
        return self._child.pid if self._child and self._child.returncode is None else None

    async def start(self) -> None:
        """Start the program, having stopped whatever an earlier supervisor left of it."""
        program = self.program
        await stop_leftover(program, self._progress)
        program.log.parent.mkdir(parents=True, exist_ok=True)
        program.pid_file.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            if program.log.stat().st_size > LOG_LIMIT:
                program.log.replace(program.log.with_name(program.log.name + ".1"))
        self._child = None
        try:
            with program.log.open("ab") as log:
                self._log_start = log.tell()
                self._child = await asyncio.create_subprocess_exec(
                    *program.command,
                    cwd=program.cwd,
                    env=program.env,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            remember(program.pid_file, self._child.pid)
        except OSError as error:
            if self._child is not None:  # nobody would know of it
                self._child.kill()
                await self.wait()
                self._child = None
            hint = "; make room on the disk" if error.errno == errno.ENOSPC else ""
            raise StackError(f"{program.name} cannot be started: {error}{hint}") from error

    async def ready(self, probe: Callable[[], Awaitable[bool]], within: float) -> None:
        """Wait until `probe` says yes. Raises ProcessExited if the process ends first, StackError after `within` s."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + within
        assert self._child is not None
        while True:
            if self._child.returncode is not None:
                raise self.exited()
            if await probe():
                return
            if loop.time() > deadline:
                raise StackError(
                    f"{self.program.name} is not ready after {within:g} s: {self.explanation() or 'its log says nothing'}"
                    f" (log: {self.program.log})"
                )
            await asyncio.sleep(_POLL_SECONDS)

    async def wait(self) -> int:
        """Wait for the end of the process, however it comes, and return its code (negative: the signal)."""
        assert self._child is not None
        code = await self._child.wait()
        self.program.pid_file.unlink(missing_ok=True)
        return code

    async def run(self) -> None:
        """Start a program that ends by itself and wait for it. Raises ProcessExited if its code is not 0."""
        await self.start()
        try:
            if await self.wait() != 0:
                raise self.exited()
        finally:
            await self.stop()

    async def stop(self, within: float | None = None) -> None:
        """Ask the process to stop, and past its deadline, or `within` seconds, kill it and say so; nothing if it does not run."""
        child, program = self._child, self.program
        within = program.stop_within if within is None else within
        if child is None:
            return
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(program.stop_signal)
            try:
                await asyncio.wait_for(child.wait(), within)
            except TimeoutError:
                self._progress(f"{program.name} did not stop within {within:g} s and is killed")
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
        await self.wait()
        self._child = None

    def explanation(self) -> str:
        """Return the last line this run logged that `explains` a failure, else its last line, else ""."""
        try:
            with self.program.log.open("rb") as log:
                end = log.seek(0, os.SEEK_END)
                log.seek(max(self._log_start, end - _TAIL))
                lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
        except FileNotFoundError:
            return ""
        telling = [line for line in lines if self.program.explains.search(line)]
        return _plain((telling or lines or [""])[-1])[:500]

    def exited(self) -> ProcessExited:
        """Return what to tell of a process that ended though nobody asked it to."""
        assert self._child is not None
        code, reason = self._child.returncode, self.explanation()
        how = f"was ended by signal {-code}" if code is not None and code < 0 else f"ended with code {code}"
        return ProcessExited(f"{self.program.name} {how}: {reason or 'its log says nothing'} (log: {self.program.log})", reason)


def _plain(line: str) -> str:
    # Our own services log JSON: the event, why it happened, what to do and what ended it say more in less room than a traceback.
    try:
        entry = json.loads(line)
        words = (str(entry["event"]), *(str(entry.get(name) or "") for name in ("why", "said", "do")))
        return ": ".join(filter(None, (*words, str(entry.get("exception", "")).strip().rpartition("\n")[2])))
    except (ValueError, KeyError, TypeError):
        return line


async def stop_leftover(program: Program, progress: Progress) -> None:
    """Stop what a killed supervisor left of `program`, going by its pid file; a stranger with that pid is left alone."""
    leftover = running(program.pid_file)
    if leftover is not None:
        progress(f"{program.name} still runs from an earlier start (pid {leftover.pid}) and is stopped")
        with contextlib.suppress(psutil.NoSuchProcess):
            leftover.send_signal(program.stop_signal)
            if not await _gone(leftover, program.stop_within):
                progress(f"{program.name} (pid {leftover.pid}) did not stop and is killed")
                leftover.kill()
                await _gone(leftover, program.stop_within)
    program.pid_file.unlink(missing_ok=True)


def remember(pid_file: Path, pid: int) -> None:
    """Write down a process, by pid and birth, for `running` to find."""
    # A supervisor killed between the start and this line leaves a process nobody knows: the next start then
    # fails on that process's lock or port, and says so.
    with contextlib.suppress(psutil.NoSuchProcess):
        pid_file.write_text(json.dumps({"pid": pid, "born": _birth(pid)}))


def running(pid_file: Path) -> psutil.Process | None:
    """Return the process that `pid_file` remembers, None if it has ended (even if a stranger has its pid now)."""
    try:
        known = json.loads(pid_file.read_text())
        process = psutil.Process(known["pid"])
        running = _birth(process.pid) == known["born"] and process.status() != psutil.STATUS_ZOMBIE
    except (FileNotFoundError, ValueError, KeyError, TypeError, psutil.NoSuchProcess):
        return None
    return process if running else None


def _birth(pid: int) -> str:
    """Return a token that no other process, before or after, shares with this pid."""
    try:
        # Ticks since boot, unlike the wall-clock time psutil makes of them, do not move when the clock is set.
        ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}/{ticks}"
    except ProcessLookupError as error:  # ended between the open and the read
        raise psutil.NoSuchProcess(pid) from error
    except FileNotFoundError:
        return repr(psutil.Process(pid).create_time())


async def _gone(process: psutil.Process, within: float) -> bool:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        if loop.time() > deadline:
            return False
        await asyncio.sleep(_POLL_SECONDS)
    return True
