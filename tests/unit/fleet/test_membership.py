"""FleetMembership: transitions, rejections, fencing, and invariants under random histories."""

from itertools import product

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from serving.fleet.group import TRANSITIONS, GroupEvent
from serving.fleet.membership import FleetMembership, JoinRefused
from serving.link.v1 import link_pb2
from serving.routing.snapshot import MemberState, RankId
from serving.routing.views import RankView
from serving.settings import FleetSettings
from tests.support.clock import ManualClock
from tests.support.fleets import RecordingHandle, hello, load

HEALTHY = link_pb2.LoadSnapshot.HEALTHY
FAILED = link_pb2.LoadSnapshot.FAILED
STALLED = link_pb2.LoadSnapshot.STALLED
UNKNOWN = link_pb2.LoadSnapshot.HEALTH_UNSPECIFIED


class Fleet:
    """A membership whose ranks a test names by (epoch, rank)."""

    def __init__(self, **settings):
        self.clock = ManualClock()
        self.membership = FleetMembership(FleetSettings(**settings), self.clock, router_id="r")
        self.handles = {}
        self.keys = {}

    def join(self, rank=0, **fields):
        handle = RecordingHandle()
        key = self.membership.join(hello(rank, **fields), handle)
        self.handles[rank] = handle
        self.keys[rank] = key
        return handle

    def report(self, rank=0, health=HEALTHY, reason="", **fields):
        self.membership.report(self.keys[rank], self.handles[rank], load(health, reason, **fields))

    def leave(self, rank=0, reason="its connection ended"):
        self.membership.leave(self.keys[rank], self.handles[rank], reason)

    def drain(self, rank=0, reason="SIGTERM"):
        self.membership.drain(self.keys[rank], self.handles[rank], reason)

    @property
    def group(self):
        (group,) = self.membership.snapshot().groups
        return group


@pytest.fixture
def fleet():
    return Fleet()


@pytest.fixture
def ready(fleet):
    for rank in (0, 1):
        fleet.join(rank)
        fleet.report(rank)
    assert fleet.group.state is MemberState.READY
    return fleet


# -- the table ----------------------------------------------------------------------------


def test_nothing_leaves_gone_and_every_state_is_reachable():
    assert not [pair for pair in TRANSITIONS if pair[0] is MemberState.GONE]
    assert {MemberState.JOINING, *TRANSITIONS.values()} == set(MemberState)


@pytest.mark.parametrize(
    ("state", "event"),
    [
        pytest.param(state, event, id=f"{state}-{event}")
        for state, event in product(MemberState, GroupEvent)
        if event in {GroupEvent.EMPTY, GroupEvent.REPLACED} and state is not MemberState.GONE
    ],
)
def test_every_living_state_can_end(state, event):
    assert TRANSITIONS[state, event] is MemberState.GONE


def test_only_complete_makes_ready():
    assert {event for (_, event), to in TRANSITIONS.items() if to is MemberState.READY} == {
        GroupEvent.COMPLETE
    }


# -- a group's life -----------------------------------------------------------------------


def test_ready_when_all_ranks_joined_and_reported_healthy(fleet):
    fleet.join(0)
    assert fleet.group.state is MemberState.JOINING
    assert "1 of 2 ranks joined, waiting for rank 1" in fleet.group.reason
    fleet.report(0)
    fleet.join(1)
    assert "healthy report from rank 1" in fleet.group.reason
    assert not fleet.membership.ready
    fleet.report(1, UNKNOWN)
    assert not fleet.membership.ready
    fleet.report(1)
    assert fleet.membership.ready
    assert fleet.group.reason == "all 2 ranks are healthy"


def test_adapters_count_while_the_group_accepts_requests(fleet):
    adapters = fleet.membership.adapters
    capacity = link_pb2.AdapterCapacity(slots=2, max_rank=16)
    fleet.join(0, adapters=capacity)
    fleet.report(0, adapters=link_pb2.AdapterLoad(resident=["a@1"]))
    assert not adapters.values("a@1", 4)
    fleet.join(1)
    fleet.report(1)
    assert list(adapters.values("a@1", 4)) == [fleet.keys[0]], "rank 1 runs no adapters"
    assert adapters.holds(fleet.keys[0], "a@1")
    fleet.report(0, adapters=link_pb2.AdapterLoad(resident=["b@1"]))
    assert not adapters.holds(fleet.keys[0], "a@1")
    fleet.membership.cordon("g0", "")
    assert not adapters.values("b@1", 4)
    fleet.membership.uncordon("g0")
    assert adapters.holds(fleet.keys[0], "b@1")
    (first, _) = fleet.group.ranks
    assert (first.adapter_slots, first.load.adapters) == (2, ("b@1",))
    fleet.leave(0)
    assert not adapters.values("b@1", 4)


@pytest.mark.parametrize(
    ("health", "word"),
    [pytest.param(FAILED, "failed", id="failed"), pytest.param(STALLED, "stalled", id="stalled")],
)
def test_bad_health_of_one_rank_fences_the_whole_group(ready, health, word):
    ready.clock.now = 2000.0
    ready.report(1, health, "it broke")
    assert ready.group.state is MemberState.FENCED
    assert ready.group.reason == f"rank 1 {word}: it broke"
    assert ready.group.since == 2000.0
    assert all(len(handle.fenced) == 1 for handle in ready.handles.values())
    assert not ready.membership.ready


def test_a_lost_rank_fences_the_whole_group(ready):
    ready.leave(0)
    assert ready.group.state is MemberState.FENCED
    assert ready.group.reason == "rank 0 was lost: its connection ended"
    assert [rank.rank for rank in ready.group.ranks] == [1]
    assert ready.handles[0].fenced
    assert ready.handles[1].fenced


def test_fenced_group_is_ready_again_when_all_are_back_and_healthy(ready):
    ready.leave(0)
    ready.report(1)
    assert ready.group.state is MemberState.FENCED
    ready.join(0)
    assert ready.group.state is MemberState.FENCED
    ready.report(0)
    assert ready.group.state is MemberState.READY


def test_a_stall_that_passes_unfences(ready):
    ready.report(0, STALLED)
    ready.report(1)
    assert ready.group.state is MemberState.FENCED
    ready.report(0)
    assert ready.group.state is MemberState.READY


def test_draining_rank_drains_its_group_without_touching_its_requests(ready):
    ready.drain(1)
    assert ready.group.state is MemberState.DRAINING
    assert [rank.draining for rank in ready.group.ranks] == [False, True]
    assert not any(handle.fenced for handle in ready.handles.values())
    ready.report(0)
    ready.report(1)
    assert ready.group.state is MemberState.DRAINING


def test_rank_lost_while_draining_fences(ready):
    ready.drain(0)
    ready.leave(0)
    assert ready.group.state is MemberState.FENCED
    assert ready.handles[1].fenced


def test_group_is_gone_with_its_last_rank_and_kept_in_history(ready):
    ready.leave(0)
    ready.clock.now = 3000.0
    ready.leave(1, "killed")
    snapshot = ready.membership.snapshot()
    assert snapshot.groups == ()
    (lost,) = snapshot.history
    assert lost.state is MemberState.GONE
    assert lost.reason == "its last rank was lost: killed"
    assert lost.since == 3000.0
    ready.join(0)
    assert ready.group.state is MemberState.JOINING


def test_history_is_bounded_newest_first():
    fleet = Fleet(history_groups=2)
    for number in range(5):
        fleet.join(0, epoch=f"e{number}", world=1)
    assert [group.epoch for group in fleet.membership.snapshot().history] == ["e3", "e2"]


# -- epochs -------------------------------------------------------------------------------


def test_newer_epoch_replaces_the_old_one_and_closes_its_links(ready):
    old = dict(ready.handles)
    ready.join(0, epoch="e2")
    assert ready.group.epoch == "e2"
    assert ready.group.state is MemberState.JOINING
    assert all(handle.fenced and handle.closed for handle in old.values())
    (lost,) = ready.membership.snapshot().history
    assert (lost.epoch, lost.reason) == ("e1", "replaced by epoch e2")
    assert [rank.rank for rank in lost.ranks] == [0, 1]


def test_what_an_old_link_says_is_not_taken_for_the_new_one(ready):
    old = ready.handles[0]
    old_key = ready.keys[0]
    ready.join(0, epoch="e2", world=1)
    ready.report(0)
    ready.membership.report(old_key, old, load(FAILED))
    ready.membership.drain(old_key, old, "late")
    ready.membership.leave(old_key, old, "late")
    assert ready.group.state is MemberState.READY


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param({"epoch": "b", "started": 20.0}, {"epoch": "a", "started": 10.0}, id="clock"),
        pytest.param({"epoch": "a", "started": 10.0}, None, id="seen"),
    ],
)
def test_left_over_rank_of_an_older_epoch_is_refused(fleet, first, second):
    fleet.join(0, **first)
    if second is None:
        fleet.join(0, epoch="b")
        second = {"epoch": "a"}
    with pytest.raises(JoinRefused, match="stale, stop it") as refused:
        fleet.join(1, **second)
    assert refused.value.code == link_pb2.Refusal.BAD_HELLO
    assert fleet.group.epoch == "b"


def test_duplicate_rank_is_refused_and_names_the_other(ready):
    ready.leave(0)
    ready.join(0, node="10.0.0.7", pid=42)
    with pytest.raises(JoinRefused, match=r"already joined from 10\.0\.0\.7 \(pid 42\)") as refused:
        ready.membership.join(hello(0), RecordingHandle())
    assert refused.value.code == link_pb2.Refusal.DUPLICATE_RANK


def test_a_process_that_reconnects_replaces_its_old_link(ready):
    ready.leave(0)
    old = ready.join(0, node="10.0.0.7", pid=42)
    ready.report(0)
    assert ready.membership.ready
    peer_fenced = len(ready.handles[1].fenced)
    ready.join(0, node="10.0.0.7", pid=42)
    assert old.fenced
    assert old.closed
    assert ready.group.state is MemberState.FENCED
    assert len(ready.handles[1].fenced) == peer_fenced + 1
    ready.report(0)
    assert ready.membership.ready


def test_other_world_size_in_one_epoch_is_refused(fleet):
    fleet.join(0)
    with pytest.raises(JoinRefused, match="world size 3") as refused:
        fleet.join(1, world=3)
    assert refused.value.code == link_pb2.Refusal.BAD_HELLO


# -- snapshots ----------------------------------------------------------------------------


def test_snapshot_carries_what_hello_load_and_link_say(fleet):
    handle = fleet.join(
        0,
        world=1,
        node="n",
        pid=7,
        engine_version="vllm 1",
        capacity=link_pb2.Capacity(max_model_len=100, kv_blocks=5, tensor_parallel_size=2),
        experts=link_pb2.ExpertPlacement(total=16, local_ids=[0, 1]),
    )
    handle.inflight_requests, handle.outstanding_tokens, handle.round_trip = 3, 55, 0.001
    fleet.report(
        0,
        running_requests=2,
        kv_usage=0.5,
        since_last_step_ms=1500,
        experts=[
            link_pb2.LayerExpertLoad(layer="a", tokens=[1, 2]),
            link_pb2.LayerExpertLoad(layer="b", tokens=[10, 20]),
        ],
        speculation=link_pb2.SpeculationCounts(proposed_tokens=8, accepted_tokens=6),
    )
    assert fleet.group.total_experts == 16
    (rank,) = fleet.group.ranks
    assert (rank.node, rank.pid, rank.engine_version) == ("n", 7, "vllm 1")
    assert (rank.max_model_len, rank.kv_blocks, rank.tensor_parallel_size) == (100, 5, 2)
    assert (rank.inflight_requests, rank.outstanding_tokens, rank.round_trip) == (3, 55, 0.001)
    assert rank.local_expert_ids == (0, 1)
    assert rank.load.expert_tokens == (11, 22)
    assert rank.load.since_last_step == 1.5
    assert (rank.load.mtp_proposed_tokens, rank.load.mtp_accepted_tokens) == (8, 6)


def test_snapshot_does_not_change_afterwards(ready):
    before = ready.membership.snapshot()
    ready.leave(0)
    assert before.ready
    assert len(before.groups[0].ranks) == 2


def test_listeners_are_called_for_changes_but_not_for_every_report(ready):
    notified = []
    unsubscribe = ready.membership.subscribe(lambda: notified.append(ready.membership.ready))
    ready.report(0)
    assert notified == []
    ready.report(0, FAILED)
    assert notified == [False]
    unsubscribe()
    ready.report(0)
    assert notified == [False]


def test_handle_leads_to_the_member_of_that_epoch_only(ready):
    assert ready.membership.handle(RankId("g0", "e1", 1)) is ready.handles[1]
    assert ready.membership.handle(RankId("g0", "e2", 1)) is None
    assert ready.membership.handle(RankId("g0", "e1", 2)) is None
    assert ready.membership.handle(RankId("g1", "e1", 0)) is None


def test_a_ready_groups_ranks_are_found_while_it_is_ready(ready):
    candidates = ready.membership.candidates
    assert candidates.handle(RankId("g0", "e1", 1)) is ready.handles[1]
    assert candidates.handle(RankId("g0", "e2", 1)) is None
    assert candidates.handle(RankId("g1", "e1", 0)) is None
    ready.leave(0)
    assert candidates.handle(RankId("g0", "e1", 1)) is None


# -- random histories ---------------------------------------------------------------------

GROUPS = st.sampled_from(["g0", "g1"])
RANKS = st.integers(0, 2)


def seen_by_routing(group):
    """Return everything that the views of ``routing.views`` show, except a group's reason."""
    fields = [name for name in vars(RankView) if not name.startswith("_")]
    ranks = [tuple(getattr(rank, name) for name in fields) for rank in group.ranks]
    assert len(fields) == 12
    return group.group_id, group.epoch, group.state, ranks


class Histories(RuleBasedStateMachine):
    """Ranks of two groups join, report, drain, leave and return in new epochs, in any order."""

    @initialize()
    def begin(self):
        self.clock = ManualClock()
        self.membership = FleetMembership(FleetSettings(history_groups=4), self.clock)
        self.epochs = {"g0": 1, "g1": 1}
        self.live = {}  # (group, epoch, rank) -> (key, handle), as the ranks see it
        self.health = {}

    def members(self, group):
        return {key: value for key, value in self.live.items() if key[0] == group}

    @rule(group=GROUPS, rank=RANKS)
    def join(self, group, rank):
        epoch = f"e{self.epochs[group]}"
        handle = RecordingHandle()
        name = (group, epoch, rank)
        try:
            key = self.membership.join(hello(rank, group=group, epoch=epoch, world=3), handle)
        except JoinRefused as refusal:
            refused = refusal.code
        else:
            refused = None
        assert refused == (link_pb2.Refusal.DUPLICATE_RANK if name in self.live else None)
        if refused is not None:
            return
        self.live = {
            other: value
            for other, value in self.live.items()
            if other[0] != group or other[1] == epoch
        }
        self.live[name] = (key, handle)
        self.health[name] = UNKNOWN

    @rule(group=GROUPS)
    def gang_restarts(self, group):
        self.epochs[group] += 1

    @precondition(lambda self: self.live)
    @rule(data=st.data(), health=st.sampled_from([HEALTHY, HEALTHY, HEALTHY, FAILED, STALLED]))
    def report(self, data, health):
        name = data.draw(st.sampled_from(sorted(self.live)))
        key, handle = self.live[name]
        self.health[name] = health
        used = data.draw(st.sampled_from([0.0, 0.5]))
        self.membership.report(key, handle, load(health, kv_usage=used))
        if health != HEALTHY:
            assert self.state(name[0]) not in {MemberState.READY, MemberState.DRAINING}

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def leave(self, data):
        name = data.draw(st.sampled_from(sorted(self.live)))
        key, handle = self.live.pop(name)
        before = self.state(name[0])
        peers = [peer for _, peer in self.members(name[0]).values()]
        fenced = [len(peer.fenced) for peer in peers]
        self.membership.leave(key, handle, "killed")
        assert handle.fenced, "the lost rank's own requests must fail"
        if before in {MemberState.READY, MemberState.DRAINING}:
            assert all(
                len(peer.fenced) == count + 1 for peer, count in zip(peers, fenced, strict=True)
            )

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def drain(self, data):
        name = data.draw(st.sampled_from(sorted(self.live)))
        key, handle = self.live[name]
        self.membership.drain(key, handle, "")
        assert self.state(name[0]) is not MemberState.READY

    def state(self, group):
        return {each.group_id: each.state for each in self.membership.snapshot().groups}.get(group)

    @invariant()
    def ready_means_whole_healthy_and_of_one_epoch(self):
        for group in self.membership.snapshot().groups:
            if group.state is MemberState.READY:
                assert [rank.rank for rank in group.ranks] == list(range(group.world_size))
                assert all(rank.healthy and not rank.draining for rank in group.ranks)
                assert {rank.epoch for rank in group.ranks} == {group.epoch}

    @invariant()
    def whole_healthy_and_not_draining_means_ready(self):
        for group in self.membership.snapshot().groups:
            whole = len(group.ranks) == group.world_size
            if whole and all(rank.healthy and not rank.draining for rank in group.ranks):
                assert group.state in {MemberState.READY, MemberState.DRAINING}

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def fault(self, data):
        key, handle = self.live[data.draw(st.sampled_from(sorted(self.live)))]
        self.membership.fault(key, handle, "its engine failed")

    @rule(group=GROUPS, on=st.booleans())
    def cordon(self, group, on):
        if self.membership.has_group(group):
            if on:
                self.membership.cordon(group, "")
            else:
                self.membership.uncordon(group)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), requests=st.integers(0, 9))
    def place(self, data, requests):
        _, handle = self.live[data.draw(st.sampled_from(sorted(self.live)))]
        handle.inflight_requests, handle.outstanding_tokens = requests, 100 * requests

    @invariant()
    def candidates_are_the_ready_groups_of_a_snapshot(self):
        snapshot = self.membership.snapshot()
        found = self.membership.candidates.select(set(), 0)
        expected = [group for group in snapshot.groups if group.state is MemberState.READY]
        assert self.membership.ready_groups == len(expected)
        assert self.membership.ready is found.ready is snapshot.ready
        assert list(map(seen_by_routing, found.groups)) == list(map(seen_by_routing, expected))

    @invariant()
    def members_are_those_that_live(self):
        shown = {
            (rank.group_id, rank.epoch, rank.rank)
            for group in self.membership.snapshot().groups
            for rank in group.ranks
        }
        assert shown == set(self.live)

    @invariant()
    def every_group_has_ranks_and_a_reason(self):
        snapshot = self.membership.snapshot()
        assert all(group.ranks and group.reason for group in snapshot.groups)
        assert len(snapshot.history) <= 4
        assert all(group.state is MemberState.GONE for group in snapshot.history)


TestHistories = Histories.TestCase
