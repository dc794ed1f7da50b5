"""Which source may extend a market's log. A source is one generation of one connection of one gatherer.

Today one source leads a market's log and only it extends it. The leader changes by a snapshot, and only so:

    LEADER      the source of the log's last event                                       in order: extends it
    SUCCESSOR   a newer generation of the leader's gatherer, on any connection           takes over, whether or not a BREAK
                (a gatherer holds a market once, so the older subscription is over)      told of the leader's end
    OUTDATED    the same connection, an older generation                                 refused for ever
    OUTSIDER    another gatherer, or an older generation on another connection           refused while the leader is whole; in a
                                                                                         gap its snapshot may re-base the log

An outsider's snapshot may re-base only if its clock is not behind the log: an older book must not be claimed for a later instant.
Aligning several gatherers by the order of their events (so that a second one confirms, and leads when the first is cut) goes
here and changes nothing around it; until then a gatherer whose name disappears without a BREAK leaves its markets waiting for it.
"""

from enum import Enum, auto
from typing import Final

Source = tuple[str, int, int]
"""(gatherer, connection, generation): fields 1 to 3 of a RawFrame."""

NOBODY: Final[Source] = ("", 0, 0)


class Standing(Enum):
    """What a source is to the log that another leads."""

    LEADER = auto()
    SUCCESSOR = auto()
    OUTDATED = auto()
    OUTSIDER = auto()


def standing(leader: Source, source: Source) -> Standing:
    """Return what `source` is to a log led by `leader`; everybody is a leader's equal where nobody leads."""
    if leader in (source, NOBODY):
        return Standing.LEADER
    if source[0] == leader[0]:
        if source[2] > leader[2]:
            return Standing.SUCCESSOR
        if source[1] == leader[1]:
            return Standing.OUTDATED
    return Standing.OUTSIDER


def may_rebase(found: Standing, clock_us: int, effective_us: int) -> bool:
    """Return whether a snapshot may end a gap of a log whose last event took effect at `effective_us`."""
    return found in (Standing.LEADER, Standing.SUCCESSOR) or (found is Standing.OUTSIDER and clock_us >= effective_us)
