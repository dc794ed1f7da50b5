"""Imported frames beside live ones: taken where nothing is known from their time on, and else as if they had not come."""

from kalshibook_core.wire.events import RawFrame
from services.deduplicator.partition import Partition
from tests.unit.deduplicator.source import Source
from tests.unit.deduplicator.test_rules import S, brief, known, receive


def imported(**about: int) -> Source:
    return Source("import-old", **about)


def all_of(source: Source, at: int) -> list[RawFrame]:
    return [
        source.resumed(at), source.snapshot(at, {100: 5}, {}), source.delta(at + S, "yes", 100, 1), source.broken(at + 2 * S),
        source.raw("BREAK", "trade", at + 2 * S, detail="disconnect", sid=2),
    ]  # fmt: skip


def test_a_log_that_goes_on_takes_none_and_has_no_gap() -> None:
    """Whether they are older or younger than it: else the live source would be waited for, and given up."""
    for at in (1 * S, 11 * S, 900 * S):
        live, partition = Source(), Partition()
        begin = [live.resumed(9 * S), *known(live), live.delta(11 * S, "yes", 4800, 5)]
        end = [live.delta(1000 * S, "yes", 4800, 5)]
        undisturbed = brief(receive(*begin, *end))
        assert (
            brief(receive(Source("import-old").started(at), *begin, *all_of(imported(), at), *end, partition=partition))
            == undisturbed
        )
        assert partition.tally["import_refused"] == 1


def test_what_nobody_recorded_is_taken_and_a_repeat_changes_nothing() -> None:
    g, again = imported(), imported()
    once = all_of(g, 10 * S)
    made = receive(*once)
    assert [event[0] for event in brief(made)] == ["snapshot", "delta", "gap", "trade gap"]
    assert receive(*once, *all_of(again, 10 * S)) == made


def test_a_gap_takes_what_came_after_it_began() -> None:
    live, early, late = Source(), imported(), imported(connection=1)
    records = [live.started(0), *known(live), live.broken(11 * S)]
    gap = brief(receive(*records))[-1]
    assert gap[0] == "gap"
    made = brief(receive(*records, *all_of(early, 2 * S), *all_of(late, 500 * S)))
    assert [event[0] for event in made] == ["snapshot", "gap", "snapshot", "delta", "gap", "trade gap"]
    assert made[2][2:] == (500 * S, (gap[2], "disconnect"))


def test_who_plays_recorded_frames_does_not_vouch_for_what_a_gatherer_loses() -> None:
    live, g = Source(), imported()
    broken = live.raw("BREAK", "trade", 20 * S, detail="disconnect", sid=2)
    made = receive(g.resumed(5 * S), g.snapshot(5 * S, {100: 5}, {}), live.resumed(9 * S), broken)
    assert [event[0] for event in brief(made)] == ["snapshot", "trade gap"]
