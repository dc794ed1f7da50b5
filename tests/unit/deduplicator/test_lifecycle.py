"""Lifecycle frames: however many gatherers and connections bring one, and however they overlap, it is told once."""

from collections import defaultdict
from dataclasses import dataclass, field

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from kalshibook_core.wire import codec
from kalshibook_core.wire.events import LAG_US, Lifecycle, RawFrame
from services.deduplicator.definitions import APART_US, CLOCK_US, REMEMBERED
from services.deduplicator.partition import Partition
from tests.unit.deduplicator.source import T0, TICKER, Source

S = 1_000_000
END = 400 * S


@dataclass
class Connection:
    """One life of a connection that carries the lifecycle channel, from `began` to `ended` in the exchange's time."""

    source: Source
    began: int
    ended: int
    skew: int
    seqless: bool
    heard: list[int] = field(default_factory=list)  # which of the events it was sent
    raws: list[tuple[int, RawFrame]] = field(default_factory=list)  # (received at, record)


@dataclass
class Scene:
    """What happened (time, body), the connections, and (connection, event, record) in the order of the raw topic."""

    events: list[tuple[int, int]]
    connections: list[Connection]
    raws: list[tuple[int, int, RawFrame]]


@st.composite
def scenes(draw: st.DrawFn) -> Scene:
    seqless = draw(st.booleans())
    connections = []
    for gatherer in range(draw(st.integers(1, 3))):
        began, number = -20 * S, 0
        while began < END:
            ended = draw(st.integers(1, 20)) * 20 * S + began
            source = Source(f"g{gatherer}", number % 2, T0 + began)
            connections.append(Connection(source, began, ended, draw(st.integers(-S, S)), seqless))
            # renewed as planned, while the one before still lives; or cut off, and connected again
            began, number = draw(st.sampled_from([(ended - 15 * S, number + 1), (ended + S, number)]))
    events, now = [], 0
    for body in draw(st.lists(st.integers(0, 2), max_size=14)):
        now += draw(st.sampled_from([1, 2000, S, 6 * S, 45 * S]))
        begins = any(each.began - LAG_US - 2 * CLOCK_US <= now <= each.began + 2 * APART_US for each in connections)
        events.append((now, 100 + len(events) if begins else body))  # the one case that is not promised
    for each in connections:
        lag = draw(st.sampled_from([0, 3 * S, LAG_US]))
        received = each.began
        for number, (at, body) in enumerate(events):
            if each.began < at <= each.ended:
                received = max(received, at + draw(st.integers(0, lag)))
                raw = each.source.lifecycle(received + each.skew, event_type="activated", body=body)
                each.heard.append(number)
                raw = raw._replace(recv_us=T0 + received, seq=-1 if seqless else raw.seq)
                each.raws.append((received, raw))
    # A gatherer publishes in the order in which it receives; how far behind its spool is, is its own affair.
    late = {f"g{n}": draw(st.sampled_from([0, 1000, S, 60 * S, 3600 * S])) for n in range(3)}
    raws = [
        (received + late[each.source.gatherer], number, event, raw)
        for number, each in enumerate(connections)
        for event, (received, raw) in zip(each.heard, each.raws, strict=True)
    ]
    return Scene(events, connections, [raw[1:] for raw in sorted(raws, key=lambda raw: raw[0])])


@given(scenes(), st.data())
@settings(max_examples=150, deadline=None)
def test_every_lifecycle_event_is_told_once_for_each_time_it_happened(scene: Scene, data: st.DataObject) -> None:
    partition, told, cut = Partition(), list[int](), data.draw(st.integers(0, len(scene.raws)))
    for offset, (number, event, raw) in enumerate(scene.raws):
        if offset == cut:
            memories = [codec.decode(codec.encode(memory)) for memory in partition.memories(offset - 1)]
            partition = Partition()
            partition.restore(memories, ())
        before = {heard for heard in scene.connections[number].heard if heard < event}
        for made in partition.receive(raw, offset):
            assert isinstance(made, Lifecycle) and orjson.loads(made.body)["body"] == scene.events[event][1]
            told.append(event)
        assert before <= set(told), "told before what its own connection had before"
    assert sorted(told) == sorted({heard for each in scene.connections for heard in each.heard})


def test_it_remembers_no_more_than_it_is_told_to() -> None:
    g, at_most = Source(), defaultdict(int)
    for key, most in ((TICKER, REMEMBERED), ("@g1", 1024)):
        partition = Partition()
        for n in range(2 * most):
            partition.receive(g.lifecycle(n, event_type="activated", n=n)._replace(market_ticker=key), n)
        (memory,) = partition.memories(0)
        at_most[key] = len(orjson.loads(memory.state)[3])
    assert at_most == {TICKER: REMEMBERED, "@g1": 1024}


def test_a_savepoint_of_the_release_before_is_read() -> None:
    before = Partition()
    before.receive(Source().lifecycle(0, event_type="activated"), 0)
    (memory,) = before.memories(0)
    state = orjson.loads(memory.state)
    state[3] = [[[1234, T0]], 0, {"g1": 0}]
    partition = Partition()
    assert partition.restore([memory._replace(state=orjson.dumps(state))], ()) == 1
    assert len(partition.receive(Source().lifecycle(S, event_type="activated"), 1)) == 1


def test_what_happens_again_is_no_repeat_of_what_a_connection_can_not_have_heard() -> None:
    one, again, other = Source(), Source(generation=T0 + 3 * S), Source("g2")
    off, on = {"event_type": "deactivated"}, {"event_type": "activated"}
    raws = [one.lifecycle(S, **off), one.lifecycle(2 * S, **on), again.lifecycle(4 * S, **off)]  # cut off after two, and back
    raws += [other.lifecycle(100 * S, **off), again.lifecycle(101 * S, **off)]  # it missed the first, whatever the reason
    partition = Partition()
    told = [event for offset, raw in enumerate(raws) for event in partition.receive(raw, offset) if isinstance(event, Lifecycle)]
    assert [event.raw_offset for event in told] == [0, 1, 2, 3]
