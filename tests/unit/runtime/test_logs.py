"""A log line is one JSON object whoever wrote it, and what is told too often is told once a minute."""

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from kalshibook_core.runtime import logs


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    out = io.StringIO()
    logs.configure("tested", "info", out)
    yield out
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    root.handlers[:], root.level = handlers, level


def test_every_line_is_an_object_with_event_level_time_and_service(lines: io.StringIO) -> None:
    structlog.get_logger().info("subscribed", markets=3)
    logging.getLogger("aiokafka").warning("slow %s", "broker")
    structlog.get_logger().debug("unseen")
    logging.getLogger("aiokafka").info("unseen")
    ours, theirs = map(json.loads, lines.getvalue().splitlines())
    assert (ours["event"], ours["markets"], ours["level"], ours["service"]) == ("subscribed", 3, "info", "tested")
    assert (theirs["event"], theirs["logger"], theirs["level"], theirs["service"]) == (
        "slow broker",
        "aiokafka",
        "warning",
        "tested",
    )
    assert ours["timestamp"].endswith("Z")


def test_a_line_that_a_full_disk_refuses_ends_nothing_and_comes_later(
    lines: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(lines, "flush", full)
        structlog.get_logger().error("kept")
        disk.setattr(lines, "write", full)
        structlog.get_logger().error("lost")
        logging.getLogger("library").error("lost", exc_info=ValueError())
    structlog.get_logger().error("there is room")
    assert [json.loads(line)["event"] for line in lines.getvalue().splitlines()] == ["kept", "there is room"]


def test_what_a_library_repeats_is_told_once_a_minute_and_its_tracebacks_always(lines: io.StringIO) -> None:
    for number in range(3):
        logging.getLogger("library").warning("retrying partition %d", number)
        logging.getLogger("library").error("gave up on %d", number)
        logging.getLogger("library").error("failed", exc_info=ValueError(number))
    told = [json.loads(line)["event"] for line in lines.getvalue().splitlines()]
    assert told == ["retrying partition 0", "gave up on 0", "failed", "failed", "failed"]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 30)), max_size=50))
def test_a_kind_is_due_at_most_once_in_its_time_and_never_later(steps: list[tuple[str, float]]) -> None:
    limiter, now, last = logs.Limiter(60.0), 0.0, dict[str, float]()
    for kind, step in steps:
        now += step
        expected = kind not in last or now - last[kind] >= 60
        assert limiter.due(kind, now) is expected
        if expected:
            last[kind] = now


def test_kinds_without_number_do_not_fill_the_memory() -> None:
    limiter = logs.Limiter(60.0)
    for number in range(5000):
        assert limiter.due(str(number), 0.0)
    assert len(limiter._last) <= 1024
