"""Cordon, uncordon and drain, on a membership with recorded links."""

import asyncio

import pytest

from serving.errors import GroupNotFound
from serving.fleet.membership import FleetMembership
from serving.fleet.models import FleetModel, FleetModels
from serving.fleet.operations import FleetOperations
from serving.routing.snapshot import MemberState
from tests.support.fleets import RecordingHandle, hello, load


class Handle(RecordingHandle):
    """A link whose requests end when it is fenced."""

    def fence(self, reason, *, planned=False):
        super().fence(reason, planned=planned)
        self.inflight_requests = 0


@pytest.fixture
def handle():
    return Handle()


@pytest.fixture
def membership(handle):
    membership = FleetMembership()
    key = membership.join(hello(group="g", epoch="e", world=1), handle)
    membership.report(key, handle, load())
    membership.key = key
    assert membership.ready
    return membership


@pytest.fixture
def operations(membership):
    return FleetOperations(FleetModels([FleetModel("m", membership, "f")]))


def group(membership):
    return membership.snapshot().groups[0]


def test_a_cordoned_group_gets_no_work_until_it_is_given_back(membership, operations, handle):
    operations.cordon("g", "new firmware")
    assert group(membership).state is MemberState.DRAINING
    assert group(membership).reason == "cordoned: new firmware"
    assert not membership.ready
    assert not handle.fenced
    operations.uncordon("g")
    assert membership.ready


def test_a_cordon_outlives_a_fault(membership, operations, handle):
    operations.cordon("g", "")
    membership.fault(membership.key, handle, "died")
    membership.report(membership.key, handle, load())
    assert group(membership).state is MemberState.FENCED
    operations.uncordon("g")
    assert membership.ready


def test_a_rank_that_drains_by_itself_is_not_given_back(membership, operations, handle):
    membership.drain(membership.key, handle, "SIGTERM")
    operations.cordon("g", "")
    operations.uncordon("g")
    assert group(membership).state is MemberState.DRAINING


async def test_a_drain_waits_for_what_is_running(membership, operations, handle):
    handle.inflight_requests = 2
    draining = asyncio.create_task(operations.drain("g", 20.0))
    await asyncio.sleep(0.01)
    assert not draining.done()
    assert not membership.ready
    handle.inflight_requests = 0
    assert await draining
    assert not handle.fenced


async def test_requests_left_after_the_timeout_move_to_other_groups(membership, operations, handle):
    handle.inflight_requests = 2
    assert not await operations.drain("g", 0.01)
    ((reason, planned),) = handle.fenced
    assert planned
    assert "moves its requests" in reason
    assert group(membership).state is MemberState.DRAINING


@pytest.mark.parametrize("name", ["cordon", "uncordon"])
def test_an_unknown_group_is_named(operations, name):
    arguments = ("x", "") if name == "cordon" else ("x",)
    with pytest.raises(GroupNotFound, match="no group 'x' has joined"):
        getattr(operations, name)(*arguments)
