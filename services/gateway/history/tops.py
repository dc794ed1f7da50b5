"""Each change of a market's best bid and ask, with their sizes, by version. No I/O but the events' own iterator."""

from collections.abc import AsyncIterator
from typing import Any, Final, NamedTuple

from kalshibook_core.kalshi.numbers import ONE_DOLLAR, format_price, format_size
from kalshibook_core.postgres.runs import EventColumns
from services.gateway import instants
from services.gateway.history.views import mid, signed_price
from services.gateway.history.walk import NONE, Top, Walk

MAX_EVENTS: Final = 1_000_000
"""Events a page may walk over; past it the page ends."""


class Change(NamedTuple):
    """What the best levels are from a version on."""

    version: int
    effective_us: int
    top: Top


async def changes(
    walk: Walk, batches: AsyncIterator[EventColumns], after_version: int, limit: int
) -> tuple[list[Change], tuple[int, int] | None]:
    """Return the changes after a version, `limit` at most, and where to go on: (effective_us, version), None if that is all."""
    found: list[Change] = []
    first, last = walk.version, walk.top()[1:] if walk.version else None
    async for events in batches:
        tops: list[Top] = []
        walk.take(events)
        walk.until(len(events.version), tops)
        for top in tops:
            if top[1:] == last:
                continue
            last = top[1:]
            if (version := int(events.version[top[0]])) > after_version:
                if len(found) == limit:
                    return found, (found[-1].effective_us, found[-1].version)
                found.append(Change(version, int(events.effective_us[top[0]]), top))
        if walk.version - first > MAX_EVENTS:
            return found, (int(events.effective_us[-1]), walk.version)
    return found, None


def row(change: Change) -> dict[str, Any]:
    """Return a change as customers see it; in a gap nothing is known of the best levels."""
    version, effective_us, (_, yes, yes_size, no, no_size, known) = change
    bid, ask = (yes if known else NONE), (ONE_DOLLAR - no if known and no != NONE else NONE)
    both = NONE not in (bid, ask)
    return {
        "version": version, "effective_at": instants.text(effective_us), "state": "complete" if known else "gap",
        "bid": None if bid == NONE else [format_price(bid), format_size(yes_size)],
        "ask": None if ask == NONE else [format_price(ask), format_size(no_size)],
        "mid": mid(bid + ask) if both else None, "spread": signed_price(ask - bid) if both else None,
    }  # fmt: skip
