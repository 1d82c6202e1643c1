"""Cordon, uncordon and drain, on a roster with noted links."""

import asyncio

import pytest

from serving.errors import GroupNotFound
from serving.fleet.membership import Roster
from serving.fleet.operations import FleetOperations
from serving.link.v1 import link_pb2
from serving.routing.snapshot import MemberState


class Handle:
    outstanding_tokens = 0
    round_trip = None

    def __init__(self):
        self.inflight_requests = 0
        self.fenced = []

    def fence(self, reason, *, planned=False):
        self.fenced.append((reason, planned))
        self.inflight_requests = 0

    def close(self, reason):
        pass


@pytest.fixture
def handle():
    return Handle()


@pytest.fixture
def roster(handle):
    roster = Roster()
    key = roster.join(link_pb2.Hello(group_id="g", epoch="e", world_size=1), handle)
    roster.report(key, handle, link_pb2.LoadSnapshot(health=link_pb2.LoadSnapshot.HEALTHY))
    roster.key = key
    assert roster.ready
    return roster


@pytest.fixture
def operations(roster):
    return FleetOperations(roster)


def group(roster):
    return roster.snapshot().groups[0]


def test_a_cordoned_group_gets_no_work_until_it_is_given_back(roster, operations, handle):
    operations.cordon("g", "new firmware")
    assert group(roster).state is MemberState.DRAINING
    assert group(roster).reason == "cordoned: new firmware"
    assert not roster.ready
    assert not handle.fenced
    operations.uncordon("g")
    assert roster.ready


def test_a_cordon_outlives_a_fault(roster, operations, handle):
    operations.cordon("g", "")
    roster.fault(roster.key, handle, "died")
    roster.report(roster.key, handle, link_pb2.LoadSnapshot(health=link_pb2.LoadSnapshot.HEALTHY))
    assert group(roster).state is MemberState.FENCED
    operations.uncordon("g")
    assert roster.ready


def test_a_rank_that_drains_by_itself_is_not_given_back(roster, operations, handle):
    roster.drain(roster.key, handle, "SIGTERM")
    operations.cordon("g", "")
    operations.uncordon("g")
    assert group(roster).state is MemberState.DRAINING


async def test_a_drain_waits_for_what_is_running(roster, operations, handle):
    handle.inflight_requests = 2
    draining = asyncio.create_task(operations.drain("g", 20.0))
    await asyncio.sleep(0.01)
    assert not draining.done()
    assert not roster.ready
    handle.inflight_requests = 0
    assert await draining
    assert not handle.fenced


async def test_what_is_left_after_the_time_out_goes_on_elsewhere(roster, operations, handle):
    handle.inflight_requests = 2
    assert not await operations.drain("g", 0.01)
    ((reason, planned),) = handle.fenced
    assert planned
    assert "hands over" in reason
    assert group(roster).state is MemberState.DRAINING


@pytest.mark.parametrize("name", ["cordon", "uncordon"])
def test_an_unknown_group_is_named(operations, name):
    arguments = ("x", "") if name == "cordon" else ("x",)
    with pytest.raises(GroupNotFound, match="no group 'x' is joined"):
        getattr(operations, name)(*arguments)
