"""Every wanted market finds a place while there is one, what has a place keeps it, and the better ones come first."""

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from services.ingest.plan import Changes, Limits, Plan
from services.ingest.registry import Rank

tickers = st.integers(0, 30).map(lambda n: f"KX{n}")
ranks = st.tuples(st.booleans(), st.integers(0, 3), st.integers(-3, 0))


class Plans(RuleBasedStateMachine):
    """Markets come, change, go and are moved; after each settling the places are as a plan of everything at once would have them.

    `places` is what the exchange has: which connections each market is subscribed on, by the changes told, one by one.
    """

    @initialize(connections=st.integers(1, 4), each=st.integers(1, 5))
    def begin(self, connections: int, each: int) -> None:
        self.limits = Limits(connections, each)
        self.plan = Plan(self.limits)
        self.room = connections * each
        self.wanted: dict[str, Rank] = {}
        self.places: dict[str, list[int]] = {}
        self.opened: set[int] = set()
        self.settled = True

    @rule(ticker=tickers, rank=ranks)
    def want(self, ticker: str, rank: Rank) -> None:
        self.wanted[ticker] = rank
        self.plan.want(ticker, rank)
        self.settled = False

    @rule(ticker=tickers)
    def drop(self, ticker: str) -> None:
        self.wanted.pop(ticker, None)
        self.plan.drop(ticker)
        self.settled = False

    @rule()
    def settle(self) -> None:
        before = dict(self.places)
        moving = bool(self.plan.moving or self.plan.closing)  # a connection that is closed has no place to give
        changes = self.apply(self.plan.changes())
        assert changes.ousted == before.keys() & self.wanted.keys() - self.places.keys()
        if len(self.wanted) <= self.room and not moving:
            assert not changes.ousted

    @rule(number=st.integers(0, 3), whole=st.booleans())
    def move(self, number: int, whole: bool) -> None:
        """A connection is renewed, or relieved of half of what is active, if another may be opened for that."""
        spare = self.plan.spare(self.opened)
        if number not in self.opened or self.plan.moving or self.plan.closing or spare is None:
            return
        self.settle()
        spare = self.plan.spare(self.opened)
        if spare is None:
            return
        had = {ticker for ticker, numbers in self.places.items() if number in numbers}
        active = sum(not self.plan._ranks[ticker][0] for ticker in had)
        changes = self.apply((self.plan.renew if whole else self.plan.relieve)(number, set(self.places), spare))
        assert not changes.unsubscribe and not changes.leave  # nobody leaves before it has arrived
        moved = set(changes.subscribe.get(spare, []))
        assert moved == self.plan.moving.keys() <= had and (moved == had if whole else len(moved) == active // 2)

    @precondition(lambda self: self.plan.moving)
    @rule(data=st.data(), refused=st.booleans())
    def arrive(self, data: st.DataObject, refused: bool) -> None:
        """Some of those on the move are served by their new connection, or refused there."""
        some = data.draw(st.sets(st.sampled_from(sorted(self.plan.moving))))
        if refused:
            for ticker in some:
                self.places[ticker].pop()
            self.plan.stay(some)
            self.settled = False
        else:
            changes = self.apply(self.plan.arrived(some))
            assert sorted(some) == sorted(ticker for left in changes.leave.values() for ticker in left)
        for number in list(self.plan.closing):
            if not any(number in numbers for numbers in self.places.values()):
                self.opened.discard(number)
                self.plan.closed(number)
                self.settled = False  # somebody may have waited for that number

    def apply(self, changes: Changes) -> Changes:
        for number, left in changes.leave.items():
            for ticker in left:
                self.places[ticker].remove(number)
                assert self.places[ticker], "left a connection without having another"
        for number, gone in changes.unsubscribe.items():
            for ticker in gone:
                self.places[ticker].remove(number)
                if not self.places[ticker]:
                    del self.places[ticker]
        for number, come in changes.subscribe.items():
            assert number < self.limits.connections
            self.opened.add(number)
            for ticker in come:
                others = self.places.setdefault(ticker, [])
                assert number not in others and (not others or others == [self.plan.moving[ticker]])
                others.append(number)
        self.settled = True
        return changes

    @invariant()
    def no_connection_has_more_than_it_may(self) -> None:
        loads = Counter(number for numbers in self.places.values() for number in numbers)
        assert max(loads.values(), default=0) <= self.limits.markets_per_connection and len(loads) <= self.limits.connections

    @invariant()
    def all_is_as_it_should_be(self) -> None:
        if not self.settled:
            return
        plan, places, wanted = self.plan, self.places, self.wanted
        assert {ticker: numbers[-1] for ticker, numbers in places.items()} == plan.placed
        assert {ticker: numbers[0] for ticker, numbers in places.items() if len(numbers) > 1} == plan.moving
        assert plan.left_out == {ticker: rank for ticker, rank in wanted.items() if ticker not in places}
        assert places.keys() <= wanted.keys()
        taken = sum(map(len, places.values()))
        if plan.left_out:
            of_closing = self.limits.markets_per_connection * len(plan.closing)
            leaving = sum(number in plan.closing for number in plan.moving.values())
            assert taken - leaving + of_closing == self.room
            assert max(wanted[t] for t in places) <= min(plan.left_out.values())


TestPlan = Plans.TestCase
TestPlan.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_nothing_new_is_no_change() -> None:
    plan = Plan(Limits(4, 2))
    plan.want("A", (False, 0, 0))
    assert plan.changes().subscribe == {0: ["A"]}
    plan.want("A", (False, 0, 0))
    changes = plan.changes()
    assert (changes.subscribe, changes.unsubscribe, changes.ousted) == ({}, {}, frozenset())


def test_a_lowered_limit_moves_nobody_and_holds_for_the_others() -> None:
    """The exchange took only two on a connection that was to hold three."""
    plan = Plan(Limits(3, 3))
    for ticker in "ABCD":
        plan.want(ticker, (False, 0, 0))
    assert plan.changes().subscribe == {0: ["A", "B", "C"], 1: ["D"]}
    plan.lower(2)
    plan.drop("C")
    plan.want("C", (False, 1, 0))
    for ticker in "EFG":
        plan.want(ticker, (False, 2, 0))
    changes = plan.changes()
    assert changes.unsubscribe == {0: ["C"]} and changes.subscribe == {1: ["C"], 2: ["E", "F"]} and list(plan.left_out) == ["G"]
    plan.drop("A")
    assert plan.changes().subscribe == {0: ["G"]}


def test_a_market_of_the_same_rank_ousts_nobody() -> None:
    plan = Plan(Limits(1, 1))
    plan.want("A", (False, 5, -3))
    plan.changes()
    plan.want("B", (False, 5, -3))
    assert not plan.changes().subscribe and list(plan.left_out) == ["B"]
    plan.drop("A")
    assert plan.changes().subscribe == {0: ["B"]}
