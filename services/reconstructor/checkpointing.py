"""The books of one partition, when each is written down, and from where the partition must be folded again. Pure.

A rebuild reads the partition's checkpoints and then its events from the greatest `resume_offset` on. That is enough because
checkpoints of a partition are written in order, by one fenced writer, to one partition: whoever reads one has all before it.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from kalshibook_core.kafka.consumer import Record
from kalshibook_core.wire.columns import Deltas
from kalshibook_core.wire.events import BookEvent, Checkpoint
from services.reconstructor.live_book import Corruption, LiveBook

_SWEEP = 500
"""Silent markets looked at in one call, so that a call stays short after a burst of new ones."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How far a book may move from its last checkpoint: so many events, or so much time, whichever comes first."""

    events: int = 1_000
    interval_us: int = 300_000_000

    def __post_init__(self) -> None:
        if self.events < 1 or self.interval_us < 1:
            raise ValueError("a checkpoint policy needs at least one event and one microsecond")

    def due(self, live: LiveBook) -> bool:
        """Return whether the book has moved that far, in events or in the market's own time."""
        return (
            live.version - live.saved_version >= self.events
            or live.effective_us - live.saved_effective_us >= self.interval_us
        )  # fmt: skip


class PartitionBooks:
    """Live books of one partition of kalshi.book.v1, folded up to `next_offset`."""

    def __init__(self, checkpoints: Iterable[Checkpoint] = (), policy: Policy = Policy()) -> None:
        """Restore from the partition's checkpoints, in their order; go on folding at `next_offset`."""
        self.books: dict[str, LiveBook] = {}
        self.next_offset = 0
        self._policy = policy
        # First offset and time of what no checkpoint covers yet, by ticker. A market enters at the end and leaves when it is
        # written down, so the first entry is always the lowest offset and the longest wait.
        self._uncovered: dict[str, tuple[int, int]] = {}
        self._ready: list[Checkpoint] = []
        for checkpoint in checkpoints:
            self.books[checkpoint.market_ticker] = LiveBook.restored(checkpoint)
            self.next_offset = max(self.next_offset, checkpoint.resume_offset)

    @property
    def resume_offset(self) -> int:
        """The lowest offset that no checkpoint covers. A corrupt book holds it back, so that nothing it needs is skipped."""
        return next(iter(self._uncovered.values()))[0] if self._uncovered else self.next_offset

    @property
    def corrupt(self) -> list[str]:
        """The markets whose books did not verify."""
        return [ticker for ticker, live in self.books.items() if live.corrupt]

    def apply(self, event: BookEvent, offset: int, now_us: int) -> LiveBook | None:
        """Apply the event at `offset`; return the book it changed, None if it was inside a checkpoint. Raise Corruption once."""
        live = self._at(event.market_ticker, event.version, offset, now_us)
        if not live.apply(event, offset):
            return None
        if self._policy.due(live):
            self._cover(live)
        return live

    def apply_deltas(self, deltas: Deltas, records: Iterable[Record], now_us: int) -> Iterator[LiveBook | Corruption | None]:
        """Apply the deltas that the records hold, in their order; yield of each what `apply` returns or raises of it."""
        tickers, at, due = deltas.tickers, self._at, self._policy.due
        fields = (deltas.market, deltas.version, deltas.effective_us, deltas.side, deltas.price, deltas.delta, deltas.checksum)
        rows = zip(records, *(field.tolist() for field in fields), strict=True)
        for record, market, version, effective_us, side, price, delta, checksum in rows:
            offset = record.offset
            live = at(tickers[market], version, offset, now_us)
            try:
                moved = live.change(version, effective_us, side, price, delta, checksum, offset, record.value)
            except Corruption as error:
                yield error
                continue
            if moved and due(live):
                self._cover(live)
            yield live if moved else None

    def due(self, now_us: int) -> list[Checkpoint]:
        """Return the checkpoints to write, oldest first, and forget them: whoever cannot write them must drop these books.

        Among them the markets that have waited for the interval by the local clock: a market that fell silent would hold
        back `resume_offset` for ever.
        """
        for ticker, (_, since_us) in list(itertools.islice(self._uncovered.items(), _SWEEP)):
            if now_us - since_us < self._policy.interval_us:
                break
            self._cover(self.books[ticker])
        ready, self._ready = self._ready, []
        return ready

    def rest(self) -> list[Checkpoint]:
        """Return `due` and a checkpoint of every other market that moved since its last one: what a drain writes."""
        for ticker in list(self._uncovered):
            self._cover(self.books[ticker])
        ready, self._ready = self._ready, []
        return ready

    def _at(self, ticker: str, version: int, offset: int, now_us: int) -> LiveBook:
        """Go on to `offset`, an event of this market; return the market's book as it was before."""
        self.next_offset = offset + 1
        live = self.books.get(ticker)
        if live is None:
            live = self.books[ticker] = LiveBook(ticker)
        if version > live.saved_version and ticker not in self._uncovered:
            self._uncovered[ticker] = (offset, now_us)
        return live

    def _cover(self, live: LiveBook) -> None:
        if live.corrupt:
            return
        self._uncovered.pop(live.ticker, None)
        self._ready.append(live.checkpoint(self.resume_offset))
        live.saved_version, live.saved_effective_us = live.version, live.effective_us
