"""Bounds on the head of a request, tried with raw bytes on a real socket."""

import asyncio
import contextlib

import pytest

from serving.edge.rest.http_protocol import bounded_protocol
from serving.edge.rest.server import RestServer
from serving.net import bind
from serving.settings import SecuritySettings
from tests.support.waiting import PATIENCE, eventually

LIMIT = 2048
REQUEST = b"GET / HTTP/1.1\r\nhost: x\r\n%s\r\n"


async def app(scope, receive, send):
    """Respond with the size of the body; on /early, without reading it."""
    if scope["type"] != "http":
        return
    app.heads.append(scope["headers"])
    size, more = 0, scope["path"] != "/early"
    while more:
        message = await receive()
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    content = str(size).encode()
    headers = [(b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": content})


@pytest.fixture
async def connect():
    """Start a server with tight bounds; return a function that connects to it."""
    server, writers = None, []
    app.heads = []

    async def made(timeout: float = 20.0, body_timeout: float = 60.0):
        nonlocal server
        if server is None:
            settings = SecuritySettings(
                max_header_bytes=LIMIT, max_headers=10, header_timeout=timeout
            )
            protocol = bounded_protocol(settings)
            protocol.body_timeout = body_timeout
            server = RestServer(
                app,
                bind("REST", "127.0.0.1", 0, "a setting"),
                stop_grace=1,
                protocol=protocol,
            )
            await server.start()
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writers.append(writer)
        return reader, writer

    made.server = lambda: server
    yield made
    for writer in writers:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    await server.stop()


async def answer_to(reader, writer, data: bytes) -> bytes:
    """Send bytes; return the response until the server closes."""
    writer.write(data)
    with contextlib.suppress(ConnectionError):
        await writer.drain()
    async with asyncio.timeout(PATIENCE):
        return await reader.read()


def head(*headers: bytes) -> bytes:
    return REQUEST % b"".join(header + b"\r\n" for header in headers)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(head(b"a: " + b"x" * LIMIT), id="one-large-header"),
        pytest.param(head(*[b"a%d: " % n + b"x" * 300 for n in range(8)]), id="large-in-sum"),
        pytest.param(head(*[b"a%d: x" % n for n in range(20)]), id="many"),
        pytest.param(b"GET /" + b"x" * LIMIT + b" HTTP/1.1\r\nhost: x\r\n\r\n", id="long-path"),
        pytest.param(b"GET / HTTP/1.1\r\na: " + b"x" * (LIMIT * 2), id="never-complete"),
        pytest.param(b"GET / HTTP/1.1\r\n" + b"x" * (LIMIT * 2), id="name-without-end"),
    ],
)
async def test_a_head_that_is_too_large_is_a_431_and_the_end(connect, data):
    reader, writer = await connect()
    received = await answer_to(reader, writer, data)
    assert received.startswith(b"HTTP/1.1 431 ")


async def test_a_head_that_grows_without_end_in_small_pieces_is_stopped(connect):
    reader, writer = await connect()
    writer.write(b"GET / HTTP/1.1\r\na: ")
    sent = 0
    with contextlib.suppress(ConnectionError):
        while not reader.at_eof() and sent < LIMIT * 50:
            writer.write(b"x" * 64)
            sent += 64
            await writer.drain()
            await asyncio.sleep(0)
    assert sent < LIMIT * 50


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(head(b"a: " + b"x" * (LIMIT // 2)), id="within"),
        pytest.param(head(*[b"a%d: x" % n for n in range(8)]), id="few-enough"),
    ],
)
async def test_heads_within_the_bounds_one_after_another(connect, data):
    reader, writer = await connect()
    for _ in range(5):  # the limit applies to one head, not to the connection
        writer.write(data)
        async with asyncio.timeout(PATIENCE):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
            assert await reader.readexactly(1) == b"0"


async def test_a_large_body_is_no_head(connect):
    reader, writer = await connect()
    size = LIMIT * 20
    writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % size)
    for _ in range(20):
        writer.write(b"x" * LIMIT)
        await writer.drain()
    async with asyncio.timeout(PATIENCE):
        received = await reader.readuntil(b"\r\n\r\n")
        assert received.startswith(b"HTTP/1.1 200")
        assert await reader.readexactly(5) == str(size).encode()


async def test_pipelined_requests_are_all_answered(connect):
    reader, writer = await connect()
    writer.write(head() * 3)
    async with asyncio.timeout(PATIENCE):
        for _ in range(3):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
            assert await reader.readexactly(1) == b"0"


@pytest.mark.parametrize("data", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nhost: x\r\n"])
async def test_who_does_not_send_a_head_loses_the_connection(connect, data):
    reader, writer = await connect(timeout=0.05)
    assert await answer_to(reader, writer, data) == b""


async def test_a_slow_body_is_not_a_slow_head(connect):
    reader, writer = await connect()
    (connection,) = connect.server().server_state.connections
    assert connection._head_timer is not None
    writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n")
    await eventually(lambda: not connection._in_head)
    assert connection._head_timer is None
    writer.write(b"xx")
    async with asyncio.timeout(PATIENCE):
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")


CHUNKED = b"POST %s HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
LAST_CHUNK = b"1\r\nx\r\n0\r\n"


@pytest.mark.parametrize("path", [b"/", b"/early"])
@pytest.mark.parametrize(
    "data",
    [
        pytest.param(LAST_CHUNK + b"a: " + b"x" * (3 * LIMIT), id="a-trailer-without-end"),
        pytest.param(LAST_CHUNK + b"x" * (3 * LIMIT), id="a-name-without-end"),
        pytest.param(LAST_CHUNK + b"a: x\r\n" * LIMIT, id="many-trailers"),
        pytest.param(LAST_CHUNK + b"a: x\r\n" * 10 + b"\r\n", id="more-trailers-than-headers"),
        pytest.param(b"1;" + b"x" * (3 * LIMIT), id="an-extension-without-end"),
        pytest.param(b"1\r\nx\r\n2;a=" + b"x" * (3 * LIMIT), id="a-later-extension"),
    ],
)
async def test_what_surrounds_a_body_is_bounded_as_a_head_is(connect, path, data):
    reader, writer = await connect()
    received = await answer_to(reader, writer, CHUNKED % path + data)
    answers = [each[:3] for each in received.split(b"HTTP/1.1 ")[1:]]
    assert answers[-1:] in ([b"431"], [b"200"])  # the early answer may precede the refusal
    assert answers == ([b"431"] if path == b"/" else answers)


async def test_trailers_are_no_headers(connect):
    reader, writer = await connect()
    trailers = b"authorization: Bearer x\r\ncontent-encoding: gzip\r\n\r\n"
    received = await answer_to(
        reader, writer, CHUNKED % b"/" + LAST_CHUNK + trailers + head(b"connection: close")
    )
    assert received.count(b"HTTP/1.1 200") == 2
    assert [name for name, _ in app.heads[0]] == [b"host", b"transfer-encoding"]


@pytest.mark.parametrize(
    ("timeout", "body_timeout", "data", "more"),
    [
        pytest.param(
            20.0,
            0.05,
            b"POST /early HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n",
            b"x",
            id="the-rest-of-a-body",
        ),
        pytest.param(0.05, 60.0, head(), b"\r\n", id="a-line-that-begins-nothing"),
        pytest.param(0.05, 60.0, head(), b"GE", id="the-next-head"),
        pytest.param(
            0.05,
            60.0,
            b"POST /early HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\n",
            b"x",
            id="the-next-head-after-a-body",
        ),
    ],
)
async def test_who_sends_a_little_after_an_answer_is_not_waited_for(
    connect, timeout, body_timeout, data, more
):
    reader, writer = await connect(timeout, body_timeout)
    writer.write(data)
    async with asyncio.timeout(PATIENCE):
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        assert await reader.readexactly(1) == b"0"
        writer.write(more)
        assert await reader.read() == b""


@pytest.mark.parametrize(
    ("data", "status"),
    [
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", b"400", id="no-host"),
        pytest.param(b"GET /\r\n\r\n", b"505", id="http-0.9"),
        pytest.param(b"GET http://x?a HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", b"200"),
        pytest.param(
            b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            b"501",
            id="coding",
        ),
        pytest.param(
            b"POST / HTTP/1.0\r\nexpect: 100-continue\r\ncontent-length: 1\r\n\r\nx",
            b"200",
            id="an-old-client-expects-nothing",
        ),
    ],
)
async def test_the_rules_for_heads_are_applied(connect, data, status):
    reader, writer = await connect()
    received = await answer_to(reader, writer, head() + data)
    assert [each[:3] for each in received.split(b"HTTP/1.1 ")[1:]] == [b"200", status]


async def test_nonsense_is_a_400(connect):
    reader, writer = await connect()
    received = await answer_to(reader, writer, b"\x16\x03\x01 no HTTP\r\n\r\n")
    assert received.startswith(b"HTTP/1.1 400 ")


# -- old and half-closed clients ------------------------------------------------------------------


async def late_app(scope, receive, send):
    """Stream two parts when the test releases them; record a disconnect."""
    if scope["type"] != "http":
        return
    state = late_app.state
    while (await receive()).get("more_body", False):
        pass
    watching = asyncio.create_task(receive())
    state.begun.set()
    going = asyncio.create_task(state.go.wait())
    await asyncio.wait({watching, going}, return_when=asyncio.FIRST_COMPLETED)
    if watching.done():
        state.gone.set()
        return
    watching.cancel()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"one,", "more_body": True})
    await state.parts.wait()
    await send({"type": "http.response.body", "body": b"two"})


class State:
    def __init__(self):
        self.begun, self.go, self.gone = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.parts = asyncio.Event()
        self.parts.set()


@pytest.fixture
async def late():
    """Start a server whose responses wait for the test."""
    late_app.state = State()
    server = RestServer(
        late_app,
        bind("REST", "127.0.0.1", 0, "a setting"),
        stop_grace=1,
        protocol=bounded_protocol(SecuritySettings()),
    )
    await server.start()
    late_app.state.port, late_app.state.server = server.port, server
    yield late_app.state
    await server.stop()


@pytest.mark.parametrize("half_closed", [False, True])
async def test_an_old_client_gets_no_chunks(late, half_closed):
    reader, writer = await asyncio.open_connection("127.0.0.1", late.port)
    writer.write(b"GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n")
    if half_closed:
        writer.write_eof()
    async with asyncio.timeout(PATIENCE):
        await late.begun.wait()
        late.go.set()
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    assert head.startswith(b"HTTP/1.1 200")
    assert b"chunked" not in head
    assert body == b"one,two"


async def test_a_half_closed_client_gets_its_answer(late):
    reader, writer = await asyncio.open_connection("127.0.0.1", late.port)
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    writer.write_eof()
    async with asyncio.timeout(PATIENCE):
        await late.begun.wait()
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        late.go.set()
        answer = await reader.read()
    writer.close()
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(b"4\r\none,\r\n3\r\ntwo\r\n0\r\n\r\n")
    assert not late.gone.is_set()


async def test_a_client_that_closes_is_gone(late):
    _, writer = await asyncio.open_connection("127.0.0.1", late.port)
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    async with asyncio.timeout(PATIENCE):
        await late.begun.wait()
        writer.close()
        await late.gone.wait()


async def test_the_beginning_of_a_request_does_not_cut_off_the_answer_before_it(late):
    reader, writer = await asyncio.open_connection("127.0.0.1", late.port)
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    async with asyncio.timeout(PATIENCE):
        await late.begun.wait()
        (connection,) = late.server.server_state.connections
        writer.write(b"GE")
        await eventually(lambda: connection._received)
        assert connection._head_timer is None
        late.go.set()
        assert (await reader.readuntil(b"0\r\n\r\n")).endswith(b"two\r\n0\r\n\r\n")
    writer.close()


async def test_half_a_request_and_its_end_is_no_request(late):
    reader, writer = await asyncio.open_connection("127.0.0.1", late.port)
    writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nhalf")
    writer.write_eof()
    async with asyncio.timeout(PATIENCE):
        assert await reader.read() == b""
    writer.close()


# -- requests behind a running one ----------------------------------------------------------------

NEXT = b"GET /second HTTP/1.1\r\nhost: x\r\n\r\n"
STREAMED = b"4\r\none,\r\n3\r\ntwo\r\n0\r\n\r\n"
NONSENSE = b"\x16\x03\x01 no HTTP\r\n\r\n"


async def begun(late, data):
    """Send a request and the data after it; return when the first response has started."""
    reader, writer = await asyncio.open_connection("127.0.0.1", late.port)
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n" + data)
    async with asyncio.timeout(PATIENCE):
        await late.begun.wait()
    return reader, writer


async def test_nothing_is_said_in_the_middle_of_an_answer_to_a_client_that_half_closes(late):
    late.parts = asyncio.Event()
    reader, writer = await begun(late, NEXT)
    late.go.set()
    async with asyncio.timeout(PATIENCE):
        received = await reader.readuntil(b"one,\r\n")
        writer.write_eof()
        await asyncio.sleep(0.01)
        late.parts.set()
        received += await reader.read()
    writer.close()
    assert (
        received.count(b"HTTP/1.1 ")
        == received.count(b"HTTP/1.1 200 OK")
        == received.count(STREAMED)
        == 2
    )


@pytest.mark.parametrize(
    ("data", "status"),
    [
        pytest.param(NONSENSE, b"400", id="no-http"),
        pytest.param(b"GET / HTTP/1.1\r\na: " + b"x" * 50_000, b"431", id="too-large"),
        pytest.param(NEXT + NONSENSE, b"400", id="behind-another"),
        pytest.param(
            b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
            b"400",
            id="body",
        ),
    ],
)
async def test_what_is_refused_is_refused_behind_the_answers_under_way(late, data, status):
    late.parts = asyncio.Event()
    reader, writer = await begun(late, b"")
    late.go.set()
    async with asyncio.timeout(PATIENCE):
        received = await reader.readuntil(b"one,\r\n")
        writer.write(data)
        await asyncio.sleep(0.01)
        late.parts.set()
        received += await reader.read()
    writer.close()
    answers = received.split(b"HTTP/1.1 ")[1:]
    assert [each[:3] for each in answers] == [b"200"] * (1 + data.count(NEXT)) + [status]
    assert all(each.endswith(STREAMED) for each in answers[:-1])


async def test_a_client_that_closes_is_gone_for_the_request_that_runs(late):
    """uvicorn notifies only the last request."""
    _, writer = await begun(late, NEXT)
    async with asyncio.timeout(PATIENCE):
        writer.close()
        await late.gone.wait()


async def test_requests_that_came_whole_before_a_half_close_are_all_answered(connect):
    reader, writer = await connect()
    writer.write(head() * 300)
    writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nhalf")
    writer.write_eof()
    async with asyncio.timeout(PATIENCE):
        received = await reader.read()
    assert received.count(b"HTTP/1.1 200") == 300


async def test_the_refusal_of_a_head_request_has_no_body(connect):
    reader, writer = await connect()
    data = b"HEAD / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"
    received = await answer_to(reader, writer, data)
    assert received.startswith(b"HTTP/1.1 400 ")
    assert received.endswith(b"\r\n\r\n")


async def head_app(scope, receive, send):
    """Send a head; send the body when the test says so."""
    if scope["type"] != "http":
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    if scope["path"] != "/no-body":
        await head_app.go.wait()
        await send({"type": "http.response.body", "body": b"late"})


async def test_a_head_does_not_wait_for_its_body():
    head_app.go = asyncio.Event()
    listening = bind("REST", "127.0.0.1", 0, "a setting")
    server = RestServer(
        head_app, listening, stop_grace=1, protocol=bounded_protocol(SecuritySettings())
    )
    await server.start()
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        async with asyncio.timeout(PATIENCE):
            head = await reader.readuntil(b"\r\n\r\n")
            head_app.go.set()
            body = await reader.readuntil(b"0\r\n\r\n")
            writer.write(b"GET /no-body HTTP/1.1\r\nhost: x\r\n\r\n")
            cut_off = await reader.read()
        writer.close()
    finally:
        await server.stop()
    assert head.startswith(b"HTTP/1.1 200")
    assert body == b"4\r\nlate\r\n0\r\n\r\n"
    assert cut_off.startswith(b"HTTP/1.1 200"), "the application ended without a body"
