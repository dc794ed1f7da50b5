"""Which client is hurt when, and how: a pure function of a seed, counted in the exchange's frames and so the same at any speed.

Time is cut into rounds. A round hurts one client, each in its turn; where faults may overlap, it hurts several or all at once.
Each client goes through all kinds of faults in an order of its own, then through all again in another.
"""

from collections.abc import Iterator, Sequence
from random import Random
from typing import NamedTuple, TypeVar

from kalshibook_core.kalshi.channels import BOOK, TRADES

KINDS = ("drop", "duplicate", "reset", "error_25", "delay")
ROUNDS = 24
"""How many there are in a recording that is long enough for them."""

SHORTEST, LIVE = 100, 2_000
"""Frames from one round to the next: at least, and where there is no end."""

PATIENCE = 1_000
"""Frames that a round waits for its moment, in a recording: at least. A live market has time."""

T = TypeVar("T")


class Hurt(NamedTuple):
    """One fault of one client; `channel` where it is a frame's or a subscription's."""

    client: int
    kind: str
    channel: str


class Round(NamedTuple):
    """What happens from frame `at` on, or as much as `patience` frames later; and `frames` after it everybody must be whole."""

    at: int
    patience: int
    frames: int
    hurts: tuple[Hurt, ...]


def rounds(seed: int, clients: int, *, overlap: bool, total: int | None = None) -> Iterator[Round]:
    """Yield the rounds for clients 1, 2, … without end; `total` is how many frames there will be, None if nobody knows."""
    apart = LIVE if total is None else max(SHORTEST, total // ROUNDS)
    patience = 10 * LIVE if total is None else max(PATIENCE, apart)
    chance = Random(f"{seed}")
    own = {client: _kinds(client, Random(f"{seed}/{client}")) for client in range(1, clients + 1)}
    turns = _again_and_again(chance, list(own))
    at = 0
    while True:
        at += chance.randint(apart // 2, apart)
        frames = chance.randint(apart // 8, apart // 3)
        victims = [next(turns)]
        if overlap:
            victims = sorted(chance.sample(list(own), chance.choice((clients, chance.randint(1, clients)))))
        yield Round(at, patience, frames, tuple(next(own[victim]) for victim in victims))
        at += frames


def _kinds(client: int, chance: Random) -> Iterator[Hurt]:
    for kind in _again_and_again(chance, KINDS):
        yield Hurt(client, kind, chance.choice((BOOK, BOOK, TRADES)))


def _again_and_again(chance: Random, items: Sequence[T]) -> Iterator[T]:
    while True:
        yield from chance.sample(items, len(items))
