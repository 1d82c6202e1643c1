"""Samples of a large fleet: bounded in size, every group in turn; reuse of snapshots."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.fleet.group import SAMPLE_RANKS, Group, Member, ReadyGroups, group_snapshot
from serving.routing.snapshot import MemberState, RankSnapshot


class Handle:
    inflight_requests = 0
    outstanding_tokens = 0
    round_trip = None


def group(name, ranks=2, state=MemberState.READY):
    found = Group(name, "e", ranks, state, "because", 0.0)
    for rank in range(ranks):
        found.members[rank] = Member(None, Handle(), RankSnapshot(name, "e", rank, healthy=True))
    return found


def fleet(count, ranks=2, **fields):
    return {f"g{index:03}": group(f"g{index:03}", ranks, **fields) for index in range(count)}


@pytest.mark.parametrize(
    ("groups", "ranks"),
    [
        pytest.param(0, 2, id="empty"),
        pytest.param(32, 2, id="few ranks"),
        pytest.param(4, 64, id="few groups"),
    ],
)
def test_a_small_fleet_is_looked_at_as_a_whole(groups, ranks):
    assert ReadyGroups(fleet(groups, ranks)).sample((), 0) is None


@given(groups=st.integers(5, 300), ranks=st.sampled_from([1, 2, 8, 64]), turn=st.integers(0, 1000))
def test_the_part_has_enough_ranks_and_not_many_more(groups, ranks, turn):
    found = ReadyGroups(fleet(groups, ranks)).sample((), turn)
    if found is None:
        assert groups * ranks <= 2 * SAMPLE_RANKS
        return
    seen = sum(len(each.members) for each in found)
    assert SAMPLE_RANKS <= seen <= max(SAMPLE_RANKS + ranks, 2 * ranks)
    assert [each.group_id for each in found] == sorted({each.group_id for each in found})


@given(groups=st.integers(33, 300))
def test_all_groups_have_their_turn(groups):
    ready = ReadyGroups(fleet(groups))
    seen = {each.group_id for turn in range(groups) for each in ready.sample((), turn)}
    assert len(seen) == groups


def test_groups_that_are_wanted_are_in_it_if_they_take_work():
    groups = fleet(100) | fleet(1, state=MemberState.FENCED)
    found = ReadyGroups(groups).sample({"g000", "g077", "unknown"}, 1)
    names = [each.group_id for each in found]
    assert "g077" in names
    assert "g000" not in names
    assert "unknown" not in names


def test_unchanged_parts_of_a_snapshot_are_reused():
    changing = group("g0")
    first = group_snapshot(changing)
    assert group_snapshot(changing) is first
    changing.members[1].handle.outstanding_tokens = 7
    second = group_snapshot(changing)
    assert [rank.outstanding_tokens for rank in second.ranks] == [0, 7]
    assert second.ranks[0] is first.ranks[0]
    changing.reason = "another"
    assert group_snapshot(changing).reason == "another"
    del changing.members[0]
    assert [rank.rank for rank in group_snapshot(changing).ranks] == [1]
