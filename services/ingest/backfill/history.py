"""What the exchange remembers, by REST: trades and ended markets, live and historical ones, each list read to its end.

What is old enough moves from the live lists to the historical ones (Kalshi docs, "Historical data"), perhaps while we read. So
the live one is read first and the cutoff asked for after it: what moved meanwhile is met twice, never missed.
"""

from collections.abc import AsyncIterator
from typing import Any, Final

from kalshibook_core.kalshi import messages
from services.ingest.rest import Answer, Refused, Rest

PAGE: Final = "1000"
MARGIN_S: Final = 1
"""Seconds by which more is asked for than is wanted: whether the exchange counts its bounds in is not documented."""

BARREN_PAGES: Final = 3
"""So many pages in a row without a row are no list."""

SECOND_US: Final = 1_000_000

Page = tuple[Answer, list[Any]]


class Unread(Exception):
    """A list was not read to its end."""


class History:
    """See the module."""

    def __init__(self, rest: Rest) -> None:
        """Ask through `rest`."""
        self._rest = rest

    async def trades(self, from_us: int, to_us: int, market: str = "") -> AsyncIterator[Page]:
        """Yield pages in which every trade of [from_us, to_us) stands, of a market or of all, and some around. Raises Unread."""
        query = {
            "ticker": market,
            "min_ts": str(max(0, from_us // SECOND_US - MARGIN_S)),
            "max_ts": str(-(-to_us // SECOND_US) + MARGIN_S),
        }
        if to_us > await self._cutoff("trades_created_ts"):
            async for page in self._pages("/markets/trades", "trades", query):
                yield page
        if from_us < await self._cutoff("trades_created_ts"):
            async for page in self._pages("/historical/trades", "trades", query):
                yield page

    async def markets(self, from_us: int, to_us: int, series: str = "", *, recent: bool = False) -> AsyncIterator[Page]:
        """Yield pages in which every market stands whose close time lies in [from_us, to_us), and others. Raises Unread.

        Historical ones cannot be asked for by time: where the cutoff lies behind `from_us` all are read, or none (`recent`).
        """
        times = {"min_close_ts": str(from_us // SECOND_US), "max_close_ts": str(-(-to_us // SECOND_US))}
        async for page in self._pages("/markets", "markets", times | {"series_ticker": series}):
            yield page
        if not recent and from_us < await self._cutoff("market_settled_ts"):
            async for page in self._pages("/historical/markets", "markets", {"series_ticker": series}):
                yield page

    async def named(self, tickers: list[str]) -> AsyncIterator[Page]:
        """Yield pages with those of these markets that the exchange knows. Raises Unread."""
        left = set(tickers)
        for path in ("/markets", "/historical/markets"):
            if left:
                async for answer, found in self._pages(path, "markets", {"tickers": ",".join(sorted(left))}):
                    left -= {body.get("ticker") for body in found if type(body) is dict}
                    yield answer, found

    async def event(self, ticker: str) -> Answer:
        """Return the answer that has the event of this ticker, as `event`. Raises Unread."""
        return await self._get(f"/events/{ticker}", {})

    async def _cutoff(self, name: str) -> int:
        answer = await self._get("/historical/cutoff", {})
        try:
            return messages.time_us(answer.body[name])
        except (KeyError, TypeError, ValueError, AttributeError):
            raise Unread(f"GET {answer.path}: no {name}") from None

    async def _pages(self, path: str, rows: str, query: dict[str, str]) -> AsyncIterator[Page]:
        cursor, first, barren = "", None, 0
        while True:
            answer = await self._get(path, query | {"limit": PAGE, "cursor": cursor})
            found = answer.body.get(rows) if isinstance(answer.body, dict) else None
            if not isinstance(found, list):
                raise Unread(f"GET {answer.path}: no list of {rows}")
            if cursor and found and found[0] == first:
                raise Unread(f"GET {answer.path}: the list begins anew, so it has no end")
            first = found[0] if found and not cursor else first
            yield answer, found
            barren = 0 if found else barren + 1
            cursor = answer.body.get("cursor") or ""
            if not cursor:
                return
            if barren == BARREN_PAGES or type(cursor) is not str:
                raise Unread(f"GET {answer.path}: pages without {rows}, and no end")

    async def _get(self, path: str, query: dict[str, str]) -> Answer:
        try:
            return await self._rest.get(path, **query)
        except Refused as error:
            raise Unread(str(error)) from error
