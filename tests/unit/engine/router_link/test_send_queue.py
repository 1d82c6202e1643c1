"""Outbox: everything of a step in one frame, bounded in deltas and bytes."""

import asyncio

import pytest

from serving.engine.router_link.send_queue import Outbox
from serving.link.v1 import link_pb2

MIB = 2**20


def delta(name, text=""):
    return link_pb2.Delta(request_id=name, choices=[link_pb2.ChoiceDelta(text=text)])


async def test_everything_that_gathered_goes_in_one_frame():
    outbox = Outbox(10, MIB)
    outbox.put(delta("a"))
    outbox.put(delta("b"))
    outbox.load(link_pb2.LoadSnapshot(running_requests=1))
    outbox.load(link_pb2.LoadSnapshot(running_requests=2))
    outbox.pong(7)
    outbox.drain("SIGTERM")
    (frame,) = await outbox.frames()
    assert [each.request_id for each in frame.deltas] == ["a", "b"]
    assert frame.load.running_requests == 2, "only the newest load is of interest"
    assert (frame.pong.number, frame.drain.reason) == (7, "SIGTERM")


async def test_waits_until_there_is_something():
    outbox = Outbox(10, MIB)
    waiter = asyncio.create_task(outbox.frames())
    await asyncio.sleep(0)
    assert not waiter.done()
    outbox.put(delta("a"))
    (frame,) = await waiter
    assert len(frame.deltas) == 1
    assert not frame.HasField("load")


async def test_overflow_is_declared_and_keeps_memory_bounded():
    outbox = Outbox(3, MIB)
    for number in range(3):
        outbox.put(delta(str(number)))
    assert not outbox.overflowed.is_set()
    outbox.put(delta("one too many"))
    assert outbox.overflowed.is_set()
    (frame,) = await outbox.frames()
    assert len(frame.deltas) == 3


async def test_large_batches_are_cut_into_frames_in_order():
    outbox = Outbox(1000, 2000)
    for number in range(50):
        outbox.put(delta(str(number), "x" * 100))
    frames = await outbox.frames()
    assert len(frames) > 1
    assert all(frame.ByteSize() <= 2000 for frame in frames)
    names = [each.request_id for frame in frames for each in frame.deltas]
    assert names == [str(number) for number in range(50)]


async def test_delta_larger_than_a_frame_fails_its_request_alone():
    outbox = Outbox(10, 2000)
    outbox.put(delta("small"))
    outbox.put(delta("large", "x" * 5000))
    (frame,) = await outbox.frames()
    small, large = frame.deltas
    assert not small.HasField("error")
    assert large.finished
    assert large.error.code == link_pb2.RequestError.INVALID_REQUEST
    assert "link.max_frame_bytes" in large.error.message


async def test_empty_means_handed_to_the_transport():
    outbox = Outbox(10, MIB)
    async with asyncio.timeout(1):
        await outbox.empty()
    outbox.put(delta("a"))
    waiter = asyncio.create_task(outbox.empty())
    await outbox.frames()
    await asyncio.sleep(0)
    assert not waiter.done()
    outbox.put(delta("b"))
    outbox.sent()
    await asyncio.sleep(0)
    assert not waiter.done(), "something came while the last frame was written"
    await outbox.frames()
    outbox.sent()
    async with asyncio.timeout(1):
        await waiter


@pytest.mark.parametrize("what", ["load", "pong", "drain"])
async def test_everything_wakes_the_sender(what):
    outbox = Outbox(10, MIB)
    value = {"load": link_pb2.LoadSnapshot(), "pong": 1, "drain": "why"}[what]
    getattr(outbox, what)(value)
    async with asyncio.timeout(1):
        (frame,) = await outbox.frames()
    assert frame.HasField(what)
