"""RankLink: batching, accounting, aborts, fencing, silence, KV-cache events."""

import asyncio

import pytest
from vllm.sampling_params import RequestOutputKind, SamplingParams

from serving.errors import EngineError, GroupLost, InvalidRequest, Overloaded
from serving.fleet.membership import FleetMembership
from serving.fleet.rank_link import RankLink
from serving.link.v1 import link_pb2
from serving.requests.output_buffer import OutputBuffer
from serving.requests.stream import RequestStream
from serving.requests.token_timings import TokenTimings
from serving.routing.snapshot import RankId
from serving.settings import FleetSettings
from tests.support.clock import ManualClock
from tests.support.waiting import PATIENCE, eventually

RANK = RankId("g0", "e1", 0)


class CountingClock(ManualClock):
    """Counts its readings."""

    readings = 0

    def monotonic(self):
        self.readings += 1
        return super().monotonic()

    async def read_again(self):
        """Wait for several passes of a task that reads the clock three times a pass."""
        enough = self.readings + 9
        await eventually(lambda: self.readings >= enough, "passes of the watch")


@pytest.fixture
def clock():
    return CountingClock(100.0)


@pytest.fixture
def membership(clock):
    return FleetMembership(FleetSettings(), clock)


@pytest.fixture
def link(membership, clock):
    link = RankLink(
        RANK,
        membership,
        clock,
        send_limit=300,
        max_frame_bytes=4000,
        silence_limit=0.04,
    )
    membership.join(link_pb2.Hello(group_id="g0", epoch="e1", rank=0, world_size=1), link)
    return link


def stream(name, clock=None, *, prompt=3, max_tokens=10):
    work = link_pb2.Submit(request_id=name, prompt_token_ids=[1] * prompt)
    kind = RequestOutputKind.DELTA
    buffer = OutputBuffer(name, [1] * prompt, SamplingParams(), kind)
    return RequestStream(
        work, buffer, TokenTimings(clock or ManualClock(100.0)), expected_output=max_tokens
    )


def delta(name, *tokens, finished=False, **fields):
    choice = link_pb2.ChoiceDelta(token_ids=tokens)
    return link_pb2.Delta(request_id=name, choices=[choice], finished=finished, **fields)


def frame(*deltas, **fields):
    return link_pb2.RankMessage(deltas=deltas, **fields)


async def sent_by(link, count):
    """Let the sender write at least ``count`` frames; return them."""
    frames = []
    enough = asyncio.Event()

    async def write(message):
        copy = link_pb2.RouterMessage()
        copy.CopyFrom(message)
        frames.append(copy)
        if len(frames) >= count:
            enough.set()

    sender = asyncio.create_task(link.send(write))
    async with asyncio.timeout(PATIENCE):
        await enough.wait()
    sender.cancel()
    await asyncio.wait([sender])
    return frames


async def test_submits_and_aborts_go_down_in_one_frame(link):
    streams = [stream(f"r{number}") for number in range(3)]
    for each in streams:
        link.submit(each)
    (first,) = await sent_by(link, 1)
    assert [work.request_id for work in first.submits] == ["r0", "r1", "r2"]
    link.submit(stream("r3"))
    link.release(streams[0])
    link.release(streams[1])
    (second,) = await sent_by(link, 1)
    assert [work.request_id for work in second.submits] == ["r3"]
    assert list(second.abort_request_ids) == ["r0", "r1"]


async def test_many_submits_are_cut_into_frames_in_order(link):
    names = [f"request {number}" for number in range(300)]
    for name in names:
        link.submit(stream(name))
    frames = await sent_by(link, 2)
    assert len(frames) > 1
    assert all(each.ByteSize() <= 4000 for each in frames)
    assert [work.request_id for each in frames for work in each.submits] == names


async def test_a_request_larger_than_a_frame_is_refused(link):
    with pytest.raises(InvalidRequest, match="send a shorter prompt"):
        link.submit(stream("r" * 2001))
    assert link.inflight_requests == 0


async def test_a_request_released_before_it_was_sent_never_goes_down(link):
    cancelled = stream("gone")
    link.submit(cancelled)
    link.submit(stream("stays"))
    link.release(cancelled)
    (only,) = await sent_by(link, 1)
    assert [work.request_id for work in only.submits] == ["stays"]
    assert not only.abort_request_ids


async def test_a_full_send_queue_refuses(link):
    for number in range(300):
        link.submit(stream(f"r{number}"))
    with pytest.raises(Overloaded, match="300 are queued"):
        link.submit(stream("more"))
    assert link.inflight_requests == 300


async def test_closed_link_refuses(link):
    link.close("the cable was cut")
    with pytest.raises(GroupLost, match="the cable was cut"):
        link.submit(stream("r"))
    assert link.inflight_requests == 0


async def test_outstanding_tokens_follow_the_work_and_return_to_zero(link):
    first, second = stream("a", prompt=5, max_tokens=10), stream("b", prompt=7, max_tokens=10)
    link.submit(first)
    assert link.outstanding_tokens == 15
    link.submit(second)
    assert link.outstanding_tokens == 32
    link.receive(frame(delta("a", 1, 2)))
    assert link.outstanding_tokens == 8 + 17
    link.receive(frame(delta("a", 3, finished=True)))
    assert link.outstanding_tokens == 17
    second.fail(EngineError("deadline"))
    link.release(second)
    assert link.outstanding_tokens == 0
    assert link.inflight_requests == 0


async def test_finished_request_is_not_aborted(link):
    done = stream("a")
    link.submit(done)
    await sent_by(link, 1)
    link.receive(frame(delta("a", 1, finished=True)))
    link.release(done)
    link.submit(stream("b"))
    (only,) = await sent_by(link, 1)
    assert not only.abort_request_ids


async def test_fencing_fails_all_and_aborts_them(link):
    streams = [stream("a"), stream("b")]
    for each in streams:
        link.submit(each)
    await sent_by(link, 1)
    link.receive(frame(delta("a", 7)))
    link.fence("group g0 was fenced")
    output = await streams[0].next()
    assert list(output.outputs[0].token_ids) == [7], "what came before the loss is still given"
    for each in streams:
        with pytest.raises(GroupLost, match="group g0 was fenced; the request can be retried"):
            await each.next()
    (only,) = await sent_by(link, 1)
    assert sorted(only.abort_request_ids) == ["a", "b"]
    assert link.outstanding_tokens == 0


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        pytest.param(
            link_pb2.Delta(
                request_id="a",
                finished=True,
                error=link_pb2.RequestError(
                    code=link_pb2.RequestError.INVALID_REQUEST, message="no"
                ),
            ),
            InvalidRequest,
            id="error delta",
        ),
        pytest.param(
            link_pb2.Delta(request_id="a", choices=[link_pb2.ChoiceDelta(index=4)]),
            EngineError,
            id="does not fit",
        ),
    ],
)
async def test_bad_delta_ends_only_its_request(link, bad, expected):
    ill, well = stream("a"), stream("b")
    link.submit(ill)
    link.submit(well)
    link.receive(frame(bad, delta("b", 1)))
    with pytest.raises(expected):
        await ill.next()
    assert list((await well.next()).outputs[0].token_ids) == [1]
    assert link.inflight_requests == 1


async def test_delta_for_an_unknown_request_is_ignored(link):
    link.receive(frame(delta("never heard of", 1)))
    assert link.inflight_requests == 0


async def test_silence_closes_the_link(link, clock):
    watch = asyncio.create_task(link.watch())
    await sent_by(link, 1)  # a Ping: the watch is running
    clock.now += 1.0
    async with asyncio.timeout(PATIENCE):
        await watch
    assert link.closed.is_set()
    assert link.close_reason == "nothing received for 1.0 s"


async def test_a_stalled_router_does_not_take_its_ranks_for_silent(link, clock):
    watch = asyncio.create_task(link.watch())
    await sent_by(link, 1)  # a Ping: the watch is running
    before = clock.readings
    clock.now += 1.0
    await eventually(lambda: clock.readings > before, "the late pass", interval=0)
    link.receive(frame(pong=link_pb2.Pong(number=1)))  # it had arrived during the stall
    await clock.read_again()
    assert not link.closed.is_set()
    watch.cancel()


async def test_a_rank_that_sends_frames_is_pinged_rarely(link, clock):
    pings = []

    async def write(message):
        pings.append(message.ping.number)
        link.receive(frame(pong=link_pb2.Pong(number=message.ping.number)))

    async def heard_after(seconds):
        clock.now += seconds
        link.receive(frame(load=link_pb2.LoadSnapshot(health=link_pb2.LoadSnapshot.HEALTHY)))
        await clock.read_again()
        return list(pings)

    tasks = [asyncio.create_task(link.watch()), asyncio.create_task(link.send(write))]
    assert await heard_after(0) == [1]
    for _ in range(5):
        assert await heard_after(0.005) == [1]
    assert await heard_after(0.02) == [1, 2]  # the last frame is as old as permitted
    clock.now += 0.01
    await clock.read_again()
    assert pings == [1, 2, 3]  # no frames arrive
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def test_pong_gives_the_round_trip(link, clock):
    watch = asyncio.create_task(link.watch())
    (ping,) = await sent_by(link, 1)
    clock.now += 0.003
    link.receive(frame(pong=link_pb2.Pong(number=ping.ping.number)))
    watch.cancel()
    await asyncio.wait([watch])
    assert link.round_trip == pytest.approx(0.003)


async def test_load_and_drain_reach_the_membership(link, membership):
    link.receive(frame(load=link_pb2.LoadSnapshot(health=link_pb2.LoadSnapshot.HEALTHY)))
    assert membership.ready
    link.receive(frame(drain=link_pb2.Drain(reason="scale down")))
    assert not membership.ready
    assert "scale down" in membership.snapshot().groups[0].reason


# -- KV-cache events ----------------------------------------------------------------------


def kv_message(sequence, **fields):
    events = link_pb2.KvEvents(block_size=16, sequence=sequence, **fields)
    return link_pb2.RankMessage(kv_events=events)


def test_events_reach_the_index_in_order(link, membership):
    prefixes = membership.prefixes
    link.receive(kv_message(0, reset=True, stored=[1, 2, 2**64 - 1]))
    link.receive(kv_message(1, removed=[1], stored=[3]))
    assert prefixes.blocks(RANK) == {2, 3, 2**64 - 1}
    link.receive(kv_message(5, stored=[4]))
    assert prefixes.blocks(RANK) == frozenset()


def test_a_closed_link_is_forgotten_and_says_nothing_more(link, membership):
    prefixes = membership.prefixes
    link.receive(kv_message(0, reset=True, stored=[1]))
    link.close("lost")
    assert prefixes.blocks(RANK) == frozenset()
    link.receive(kv_message(1, reset=True, stored=[1]))
    assert prefixes.blocks(RANK) == frozenset()
