"""Which market goes on which connection, as a pure function of what is wanted, what stands and what is allowed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Limits:
    """The most connections, and the most markets on one."""

    connections: int
    markets_per_connection: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What to change, by connection number, and how many markets found no place."""

    subscribe: dict[int, list[str]] = field(default_factory=dict)
    unsubscribe: dict[int, list[str]] = field(default_factory=dict)
    left_out: int = 0


def plan(wanted: Mapping[str, Any], placed: Mapping[str, int], limits: Limits) -> Plan:
    """Return the changes that bring every wanted market onto a connection, without touching one that may stay.

    `wanted` gives each market's rank, the lowest first; it decides only where there are more markets than places, and then a
    market of low rank gives way to a better one.
    """
    places = limits.connections * limits.markets_per_connection
    chosen = wanted.keys() if len(wanted) <= places else set(sorted(wanted, key=wanted.__getitem__)[:places])
    changes = Plan(left_out=len(wanted) - len(chosen))
    taken: dict[int, int] = {}
    for ticker, connection in placed.items():
        if ticker in chosen:
            taken[connection] = taken.get(connection, 0) + 1
        else:
            changes.unsubscribe.setdefault(connection, []).append(ticker)
    connection = 0
    for ticker in wanted:
        if ticker not in chosen or ticker in placed:
            continue
        while taken.get(connection, 0) >= limits.markets_per_connection:
            connection += 1
        taken[connection] = taken.get(connection, 0) + 1
        changes.subscribe.setdefault(connection, []).append(ticker)
    return changes
