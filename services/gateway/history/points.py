"""The book after a version, and the book as it was known at a local instant, found by what any store of events offers.

`received_at` R is the longest run of versions 1, 2, … of which none was received after R. Receipt does not always follow the
version, since gatherers lag and their clocks differ; what is found here is exact as long as no event was received more than
`DISORDER_US` later than one with a greater version.
"""

from typing import Final

from services.gateway import instants
from services.gateway.history.fold import CorruptHistory, State
from services.gateway.history.store import Store

DISORDER_US: Final = 300_000_000
"""As far behind as a gatherer may be by default before it counts as dead (KB_DEDUPLICATOR_PATIENCE_SECONDS)."""
AT_ONCE: Final = 1_000
_END_US: Final = instants.LAST_US + 1


async def after_version(store: Store, market_id: int, version: int) -> State | None:
    """Return the book exactly after a version, None if it is not stored; raise CorruptHistory."""
    events = await store.events(market_id, 0, _END_US, version - 1, 1)
    if not events or events[0].version != version:
        return None
    at_us = events[0].effective_us
    state = await store.book_at(market_id, at_us - 1) or State()
    state.fold(await store.events(market_id, at_us, at_us + 1, state.version, version - state.version))
    if state.version != version:
        raise CorruptHistory(f"version {state.version + 1} is missing before {version}")
    return state


async def as_received(store: Store, market_id: int, received_us: int) -> tuple[State | None, bool]:
    """Return the book as it was known at a local instant, None if nothing was, and whether an event stored was received later."""
    state = await _anchor(store, market_id, received_us - DISORDER_US) or State()
    while True:
        events = await store.events(market_id, state.effective_us, _END_US, state.version, AT_ONCE)
        known = next((n for n, event in enumerate(events) if event.recv_us > received_us), len(events))
        state.fold(events[:known])
        if known < len(events) or len(events) < AT_ONCE:
            return state if state.version else None, known < len(events)


async def _anchor(store: Store, market_id: int, before_us: int) -> State | None:
    """Return a book whose last event was received before an instant, the latest such that is quickly found."""
    # While frames are recorded as they come, what took effect so long ago was received in time; old frames replayed were not.
    state = await store.book_at(market_id, before_us - DISORDER_US)
    if state is None or await _received(store, market_id, state.version) < before_us:
        return state
    in_time, late = 0, state.version
    while late - in_time > 1:
        middle = (in_time + late) // 2
        if await _received(store, market_id, middle) < before_us:
            in_time = middle
        else:
            late = middle
    return await after_version(store, market_id, in_time) if in_time else None


async def _received(store: Store, market_id: int, version: int) -> int:
    events = await store.events(market_id, 0, _END_US, version - 1, 1)
    return events[0].recv_us if events else _END_US
