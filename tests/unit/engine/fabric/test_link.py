"""Connections between peers: messages, heartbeats, and every way to end."""

import asyncio

import pytest

from serving.engine.fabric.link import BEAT, Link, dial, listen
from tests.support.waiting import eventually


@pytest.fixture
async def pair():
    """Two ends of one connection."""
    accepted: asyncio.Future[Link] = asyncio.get_running_loop().create_future()
    server = await listen("127.0.0.1", 0, accepted.set_result)
    near = await dial("127.0.0.1", server.sockets[0].getsockname()[1], 10)
    far = await accepted
    yield near, far
    await near.close()
    await far.close()
    server.close()


async def test_messages_and_heartbeats(pair):
    near, far = pair
    received = []
    far.start(received.append)
    near.start(lambda _: None)
    near.send({"t": "x", "n": 1})
    await eventually(lambda: received)
    # Heartbeats are not messages.
    assert received == [{"t": "x", "n": 1}]
    await asyncio.sleep(3 * BEAT)
    assert far.quiet <= BEAT
    assert received == [{"t": "x", "n": 1}]


async def test_silence_counts_up(pair):
    near, far = pair
    far.start(lambda _: None)
    await eventually(lambda: far.quiet >= 3 * BEAT)
    near.send({"t": "ping"})
    await eventually(lambda: far.quiet < 3 * BEAT)
    assert not far.ended


async def receiver_of(junk):
    """A link to which a client writes ``junk``, and the client's writer."""
    accepted: asyncio.Future[Link] = asyncio.get_running_loop().create_future()
    server = await listen("127.0.0.1", 0, accepted.set_result)
    _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(junk)
    link = await accepted
    server.close()
    return link, writer


@pytest.mark.parametrize("junk", [b"{}\n", b"nothing\n", b"[1]\n", b'{"t": 1}\n', b"x" * 2**21])
async def test_what_is_no_message_ends_the_connection(junk):
    link, writer = await receiver_of(junk)
    received = []
    link.start(received.append)
    await eventually(lambda: link.ended)
    assert received == []
    await link.close()
    writer.transport.abort()


async def test_a_goodbye_is_kept(pair):
    near, far = pair
    far.start(lambda _: None)
    near.send({"t": "bye", "why": "it is stopping"})
    await near.close(flush=5.0)
    await eventually(lambda: far.ended)
    assert far.leave_reason == "it is stopping"


async def test_a_side_that_reads_nothing_is_cut_off(pair):
    near, far = pair
    for _ in range(400):
        near.send({"t": "x", "text": "y" * 2**16})
    near.send({"t": "more"})  # no effect, and no error
    received = []
    far.start(received.append)
    await eventually(lambda: far.ended)
    assert {"t": "more"} not in received


async def test_the_first_message_has_a_limit(pair):
    near, far = pair
    assert await far.receive(0.1) is None
    near.send({"t": "hello"})
    assert await far.receive(10) == {"t": "hello"}
    link, writer = await receiver_of(b"{\n")
    assert await link.receive(10) is None
    await link.close()
    writer.transport.abort()
