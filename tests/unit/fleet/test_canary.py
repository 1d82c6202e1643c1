"""The canary: sent to each rank of a complete group; effects of its results."""

import asyncio

import msgspec
import pytest
from vllm.sampling_params import SamplingParams

from serving.errors import EngineError, GroupLost, Overloaded
from serving.fleet.canary import Canary, first_token_id
from serving.fleet.membership import FleetMembership
from serving.link.v1 import link_pb2
from serving.routing.snapshot import MemberState
from tests.support.fleets import hello, load
from tests.support.waiting import eventually, loop_turns

HEALTHY = load()


class Handle:
    """A link that keeps submitted streams."""

    inflight_requests = outstanding_tokens = 0
    round_trip = None

    def __init__(self):
        self.streams = []
        self.released = []
        self.refuse = None

    def submit(self, stream):
        if self.refuse is not None:
            raise self.refuse
        self.streams.append(stream)

    def release(self, stream):
        self.released.append(stream)

    def fence(self, reason, *, planned=False):
        for stream in self.streams:
            stream.fail(GroupLost(reason, planned=planned))

    def close(self, reason):
        pass


class Fleet:
    def __init__(self, timeout=60.0):
        self.canary = Canary(token_id=4, timeout=timeout)
        self.membership = FleetMembership(canary=self.canary)
        self.handles = [Handle(), Handle()]
        self.keys = []

    def complete(self):
        for rank, handle in enumerate(self.handles):
            self.keys.append(self.membership.join(hello(rank, group="g", epoch="e"), handle))
            self.report(rank)

    def report(self, rank):
        self.membership.report(self.keys[rank], self.handles[rank], HEALTHY)

    @property
    def group(self):
        return self.membership.snapshot().groups[0]


@pytest.fixture
def fleet():
    fleet = Fleet()
    yield fleet
    fleet.canary.stop()


def answer(stream):
    stream.receive(link_pb2.Delta(request_id=stream.request_id, finished=True))


async def test_a_group_is_ready_when_every_rank_has_generated(fleet):
    fleet.complete()
    assert fleet.group.state is MemberState.JOINING
    assert fleet.group.reason == "waiting for the first token of rank 0, 1"
    first, second = (handle.streams[0] for handle in fleet.handles)
    assert list(first.work.prompt_token_ids) == [4]
    params = msgspec.msgpack.decode(first.work.sampling_params, type=SamplingParams)
    assert (params.max_tokens, params.temperature) == (1, 0.0)
    answer(first)
    await loop_turns()
    assert fleet.group.reason == "waiting for the first token of rank 1"
    answer(second)
    await loop_turns()
    assert fleet.group.state is MemberState.READY
    assert first in fleet.handles[0].released
    fleet.report(0)
    assert len(fleet.handles[0].streams) == 1


@pytest.mark.parametrize(
    "fail",
    [
        pytest.param(lambda stream: stream.fail(EngineError("broken")), id="engine error"),
        pytest.param(
            lambda stream: stream.receive(
                link_pb2.Delta(
                    finished=True,
                    error=link_pb2.RequestError(
                        code=link_pb2.RequestError.ENGINE_FAILED, message="broken"
                    ),
                )
            ),
            id="error delta",
        ),
    ],
)
async def test_a_failed_canary_fences_the_group_and_is_repeated(fleet, fail):
    fleet.complete()
    fail(fleet.handles[1].streams[0])
    await loop_turns()
    assert fleet.group.state is MemberState.FENCED
    assert "rank 1: did not generate a token: broken" in fleet.group.reason
    fleet.report(1)  # reports itself healthy again
    assert [len(handle.streams) for handle in fleet.handles] == [2, 1]
    async with asyncio.timeout(90):  # the failed rank gets another canary after a pause
        while len(fleet.handles[1].streams) == 1:  # noqa: ASYNC110  no event for it
            await asyncio.sleep(0.01)
    assert [len(handle.streams) for handle in fleet.handles] == [2, 2]
    for handle in fleet.handles:
        answer(handle.streams[1])
    await loop_turns()
    assert fleet.group.state is MemberState.READY


async def test_silence_counts_as_failure():
    fleet = Fleet(timeout=0.01)
    fleet.complete()
    await eventually(lambda: fleet.group.state is MemberState.FENCED)
    assert "no token within 0.01 s" in fleet.group.reason
    fleet.canary.stop()


async def test_a_link_that_takes_no_request_counts_as_failure(fleet):
    fleet.handles[0].refuse = Overloaded("full")
    fleet.complete()
    await loop_turns()
    assert fleet.group.state is MemberState.FENCED


async def test_an_answer_after_the_fence_proves_nothing(fleet):
    fleet.complete()
    stale = fleet.handles[0].streams[0]
    fleet.membership.fault(fleet.keys[1], fleet.handles[1], "died")
    answer(stale)
    await loop_turns()
    fleet.report(1)
    answer(fleet.handles[1].streams[-1])
    await loop_turns()
    assert fleet.group.state is MemberState.FENCED
    answer(fleet.handles[0].streams[-1])
    await loop_turns()
    assert fleet.group.state is MemberState.READY


@pytest.mark.parametrize(("bos", "token"), [(256, 256), (None, 0), ([1], 0)])
def test_the_prompt_is_the_models_first_token(bos, token):
    assert first_token_id(type("Config", (), {"bos_token_id": bos})()) == token
