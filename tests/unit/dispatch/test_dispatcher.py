"""In a large fleet the placer looks at a part, and at all of it when that has no room."""

import pytest

from serving.dispatch.dispatcher import Placer
from serving.fleet.membership import Roster
from serving.link.block_hashes import PromptNames
from serving.link.v1 import link_pb2
from serving.routing.decision import Demand
from serving.settings import RoutingSettings

GROUPS = 100


class Clock:
    def monotonic(self):
        return 1.0

    def time(self):
        return 1.0


class Handle:
    round_trip = None
    outstanding_tokens = 0

    def __init__(self):
        self.inflight_requests = 0

    def submit(self, stream):
        self.inflight_requests += 1

    def close(self, reason):
        """A part of the interface."""

    def fence(self, reason, *, planned=False):
        """A part of the interface."""


@pytest.fixture
def fleet():
    roster = Roster(clock=Clock())
    handles = {}
    for number in range(GROUPS):
        name = f"g{number:03}"
        handle = handles[name] = Handle()
        capacity = link_pb2.Capacity(max_num_seqs=1, kv_blocks=100, kv_block_size=16)
        hello = link_pb2.Hello(group_id=name, epoch="e", world_size=1, capacity=capacity)
        key = roster.join(hello, handle)
        roster.report(key, handle, link_pb2.LoadSnapshot(health=link_pb2.LoadSnapshot.HEALTHY))
    return roster, handles


def place(placer, **demand):
    return placer.place(object(), Demand(10, 10, **demand))


def test_requests_spread_over_the_whole_fleet(fleet):
    roster, handles = fleet
    placer = Placer(roster, RoutingSettings(queue_allowance=0), Clock())
    for _ in range(GROUPS):
        assert not isinstance(place(placer), str)
    # One slot each: the last ones found theirs although the part they looked at had none.
    assert {handle.inflight_requests for handle in handles.values()} == {1}
    assert place(placer) == "all ranks run as many requests as they take"


def test_a_prompt_goes_where_its_beginning_is(fleet):
    roster, handles = fleet
    placer = Placer(roster, RoutingSettings(), Clock())
    prompt = PromptNames(range(65))
    roster.prefixes.apply(
        ("g077", "e", 0),
        sequence=0,
        reset=True,
        block_size=16,
        removed=(),
        stored=prompt.all(16),
    )
    for _ in range(3):
        pick, _ = place(placer, prompt=PromptNames(range(65)))
        assert pick.group_id == "g077"
        assert pick.matched_tokens == 64
        handles["g077"].inflight_requests = 0


def test_a_group_that_is_lost_is_not_looked_at_again(fleet):
    roster, handles = fleet
    placer = Placer(roster, RoutingSettings(), Clock())
    place(placer)
    for number in range(1, GROUPS):
        name = f"g{number:03}"
        roster.hand_over(name, "goes")
    for _ in range(3):
        handles["g000"].inflight_requests = 0
        assert place(placer)[0].group_id == "g000"
