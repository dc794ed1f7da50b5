"""Intervals as customers write them, 250ms, 1s, 5m, 1h, 1d: in microseconds inside. And the instants that one makes."""

import re
from typing import Final

import numpy as np

from kalshibook_core.wire.columns import Longs
from services.gateway.errors import invalid

UNITS: Final = {"ms": 1_000, "s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000}
_INTERVAL: Final = re.compile(r"(\d{1,9})(ms|s|m|h|d)", re.ASCII)


def parse(text: str, least: str, most: str) -> int:
    """Return an interval in microseconds; raise the 422 that says what is expected."""
    match = _INTERVAL.fullmatch(text)
    if match is None or not _us(least) <= _us(text) <= _us(most):
        expected = f"expected a number and its unit, ms, s, m, h or d, from {least} to {most}: for example {least}, 1m or {most}"
        raise invalid("interval", expected, given=text[:32])
    return _us(text)


def _us(text: str) -> int:
    match = _INTERVAL.fullmatch(text)
    assert match is not None
    return int(match[1]) * UNITS[match[2]]


def texts(instants_us: Longs) -> list[str]:
    """Return instants as `instants.text` does, many at once."""
    return [f"{text}Z" for text in np.datetime_as_string(instants_us.astype("datetime64[us]")).tolist()]
