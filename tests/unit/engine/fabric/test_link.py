"""Connections between peers: messages, heartbeats, and ends of every kind."""

import asyncio

import pytest

from serving.engine.fabric.link import BEAT, Link, dial, listen


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


async def until(condition):
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  bounded above
            await asyncio.sleep(0.01)


async def test_messages_and_heartbeats(pair):
    near, far = pair
    heard = []
    far.start(heard.append)
    near.start(lambda _: None)
    near.send({"t": "x", "n": 1})
    await until(lambda: heard)
    # Heartbeats are no messages.
    assert heard == [{"t": "x", "n": 1}]
    await asyncio.sleep(3 * BEAT)
    assert far.quiet <= BEAT
    assert heard == [{"t": "x", "n": 1}]


async def test_silence_counts_up(pair):
    near, far = pair
    far.start(lambda _: None)
    await until(lambda: far.quiet >= 3 * BEAT)
    near.send({"t": "ping"})
    await until(lambda: far.quiet < 3 * BEAT)
    assert not far.ended


@pytest.mark.parametrize("junk", [b"{}\n", b"nothing\n", b"[1]\n", b'{"t": 1}\n', b"x" * 2**21])
async def test_what_is_no_message_ends_the_connection(pair, junk):
    near, far = pair
    heard = []
    far.start(heard.append)
    near._writer.write(junk)
    await until(lambda: far.ended)
    assert heard == []


async def test_a_goodbye_is_kept(pair):
    near, far = pair
    far.start(lambda _: None)
    near.send({"t": "bye", "why": "it was told to stop"})
    await near.close(flush=5.0)
    await until(lambda: far.ended)
    assert far.said_goodbye == "it was told to stop"


async def test_a_side_that_reads_nothing_is_cut_off(pair):
    near, _ = pair
    for _ in range(400):
        near.send({"t": "x", "text": "y" * 2**16})
    assert near._writer.transport.is_closing()
    near.send({"t": "more"})  # of no effect, and no error


async def test_the_first_message_has_a_limit(pair):
    near, far = pair
    assert await far.receive(0.1) is None
    near.send({"t": "hello"})
    assert await far.receive(10) == {"t": "hello"}
    near._writer.write(b"{\n")
    assert await far.receive(10) is None
