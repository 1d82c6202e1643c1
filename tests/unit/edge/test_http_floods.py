"""How much of one client's data is parsed per turn of the event loop, on a fake clock."""

import asyncio
import contextlib

import pytest

from serving.edge.rest import http_protocol
from serving.edge.rest.http_protocol import bounded_protocol
from serving.edge.rest.server import RestServer
from serving.h2grpc.turns import SLICE
from serving.net import bind
from serving.settings import SecuritySettings
from tests.support.waiting import PATIENCE, eventually

GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
MANY = 2000


class Stand:
    """A server whose app responds when the test releases it; records what is parsed."""

    def __init__(self) -> None:
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.may_read = asyncio.Event()
        self.may_read.set()
        self.turns = []
        """Bytes parsed, by turn of the event loop."""
        self.queued = 0
        """Maximum number of requests that waited for an earlier one."""
        self.now = 0.0
        self.server = None

    async def app(self, scope, receive, send):
        if scope["type"] != "http":
            return
        await self.may_read.wait()
        size, more = 0, True
        while more:
            message = await receive()
            size += len(message.get("body", b""))
            more = message.get("more_body", False)
        await self.may_answer.wait()
        content = str(size).encode()
        headers = [(b"content-length", str(len(content)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    async def start(self, **settings):
        kind = bounded_protocol(SecuritySettings(**settings))
        kind.turns.clock = self.clock
        parse = kind._parse
        stand = self

        def counted(protocol, data):
            if not stand.turns or stand.turns[-1][0] is not stand.turn:
                stand.turns.append([stand.turn, 0])
                asyncio.get_running_loop().call_soon(stand.next_turn)
            stand.turns[-1][1] += len(data)
            parse(protocol, data)
            stand.queued = max(stand.queued, len(protocol.pipeline))

        kind._parse = counted
        listening = bind("REST", "127.0.0.1", 0, "a setting")

        async def app(scope, receive, send):  # uvicorn looks for a function
            await self.app(scope, receive, send)

        self.server = RestServer(app, listening, stop_grace=1, protocol=kind)
        await self.server.start()

    turn = object()

    def next_turn(self):
        self.turn = object()

    def clock(self):
        """Return a time later by one slice at each call: one piece uses up a connection's turn."""
        self.now += SLICE
        return self.now

    async def connect(self):
        return await asyncio.open_connection("127.0.0.1", self.server.port)


@pytest.fixture
async def stand():
    stand = Stand()
    await stand.start(header_timeout=20.0)
    yield stand
    stand.may_answer.set()
    stand.may_read.set()
    await stand.server.stop()


async def answers(reader, count):
    found = []
    async with asyncio.timeout(PATIENCE):
        for _ in range(count):
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            size = int(head.partition(b"content-length: ")[2].split(b"\r\n")[0])
            found.append(int(await reader.readexactly(size)))
    return found


async def closed(writer):
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


PIECES = [
    pytest.param(GET * MANY, MANY, id="requests"),
    pytest.param(
        b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        + b"1\r\nx\r\n" * 20_000
        + b"0\r\n\r\n",
        1,
        id="chunks",
    ),
    pytest.param(
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n" + b"x" * 100_000,
        1,
        id="a-body",
    ),
    pytest.param(
        (b"GET / HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 90 + b"\r\n") * 100, 100, id="headers"
    ),
]


@pytest.mark.parametrize(("data", "count"), PIECES)
async def test_one_write_is_parsed_a_piece_at_a_time(stand, data, count):
    reader, writer = await stand.connect()
    writer.write(data)
    assert len(await answers(reader, count)) == count
    assert sum(size for _, size in stand.turns) == len(data)
    # At most the data that arrives at once, plus one slice.
    assert max(size for _, size in stand.turns) <= 2 * http_protocol._PIECE
    await closed(writer)


async def test_another_client_is_answered_between_the_pieces(stand):
    busy_reader, busy_writer = await stand.connect()
    reader, writer = await stand.connect()
    busy_writer.write(GET * MANY)
    await answers(busy_reader, 1)
    writer.write(GET)
    await answers(reader, 1)
    assert sum(size for _, size in stand.turns) < len(GET) * MANY
    assert len(await answers(busy_reader, MANY - 1)) == MANY - 1
    await closed(busy_writer)
    await closed(writer)


async def test_requests_that_wait_for_one_before_them_are_few(stand):
    stand.may_answer.clear()
    reader, writer = await stand.connect()
    for _ in range(20):
        writer.write(GET * MANY)
        await asyncio.sleep(0)
    other_reader, other_writer = await stand.connect()
    stand.may_answer.set()
    other_writer.write(GET)
    await answers(other_reader, 1)
    await answers(reader, MANY)
    assert stand.queued <= http_protocol._PIECE // len(GET) + 1
    await closed(other_writer)
    await closed(writer)


async def test_a_body_waits_for_who_reads_it(stand):
    """Within uvicorn's bound of 64 KiB, plus one piece."""
    stand.may_read.clear()
    reader, writer = await stand.connect()
    size = 2**20
    writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % size + b"x" * size)
    writer.write(GET)
    other_reader, other_writer = await stand.connect()
    await parsed(stand, 2**16)
    for _ in range(50):
        await asyncio.sleep(0)
    assert sum(each for _, each in stand.turns) <= 2**16 + 2 * http_protocol._PIECE
    stand.may_read.set()
    assert await answers(reader, 2) == [size, 0]
    other_writer.write(GET)
    await answers(other_reader, 1)
    await closed(other_writer)
    await closed(writer)


async def test_a_head_that_waits_behind_a_long_answer_is_not_late(stand):
    """The timeout is for clients that do not send; this one has sent its request."""
    stand.may_answer.clear()
    reader, writer = await stand.connect()
    writer.write(GET * MANY)
    await parsed(stand, 2)
    (connection,) = stand.server.server_state.connections
    assert connection._reading_paused
    connection._timed_out()
    stand.may_answer.set()
    assert len(await answers(reader, MANY)) == MANY
    connection._stop_timer()
    connection._timed_out()
    assert connection.transport.is_closing()
    await closed(writer)


async def parsed(stand, size):
    """Wait until that many bytes are parsed."""
    await eventually(lambda: sum(each for _, each in stand.turns) >= size)


@pytest.mark.parametrize("end", ["close", "abort"])
async def test_who_leaves_in_the_middle_leaves_nothing(stand, end):
    reader, writer = await stand.connect()
    writer.write(GET * MANY)
    await answers(reader, 1)
    getattr(writer.transport, end)()
    other_reader, other_writer = await stand.connect()
    other_writer.write(GET)
    await answers(other_reader, 1)
    await eventually(lambda: len(stand.server.server_state.connections) <= 1)
    await closed(other_writer)


async def test_garbage_behind_good_requests_is_an_error_after_their_answers(stand):
    reader, writer = await stand.connect()
    writer.write(GET * 200 + b"\x16\x03\x01 no HTTP\r\n\r\n" + b"x" * 100_000)
    async with asyncio.timeout(PATIENCE):
        received = await reader.read()
    assert received.count(b"HTTP/1.1 200") + received.count(b"HTTP/1.1 400") >= 1
    assert received.count(b"HTTP/1.1 400") == 1
    await closed(writer)
