"""Instants as customers write and read them; inside they are integers, microseconds since the epoch.

Accepted: RFC 3339 with any offset (fractions beyond microseconds are cut), or a Unix time whose unit its magnitude tells:

    below 10^11                 seconds (until the year 5138), with up to nine decimals, cut to microseconds
    from 10^11 below 10^14      milliseconds (from March 1973)
    from 10^14 below 10^17      microseconds (from March 1973)

Cut and never rounded: a rounded instant could show an event that had not happened yet. No float is involved anywhere.
"""

import re
from datetime import UTC, datetime, timedelta
from typing import Final

EXPECTED: Final = (
    "expected an instant: RFC 3339 with an offset (2025-11-03T14:30:00.123456Z) or a Unix time in seconds (below 10^11, "
    "decimals allowed), milliseconds (below 10^14) or microseconds (below 10^17)"
)
_RFC3339: Final = re.compile(
    # The space before an offset is a "+" that a query string lost.
    r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(?:\.(\d{1,9})\d*)?(?:[Zz]|([+\- ])(\d\d):(\d\d))",
    re.ASCII,
)
_UNIX: Final = re.compile(r"(\d{1,17})(?:\.(\d{1,9}))?", re.ASCII)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
LAST_US: Final = 253_402_300_799_999_999
"""The last microsecond of the year 9999, the latest instant that has a printed form."""


class UnreadableInstant(ValueError):
    """The text is no instant in any accepted form."""


def parse(text: str) -> int:
    """Return the instant in microseconds (0 <= t <= LAST_US); raise UnreadableInstant, whose text says what is expected."""
    if (match := _UNIX.fullmatch(text)) is not None:
        instant = _unix(match[1], match[2])
    elif len(text) <= 64 and (match := _RFC3339.fullmatch(text)) is not None:
        instant = _rfc3339(match)
    else:
        raise UnreadableInstant(EXPECTED)
    if not 0 <= instant <= LAST_US:
        raise UnreadableInstant(f"{EXPECTED}; the years 1970 to 9999 are covered")
    return instant


def _unix(whole: str, decimals: str | None) -> int:
    value = int(whole)
    if value < 10**11:
        return value * 1_000_000 + int((decimals or "").ljust(6, "0")[:6])
    if decimals is not None:
        raise UnreadableInstant(f"{EXPECTED}; decimals belong to seconds only")
    return value * 1_000 if value < 10**14 else value


def _rfc3339(match: re.Match[str]) -> int:
    year, month, day, hour, minute, second = (int(match[i]) for i in range(1, 7))
    try:
        moment = datetime(year, month, day, hour, minute, second, tzinfo=UTC)
    except ValueError as error:
        raise UnreadableInstant(f"{EXPECTED}; {error}") from error
    offset_us = 0
    if match[8] is not None:
        hours, minutes = int(match[9]), int(match[10])
        if hours > 23 or minutes > 59:
            raise UnreadableInstant(f"{EXPECTED}; no offset is {match[9]}:{match[10]}")
        offset_us = (hours * 60 + minutes) * 60_000_000 * (-1 if match[8] == "-" else 1)
    return (moment - _EPOCH) // _MICROSECOND + int((match[7] or "").ljust(6, "0")[:6]) - offset_us


def text(us: int) -> str:
    """Return the instant as RFC 3339 in UTC with six decimals."""
    moment = _EPOCH + timedelta(microseconds=us)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ") if us >= 0 else "1970-01-01T00:00:00.000000Z"


def optional_text(us: int | None) -> str | None:
    """Return `text` of an instant, None for None."""
    return None if us is None else text(us)
