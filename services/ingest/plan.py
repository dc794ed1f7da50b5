"""Which market goes on which connection, as a pure function of what is wanted, what stands and what is allowed.

A change costs what the market costs, not what the universe does. A market that has a place keeps it: nothing is moved to make
another connection fuller, and it gives way only where there are more markets than places, to one of better rank. What is moved on
purpose (`renew`, `relieve`) has both places until the new one is known to serve (`arrived`), and both count.
"""

import heapq
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field

from services.ingest.registry import Rank


@dataclass(frozen=True, slots=True)
class Limits:
    """The most connections, and the most markets on one."""

    connections: int
    markets_per_connection: int


@dataclass(frozen=True, slots=True)
class Changes:
    """What to change, by connection number: first `leave`, then `unsubscribe`, then `subscribe`.

    `ousted` are those of `unsubscribe` that are wanted all the same; those of `leave` have another connection already.
    """

    subscribe: dict[int, list[str]] = field(default_factory=dict)
    unsubscribe: dict[int, list[str]] = field(default_factory=dict)
    leave: dict[int, list[str]] = field(default_factory=dict)
    ousted: frozenset[str] = frozenset()


class Plan:
    """The places, and who wants one.

    `left_out` are the wanted markets that have none; `moving` those that have a second one, which they are to give up; `closing`
    the connections that get no more markets.
    """

    def __init__(self, limits: Limits) -> None:
        """Start with no market and no connection."""
        self.placed: dict[str, int] = {}
        self.left_out: dict[str, Rank] = {}
        self.moving: dict[str, int] = {}
        self.closing: set[int] = set()
        self.limits = limits
        self._ranks: dict[str, Rank] = {}  # of the placed ones
        self._loads: list[int] = []
        self._room: list[int] = []  # a heap of connections with room, with what is out of date
        self._best: list[tuple[Rank, str]] = []  # a heap of the left out, likewise
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
        for rank, ticker in self._by_rank():
            if self._place(ticker, rank):
                continue
            worst = self._last()
            if worst is None or self._ranks[worst] <= rank:
                heapq.heappush(self._best, (rank, ticker))
                break
            given_up = self._ranks[worst]
            self._leave(worst)
            self.left_out[worst] = given_up
            heapq.heappush(self._best, (given_up, worst))
            if not self._place(ticker, rank):  # the place was on a connection that has more than it may have by now
                heapq.heappush(self._best, (rank, ticker))
        changes = self._changes
        self._changes = Changes()
        ousted = frozenset(ticker for gone in changes.unsubscribe.values() for ticker in gone if ticker in self.left_out)
        return Changes(changes.subscribe, changes.unsubscribe, changes.leave, ousted)

    # Moves. Each goes to a connection that is opened for it.

    def spare(self, opened: Container[int]) -> int | None:
        """Return the number of a connection that may still be opened, None where there is none."""
        return next((number for number in range(self.limits.connections) if number not in opened), None)

    def renew(self, number: int, markets: Iterable[str], spare: int) -> Changes:
        """Have the connection `spare` take over whatever of `markets` is on `number`, which is to be closed then."""
        markets = self._of(number, markets)
        if len(markets) <= self.limits.markets_per_connection:  # else the rest stays, and goes another time
            self.closing.add(number)
        return self._move(markets, spare)

    def relieve(self, number: int, markets: Iterable[str], spare: int, least: int = 0) -> Changes:
        """Have the connection `spare` take over every other active market of `markets` on `number`, if they are `least`."""
        active = sorted((rank, ticker) for ticker in self._of(number, markets) if not (rank := self._ranks[ticker])[0])
        return self._move([ticker for _, ticker in active[1::2]] if len(active) >= least else [], spare)

    def arrived(self, tickers: Iterable[str]) -> Changes:
        """The new places of these serve, or the old ones do no longer: give up the old ones."""
        for ticker in tickers:
            number = self.moving.pop(ticker)
            self._lighten(number)
            self._changes.leave.setdefault(number, []).append(ticker)
        return self.changes()

    def stay(self, tickers: Iterable[str]) -> None:
        """The new places of these were refused: they keep the old ones, whose connection is not to be closed any more."""
        for ticker in tickers:
            self._lighten(self.placed[ticker])
            self.placed[ticker] = self.moving.pop(ticker)
            self.closed(self.placed[ticker])

    def closed(self, number: int) -> None:
        """The connection was closed, or is not to be: its number may be used again."""
        if number in self.closing:
            self.closing.discard(number)
            heapq.heappush(self._room, number)

    def _of(self, number: int, markets: Iterable[str]) -> list[str]:
        return [ticker for ticker in markets if self.placed.get(ticker) == number]

    def _move(self, tickers: list[str], spare: int) -> Changes:
        self._reach(spare)
        for ticker in tickers[: max(0, self.limits.markets_per_connection - self._loads[spare])]:
            self.moving[ticker] = self.placed[ticker]
            self.placed[ticker] = spare
            self._loads[spare] += 1
            self._changes.subscribe.setdefault(spare, []).append(ticker)
        return self.changes()

    # Places.

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

    def _place(self, ticker: str, rank: Rank) -> bool:
        connection = self._roomy()
        if connection is None:
            return False
        del self.left_out[ticker]
        self._loads[connection] += 1
        self.placed[ticker] = connection
        self._ranks[ticker] = rank
        if self._worst is not None:
            heapq.heappush(self._worst, (_negative(rank), ticker))
        self._changes.subscribe.setdefault(connection, []).append(ticker)
        return True

    def _roomy(self) -> int | None:
        while self._room:
            number = self._room[0]
            if self._loads[number] < self.limits.markets_per_connection and number not in self.closing:
                return number
            heapq.heappop(self._room)
        if len(self._loads) == self.limits.connections:
            return None
        self._reach(len(self._loads))
        return len(self._loads) - 1

    def _reach(self, number: int) -> None:
        while len(self._loads) <= number:
            heapq.heappush(self._room, len(self._loads))
            self._loads.append(0)

    def _leave(self, ticker: str) -> None:
        connection = self.placed.pop(ticker)
        del self._ranks[ticker]
        for number in (connection, self.moving.pop(ticker, None)):
            if number is not None:
                self._lighten(number)
                self._changes.unsubscribe.setdefault(number, []).append(ticker)

    def _lighten(self, number: int) -> None:
        self._loads[number] -= 1
        if self._loads[number] == self.limits.markets_per_connection - 1:
            heapq.heappush(self._room, number)


def _negative(rank: Rank) -> tuple[int, int, int]:
    return (-rank[0], -rank[1], -rank[2])
