"""REST's order books of a rolling sample of the captured markets, published as they came, for whoever compares them with ours.

REST lags the websocket by 0.3 to 1.4 s (seen on the wire) and carries neither seq nor time, so a record says when it was asked
for (`generation`) and when the answer came (`recv_us`, `clock_us`): a book of ours in between, or shortly before, must be equal.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

from kalshibook_core.kalshi.messages import UnparsableFrame
from kalshibook_core.runtime import clock
from services.ingest.registry import packed
from services.ingest.rest import Answer, Refused, Rest

MOST: Final = 100
"""Tickers in one request (Kalshi docs, "Get Multiple Market Orderbooks")."""

LONGEST_QUERY: Final = 4000
"""And characters: what stands between us and the exchange may refuse a longer address."""

PATH: Final = "/markets/orderbooks"


class Audits:
    """See the module."""

    def __init__(
        self,
        per_minute: int,
        rest: Rest,
        captured: Callable[[], Iterable[str]],
        publish: Callable[[Answer, str, bytes], None],
        room: Callable[[], Awaitable[None]],
        tell: Callable[[str, str], None],
    ) -> None:
        """Ask for so many books a minute, of the markets that `captured` names: each once, then they are named anew.

        `publish(answer, ticker, object)` is called for each book, `tell(kind, why)` for trouble.
        """
        self._per_minute = per_minute
        self._rest = rest
        self._captured = captured
        self._publish = publish
        self._room = room
        self._tell = tell
        self._turn: deque[str] = deque()

    async def run(self) -> None:
        """Ask, again and again."""
        while self._per_minute:
            began = clock.monotonic()
            tickers = self._next()
            if tickers:
                await self._ask(tickers)
            took = clock.monotonic() - began
            # Where a million markets are captured and none is active, looking for one takes a while as well.
            await asyncio.sleep(max(60 / self._per_minute * max(1, len(tickers)) - took, 0.0 if tickers else 20 * took))

    def _next(self) -> list[str]:
        if not self._turn:
            self._turn.extend(self._captured())
        chosen: list[str] = []
        length = 0
        while self._turn and len(chosen) < min(MOST, self._per_minute):
            length += len(self._turn[0]) + len("&tickers=")
            if length > LONGEST_QUERY:
                break
            chosen.append(self._turn.popleft())
        return chosen

    async def _ask(self, tickers: list[str]) -> None:
        try:
            answer = await self._rest.get(PATH, tickers=tickers)
        except Refused as error:
            self._tell("rest_refused", str(error))
            return
        rows = answer.body.get("orderbooks") if isinstance(answer.body, dict) else None
        if not isinstance(rows, list):
            self._tell("rest_unparsable", f"GET {PATH}: no list of order books")
            return
        await self._room()
        wanted = set(tickers)
        for body in rows:
            ticker: Any = body.get("ticker") if type(body) is dict else None
            try:
                if type(ticker) is not str or ticker not in wanted:
                    raise UnparsableFrame("book", "of no market that was asked for")
                self._publish(answer, ticker, packed(body))
            except UnparsableFrame as error:
                self._tell("rest_unparsable", f"GET {PATH}: {error}")
