"""The dispatcher: a sample of a large fleet, the whole fleet if that has no room, and isolation."""

import pytest

from serving.dispatch.dispatcher import Dispatcher, PlacementRequest
from serving.fleet.membership import FleetMembership
from serving.link.block_hashes import PromptBlockHashes
from serving.link.v1 import link_pb2
from serving.request_context import RequestContext
from serving.routing.decision import RoutingRequest
from serving.routing.snapshot import RankId
from serving.settings import RoutingSettings
from tests.support.clock import ManualClock
from tests.support.fleets import RecordingHandle, hello, load

GROUPS = 100


class Stream:
    work = link_pb2.Submit()


@pytest.fixture
def fleet():
    membership = FleetMembership(clock=ManualClock(1.0))
    handles = {}
    for number in range(GROUPS):
        name = f"g{number:03}"
        handle = handles[name] = RecordingHandle()
        capacity = link_pb2.Capacity(max_num_seqs=1, kv_blocks=100, kv_block_size=16)
        key = membership.join(hello(group=name, epoch="e", world=1, capacity=capacity), handle)
        membership.report(key, handle, load())
    return membership, handles


def place(dispatcher, isolation=None, **routing):
    """Return the decision, or the reason why there is none."""
    request = PlacementRequest(
        context=RequestContext(),
        stream=Stream(),
        routing=RoutingRequest(10, 10, **routing),
        isolation=isolation,
    )
    placed = dispatcher.try_place(request)
    if isinstance(placed, str):
        return placed
    assert request.context.record.decisions == [placed.decision]
    return placed.decision


def test_requests_spread_over_the_whole_fleet(fleet):
    membership, handles = fleet
    dispatcher = Dispatcher(membership, RoutingSettings(queue_allowance=0), ManualClock(1.0))
    for _ in range(GROUPS):
        assert not isinstance(place(dispatcher), str)
    # One slot each: the last requests found a slot although their sample had none.
    assert {handle.inflight_requests for handle in handles.values()} == {1}
    assert place(dispatcher) == "all ranks run their maximum number of requests"


def test_a_prompt_goes_where_its_beginning_is(fleet):
    membership, handles = fleet
    dispatcher = Dispatcher(membership, RoutingSettings(), ManualClock(1.0))
    prompt = PromptBlockHashes(range(65))
    membership.prefixes.apply(
        RankId("g077", "e", 0),
        sequence=0,
        reset=True,
        block_size=16,
        removed=(),
        stored=prompt.all(16),
    )
    for _ in range(3):
        decision = place(dispatcher, prompt=PromptBlockHashes(range(65)))
        assert decision.rank_id.group_id == "g077"
        assert decision.matched_tokens == 64
        handles["g077"].inflight_requests = 0


def test_a_group_that_is_lost_is_not_looked_at_again(fleet):
    membership, handles = fleet
    dispatcher = Dispatcher(membership, RoutingSettings(), ManualClock(1.0))
    place(dispatcher)
    for number in range(1, GROUPS):
        name = f"g{number:03}"
        membership.move_requests(name, "goes")
    for _ in range(3):
        handles["g000"].inflight_requests = 0
        assert place(dispatcher).rank_id.group_id == "g000"


class Isolation:
    """Keeps a request off some groups, and records where it was placed."""

    def __init__(self, *occupied):
        self.occupied = [(name, "e") for name in occupied]
        self.groups = []

    def placed(self, group):
        self.groups.append(group)


def test_an_isolated_request_avoids_occupied_groups(fleet):
    membership, _ = fleet
    dispatcher = Dispatcher(membership, RoutingSettings(), ManualClock(1.0))
    names = [f"g{number:03}" for number in range(GROUPS)]
    isolation = Isolation(*names[:-1])
    assert place(dispatcher, isolation).rank_id.group_id == names[-1]
    assert isolation.groups == [(names[-1], "e")]


def test_an_isolated_request_shares_a_group_if_all_are_occupied(fleet):
    membership, _ = fleet
    dispatcher = Dispatcher(membership, RoutingSettings(), ManualClock(1.0))
    isolation = Isolation(*(f"g{number:03}" for number in range(GROUPS)))
    assert [place(dispatcher, isolation).rank_id.group] == isolation.groups
