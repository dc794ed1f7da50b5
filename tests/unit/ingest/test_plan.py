"""Every wanted market finds a place while there is one, what has a place keeps it, and the better ones come first."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from services.ingest.plan import Limits, Plan
from services.ingest.registry import Rank

tickers = st.integers(0, 30).map(lambda n: f"KX{n}")
ranks = st.tuples(st.booleans(), st.integers(0, 3), st.integers(-3, 0))


class Plans(RuleBasedStateMachine):
    """Markets come, change and go; after each settling the places are as a plan of everything at once would have them."""

    @initialize(connections=st.integers(1, 4), each=st.integers(1, 5))
    def begin(self, connections: int, each: int) -> None:
        self.limits = Limits(connections, each)
        self.plan = Plan(self.limits)
        self.room = connections * each
        self.wanted: dict[str, Rank] = {}
        self.places: dict[str, int] = {}  # as who only hears of the changes has them
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
        changes = self.plan.changes()
        for number, gone in changes.unsubscribe.items():
            for ticker in gone:
                assert self.places.pop(ticker) == number
        for number, come in changes.subscribe.items():
            for ticker in come:
                assert ticker not in self.places
                self.places[ticker] = number
        assert changes.ousted == before.keys() & self.wanted.keys() - self.places.keys()
        if len(self.wanted) <= self.room:
            assert not changes.ousted
        self.settled = True

    @invariant()
    def all_is_as_it_should_be(self) -> None:
        if not self.settled:
            return
        places, wanted, limits = self.places, self.wanted, self.limits
        assert places == self.plan.placed
        assert self.plan.left_out == {ticker: rank for ticker, rank in wanted.items() if ticker not in places}
        assert places.keys() <= wanted.keys()
        assert len(places) == min(len(wanted), self.room)
        loads = [list(places.values()).count(number) for number in range(limits.connections)]
        assert sum(loads) == len(places) and max(loads) <= limits.markets_per_connection
        if self.plan.left_out:
            assert max(wanted[t] for t in places) <= min(self.plan.left_out.values())


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
