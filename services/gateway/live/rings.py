"""Recent book events of every market, undecoded, bounded over all markets together. No I/O.

When full, the oldest event of all goes, whichever market's it is; a reader who would need it is told there is a hole. Of a
market with no event left the last one stays known, for as many markets as events: a book older than that is not the latest.
"""

from collections import deque
from collections.abc import Callable

from kalshibook_core.wire.events import BookEvent


class Rings:
    """The last `capacity` events, by ticker."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._order: deque[str] = deque()  # the ticker of each event, oldest first
        self._events: dict[str, deque[bytes]] = {}
        self._gone: dict[str, bytes] = {}  # the last event of a market all of whose events went, longest gone first

    def __len__(self) -> int:
        return len(self._order)

    def add(self, ticker: str, value: bytes) -> None:
        """Remember an event."""
        ring = self._events.get(ticker)
        if ring is None:
            ring = self._events[ticker] = deque()
            self._gone.pop(ticker, None)
        ring.append(value)
        self._order.append(ticker)
        if len(self._order) > self._capacity:
            oldest = self._order.popleft()
            ring = self._events[oldest]
            last = ring.popleft()
            if not ring:
                del self._events[oldest]
                self._gone[oldest] = last
                if len(self._gone) > self._capacity:
                    del self._gone[next(iter(self._gone))]

    def clear(self) -> None:
        """Forget everything."""
        self._order.clear()
        self._events.clear()
        self._gone.clear()

    def since(self, ticker: str, version: int, decode: Callable[[bytes], BookEvent]) -> list[BookEvent] | None:
        """Return the market's events after `version`, in order; None if the next one is not remembered any more."""
        found: list[BookEvent] = []
        for value in reversed(self._events.get(ticker, ())):
            event = decode(value)
            if event.version <= version:
                break
            found.append(event)
        found.reverse()
        if ticker in self._gone and decode(self._gone[ticker]).version > version:
            return None
        return None if found and found[0].version != version + 1 else found
