"""Limits on accepted connections and started handshakes per event-loop iteration."""

import asyncio
import contextlib
import errno
import socket
import ssl
from collections import Counter

import pytest
import trustme

from serving.h2grpc import acceptor as module
from serving.h2grpc.acceptor import Acceptor
from serving.h2grpc.turns import TURN
from tests.support.waiting import PATIENCE, eventually, loop_turns
from tests.unit.credentials.certificates import issue

MANY = 50


class Served(asyncio.Protocol):
    """Protocol of an accepted connection."""

    def __init__(self, made):
        self.transport = None
        made.append(self)

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(data)


class Turns:
    """Counts turns of the event loop and what happens in each."""

    def __init__(self):
        self.now = 0
        self.seen = Counter()
        self._handle = None
        self._next()

    def _next(self):
        self.now += 1
        self._handle = asyncio.get_running_loop().call_soon(self._next)

    def count(self):
        self.seen[self.now] += 1

    def stop(self):
        self._handle.cancel()


@pytest.fixture
async def turns():
    counted = Turns()
    yield counted
    counted.stop()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return issue(tmp_path_factory.mktemp("tls"), trustme.CA())


@pytest.fixture
def server_tls(files):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.cert, files.key)
    return context


@pytest.fixture
def client_tls(files):
    return ssl.create_default_context(cafile=str(files.ca))


class Replaced:
    """A listening socket with another ``accept``."""

    def __init__(self, listening, accept):
        self._listening = listening
        self._accept = accept

    def accept(self):
        return self._accept(self._listening)

    def __getattr__(self, name):
        return getattr(self._listening, name)


@pytest.fixture
async def listen():
    """Create an acceptor; returns it, its port and the list of its connections."""
    acceptors, made = [], []

    def started(tls=None, *, accept=None, **options):
        listening = socket.create_server(("127.0.0.1", 0), backlog=2 * MANY)
        watched = listening if accept is None else Replaced(listening, accept)
        acceptor = Acceptor(watched, lambda: Served(made), tls, **options)
        acceptors.append(acceptor)
        return acceptor, listening.getsockname()[1], made

    yield started
    for acceptor in acceptors:
        acceptor.close()
    for each in made:
        if each.transport is not None:
            each.transport.abort()


@pytest.fixture
def dial():
    """Connect synchronously, while the event loop does not run."""
    clients = []

    def connected(port):
        client = socket.create_connection(("127.0.0.1", port))
        client.setblocking(False)
        clients.append(client)
        return client

    yield connected
    for client in clients:
        client.close()


def hello(client_tls):
    """A TLS client's state, and its first message."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = client_tls.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return tls, incoming, outgoing


async def echoed(reader, writer):
    writer.write(b"x")
    async with asyncio.timeout(PATIENCE):
        return await reader.read(1)


async def test_connections_are_taken_a_few_a_turn(listen, dial, turns, monkeypatch):
    acceptor, port, made = listen()
    start_connecting = acceptor._start_connecting
    monkeypatch.setattr(
        acceptor, "_start_connecting", lambda each: (turns.count(), start_connecting(each))
    )
    for _ in range(MANY):
        dial(port)
    acceptor.start()
    await eventually(lambda: len(made) == MANY and acceptor.waiting == 0)
    # The reader's turn and the counter's may be one apart.
    assert max(turns.seen.values()) <= 2 * module._MAX_ACCEPTS
    assert sum(turns.seen.values()) == MANY


class Clock:
    """A clock on which every reading takes ``step`` seconds."""

    def __init__(self, step):
        self.now = 0.0
        self.step = step

    def __call__(self):
        self.now += self.step
        return self.now


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        pytest.param(0.9 * TURN, False, id="they-take-little-time"),
        pytest.param(2 * TURN, True, id="they-take-much-time"),
    ],
)
@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "tls"])
async def test_accepting_pauses_for_as_long_as_new_connections_took(
    listen, dial, monkeypatch, server_tls, client_tls, step, expected, encrypted
):
    """At most half of the loop's time goes to a flood of connections."""
    clock = Clock(step)
    acceptor, port, _ = listen(server_tls if encrypted else None, clock=clock)
    pauses = []
    pause = acceptor._pause

    def short(seconds):
        pauses.append(seconds)
        clock.now += seconds
        pause(0.0)

    monkeypatch.setattr(acceptor, "_pause", short)
    started = []
    start_connecting = acceptor._start_connecting
    monkeypatch.setattr(
        acceptor, "_start_connecting", lambda each: (started.append(1), start_connecting(each))
    )
    for _ in range(MANY):
        client = dial(port)
        if encrypted:
            client.send(hello(client_tls)[2].read())
    acceptor.start()
    await eventually(lambda: len(started) == MANY)
    assert bool(pauses) is expected
    assert pauses == pytest.approx([step] * len(pauses))
    if expected:
        assert len(pauses) >= MANY // (module._MAX_ACCEPTS + module._MAX_HANDSHAKE_STARTS) - 1


async def test_no_connection_is_accepted_during_a_pause(listen, dial):
    acceptor, port, made = listen(clock=Clock(60.0))
    dial(port)
    acceptor.start()
    await eventually(lambda: acceptor._pause_timer is not None)
    dial(port)
    await loop_turns(20)
    assert len(made) == 1
    acceptor.close()
    assert acceptor._pause_timer.cancelled()


async def test_handshakes_begin_a_few_a_turn(
    listen, dial, turns, monkeypatch, server_tls, client_tls
):
    acceptor, port, made = listen(server_tls)
    start_connecting = acceptor._start_connecting
    monkeypatch.setattr(
        acceptor, "_start_connecting", lambda each: (turns.count(), start_connecting(each))
    )
    for _ in range(MANY):
        _, _, outgoing = hello(client_tls)
        dial(port).send(outgoing.read())
    acceptor.start()
    await eventually(lambda: sum(turns.seen.values()) == MANY)
    assert max(turns.seen.values()) <= 2 * module._MAX_HANDSHAKE_STARTS
    streams = await asyncio.open_connection("127.0.0.1", port, ssl=client_tls)
    assert await echoed(*streams) == b"x"
    streams[1].transport.abort()
    assert len(made) >= 1


async def test_a_tls_client_that_sends_nothing_is_dropped(listen, dial, monkeypatch, server_tls):
    monkeypatch.setattr(module, "_HANDSHAKE_TIMEOUT", 0.01)
    acceptor, port, made = listen(server_tls)
    acceptor.start()
    client = dial(port)
    async with asyncio.timeout(PATIENCE):
        assert await asyncio.get_running_loop().sock_recv(client, 1) == b""
    assert acceptor.waiting == 0
    assert not any(each.transport for each in made)


async def test_plain_text_to_a_tls_port_ends_its_connection_and_no_other(
    listen, dial, server_tls, client_tls
):
    acceptor, port, made = listen(server_tls)
    acceptor.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client_tls)
    assert await echoed(reader, writer) == b"x"
    client = dial(port)
    client.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n" * 100)
    await eventually(lambda: acceptor.waiting == 0)
    async with asyncio.timeout(PATIENCE):
        with contextlib.suppress(ConnectionError):
            while await asyncio.get_running_loop().sock_recv(client, 2**16):
                pass
    assert await echoed(reader, writer) == b"x"
    writer.transport.abort()
    assert sum(each.transport is not None for each in made) == 1


async def test_the_oldest_handshakes_make_room(listen, dial, monkeypatch, server_tls, client_tls):
    monkeypatch.setattr(module, "_MAX_HANDSHAKES", 3)
    acceptor, port, _ = listen(server_tls)
    acceptor.start()
    clients = []
    for _ in range(10):
        _, _, outgoing = hello(client_tls)
        clients.append(dial(port))
        clients[-1].send(outgoing.read())
        await eventually(lambda: not acceptor._before_hello and not acceptor._handshake_queue)
    await eventually(lambda: acceptor.waiting == 3)
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client_tls)
    assert await echoed(reader, writer) == b"x"
    writer.transport.abort()
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(PATIENCE):
        with contextlib.suppress(ConnectionError):
            while await loop.sock_recv(clients[0], 2**16):
                pass


@pytest.mark.parametrize("code", sorted(module._OUT_OF_RESOURCES))
async def test_without_file_descriptors_it_pauses_and_resumes(listen, dial, monkeypatch, code):
    monkeypatch.setattr(module, "_ACCEPT_PAUSE", 0.01)
    calls = []

    def accept(listening):
        calls.append(1)
        if len(calls) <= 2:
            raise OSError(code, "full")
        return listening.accept()

    acceptor, port, made = listen(accept=accept)
    dial(port)
    acceptor.start()
    await eventually(lambda: len(made) == 1)


async def test_a_client_that_disconnects_before_accept_is_skipped(listen, dial):
    gone = [OSError(errno.ECONNABORTED, "gone")]

    def accept(listening):
        if gone:
            raise gone.pop()
        return listening.accept()

    acceptor, port, made = listen(accept=accept)
    dial(port)
    acceptor.start()
    await eventually(lambda: len(made) == 1)


async def test_closing_drops_what_is_not_a_connection_yet(listen, dial, server_tls, client_tls):
    acceptor, port, _ = listen(server_tls)
    acceptor.start()
    silent, begun = dial(port), dial(port)
    _, _, outgoing = hello(client_tls)
    begun.send(outgoing.read())
    await eventually(lambda: len(acceptor._before_hello) == 1 and len(acceptor._handshakes) == 1)
    acceptor.close()
    acceptor.close()
    await eventually(lambda: acceptor.waiting == 0)
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(PATIENCE):
        for client in (silent, begun):
            with contextlib.suppress(ConnectionError):
                while await loop.sock_recv(client, 2**16):
                    pass
