"""Who calls, what its plan allows and what a call was charged.

Prices and payment come later; a plan is a number of credits a calendar month (UTC).
"""

from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

PLANS: Final[dict[str, int | None]] = {
    "demo": None,  # metered like any other, never refused
    "free": 10_000,
    "pro": 5_000_000,
    "unlimited": None,
}
"""Credits a month by plan; None: not limited."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Caller(NamedTuple):
    """The account and key a request was made with."""

    account_id: str
    account: str  # its name
    plan: str
    key_id: str

    @property
    def allowance(self) -> int | None:
        """Credits a month; a plan this release does not know allows none rather than all."""
        return PLANS.get(self.plan, 0)


class Receipt(NamedTuple):
    """What a call was charged. `remaining` is None where the plan has no limit, and while Redis is away."""

    usage_id: str
    credits: int
    remaining: int | None


def period_start(now_us: int) -> int:
    """Return the start of the calendar month (UTC) that holds an instant, in microseconds."""
    month = (_EPOCH + timedelta(microseconds=now_us)).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return (month - _EPOCH) // timedelta(microseconds=1)
