"""What can go wrong between an exchange and its client, on command: a fault is armed, happens to the next frames it fits, and is
spent.

Frames are harmed after their seq is taken, as a network harms them: a dropped frame leaves a hole. Each fault happens to one
subscription, the first that gets a fitting frame, unless `connection` names another; connection-wide faults (delay, silence,
reset) live in the server.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from kalshibook_core.kalshi.channels import BOOK
from kalshibook_core.orderbook import YES
from kalshibook_tools.simulator import frames
from kalshibook_tools.simulator.frames import Frame
from kalshibook_tools.simulator.subscriptions import Subscription

FRAME_FAULTS = ("drop", "duplicate", "reorder")
"""Need a frame to happen to; they take `count`, `channel`, `market_ticker`, `connection`."""

INSERTED = ("malformed", "unknown_type", "big_frame", "negative_level", "unparsable")
"""Are put in front of the next fitting frame; the last two take a seq of the sid, as frames of it."""

CONNECTION_FAULTS = ("reset", "close", "silence", "delay", "error_25", "error_10", "error_17")
SERVER_FAULTS = ("http_502", "http_429", "clock_skew")
MARKET_FAULTS = ("off_grid", "resnapshot")
KINDS = FRAME_FAULTS + INSERTED + CONNECTION_FAULTS + SERVER_FAULTS + MARKET_FAULTS


class UnknownFault(ValueError):
    """No fault is called that, or a field of it cannot be."""


@dataclass(slots=True)
class Fault:
    """An armed fault. `channel`, `market_ticker` and `connection` (the server's number of it) say which frames it fits."""

    kind: str
    count: int = 1
    channel: str = BOOK
    market_ticker: str | None = None
    connection: int | None = None
    seconds: float = 0.0
    victim: Subscription | None = field(default=None, repr=False)
    held: bytes | None = field(default=None, repr=False)
    lost_seq: int = field(default=-1, repr=False)  # the seq of the last frame that it dropped

    def fits(self, subscription: Subscription, frame: Frame, ticker: str) -> bool:
        """Return whether this frame is to be harmed; the first that fits makes its subscription the victim."""
        if self.victim is not None and self.victim is not subscription and self.victim.connection.alive:
            return False
        if frame.channel != self.channel or (self.market_ticker or ticker) != ticker:
            return False
        if self.connection is not None and subscription.connection.number != self.connection:
            return False
        if self.victim is not subscription:
            self.victim, self.held = subscription, None
        return True


def parse(body: dict[str, Any]) -> Fault:
    """Read a fault from a JSON object; UnknownFault says which field is wrong."""
    kind = body.get("kind")
    if kind not in KINDS:
        raise UnknownFault(f"kind {kind!r} is not one of {', '.join(KINDS)}")
    types: dict[str, type | tuple[type, ...]] = {
        "count": int,
        "channel": str,
        "market_ticker": str,
        "connection": int,
        "seconds": (int, float),
    }
    for name, value in body.items():
        if name != "kind" and (name not in types or isinstance(value, bool) or not isinstance(value, types[name])):
            raise UnknownFault(f"{name}={value!r}: a fault has {', '.join(types)}")
    if kind in MARKET_FAULTS and "market_ticker" not in body:
        raise UnknownFault(f"{kind} needs market_ticker")
    if body.get("count", 1) < 1:
        raise UnknownFault("count is 1 at least")
    return Fault(**body)


class Faults:
    """The faults in force and a count of those that happened."""

    def __init__(self) -> None:
        self.armed: list[Fault] = []
        self.happened: Counter[str] = Counter()
        self.injected: dict[int, Counter[str]] = {}  # by client, those that happened to one alone
        self.http_502 = self.http_429 = 0
        self.clock_skew_us = 0

    def shape(self, subscription: Subscription, frame: Frame, ticker: str, now_us: int) -> tuple[list[bytes], bool]:
        """Return what the subscription gets now instead of this one frame, in order, and whether the frame is lost."""
        before: list[bytes] = []
        after: list[bytes] = []
        lost = False
        payload: bytes | None = None
        for fault in list(self.armed):
            if not fault.fits(subscription, frame, ticker):
                continue
            if fault.kind in INSERTED:
                before.append(_inserted(fault.kind, subscription, ticker, now_us))
                self._spend(fault, subscription)
                continue
            payload = payload if payload is not None else subscription.payload(frame)
            match fault.kind:
                case "drop":
                    lost, fault.lost_seq = True, subscription.seq
                    self._spend(fault, subscription)
                case "duplicate":
                    after.append(payload)
                    self._spend(fault, subscription)
                case "reorder" if fault.held is None:
                    fault.held = payload
                    return before, False
                case "reorder" if fault.held is not None:
                    after.append(fault.held)
                    fault.held = None
                    self._spend(fault, subscription)
        payload = payload if payload is not None else subscription.payload(frame)
        return before + ([] if lost else [payload]) + after, lost

    def arm(self, fault: Fault) -> None:
        """Put a frame fault in force."""
        self.armed.append(fault)

    def disarm(self, fault: Fault) -> None:
        """Take a frame fault back that did not happen; nothing where it did."""
        if fault in self.armed:
            self.armed.remove(fault)

    def tell(self, client: int, kind: str) -> None:
        """Count one that happened to this client."""
        self.happened[kind] += 1
        self.injected.setdefault(client, Counter())[kind] += 1

    def report(self) -> dict[str, int]:
        """Return how often each kind happened."""
        return dict(self.happened)

    def _spend(self, fault: Fault, subscription: Subscription) -> None:
        self.tell(subscription.connection.client, fault.kind)
        fault.count -= 1
        if fault.count == 0:
            self.armed.remove(fault)


def _inserted(kind: str, subscription: Subscription, ticker: str, now_us: int) -> bytes:
    match kind:
        case "malformed":
            return b'{"type":"orderbook_delta","sid":%d,"seq":\n' % subscription.sid
        case "unknown_type":
            return frames.built("quantum_update", {"market_ticker": ticker}, sequenced=False).render(subscription.sid, 0)
        case "big_frame":
            return frames.built("padding", {"pad": "x" * 1_000_000}, sequenced=False).render(subscription.sid, 0)
        case "unparsable":
            msg = {"market_ticker": ticker, "price_dollars": "many", "delta_fp": "1.00", "side": "yes"}
            return subscription.payload(frames.built("orderbook_delta", msg))
        case _:
            return subscription.payload(frames.delta(ticker, "", YES, 1, -(10**12), now_us))
