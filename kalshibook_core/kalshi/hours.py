"""When the exchange rests.

Every Thursday from 03:00 to 05:00 in New York trading is paused for maintenance, and sessions may be cut (Kalshi docs, "Exchange
hours"). What ends in that window ends by plan: it is a label, no alarm.
"""

from datetime import UTC, datetime
from typing import Final
from zoneinfo import ZoneInfo

_NEW_YORK: Final = ZoneInfo("America/New_York")
_THURSDAY: Final = 3


def weekly_pause(at_us: int) -> bool:
    """Return whether the exchange's own clock stands within the weekly pause."""
    there = datetime.fromtimestamp(at_us // 1_000_000, UTC).astimezone(_NEW_YORK)
    return there.weekday() == _THURSDAY and 3 <= there.hour < 5
