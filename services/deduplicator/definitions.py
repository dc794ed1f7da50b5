"""What a market is, as far as numbering needs it: lifecycle events once each, whether it has ended, and its price grid. Pure.

"Activated, deactivated, activated" happens and is three events, so that a body was seen does not make it a repeat. Each gatherer
tells the same sequence, some later or with holes: what it says is a repeat if the market's sequence has it at or after what the
same gatherer said last. Of a gatherer that said nothing yet the occurrence nearest in time counts. The same for REST market
objects.
"""

from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final

from kalshibook_core.kalshi import numbers

ENDED: Final = frozenset({"determined", "disputed", "amended", "settled", "finalized"})
"""Lifecycle event types and REST statuses from determination on: nothing trades any more (Kalshi docs, "Market lifecycle")."""

REMEMBERED: Final = 64
"""Bodies of a market's sequence that are remembered; a gatherer that lags by more repeats them."""

Grid = frozenset[int]
"""Every YES price a market can have."""


def digest(body: bytes) -> int:
    """Return a signed 64-bit digest that tells bodies apart; never 0, which stands for none."""
    return int.from_bytes(blake2b(body, digest_size=8).digest(), "big", signed=True) or 1


class Sequence:
    """The last bodies told of a market, each once, and where in them each gatherer is."""

    __slots__ = ("bodies", "dropped", "places")

    def __init__(self) -> None:
        """Make an empty sequence."""
        self.bodies: list[tuple[int, int]] = []  # (digest, clock_us of whoever told it first)
        self.dropped = 0  # bodies that are no longer remembered
        self.places: dict[str, int] = {}  # gatherer -> the number of the body it told last

    def new(self, gatherer: str, body: bytes, clock_us: int) -> bool:
        """Take what a gatherer tells; return whether it is new."""
        told, dropped = digest(body), self.dropped
        place = self.places.get(gatherer)
        found = [n for n, (each, _) in enumerate(self.bodies) if each == told and (place is None or n + dropped >= place)]
        if found:
            at = found[0] if place is not None else min(found, key=lambda n: abs(self.bodies[n][1] - clock_us))
            self.places[gatherer] = at + dropped
            return False
        self.bodies.append((told, clock_us))
        self.places[gatherer] = dropped + len(self.bodies) - 1
        if len(self.bodies) > REMEMBERED:
            del self.bodies[0]
            self.dropped += 1
        return True

    def state(self) -> list[Any]:
        """Return what `restore` needs, as JSON can hold it."""
        return [self.bodies, self.dropped, self.places]

    def restore(self, state: list[Any]) -> None:
        """Become the sequence that gave this state."""
        bodies, self.dropped, self.places = state
        self.bodies = [(told, clock_us) for told, clock_us in bodies]


def ends(definition: dict[str, Any]) -> bool:
    """Return whether a lifecycle message or a REST market object says that the market's outcome is determined."""
    return definition.get("event_type") in ENDED or definition.get("status") in ENDED


def grid(definition: dict[str, Any]) -> Grid | None:
    """Return the grid of a definition's `price_ranges` (Kalshi docs, "Fixed point migration"), None where it states none."""
    ranges = definition.get("price_ranges")
    try:
        return _grid(tuple((each["start"], each["end"], each["step"]) for each in ranges)) if ranges else None
    except (KeyError, TypeError, ValueError):
        return None  # an unreadable grid only means that prices are not checked


@lru_cache(maxsize=256)
def _grid(ranges: tuple[tuple[str, str, str], ...]) -> Grid:
    prices: set[int] = set()
    for start, end, step in ranges:
        prices.update(range(numbers.price(start), numbers.price(end) + 1, numbers.price(step)))
    return frozenset(prices)
