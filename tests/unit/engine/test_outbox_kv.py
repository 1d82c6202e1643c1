"""Outbox: changes of the prefix cache go up with what else there is, and stop when it closes."""

import asyncio

from serving.engine import kv_mirror
from serving.engine.kv_mirror import KvMirror
from serving.engine.router_link.send_queue import Outbox
from serving.link.v1 import link_pb2

SIZE = 2


def numbered(mirror, *numbers):
    for number in numbers:
        mirror.stored([number], None, [number] * SIZE)


async def test_the_first_frame_tells_all_that_is_held():
    mirror = KvMirror(SIZE, 100)
    numbered(mirror, 1, 2)
    outbox = Outbox(10, 2**20)
    outbox.follow(mirror)
    outbox.put(link_pb2.Delta(request_id="a"))
    (frame,) = await outbox.frames()
    assert frame.kv_events.reset
    assert set(frame.kv_events.stored) == mirror.names
    assert len(frame.deltas) == 1


async def test_a_change_wakes_the_sender_and_nothing_changed_tells_nothing():
    mirror = KvMirror(SIZE, 100)
    outbox = Outbox(10, 2**20)
    outbox.follow(mirror)
    await outbox.frames()
    outbox.pong(1)
    (frame,) = await outbox.frames()
    assert not frame.HasField("kv_events")
    numbered(mirror, 1)
    async with asyncio.timeout(1):
        (frame,) = await outbox.frames()
    assert len(frame.kv_events.stored) == 1


async def test_large_states_take_several_frames_in_order(monkeypatch):
    monkeypatch.setattr(kv_mirror, "_CHUNK", 2)
    mirror = KvMirror(SIZE, 100)
    numbered(mirror, *range(5))
    outbox = Outbox(10, 2**20)
    outbox.follow(mirror)
    frames = await outbox.frames()
    assert [frame.kv_events.sequence for frame in frames] == [0, 1, 2]
    assert [frame.kv_events.reset for frame in frames] == [True, False, False]


async def test_a_closed_outbox_follows_no_more():
    mirror = KvMirror(SIZE, 100)
    outbox = Outbox(10, 2**20)
    outbox.follow(mirror)
    outbox.close()
    outbox.close()
    assert not mirror._feeds


async def test_an_engine_that_tells_nothing():
    outbox = Outbox(10, 2**20)
    outbox.follow(None)
    outbox.pong(1)
    (frame,) = await outbox.frames()
    assert not frame.HasField("kv_events")
    outbox.close()
