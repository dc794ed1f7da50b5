"""The whole main of a service: settings, logs, signals, drain, exit code.

Promises: exit 0 after a drain that ended in time; 2 with one line on standard error if a setting is missing or wrong; 1 with
a logged traceback if the service failed; 1 if the drain passed its deadline. The first SIGTERM or SIGINT asks to drain, the
second ends the process as if nobody had been listening. Whatever a cut drain leaves undone is what a power cut would leave.
"""

import asyncio
import inspect
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn, TypeVar

import structlog

from kalshibook_core.runtime import logs, settings

S = TypeVar("S")
FromEnv = Callable[[settings.Environment], S]
Serve = Callable[[S, asyncio.Event], Awaitable[None]]

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_log = structlog.get_logger()


def run(name: str, from_env: FromEnv[S], serve: Serve[S]) -> NoReturn:
    """Run `serve(from_env(environment), stop)` as this process, and exit. `serve` returns soon after `stop` is set."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        sys.stdout.write(_help(name, from_env, serve))
        sys.exit(0)
    if sys.argv[1:]:
        sys.stderr.write(f"kb-{name} takes no arguments, only environment variables; see kb-{name} --help\n")
        sys.exit(2)
    env: settings.Environment = os.environ  # noqa: TID251  (handed on from here)
    try:
        logs.configure(name, settings.one_of(env, "KB_LOG_LEVEL", logs.LEVELS, "info"))
        drain = settings.seconds(env, "KB_DRAIN_SECONDS", 30)
        configured = from_env(env)
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_until_stopped(name, configured, serve, drain))
    except settings.ConfigurationError as error:
        sys.stderr.write(f"configuration: {error}\n")
        sys.exit(2)
    except (Exception, asyncio.CancelledError):  # noqa: BLE001  (the top of the process)
        _log.exception("failed")
        sys.exit(1)
    sys.exit(0)


async def _until_stopped(name: str, configured: S, serve: Serve[S], drain: float) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def first(number: signal.Signals) -> None:
        for each in _SIGNALS:
            loop.remove_signal_handler(each)
            signal.signal(each, signal.SIG_DFL)
        _log.info("draining", signal=number.name, within_seconds=drain)
        loop.call_later(drain, _overdue, drain)
        stop.set()

    for each in _SIGNALS:
        loop.add_signal_handler(each, first, each)
    _log.info("starting", pid=os.getpid())
    await serve(configured, stop)
    _log.info("stopped")


def _overdue(drain: float) -> NoReturn:
    # Not a cancellation: what did not end within its deadline would not end for that either.
    _log.error("drain_overdue", after_seconds=drain)
    logging.shutdown()
    sys.stderr.flush()
    os._exit(1)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:  # Windows has none
        return asyncio.new_event_loop
    return uvloop.new_event_loop


def _help(name: str, from_env: Callable[..., Any], serve: Callable[..., Any]) -> str:
    module = sys.modules[from_env.__module__]
    package = sys.modules.get(serve.__module__.rpartition(".")[0])
    about = [inspect.getdoc(each) for each in (package, module) if each is not None]
    return "\n\n".join([f"kb-{name}", *filter(None, about), f"Common variables:\n{settings.COMMON}"])
