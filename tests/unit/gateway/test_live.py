"""What a stream is made of, without a socket: rings, coverage, and one client's place in its markets."""

import asyncio
from types import SimpleNamespace
from unittest.mock import AsyncMock

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kalshibook_core.kafka.cluster import Cluster
from kalshibook_core.kafka.consumer import TopicPartition
from kalshibook_core.wire import codec
from kalshibook_core.wire.events import LAG_US
from services.gateway.live.coverage import Coverage
from services.gateway.live.feed import FREE, TOGETHER, Feed, quality
from services.gateway.live.rings import Rings
from services.gateway.live.stream import Socket
from tests.support.canonical import Market


@example(list("cbaabb"), 2, 0).via("a market that went and came again took the place of one that is gone")
@given(st.lists(st.sampled_from("abc"), max_size=80), st.integers(1, 40), st.integers(0, 40))
def test_a_ring_gives_all_after_a_version_or_says_it_cannot(tickers: list[str], capacity: int, after: int) -> None:
    rings, markets = Rings(capacity), {ticker: Market(ticker) for ticker in "abc"}
    for ticker in tickers:
        rings.add(ticker, codec.encode(markets[ticker].event(3, 1)))
    assert len(rings) == min(capacity, len(tickers))
    for ticker in "abc":
        kept = tickers[-capacity:].count(ticker)
        last = tickers.count(ticker)
        found = rings.since(ticker, after, codec.decode)
        if after < last - kept:  # the last of a market with none left stays known, for as many markets as events
            assert found is None or (not kept and len({*tickers} - {*tickers[-capacity:]}) > capacity)
        else:
            assert found is not None
            assert [event.version for event in found] == list(range(max(after, last - kept) + 1, last + 1))


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(-20, 30)), max_size=30), st.lists(st.integers(0, 150), max_size=10))
def test_coverage_never_claims_what_is_not_stored(steps: list[tuple[int, int]], stored: list[int]) -> None:
    coverage, offset, at, seen = Coverage(2), 0, 10**9, []
    for gap, step in steps:
        offset, at = offset + gap, at + step * 10**6
        coverage.seen(1, offset, at)
        seen.append((offset, at))
    for next_offset in sorted(stored):
        coverage.stored(1, next_offset)
        known = [at for each, at in seen if each < next_offset]
        assert coverage.through(1) == max(known, default=LAG_US) - LAG_US
        assert coverage.through(0) == 0
    coverage.stored(7, 1)  # a partition of another cluster's table changes nothing


@given(st.lists(st.integers(1, 9), max_size=30))
def test_a_socket_passes_each_version_on_once_and_begins_again_at_a_hole(versions: list[int]) -> None:
    socket = Socket(Feed(Cluster("nowhere"), 10, lambda: 0.0), 1000)
    socket.subscribe(["a"])
    socket.event("a", 3, [b"too early"])
    socket._expected["a"] = expected = 3
    sent, holed = [], False
    for version in versions:
        socket.event("a", version, [b"%d" % version])
        if not holed and version == expected:
            sent.append(b"%d" % version)
            expected += 1
        holed = holed or version > expected
    assert list(socket._outgoing) == sent
    assert (socket._expected["a"] is None) == holed
    assert len(socket._starting) == 1 + holed


def test_a_full_socket_is_cut_and_takes_no_more() -> None:
    socket = Socket(Feed(Cluster("nowhere"), 10, lambda: 0.0), 16)
    for number in range(40):
        socket.push(b"%d" % number)
    socket._outgoing.popleft()  # some of it is still sent before the socket is closed
    socket.push(b"40")
    socket.end(1001, "going away")
    assert list(socket._outgoing) == [b"%d" % number for number in range(1, 16)]
    assert socket._why == (1008, "too slow")


async def test_what_tells_of_quality_is_sent_free_of_charge() -> None:
    socket = Socket(Feed(Cluster("nowhere"), 10, lambda: 0.0), 100)
    told = [quality("a", 1, 1, None), b"1", quality("a", 2, 2, (2, None, "disconnect")), b"2", quality("a", 3, 3, None), b"3"]
    assert all(message.startswith(FREE) for message in told[::2])
    sent: list[bytes] = []

    async def send(message: dict[str, str]) -> None:
        sent.append(message["text"].encode())
        if len(sent) == len(told):
            socket.end(1001, "going away")

    async def charge() -> None:
        sent.append(b"charged")

    for message in told:
        socket.push(message)
    told[5:5] = [b"charged"]
    told[1:1] = [b"charged"]
    async with asyncio.TaskGroup() as tasks:
        sending = tasks.create_task(socket.send(SimpleNamespace(send=send), 2, charge))  # type: ignore[arg-type]
        await socket._ended.wait()
        sending.cancel()
    assert sent == told


async def test_a_feed_that_is_behind_cuts_nobody_who_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    market, where, stop = Market("a"), TopicPartition("book", 0), asyncio.Event()
    made = [market.event(3, 1) for _ in range(4 * TOGETHER)]
    waiting = [SimpleNamespace(offset=n, key=b"a", value=codec.encode(event)) for n, event in enumerate(made)]
    feed = Feed(Cluster("nowhere"), len(made), lambda: 0.0)
    socket, sent = Socket(feed, 2 * TOGETHER), list[str]()

    class Behind:
        """A consumer that always has more to give, and so never waits."""

        __aenter__ = AsyncMock(side_effect=lambda: consumer)
        __aexit__ = AsyncMock(return_value=None)
        position = begin_offsets = end_offsets = AsyncMock(return_value={})

        async def poll(self, max_records: int, timeout_ms: int) -> dict[TopicPartition, list[SimpleNamespace]]:
            batch, waiting[:max_records] = waiting[:max_records], []
            if not waiting:
                stop.set()
            return {where: batch}

    async def send(message: dict[str, str]) -> None:
        sent.append(message["text"])

    monkeypatch.setattr("services.gateway.live.feed.Consumer", lambda *_, **__: consumer)
    consumer = Behind()
    socket._expected["a"] = 1
    feed.follow("a", socket)
    async with asyncio.TaskGroup() as tasks:
        sending = tasks.create_task(socket.send(SimpleNamespace(send=send), 1_000, AsyncMock()))  # type: ignore[arg-type]
        await feed.consume(stop)
        while len(sent) < len(made):
            assert not socket._ended.is_set()
            await asyncio.sleep(0)
        sending.cancel()
