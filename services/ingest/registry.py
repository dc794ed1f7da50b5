"""Which markets there are, as told by REST and by lifecycle frames, and which of them are to be captured. No I/O.

Bounded by the exchange's own number of markets: one that has ended is forgotten after `FORGET_US`.
"""

import hashlib
from dataclasses import dataclass
from typing import Any, Final

import orjson

from kalshibook_core.kalshi import markets
from kalshibook_core.kalshi.messages import Lifecycle

LINGER_US: Final = 30_000_000
"""A market stays subscribed for so long after it was determined: its last, empty snapshots come late (13 s was seen)."""

PATIENCE_US: Final = 100_000
"""How long a market known only by a lifecycle frame waits for REST to tell the exchange's clock before it is subscribed."""

FORGET_US: Final = 3_600_000_000

Rank = tuple[bool, int, int, str]


@dataclass(slots=True)
class Known:
    """One market. `skew_us`: the exchange's clock minus the local one, by the first REST answer about it; None before."""

    since_us: int
    status: str = ""
    occurrence_us: int = 0
    volume: int = 0
    skew_us: int | None = None
    digest: bytes = b""
    ended_us: int | None = None
    settled: bool = False  # said so by a lifecycle frame


class Registry:
    """The markets known. Times are local microseconds."""

    def __init__(self) -> None:
        """Know nothing."""
        self.markets: dict[str, Known] = {}

    def read(self, body: Any, skew_us: int | None, now_us: int) -> tuple[str, bytes] | None:
        """Take a REST market object; return (ticker, its JSON) where it says anything new. Raises UnparsableFrame."""
        market = markets.parse_market(body)
        known = self._known(market.ticker, now_us)
        known.status, known.occurrence_us, known.volume = market.status, market.occurrence_us, market.volume
        if known.skew_us is None:
            known.skew_us = skew_us
        if market.status in markets.ENDED:
            known.ended_us = known.ended_us or now_us
        payload = orjson.dumps(body)
        digest = hashlib.blake2b(payload, digest_size=16).digest()
        if digest == known.digest:
            return None
        known.digest = digest
        return market.ticker, payload

    def hear(self, event: Lifecycle, now_us: int) -> bool:
        """Take a lifecycle message; return whether REST should be asked about its market."""
        if not event.market_ticker:
            return False
        known = self._known(event.market_ticker, now_us)
        if event.event_type in markets.ENDED:
            known.ended_us = known.ended_us or now_us
            known.settled |= event.event_type == "settled"
        return True

    def answered(self, ticker: str, skew_us: int | None) -> None:
        """REST was asked about a market and does not know it (yet); its clock is good all the same."""
        known = self.markets.get(ticker)
        if known is not None and known.skew_us is None:
            known.skew_us = skew_us

    def behind(self, ticker: str) -> bool:
        """Return whether REST's last word on a market is older than its settlement (it lags by a second or so)."""
        known = self.markets.get(ticker)
        return known is not None and known.settled and known.status not in ("settled", "finalized")

    def wanted(self, now_us: int) -> dict[str, Rank]:
        """Return the markets to capture with their rank: active ones first, then by what happens soonest, then by volume."""
        return {
            ticker: (known.status != "active", known.occurrence_us or _NEVER_US, -known.volume, ticker)
            for ticker, known in self.markets.items()
            if (known.ended_us is None or now_us < known.ended_us + LINGER_US)
            and (known.skew_us is not None or now_us >= known.since_us + PATIENCE_US)
            and known.ended_us != known.since_us  # it had ended before we heard of it
        }

    def running(self) -> list[str]:
        """Return the markets that have not ended, as far as is known."""
        return [ticker for ticker, known in self.markets.items() if known.ended_us is None]

    def forget(self, now_us: int) -> None:
        """Forget what ended long ago."""
        old = [t for t, known in self.markets.items() if known.ended_us is not None and now_us > known.ended_us + FORGET_US]
        for ticker in old:
            del self.markets[ticker]

    def _known(self, ticker: str, now_us: int) -> Known:
        return self.markets.setdefault(ticker, Known(now_us))


_NEVER_US: Final = 2**62
