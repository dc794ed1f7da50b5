"""Pages of long lists: opaque cursors that name the last row seen, so a page costs the same however deep it lies.

A cursor holds no secret and grants nothing; it is checked like any other input.
"""

import base64
from collections.abc import Sequence
from typing import Any, Final, TypeVar

import orjson

from services.gateway.errors import invalid

MAX_LIMIT: Final = 1_000
MAX_CURSOR: Final = 512

RowType = TypeVar("RowType")


def encode(*position: int | str) -> str:
    """Return the cursor of a row, given what orders it."""
    return base64.urlsafe_b64encode(orjson.dumps(position)).rstrip(b"=").decode()


def decode(cursor: str, *kinds: type) -> list[Any]:
    """Return what `encode` was given, one value per kind; raise the 422 for anything else."""
    try:
        if len(cursor) > MAX_CURSOR:
            raise ValueError
        position = orjson.loads(base64.urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4)))
    except ValueError as error:
        raise invalid("cursor", "pass next_cursor of the previous page as it was given") from error
    fits = isinstance(position, list) and len(position) == len(kinds)
    if not fits or not all(_holds(value, kind) for value, kind in zip(position, kinds, strict=True)):
        raise invalid("cursor", "pass next_cursor of the previous page as it was given")
    return list(position)


def _holds(value: Any, kind: type) -> bool:
    # What Postgres cannot hold (integers past 64 bits, NUL in text) is no position of ours.
    if kind is int:
        return type(value) is int and -(2**63) <= value < 2**63
    return isinstance(value, str) and "\0" not in value


def cut(rows: Sequence[RowType], limit: int) -> tuple[Sequence[RowType], bool]:
    """Return the page and whether another follows, given rows fetched with `limit + 1`."""
    return rows[:limit], len(rows) > limit
