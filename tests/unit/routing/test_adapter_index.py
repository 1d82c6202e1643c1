"""Which ranks suit an adapter: those that hold it, then its replicas in rendezvous order."""

from collections import Counter

import pytest

from serving.routing.adapter_index import AdapterIndex
from serving.routing.snapshot import RankId


def ranks(count, group="g"):
    return [RankId(f"{group}{number}", "e", 0) for number in range(count)]


def index_of(*members, slots=2):
    index = AdapterIndex()
    for rank_id in members:
        index.add(rank_id, slots)
    return index


def best(index, key, replicas=2):
    values = index.values(key, replicas)
    return max(values, key=values.__getitem__)


def test_without_ranks_no_rank_suits():
    assert index_of().values("a@1", 4) == {}


def test_adapters_spread_evenly_and_only_replicas_count():
    members = ranks(8)
    index = index_of(*members)
    firsts = Counter(best(index, f"{number}@1") for number in range(400))
    assert set(firsts) == set(members)
    assert max(firsts.values()) < 2 * 400 / 8
    assert len(index.values("a@1", 3)) == 3


def test_the_order_is_the_same_in_every_router_and_after_a_restart_of_the_group():
    members = ranks(6)
    one, other = index_of(*members), index_of(*reversed(members))
    again = index_of(*(RankId(group, "later", rank) for group, _, rank in members))
    for number in range(50):
        key = f"{number}@1"
        assert best(one, key) == best(other, key)
        assert best(one, key)[0] == best(again, key)[0]


def test_a_rank_that_leaves_moves_only_its_own_adapters():
    members = ranks(6)
    index = index_of(*members)
    before = {f"{number}@1": best(index, f"{number}@1") for number in range(100)}
    index.forget(members[0])
    after = {key: best(index, key) for key in before}
    assert all(after[key] == rank for key, rank in before.items() if rank != members[0])
    assert members[0] not in after.values()


def test_a_holder_is_worth_more_than_the_first_replica():
    members = ranks(6)
    index = index_of(*members)
    last = next(rank for rank in members if rank not in index.values("a@1", 5))
    index.report(last, ["a@1", "b@1"])
    assert best(index, "a@1") == last
    assert index.holds(last, "a@1")
    assert list(index.holders("a@1")) == [last]
    index.report(last, ["b@1"])
    assert best(index, "a@1") != last


def test_requests_on_the_way_count_as_held():
    (rank,) = ranks(1)
    index = index_of(rank)
    index.began(rank, "a@1")
    index.began(rank, "a@1")
    index.report(rank, [])
    assert index.holds(rank, "a@1")
    index.ended(rank, "a@1")
    assert index.holds(rank, "a@1")
    index.ended(rank, "a@1")
    assert not index.holds(rank, "a@1")


def test_of_the_replicas_one_with_a_free_slot_comes_first():
    members = ranks(2)
    index = index_of(*members)
    first = best(index, "a@1")
    (other,) = set(members) - {first}
    index.report(first, ["x@1", "y@1"])
    assert best(index, "a@1") == other
    index.report(other, ["z@1", "y@1"])
    assert best(index, "a@1") == first


def test_a_rank_whose_slots_are_all_in_use_is_worth_nothing_for_others():
    (rank,) = ranks(1)
    index = index_of(rank)
    index.began(rank, "x@1")
    index.began(rank, "y@1")
    assert index.values("a@1", 4) == {}
    assert index.values("x@1", 4) == {rank: 1.0}


@pytest.mark.parametrize("event", ["report", "began", "ended"])
def test_events_of_a_rank_that_runs_no_adapters_are_ignored(event):
    (rank,) = ranks(1)
    index = AdapterIndex()
    getattr(index, event)(rank, "a@1")
    index.forget(rank)
    assert not index.holds(rank, "a@1")
