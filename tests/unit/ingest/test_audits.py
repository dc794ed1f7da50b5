"""Every captured market is asked for in its turn, with no more of them in a request than REST takes."""

import random
from collections import Counter

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from kalshibook_core.kalshi.signing import Credentials
from services.ingest.audits import LONGEST_QUERY, Audits
from services.ingest.rest import Answer, Rest


def audits(markets: list[str], per_minute: int = 6000) -> Audits:
    def publish(answer: Answer, ticker: str, payload: bytes) -> None:
        raise AssertionError("nothing is asked for here")

    async def room() -> None:
        raise AssertionError("nothing is asked for here")

    def tell(kind: str, why: str) -> None:
        raise AssertionError(why)

    credentials = Credentials("none", rsa.generate_private_key(public_exponent=65537, key_size=2048))
    rest = Rest("http://127.0.0.1:1", credentials, 1, random.Random(1), Counter())
    return Audits(per_minute, rest, lambda: markets, publish, room, tell)


@pytest.mark.parametrize(("length", "most"), [(12, 100), (57, LONGEST_QUERY // (57 + 9)), (200, LONGEST_QUERY // 209)])
def test_each_once_then_anew(length: int, most: int) -> None:
    markets = [f"KX{n}".ljust(length, "X") for n in range(250)]
    rolling = audits(markets)
    rounds = [rolling._next() for _ in range(-(-len(markets) // most))]
    assert [len(each) for each in rounds[:-1]] == [most] * (len(rounds) - 1)
    assert [ticker for each in rounds for ticker in each] == markets
    assert rolling._next() == markets[:most]


def test_a_slow_rate_asks_for_few_at_once_and_none_of_nothing() -> None:
    assert len(audits([f"KX{n}" for n in range(50)], per_minute=7)._next()) == 7
    assert audits([])._next() == []
