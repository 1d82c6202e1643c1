"""Candidates: bounded samples, round-robin over groups, and equality with a rebuilt collection."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.fleet.candidates import SAMPLE_RANKS, CandidateRank, Candidates
from serving.routing.snapshot import RankId, RankSnapshot
from tests.support.fleets import RecordingHandle


def add(candidates, name, ranks=2):
    members = [
        CandidateRank(RankSnapshot(name, "e", rank, healthy=True), RecordingHandle())
        for rank in range(ranks)
    ]
    candidates.add(name, "e", members)


def names(count):
    return [f"g{index:03}" for index in range(count)]


def fleet(count, ranks=2):
    candidates = Candidates()
    for name in names(count):
        add(candidates, name, ranks)
    return candidates


def ids(found):
    return [each.group_id for each in found.groups]


def ranks(found):
    return [rank.rank_id for each in found.groups for rank in each.ranks]


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        pytest.param(0, 2, id="empty"),
        pytest.param(32, 2, id="small groups"),
        pytest.param(1, 64, id="one large group"),
    ],
)
def test_a_small_fleet_is_considered_as_a_whole(groups, size):
    found = fleet(groups, size).select(set(), 0)
    assert len(ranks(found)) == groups * size
    assert found.complete
    assert ids(found) == names(groups)
    assert found.ready is (groups > 0)


SIZES = st.sampled_from([1, 2, 3, 8, 20, 64, 200])


@given(groups=st.integers(1, 300), size=SIZES, turn=st.integers(0, 1000))
def test_a_sample_has_enough_ranks_and_not_many_more(groups, size, turn):
    found = fleet(groups, size).select(set(), turn)
    if found.complete:
        assert groups * size <= 2 * SAMPLE_RANKS
        return
    assert SAMPLE_RANKS <= len(ranks(found)) <= SAMPLE_RANKS + size
    assert len(found.groups) >= min(2, groups)
    assert ranks(found) == sorted(set(ranks(found)))


@given(
    sizes=st.lists(SIZES, min_size=2, max_size=40).filter(lambda sizes: sum(sizes) > 64),
    turns=st.integers(1, 50),
)
def test_a_sample_of_groups_of_different_sizes_has_parts_of_large_ones_only(sizes, turns):
    candidates = Candidates()
    for name, size in zip(names(len(sizes)), sizes, strict=True):
        add(candidates, name, size)
    by_name = dict(zip(names(len(sizes)), sizes, strict=True))
    for turn in range(turns):
        found = candidates.select(set(), turn)
        assert len(found.groups) >= 2
        for group in found.groups:
            assert len(group.ranks) == min(by_name[group.group_id], SAMPLE_RANKS // 2)


@given(groups=st.integers(1, 12), size=SIZES)
def test_all_ranks_have_their_turn(groups, size):
    candidates = fleet(groups, size)
    turns = groups * size  # at least one new rank each
    seen = {rank for turn in range(turns) for rank in ranks(candidates.select(set(), turn))}
    assert len(seen) == groups * size


@given(
    size=SIZES,
    wanted=st.sets(st.tuples(st.integers(0, 120), st.integers(0, 250)), max_size=8),
    turn=st.integers(0, 100),
)
def test_wanted_ranks_are_added_to_the_sample_if_their_groups_are_ready(size, wanted, turn):
    candidates = fleet(100, size)
    wanted = {RankId(f"g{group:03}", "e", rank) for group, rank in wanted}
    found = ranks(candidates.select(wanted, turn))
    others = ranks(candidates.select(set(), turn))
    known = {rank_id for rank_id in wanted if rank_id.group_id < "g100" and rank_id.rank < size}
    beside = size if size <= SAMPLE_RANKS else 1
    assert {*others, *known} <= set(found)
    assert len(found) <= len(others) + beside * len(known)
    assert found == sorted(set(found))


def test_a_rank_of_another_epoch_is_not_wanted():
    candidates = fleet(100)
    sample = candidates.select({RankId("g099", "other", 0)}, 0)
    assert ranks(sample) == ranks(candidates.select(set(), 0))


@given(
    happenings=st.lists(st.tuples(st.sampled_from(names(12)), st.integers(1, 20)), max_size=40),
    turn=st.integers(0, 20),
)
def test_after_any_changes_equal_to_a_collection_built_from_scratch(happenings, turn):
    changed, ready = Candidates(), {}
    for name, size in happenings:
        if name in ready:
            del ready[name]
            changed.remove(name)
        else:
            ready[name] = size
            add(changed, name, size)
    built = Candidates()
    for name in sorted(ready):
        add(built, name, ready[name])
    assert len(changed) == len(built) == len(ready)
    wanted = {RankId(name, "e", 0) for name in names(3)}
    found, expected = changed.select(wanted, turn), built.select(wanted, turn)
    assert found.complete is expected.complete
    assert ranks(found) == ranks(expected)
    assert len(ranks(changed.whole)) == sum(ready.values())
    assert ids(changed.whole) == sorted(ready)
