"""Which markets there are, as told by REST and by lifecycle frames, and which of them are to be captured. No I/O.

Of events and series, which markets belong to, it only knows what was said last (`families`).

Made for a million of them: a market is a few words (its definition travels on verbatim, only a digest of it stays), and a change
costs what that market costs: `stirred` names those whose `rank` may be another than before, whether something was said of them
or their time has come. Bounded by the exchange's own number of markets, and by MOST: one that has ended is forgotten after
`FORGET_US`.
"""

import hashlib
import heapq
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import orjson

from kalshibook_core.kalshi import markets
from kalshibook_core.kalshi.messages import Lifecycle, UnparsableFrame, is_word
from kalshibook_core.wire.events import EVENT, SERIES

LINGER_US: Final = 30_000_000
"""A market stays subscribed for so long after it was determined: its last, empty snapshots come late (13 s was seen)."""

PATIENCE_US: Final = 100_000
"""How long a market known only by a lifecycle frame waits for REST to tell the exchange's clock before it is subscribed."""

FORGET_US: Final = 3_600_000_000

MOST: Final = 3_000_000
"""Of more markets no lifecycle frame is believed: whoever invents them has no end."""

LARGEST_OBJECT: Final = 4 * 1024 * 1024
"""As large as a frame may be: the broker takes twice that. The largest definition seen has some 4 kB."""

Rank = tuple[bool, int, int]
"""The lowest first: active ones, then by what happens soonest (in a closed one nothing does), then by volume, which counts by
its doublings: where there are more markets than places, a few more contracts are no reason to give a market up for another."""


def digest_of(payload: bytes) -> int:
    """Return what a definition is recognised by."""
    return int.from_bytes(hashlib.blake2b(payload, digest_size=8).digest())


def packed(body: Any) -> bytes:
    """Return an object of REST's as the JSON of a record; raise UnparsableFrame where none holds it."""
    try:
        payload = orjson.dumps(body)
    except TypeError as error:  # it may be read 1,024 levels deep, and written 254
        raise UnparsableFrame("object", str(error)) from None
    if len(payload) > LARGEST_OBJECT:
        raise UnparsableFrame("object", f"it has {len(payload)} bytes, and no record more than {LARGEST_OBJECT}")
    return payload


@dataclass(slots=True)
class Known:
    """One market. `skew_us`: the exchange's clock minus the local one, by the first REST answer about it; None before."""

    since_us: int
    status: str = ""
    occurrence_us: int = 0
    volume: int = 0
    skew_us: int | None = None
    digest: int = 0
    ended_us: int | None = None
    settled: bool = False  # said so by a lifecycle frame
    created: bool = False  # likewise, by this process
    listed: int = 0  # the last list that had it


class Registry:
    """The markets known. Times are local microseconds."""

    def __init__(self) -> None:
        """Know nothing."""
        self.markets: dict[str, Known] = {}
        self.families: dict[str, dict[str, int]] = {EVENT: {}, SERIES: {}}  # a digest of each definition
        self._stirred: dict[str, None] = {}
        self._later: list[tuple[int, str]] = []  # a heap: when to look at a market again

    def read(self, body: Any, skew_us: int | None, now_us: int, listed: int = 0) -> tuple[str, bytes] | None:
        """Take a REST market object; return (ticker, its JSON) where it says anything new. Raises UnparsableFrame."""
        payload = packed(body)
        market = markets.parse_market(body)
        known = self._known(market.ticker, now_us)
        known.listed = max(known.listed, listed)
        digest = digest_of(payload)
        if known.skew_us is None:
            known.skew_us = skew_us
        elif digest == known.digest:
            return None
        self._stirred[market.ticker] = None
        known.status, known.occurrence_us, known.volume = sys.intern(market.status), market.occurrence_us, market.volume
        if market.status in markets.ENDED:
            self._ended(market.ticker, known, now_us)
        if digest == known.digest:
            return None
        known.digest = digest
        return market.ticker, payload

    def hear(self, event: Lifecycle, now_us: int) -> bool:
        """Take a lifecycle message; return whether REST should be asked about its market."""
        if not event.market_ticker or (event.market_ticker not in self.markets and len(self.markets) >= MOST):
            return False
        known = self._known(event.market_ticker, now_us)
        known.created |= event.event_type == "created"
        if known.skew_us is None:
            heapq.heappush(self._later, (known.since_us + PATIENCE_US, event.market_ticker))
        if event.event_type in markets.ENDED:
            self._ended(event.market_ticker, known, now_us)
            known.settled |= event.event_type == "settled"
        return True

    def answered(self, ticker: str, skew_us: int | None) -> None:
        """REST was asked about a market and does not know it (yet); its clock is good all the same."""
        known = self.markets.get(ticker)
        if known is not None and known.skew_us is None:
            known.skew_us = skew_us
            self._stirred[ticker] = None

    def late(self, ticker: object) -> bool:
        """Return whether a market that REST tells of now was neither told of before nor seen to be created."""
        known = self.markets.get(ticker) if isinstance(ticker, str) else None
        return known is None or not (known.created or known.digest)

    def behind(self, ticker: str) -> bool:
        """Return whether REST's last word on a market is older than its settlement (it lags by a second or so)."""
        known = self.markets.get(ticker)
        return known is not None and known.settled and known.status not in ("settled", "finalized")

    def let_go(self, tickers: Iterable[str], now_us: int) -> list[str]:
        """Their connection died: return those that had ended before, and are to be captured no more, linger or not."""
        ended = [t for t in tickers if (known := self.markets.get(t)) is not None and known.ended_us is not None]
        for ticker in ended:
            known = self.markets[ticker]
            known.ended_us = min(known.ended_us or now_us, now_us - LINGER_US)
        return ended

    def stir(self, tickers: Iterable[str]) -> None:
        """Have these looked at again."""
        self._stirred.update(dict.fromkeys(tickers))

    def stirred(self, now_us: int) -> list[str]:
        """Return the markets whose rank may have changed since the last call; forget those that ended long ago."""
        while self._later and self._later[0][0] <= now_us:
            ticker = heapq.heappop(self._later)[1]
            known = self.markets.get(ticker)
            if known is not None and known.ended_us is not None and now_us > known.ended_us + FORGET_US:
                del self.markets[ticker]
            self._stirred[ticker] = None
        out, self._stirred = list(self._stirred), {}
        return out

    def rank(self, ticker: str, now_us: int) -> Rank | None:
        """Return a market's rank if it is to be captured."""
        known = self.markets.get(ticker)
        if (
            known is None
            or (known.ended_us is not None and now_us >= known.ended_us + LINGER_US)
            or (known.skew_us is None and now_us < known.since_us + PATIENCE_US)
            or known.ended_us == known.since_us  # it had ended before we heard of it
        ):
            return None
        soon_us = _NEVER_US if known.status == "closed" else known.occurrence_us or _NEVER_US
        return (known.status != "active", soon_us, -known.volume.bit_length())

    def unmet(self, bodies: list[Any], listed: int) -> bool:
        """Return whether any of these market objects was not yet in the list of that number."""
        tickers = (body.get("ticker") for body in bodies if type(body) is dict)
        known = (self.markets.get(ticker) for ticker in tickers if is_word(ticker))
        return any(each is None or each.listed < listed for each in known)

    def unlisted(self, listed: int) -> list[str]:
        """Return the markets that have not ended as far as is known, but are not in the full list of that number."""
        return [ticker for ticker, known in self.markets.items() if known.ended_us is None and known.listed < listed]

    # On disk.

    def dump(self, lines: int = 5000) -> Iterator[bytes]:
        """Yield everything as JSON lines, so many at a time; what changes meanwhile is in it or not."""
        tickers = list(self.markets)
        for start in range(0, len(tickers), lines):
            rows = ((ticker, self.markets.get(ticker)) for ticker in tickers[start : start + lines])
            yield b"".join(
                orjson.dumps([t, k.since_us, k.status, k.occurrence_us, k.volume, k.digest, k.ended_us, k.settled]) + b"\n"
                for t, k in rows
                if k is not None
            )
        for channel, digests in self.families.items():
            digested = list(digests.items())
            for start in range(0, len(digested), lines):
                yield b"".join(orjson.dumps([channel, *each]) + b"\n" for each in digested[start : start + lines])

    def load(self, line: bytes) -> None:
        """Take one line of `dump`. Raises ValueError or KeyError."""
        said = orjson.loads(line)
        if len(said) == _FAMILY_FIELDS:
            channel, ticker, digest = said
            self.families[channel][ticker] = digest
            return
        ticker, since_us, status, occurrence_us, volume, digest, ended_us, settled = said
        known = Known(since_us, sys.intern(status), occurrence_us, volume, None, digest, ended_us, settled)
        self.markets[ticker] = known
        self._stirred[ticker] = None
        if ended_us is not None:
            self._remind(ticker, ended_us)

    def _known(self, ticker: str, now_us: int) -> Known:
        known = self.markets.get(ticker)
        if known is None:
            known = self.markets[ticker] = Known(now_us)
        return known

    def _ended(self, ticker: str, known: Known, now_us: int) -> None:
        if known.ended_us is None:
            known.ended_us = now_us
            self._stirred[ticker] = None
            self._remind(ticker, now_us)

    def _remind(self, ticker: str, ended_us: int) -> None:
        heapq.heappush(self._later, (ended_us + LINGER_US, ticker))
        heapq.heappush(self._later, (ended_us + FORGET_US + 1, ticker))


_NEVER_US: Final = 2**62
_FAMILY_FIELDS: Final = 3
