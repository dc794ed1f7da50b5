"""What a market is, as far as numbering needs it: lifecycle events once each, whether it has ended, and its price grid. Pure.

"Activated, deactivated, activated" happens and is three events, so that a body was seen does not make it a repeat; and no frame
says when it happened. `Occurrences` goes by who said it: a connection says each event once, so what it says twice was two events.
`Sequence` is for REST, where each gatherer asks when it likes and sees no more than the last state: what it says is a repeat if
the market's sequence has it at or after what the same gatherer said last. Of a gatherer that said nothing yet the occurrence
nearest in time counts.
"""

from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final

from kalshibook_core.kalshi import numbers
from kalshibook_core.kalshi.markets import ENDED
from kalshibook_core.wire.events import LAG_US, RawFrame

REMEMBERED: Final = 64
"""Bodies of a market's sequence that are remembered; a gatherer that lags by more repeats them."""

REMEMBERED_OF_ALL: Final = 1024
"""The same where a key is a gatherer's: what belongs to no market comes under it, of all events at once."""

CLOCK_US: Final = 2_000_000
"""How far two gatherers' knowledge of the exchange's clock may be apart: its Date names the second only."""

APART_US: Final = LAG_US + 2 * CLOCK_US
"""Two connections that receive one event receive it no further apart than this."""

Grid = frozenset[int]
"""Every YES price a market can have."""


def digest(body: bytes) -> int:
    """Return a signed 64-bit digest that tells bodies apart; never 0, which stands for none."""
    return int.from_bytes(blake2b(body, digest_size=8).digest(), "big", signed=True) or 1


class Occurrences:
    """The last lifecycle frames told of a key, each with the connections that brought it.

    What a connection brings is a repeat of the first frame of the same body that it may have received and has not brought yet. It
    may have if another did at about the same time, and not before the connection's handshake. So the order of different events
    does not matter, nor which connection is ahead. Exact but for one case: an event happens while a connection begins, which is
    too late for it, and the same again within APART_US, while every other connection of all gatherers ends.
    """

    __slots__ = ("_most", "_told")

    def __init__(self, most: int = REMEMBERED) -> None:
        """Begin with nothing told; `most` frames are remembered."""
        self._most = most
        self._told: list[tuple[int, int, int, list[tuple[str, int, int, int, int]]]] = []
        """(digest, clock_us and recv_us of who brought it first, (gatherer, connection, generation, sid, seq) of all who did)"""

    def new(self, raw: RawFrame, body: bytes) -> bool:
        """Take what a connection brings; return whether it is new."""
        told, name = digest(body), (*raw[1:4], raw.sid, raw.seq)
        began_us = raw.clock_us - (raw.recv_us - raw.generation) - CLOCK_US
        first = None
        for each, clock_us, recv_us, brought in self._told:
            if each != told:
                continue
            if raw.seq >= 0 and name in brought:
                return False  # this very frame, as what was spooled may come after a kill
            heard = recv_us >= raw.generation if brought[0][0] == raw.gatherer else clock_us >= began_us
            at_once = abs(clock_us - raw.clock_us) <= APART_US
            if first is None and heard and at_once and all(by[:3] != name[:3] for by in brought):
                first = brought
        if first is not None:
            first.append(name)
            return False
        self._told.append((told, raw.clock_us, raw.recv_us, [name]))
        del self._told[: -self._most]
        return True

    def state(self) -> list[Any]:
        """Return what `restore` needs, as JSON can hold it."""
        return self._told

    def restore(self, state: list[Any]) -> None:
        """Become the occurrences that gave this state."""
        if state[1:] and type(state[1]) is int:  # of the release before: it told less, and no more than 14 s of it matter
            state = []
        self._told = [(*each[:3], [tuple(name) for name in each[3]]) for each in state]


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
