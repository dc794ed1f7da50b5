"""Where a fold of the raw archive may begin instead of at nothing: the deduplicator's whole state, as a fold before had it.

A savepoint of a partition holds the state after the raw records before `offset`, which made no event later than `until_us`. So a
proof of what is later may begin there: what lies before is taken as given, and `kb verify` says so. It is a function of the raw
rows, of the settings and of the release; one of others is not taken, nor one that is not what was written.
"""

import zlib
from collections.abc import Iterator
from importlib import metadata
from typing import Final, NamedTuple

import orjson

from kalshibook_core.archive import manifest
from kalshibook_core.archive.store import Store
from kalshibook_core.wire.events import MarketMemory, Trade
from services.deduplicator.partition import Partition

_FOLDER: Final = "proofs"


class Savepoint(NamedTuple):
    """Where one lies: `of` is a digest of what it depends on."""

    of: str
    partition: int
    offset: int
    until_us: int

    @property
    def path(self) -> str:
        """Return where it lies."""
        return f"{_FOLDER}/{self.of}/{self.partition}/{self.offset:020}-{self.until_us}.z"


def of(log: str, settings: list[int]) -> str:
    """Return the digest of what a savepoint depends on beside the raw rows: whose log, the fold's settings, the release."""
    return manifest.digest(orjson.dumps([log, settings, metadata.version("kalshibook-platform")]))[:16]


def latest(store: Store, of: str, partition: int, from_us: int) -> Iterator[Savepoint]:
    """Yield the savepoints from which everything from `from_us` on can be proved, the latest first."""
    found = []
    for path, _ in store.listed(f"{_FOLDER}/{of}/{partition}"):
        offset, _, until = path.rpartition("/")[2].removesuffix(".z").partition("-")
        if path.endswith(".z") and int(until) < from_us:
            found.append(Savepoint(of, partition, int(offset), int(until)))
    yield from sorted(found, key=lambda each: -each.offset)


def save(store: Store, savepoint: Savepoint, folded: Partition) -> None:
    """Write down the state of a partition, whose next raw record is the one at the savepoint's offset."""
    folded.changed.update(folded.markets)
    memories = [[each.market_ticker, each.state.decode(), each.raw_offset] for each in folded.memories(savepoint.offset - 1)]
    body = zlib.compress(orjson.dumps([memories, list(map(list, folded.window.held))]), 6)
    store.put(savepoint.path, manifest.digest(body).encode() + b"\n" + body)


def restore(store: Store, savepoint: Savepoint, new: Partition) -> bool:
    """Bring `new` to the savepoint; False, and nothing done, where it is not what was written."""
    sealed, _, body = store.get(savepoint.path).partition(b"\n")
    if manifest.digest(body).encode() != sealed:
        return False
    memories, trades = orjson.loads(zlib.decompress(body))
    saved = [MarketMemory(ticker, state.encode(), offset) for ticker, state, offset in memories]
    return new.restore(saved, [Trade._make(trade) for trade in trades]) == savepoint.offset
