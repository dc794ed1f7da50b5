"""Structured logs on standard error: one event name and its fields per line, JSON unless a person is looking.

Promises: keys, signatures and payloads are the caller's to leave out; what libraries log through `logging` takes the
same form, and each kind of theirs is told once a minute, but for what carries a traceback. A
line that cannot be written, since the disk is full, ends nothing.
"""

import io
import logging
import sys
from contextlib import suppress
from typing import Any, Final, TextIO, cast

import structlog

from kalshibook_core.runtime import clock

LEVELS: Final = ("debug", "info", "warning", "error")
_MAX_KINDS: Final = 1024


def configure(service: str, level: str = "info", stream: TextIO | None = None) -> None:
    """Send every log line of this process to `stream` (standard error), each carrying the service's name."""
    out = cast(TextIO, _Calm(stream or sys.stderr))
    number = logging.getLevelNamesMapping()[level.upper()]
    before: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if out.isatty():
        shown: list[Any] = [structlog.dev.ConsoleRenderer()]
    else:
        shown = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    structlog.configure(
        processors=[*before, *shown],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(out),
        cache_logger_on_first_use=False,
    )
    structlog.contextvars.bind_contextvars(service=service)
    foreign = logging.StreamHandler(out)
    foreign.addFilter(_told_once)
    foreign.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*before, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *shown],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [foreign]
    root.setLevel(max(number, logging.WARNING) if number > logging.DEBUG else number)


class _Calm(io.TextIOBase):
    """A stream whose disk may be full: what it does not take now it takes later, as far as its buffer holds it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()


class Limiter:
    """Says of each kind of thing whether it is due to be told again: at most once in `seconds`."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._last: dict[str, float] = {}

    def due(self, kind: str, now: float) -> bool:
        """Tell whether `kind` was not told within the last `seconds` before `now`, and count it as told if so."""
        last = self._last.get(kind)
        if last is not None and now - last < self._seconds:
            return False
        if len(self._last) >= _MAX_KINDS:
            # Kinds are words of ours and few; were one built of foreign bytes, memory stays bounded and some repeat early.
            self._last.clear()
        self._last[kind] = now
        return True


_every_minute = Limiter(60.0)


def _told_once(record: logging.LogRecord) -> bool:
    # With its broker away aiokafka logs an error for every retry of every request: hundreds of lines a second.
    return bool(record.exc_info) or once_a_minute(f"{record.name}: {record.levelname}: {record.msg}")


def once_a_minute(kind: str) -> bool:
    """Tell whether `kind` is due: `if once_a_minute("x"): log.warning("x", …)`. The count belongs in a metric."""
    return _every_minute.due(kind, clock.monotonic())
