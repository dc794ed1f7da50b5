"""The quality block: what every answer with data says of itself, in one form, and what `strict` makes of it.

The form is that of a span of time; an instant is the span of its one microsecond. What each number means is defined in
`kalshibook_core.wire.quality`.
"""

from typing import Annotated, Any, Final, Protocol

from fastapi import Query

from kalshibook_core.wire.quality import Quality, Record, Span, State, of_span
from services.gateway import forms
from services.gateway.errors import ApiError
from services.gateway.instants import text

REFUSED: Final = (State.GAP, State.PENDING)
"""States that `strict` does not take."""

Strict = Annotated[
    bool,
    Query(
        description="An answer that touches a gap, or is later than what is recorded, is a 409 `incomplete` instead, free of "
        "charge."
    ),
]


class Measure(Protocol):
    """Finds the quality of what is stored of a market on a channel in [from_us, to_us), in two steps.

    `from_us` None: from the market's beginning. `to_us` None: up to what is recorded.
    """

    async def through(self, ticker: str, market_id: int, channel: str, from_us: int | None, to_us: int | None) -> int:
        """Return the instant up to which all is stored. To be asked before the rows of the answer are read: they only grow."""

    async def quality(self, market_id: int, channel: str, from_us: int | None, to_us: int | None, through_us: int) -> Quality:
        """Return the quality. To be asked after the rows were read: gaps only grow, too."""


def at_instant(at_us: int, through_us: int, gap: tuple[int, int | None, str] | None, ended: bool = False) -> Quality:
    """Return the quality of a book that was folded up to an instant, which lies in `gap`."""
    gaps = [] if gap is None else [Span(*gap)]
    # The fold knows the gap it is in better than its times do: a gap without an end in sight may be about to be stored.
    quality = of_span(Record(gaps, through_us, 0, 0, ended), at_us, at_us + 1)
    return quality if gap is None else quality._replace(state=State.GAP, gaps=gaps)


def later(quality: Quality, ended: bool) -> Quality:
    """Return the same of an answer about a later time than its instant, up to which not all is recorded."""
    state = State.ENDED if ended else State.PENDING
    return quality._replace(state=quality.state if quality.state == State.GAP else state, pending=not ended)


def block(quality: Quality) -> dict[str, Any]:
    """Return the block."""
    gaps = [forms.gap(*gap) for gap in quality.gaps]
    return {
        "state": quality.state,
        "from": text(quality.from_us),
        "to": text(quality.to_us),
        "gap": gaps[0] if gaps else None,
        "gaps": gaps,
        "more": quality.more,
        "uncovered_us": quality.uncovered_us,
        "completeness_ppm": quality.completeness_ppm,
        "recorded_through": text(quality.through_us),
        "pending": quality.pending,
    }


def checked(quality: Quality, strict: bool) -> dict[str, Any]:
    """Return the block; raise the 409 if `strict` does not take it."""
    told = block(quality)
    if strict and quality.state in REFUSED:
        if quality.state == State.GAP:
            message = "The answer touches a gap in our record; without strict=true it is served and says where."
        else:
            message = "The answer reaches past what is recorded so far: ask again later, or up to recorded_through."
        raise ApiError(409, "incomplete", message, quality=told)
    return told
