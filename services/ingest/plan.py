"""Which market goes on which connection, as a pure function of what is wanted, what stands and what is allowed.

A change costs what the market costs, not what the universe does. A market that has a place keeps it: nothing is moved to make
another connection fuller, and it gives way only where there are more markets than places, to one of better rank.
"""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field

from services.ingest.registry import Rank


@dataclass(frozen=True, slots=True)
class Limits:
    """The most connections, and the most markets on one."""

    connections: int
    markets_per_connection: int


@dataclass(frozen=True, slots=True)
class Changes:
    """What to change, by connection number; `ousted` are those of `unsubscribe` that are wanted all the same."""

    subscribe: dict[int, list[str]] = field(default_factory=dict)
    unsubscribe: dict[int, list[str]] = field(default_factory=dict)
    ousted: frozenset[str] = frozenset()


class Plan:
    """The places, and who wants one. `left_out` are the wanted markets that have none."""

    def __init__(self, limits: Limits) -> None:
        """Start with no market and no connection."""
        self.placed: dict[str, int] = {}
        self.left_out: dict[str, Rank] = {}
        self.limits = limits
        self._ranks: dict[str, Rank] = {}  # of the placed ones
        self._loads: list[int] = []
        self._room: list[int] = []  # a heap of connections with room
        self._best: list[tuple[Rank, str]] = []  # a heap of the left out, with what is out of date
        self._worst: list[tuple[tuple[int, int, int], str]] | None = None  # the same of the placed, once they are too many
        self._changes = Changes()

    def want(self, ticker: str, rank: Rank) -> None:
        """Capture this market, which is worth that much."""
        if ticker in self.placed:
            if self._ranks[ticker] != rank:
                self._ranks[ticker] = rank
                if self._worst is not None:
                    heapq.heappush(self._worst, (_negative(rank), ticker))
        elif self.left_out.get(ticker) != rank:
            self.left_out[ticker] = rank
            heapq.heappush(self._best, (rank, ticker))

    def drop(self, ticker: str) -> None:
        """Capture this market no longer."""
        self.left_out.pop(ticker, None)
        if ticker in self.placed:
            self._leave(ticker)

    def lower(self, most: int) -> None:
        """A connection takes no more than so many: from now on no one gets more. What has its place already keeps it."""
        each = max(1, min(most, self.limits.markets_per_connection))
        self.limits = Limits(self.limits.connections, each)
        self._room = [number for number, load in enumerate(self._loads) if load < each]

    def changes(self) -> Changes:
        """Give places to those that want them, the best first; return what changed since the last call."""
        ousted = set()
        for rank, ticker in self._by_rank():
            if self._room or len(self._loads) < self.limits.connections:
                self._place(ticker, rank)
                continue
            worst = self._last()
            if worst is None or self._ranks[worst] <= rank:
                heapq.heappush(self._best, (rank, ticker))
                break
            given_up = self._ranks[worst]
            self._leave(worst)
            self.left_out[worst] = given_up
            heapq.heappush(self._best, (given_up, worst))
            ousted.add(worst)
            self._place(ticker, rank)
        changes = self._changes
        self._changes = Changes()
        return Changes(changes.subscribe, changes.unsubscribe, frozenset(ousted))

    def _by_rank(self) -> Iterator[tuple[Rank, str]]:
        while self._best:
            rank, ticker = heapq.heappop(self._best)
            if self.left_out.get(ticker) == rank:
                yield rank, ticker

    def _last(self) -> str | None:
        if self._worst is None:
            self._worst = [(_negative(rank), ticker) for ticker, rank in self._ranks.items()]
            heapq.heapify(self._worst)
        while self._worst:
            negative, ticker = self._worst[0]
            if ticker in self.placed and _negative(self._ranks[ticker]) == negative:
                return ticker
            heapq.heappop(self._worst)
        return None

    def _place(self, ticker: str, rank: Rank) -> None:
        del self.left_out[ticker]
        if not self._room:
            self._room.append(len(self._loads))
            self._loads.append(0)
        connection = self._room[0]
        self._loads[connection] += 1
        if self._loads[connection] >= self.limits.markets_per_connection:
            heapq.heappop(self._room)
        self.placed[ticker] = connection
        self._ranks[ticker] = rank
        if self._worst is not None:
            heapq.heappush(self._worst, (_negative(rank), ticker))
        self._changes.subscribe.setdefault(connection, []).append(ticker)

    def _leave(self, ticker: str) -> None:
        connection = self.placed.pop(ticker)
        del self._ranks[ticker]
        if self._loads[connection] == self.limits.markets_per_connection:
            heapq.heappush(self._room, connection)
        self._loads[connection] -= 1
        self._changes.unsubscribe.setdefault(connection, []).append(ticker)


def _negative(rank: Rank) -> tuple[int, int, int]:
    return (-rank[0], -rank[1], -rank[2])
