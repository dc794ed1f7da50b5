"""The exchange's REST API, asked politely: signed, only so many requests a second, backing off when told to and when it fails.

A request is tried until it is answered: there is nothing else to do without the answer, and the websockets do not wait for it.
"""

import asyncio
import random
import zlib
from collections import Counter
from email.utils import parsedate_to_datetime
from typing import Any, Final, NamedTuple, Self
from urllib.parse import urlsplit

import httpx
import orjson
import structlog

from kalshibook_core.kalshi import markets, signing
from kalshibook_core.runtime import clock, logs
from services.ingest.pace import Pace, backoff

_GZIP: Final = 31  # zlib's wbits of a gzip stream with the largest window

LARGEST_ANSWER: Final = 32 * 1024 * 1024
"""A page of 1,000 markets has some 3 MB."""

ANSWER_SECONDS: Final = 60.0
_LATEST_S: Final = 1 << 32

_log = structlog.get_logger()


class Answer(NamedTuple):
    """A body that came at the local time `at_us` to a request of `sent_us`; `path` is from the host's root, query included."""

    path: str
    body: Any
    sent_us: int
    at_us: int
    skew_us: int | None


class Refused(Exception):
    """The exchange will not answer this request however often it is asked."""


class TooLarge(Exception):
    """An answer without end."""


class Rest:
    """A client of one exchange."""

    def __init__(self, url: str, credentials: signing.Credentials, rate: float, rng: random.Random, counts: Counter[str]) -> None:
        """`rate` is requests a second."""
        self._url = url
        self._root = urlsplit(url).path
        self._credentials = credentials
        self._pace = Pace(rate)
        self._rng = rng
        self._counts = counts
        self.trouble = ""  # why the last request was not answered
        self.skew_us: int | None = None  # the exchange's clock minus the local one, by the last answer of any kind
        self._client = httpx.AsyncClient(timeout=10.0, trust_env=False, headers={"Accept-Encoding": "gzip"})

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def get(self, path: str, **query: str | list[str]) -> Answer:
        """Return the answer to GET `path`; raise Refused for a 4xx that is neither 401 (it is told) nor 429."""
        try:
            request = self._client.build_request("GET", self._url + path, params={k: v for k, v in query.items() if v})
        except httpx.InvalidURL as error:  # it is the exchange's own cursor that makes it too long
            raise Refused(f"GET {path}: {error}") from None
        asked = request.url.raw_path.decode()
        failures = 0
        while True:
            await asyncio.sleep(self._pace.wait(clock.monotonic()))
            why = await self._attempt(request, asked)
            if isinstance(why, Answer):
                self.trouble = ""
                return why
            self.trouble = f"GET {path}: {why}"
            failures += 1
            self._counts["rest_retries"] += 1
            if logs.once_a_minute(f"rest {why}"):
                _log.warning("rest_failed", path=path, why=why, failures=failures)
            await asyncio.sleep(backoff(failures, self._rng))

    async def _attempt(self, request: httpx.Request, asked: str) -> Answer | str:
        self._counts["rest_requests"] += 1
        now_us = clock.now_us()
        request.headers.update(self._credentials.headers(now_us // 1000, "GET", asked))
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                response = await self._client.send(request, stream=True)
                try:
                    content = await _content(response)
                finally:
                    await response.aclose()
            at_us = clock.now_us()
            skew_us = date_skew_us(response.headers.get("Date"), at_us)
            self.skew_us = self.skew_us if skew_us is None else skew_us
            if response.status_code == httpx.codes.OK:
                return Answer(asked, orjson.loads(content), now_us, at_us, skew_us)
        except (httpx.HTTPError, TimeoutError) as error:
            return f"{type(error).__name__}: {error}"
        except TooLarge:
            return f"the answer has more than {LARGEST_ANSWER} bytes"
        except orjson.JSONDecodeError:
            return "the answer is not JSON"
        code = response.status_code
        if code in (httpx.codes.UNAUTHORIZED, httpx.codes.TOO_MANY_REQUESTS) or code >= 500:
            return f"HTTP {code}: {refusal(content)}"
        self.trouble = f"GET {asked[:200]}: HTTP {code}: {refusal(content)}"
        raise Refused(f"GET {asked}: HTTP {code}: {refusal(content)}")


async def _content(response: httpx.Response) -> bytes:
    # Unpacked here and not by httpx, which would unpack all of what a small body says it is.
    packed = response.headers.get("Content-Encoding", "identity") != "identity"
    unpack = zlib.decompressobj(_GZIP)
    content = bytearray()
    try:
        async for chunk in response.aiter_raw(65536):
            room = LARGEST_ANSWER - len(content) + 1
            content += unpack.decompress(chunk, room) if packed else chunk
            if len(content) > LARGEST_ANSWER:
                raise TooLarge
    except zlib.error as error:
        raise httpx.DecodingError(f"no gzip: {error}") from error
    return bytes(content)


def date_skew_us(date: str | None, now_us: int) -> int | None:
    """Return the exchange's clock minus the local one by a Date header, None where it is missing, broken or of no age of ours."""
    try:
        date_s = round(parsedate_to_datetime(date or "").timestamp())
    except (ValueError, OverflowError):
        return None
    return markets.skew_us(date_s * 1_000_000, now_us) if 0 <= date_s < _LATEST_S else None


def refusal(body: bytes) -> str:
    """Return what an error body says, whichever of the exchange's forms it has (nested, flat, bare)."""
    try:
        said = orjson.loads(body)
    except orjson.JSONDecodeError:
        return body[:200].decode(errors="replace").strip()
    error = said.get("error", said) if isinstance(said, dict) else said
    if not isinstance(error, dict):
        return error[:200] if isinstance(error, str) else body[:200].decode(errors="replace")
    words = (error.get(name) for name in ("code", "message", "msg", "details"))
    return " ".join(dict.fromkeys(str(word) for word in words if word and isinstance(word, str | int)))[:200]
