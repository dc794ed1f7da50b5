"""The weekly pause is New York's, in winter and in summer."""

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from kalshibook_core.kalshi.hours import weekly_pause


@pytest.mark.parametrize(
    ("utc", "paused"),
    [
        ("2026-07-16T06:59:59", False),  # Thursday, EDT
        ("2026-07-16T07:00:00", True),
        ("2026-07-16T08:59:59", True),
        ("2026-07-16T09:00:00", False),
        ("2026-07-15T07:30:00", False),  # Wednesday
        ("2026-01-15T07:59:59", False),  # Thursday, EST
        ("2026-01-15T08:00:00", True),
        ("2026-01-15T09:59:59", True),
        ("2026-01-15T10:00:00", False),
        ("2026-03-05T08:30:00", True),  # the Thursdays around the clocks' change of March 8, 2026
        ("2026-03-12T08:30:00", True),
        ("2026-03-12T09:30:00", False),
        ("2026-10-29T07:30:00", True),  # and of November 1
        ("2026-11-05T07:30:00", False),
        ("2026-11-05T09:30:00", True),
    ],
)
def test_the_pause(utc: str, paused: bool) -> None:
    at = datetime.fromisoformat(utc).replace(tzinfo=ZoneInfo("UTC"))
    assert weekly_pause(int(at.timestamp()) * 1_000_000) is paused
