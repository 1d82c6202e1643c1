"""Snapshots of a group: unchanged parts are reused."""

from serving.fleet.group import Group, Member, group_snapshot
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
