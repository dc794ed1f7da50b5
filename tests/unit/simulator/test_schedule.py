"""The schedule of faults: one seed, one schedule; everybody is hurt in every way; never two at once unless asked for."""

from itertools import islice, pairwise

from kalshibook_tools.simulator.schedule import KINDS, ROUNDS, rounds


def test_the_same_seed_gives_the_same_rounds_and_another_gives_others() -> None:
    for overlap in (False, True):
        first, again, other = (list(islice(rounds(seed, 3, overlap=overlap, total=20_000), 50)) for seed in (7, 7, 8))
        assert first == again
        assert first != other


def test_each_client_is_hurt_in_every_way_alone_and_in_turn() -> None:
    made = list(islice(rounds(1, 3, overlap=False, total=24_000), 15))
    assert all(len(each.hurts) == 1 for each in made)
    assert {(each.hurts[0].client, each.hurts[0].kind) for each in made} == {(c, kind) for c in (1, 2, 3) for kind in KINDS}
    for before, after in pairwise(made):
        assert after.at > before.at + before.frames
    assert made[-1].at < 24_000 * 15 / ROUNDS * 1.5


def test_with_overlap_all_are_hurt_at_once_now_and_then() -> None:
    sizes = {len(each.hurts) for each in islice(rounds(1, 3, overlap=True, total=None), 50)}
    assert sizes == {1, 2, 3}
