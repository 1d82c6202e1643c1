"""SendQueue: one frame per step, bounded in deltas and bytes."""

import asyncio
from typing import ClassVar

import pytest

from serving.engine import kv_mirror
from serving.engine.kv_mirror import KvFeed, KvMirror
from serving.engine.router_link.send_queue import SendQueue
from serving.link.v1 import link_pb2
from tests.support.waiting import PATIENCE

MIB = 2**20
SIZE = 2
"""Tokens per block."""


def delta(name, tokens=0):
    choice = link_pb2.ChoiceDelta(token_ids=[1] * tokens)
    return link_pb2.Delta(request_id=name, choices=[choice])


async def test_everything_that_gathered_goes_in_one_frame():
    send_queue = SendQueue(10, MIB)
    send_queue.put(delta("a"))
    send_queue.put(delta("b"))
    send_queue.load(link_pb2.LoadSnapshot(running_requests=1))
    send_queue.load(link_pb2.LoadSnapshot(running_requests=2))
    send_queue.pong(7)
    send_queue.drain("SIGTERM")
    (frame,) = await send_queue.frames()
    assert [each.request_id for each in frame.deltas] == ["a", "b"]
    assert frame.load.running_requests == 2, "only the newest load is of interest"
    assert (frame.pong.number, frame.drain.reason) == (7, "SIGTERM")


async def test_waits_until_there_is_something():
    send_queue = SendQueue(10, MIB)
    waiter = asyncio.create_task(send_queue.frames())
    await asyncio.sleep(0)
    assert not waiter.done()
    send_queue.put(delta("a"))
    (frame,) = await waiter
    assert len(frame.deltas) == 1
    assert not frame.HasField("load")


async def test_overflow_is_declared_and_keeps_memory_bounded():
    send_queue = SendQueue(3, MIB)
    for number in range(3):
        send_queue.put(delta(str(number)))
    assert not send_queue.overflowed.is_set()
    send_queue.put(delta("one too many"))
    assert send_queue.overflowed.is_set()
    (frame,) = await send_queue.frames()
    assert len(frame.deltas) == 3


async def test_large_batches_are_cut_into_frames_in_order():
    send_queue = SendQueue(1000, 2000)
    for number in range(50):
        send_queue.put(delta(str(number), 100))
    frames = await send_queue.frames()
    assert len(frames) > 1
    assert all(frame.ByteSize() <= 2000 for frame in frames)
    names = [each.request_id for frame in frames for each in frame.deltas]
    assert names == [str(number) for number in range(50)]


async def test_delta_larger_than_a_frame_fails_its_request_alone():
    send_queue = SendQueue(10, 2000)
    send_queue.put(delta("small"))
    send_queue.put(delta("large", 5000))
    (frame,) = await send_queue.frames()
    small, large = frame.deltas
    assert not small.HasField("error")
    assert large.finished
    assert large.error.code == link_pb2.RequestError.INVALID_REQUEST
    assert "link.max_frame_bytes" in large.error.message


async def test_empty_means_handed_to_the_transport():
    send_queue = SendQueue(10, MIB)
    async with asyncio.timeout(PATIENCE):
        await send_queue.empty()
    send_queue.put(delta("a"))
    waiter = asyncio.create_task(send_queue.empty())
    await send_queue.frames()
    await asyncio.sleep(0)
    assert not waiter.done()
    send_queue.put(delta("b"))
    send_queue.sent()
    await asyncio.sleep(0)
    assert not waiter.done(), "something came while the last frame was written"
    await send_queue.frames()
    send_queue.sent()
    async with asyncio.timeout(PATIENCE):
        await waiter


@pytest.mark.parametrize("what", ["load", "pong", "drain"])
async def test_everything_wakes_the_sender(what):
    send_queue = SendQueue(10, MIB)
    value = {"load": link_pb2.LoadSnapshot(), "pong": 1, "drain": "why"}[what]
    getattr(send_queue, what)(value)
    async with asyncio.timeout(PATIENCE):
        (frame,) = await send_queue.frames()
    assert frame.HasField(what)


def numbered(mirror, *numbers):
    for number in numbers:
        mirror.stored([number], None, [number] * SIZE)


async def test_the_first_frame_tells_all_that_is_held():
    mirror = KvMirror(SIZE, 100)
    numbered(mirror, 1, 2)
    send_queue = SendQueue(10, 2**20)
    send_queue.follow(mirror)
    send_queue.put(link_pb2.Delta(request_id="a"))
    (frame,) = await send_queue.frames()
    assert frame.kv_events.reset
    assert set(frame.kv_events.stored) == mirror.names
    assert len(frame.deltas) == 1


async def test_a_change_wakes_the_sender_and_nothing_changed_tells_nothing():
    mirror = KvMirror(SIZE, 100)
    send_queue = SendQueue(10, 2**20)
    send_queue.follow(mirror)
    await send_queue.frames()
    send_queue.pong(1)
    (frame,) = await send_queue.frames()
    assert not frame.HasField("kv_events")
    numbered(mirror, 1)
    async with asyncio.timeout(PATIENCE):
        (frame,) = await send_queue.frames()
    assert len(frame.kv_events.stored) == 1


async def test_large_states_take_several_frames_in_order(monkeypatch):
    monkeypatch.setattr(kv_mirror, "_CHUNK", 2)
    mirror = KvMirror(SIZE, 100)
    numbered(mirror, *range(5))
    send_queue = SendQueue(10, 2**20)
    send_queue.follow(mirror)
    frames = await send_queue.frames()
    assert [frame.kv_events.sequence for frame in frames] == [0, 1, 2]
    assert [frame.kv_events.reset for frame in frames] == [True, False, False]


async def test_a_closed_queue_follows_no_more():
    class Mirror(KvMirror):
        dropped: ClassVar[list[KvFeed]] = []

        def drop(self, feed):
            super().drop(feed)
            self.dropped.append(feed)

    mirror = Mirror(SIZE, 100)
    send_queue = SendQueue(10, 2**20)
    send_queue.follow(mirror)
    send_queue.close()
    send_queue.close()
    assert len(mirror.dropped) == 1
    numbered(mirror, 1)
    assert mirror.dropped[0].take()[0].reset, "a dropped feed gets no more changes"


async def test_an_engine_that_tells_nothing():
    send_queue = SendQueue(10, 2**20)
    send_queue.follow(None)
    send_queue.pong(1)
    (frame,) = await send_queue.frames()
    assert not frame.HasField("kv_events")
    send_queue.close()
