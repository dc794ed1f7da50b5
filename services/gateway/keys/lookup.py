"""Which caller a key belongs to, remembered briefly: a revoked key works at most `TTL` seconds longer."""

from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from services.gateway.accounts import Caller
from services.gateway.keys import credentials

TTL: Final = 5.0
MAX_REMEMBERED: Final = 10_000
"""Keys remembered; when full, the one remembered longest goes."""


class Lookup:
    """Authenticates requests. Unknown keys are not remembered, so a key works from the moment it is made."""

    def __init__(self, find: Callable[[bytes], Awaitable[Caller | None]], monotonic: Callable[[], float]) -> None:
        self._find, self._monotonic = find, monotonic
        self._remembered: dict[bytes, tuple[Caller, float]] = {}

    async def caller(self, headers: Iterable[tuple[bytes, bytes]]) -> Caller:
        """Return who makes a request with these headers; raise the 401."""
        digest = credentials.digest(credentials.of_request(headers))
        remembered = self._remembered.get(digest)
        if remembered is not None and self._monotonic() < remembered[1]:
            return remembered[0]
        self._remembered.pop(digest, None)
        caller = await self._find(digest)
        if caller is None:
            raise credentials.unknown()
        if len(self._remembered) >= MAX_REMEMBERED:
            del self._remembered[next(iter(self._remembered))]
        self._remembered[digest] = (caller, self._monotonic() + TTL)
        return caller
