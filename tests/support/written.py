"""Events written into the tables as the persister writes them, and measured, a step at a time."""

from types import SimpleNamespace
from typing import Any

from kalshibook_core.postgres.partitions import DAY_US
from kalshibook_core.wire import codec
from kalshibook_core.wire.events import Audited, Event, Lifecycle, Trade
from services.persister.batch import Batch
from services.persister.coverage import Coverage
from services.persister.store import Store


def trade(ticker: str, number: int, exchange_us: int, lag_us: int = 0) -> Trade:
    """Return a trade as the websocket tells it."""
    return Trade(ticker, f"t{number}", exchange_us, exchange_us + lag_us, 4800, 5200, 100, 0, None, "g1", 0, 1, 1, 1, 0)


def audit(ticker: str, to_us: int, outcome: str = "match") -> Audited:
    """Return what comparing a market's book with the exchange's gave."""
    return Audited(ticker, outcome, to_us - 7_000_000, to_us, 1, 1, 1, to_us)


def word(ticker: str, event_type: str, clock_us: int) -> Lifecycle:
    """Return what the exchange says that happened to a market, by the clock that it was heard at."""
    return Lifecycle(ticker, event_type, clock_us, clock_us, b"{}", 0)


class Written:
    """Events as a persister writes them, and what is measured of them, a step at a time."""

    def __init__(self, connections: Any, connection: Any, now_us: int) -> None:
        self.store, self.coverage, self.connection = Store(connections), Coverage(connections), connection
        self.offset, self.source, self.now_us = 0, ("book", 0), now_us

    async def write(self, *events: Event) -> None:
        """Write a batch of these."""
        batch = Batch()
        batch.add(self.source, [SimpleNamespace(offset=self.offset + n, value=codec.encode(e)) for n, e in enumerate(events)])
        await self.store.write(batch, await self.store.positions([self.source]))
        self.offset += len(events)

    async def measure(self, book_us: int) -> None:
        """Measure all that can be, when the book has come to an instant."""
        await self.coverage.close(book_us, self.now_us)
        while await self.coverage.measure(self.now_us) or await self.coverage.condition(self.now_us):
            pass

    async def revisions(self, hour_us: int) -> list[tuple[int, int, int]]:
        """Return (revision, events, trades) of what is said of the only market in an hour."""
        query = "SELECT revision, events, trades FROM coverage WHERE hour_us = $1 ORDER BY revision"
        return [tuple(row) for row in await self.connection.fetch(query, hour_us)]

    async def conditions(self, since_us: int) -> list[tuple[int, int, str]]:
        """Return (days since, revision, condition) of what is said of each day."""
        query = "SELECT (day_us - $1) / $2, revision, condition FROM conditions ORDER BY day_us, revision"
        return [tuple(row) for row in await self.connection.fetch(query, since_us, DAY_US)]
