"""Parameters that several rooms' routes take, and what is said of one that cannot be read."""

import re
from typing import Annotated, Final

from fastapi import Path, Query

from services.gateway import instants, pages
from services.gateway.errors import invalid

TICKER: Final = re.compile(r"[A-Za-z0-9._\-]{1,200}", re.ASCII)

Ticker = Annotated[str, Path(description="The market's ticker.", examples=["KXHIGHNY-25NOV03-B61.5"])]
Limit = Annotated[int, Query(ge=1, le=pages.MAX_LIMIT, description="Rows per page.")]
Cursor = Annotated[str | None, Query(description="next_cursor of the previous page.")]
Instant = Annotated[
    str | None,
    Query(
        description="RFC 3339 with any offset (fractions beyond microseconds are cut), or Unix seconds (below 10^11, decimals "
        "allowed), milliseconds (below 10^14) or microseconds (below 10^17).",
        examples=["2025-11-03T14:30:00.123456Z", "1762180200", "1762180200123456"],
    ),
]


def instant(parameter: str, text: str | None, default: int) -> int:
    """Return a query parameter's instant in microseconds; raise the 422 that says what is expected."""
    if text is None:
        return default
    try:
        return instants.parse(text)
    except instants.UnreadableInstant as error:
        raise invalid(parameter, str(error), given=text[:64]) from error
