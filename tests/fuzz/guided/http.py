"""Bytes into a REST connection: the response is HTTP, within bounds, and nothing is left behind.

h11, another implementation, reads what the server sent.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import Iterable
from typing import Any
from unittest import mock

import h11
import uvicorn
from uvicorn.server import ServerState

from serving.edge.rest import http_protocol
from serving.edge.rest.http_protocol import BoundedHttpProtocol, bounded_protocol
from serving.h2grpc.turns import SLICE
from serving.settings import SecuritySettings
from tests.fuzz import mutators
from tests.fuzz.guided.finding import Finding, demand
from tests.fuzz.guided.transport import Transport

PACKAGES = ("serving.edge.rest.http_protocol", "serving.h2grpc.turns", "uvicorn")
_CUT, _HALF, _PAUSED = 1, 2, 4
"""Flags in the first byte: disconnect in the middle; half-close; read slowly.
The second byte determines how the rest is split into reads; with zero, it is not split."""
_PIECE = 256
_HEAD = 1024
_SETTLING = 300
_BODY = 2**16
"""uvicorn's bound on data queued for an app."""


class Http:
    """The target."""

    name = "http"
    packages = PACKAGES

    async def open(self) -> None:
        """Set small bounds, and silence uvicorn's log."""
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(mock.patch.object(http_protocol, "_PIECE", _PIECE))
        # It queries the socket, which does not exist here.
        self._stack.enter_context(mock.patch.object(http_protocol, "is_reset", return_value=False))
        log = logging.getLogger("uvicorn.error")
        self._stack.callback(log.setLevel, log.level)
        log.setLevel(logging.CRITICAL + 1)

    async def close(self) -> None:
        self._stack.close()

    def seeds(self) -> Iterable[bytes]:
        return seeds()

    def mutate(self, rng: random.Random, data: bytes) -> bytes:
        head, rest = data[:2].ljust(2, b"\0"), data[2:]
        if rng.random() < 0.15:
            head = bytes((rng.choice((0, 0, 1, 2, 4)), rng.choice((0, rng.randrange(256)))))
        change = _lines_changed if rng.random() < 0.6 else mutators.bytes_changed
        return head + change(rng, rest)

    async def run(self, data: bytes) -> None:
        flags, cut, sent = data[0] if data else 0, data[1] if len(data) > 1 else 0, data[2:]
        await _Case(flags).run(sent, cut)


_TOKENS = (
    *(
        b"GET /len HTTP/1.1",
        b"HEAD /stream HTTP/1.1",
        b"POST /early HTTP/1.1",
        b"GET /slow HTTP/1.0",
    ),
    *(
        b"POST /stream HTTP/1.1",
        b"GET /waits HTTP/1.1",
        b"CONNECT x:1 HTTP/1.1",
        b"OPTIONS * HTTP/1.1",
        b"GET http://h HTTP/1.1",
    ),
    *(
        b"host: x",
        b"content-length: 5",
        b"content-length: 99999999999999999999",
        b"content-length: 0",
    ),
    *(b"transfer-encoding: chunked", b"transfer-encoding: gzip, chunked", b"connection: close"),
    *(b"connection: keep-alive", b"connection: upgrade", b"upgrade: websocket", b"upgrade: h2c"),
    *(
        b"expect: 100-continue",
        b"5",
        b"hello",
        b"0",
        b"",
        b"",
        b"ffffffffffffffff",
        b"5;x=y",
        b"\x16\x03\x01",
    ),
    *(b"PRI * HTTP/2.0", b" folded", b"a: " + b"x" * 300, b"x" * 1100),
)


def _lines_changed(rng: random.Random, data: bytes) -> bytes:
    lines = data.split(b"\r\n")
    for _ in range(rng.choice((1, 1, 2, 4))):
        at, to = rng.randrange(len(lines) + 1), rng.randrange(len(lines) + 1)
        match rng.randrange(5):
            case 0:
                lines.insert(at, rng.choice(_TOKENS))
            case 1 if at < len(lines):
                lines.insert(to, lines[at])
            case 2 if at < len(lines) and len(lines) > 1:
                del lines[at]
            case 3 if at < len(lines):
                lines[at] = mutators.bytes_changed(rng, lines[at])
            case _:
                lines[min(at, to) : max(at, to)] = lines[min(at, to) : max(at, to)] * 2
    return (b"\n" if rng.random() < 0.03 else b"\r\n").join(lines[:600])


class _Case:
    """The lifetime of one connection."""

    def __init__(self, flags: int) -> None:
        settings = SecuritySettings(max_header_bytes=_HEAD, max_headers=10)
        kind = bounded_protocol(settings)
        kind.turns.clock = self._clock
        config = uvicorn.Config(
            self._app, loop="none", http=kind, ws="none", interface="asgi3", log_config=None
        )
        config.loaded_app, config.loaded = self._app, True  # loading it costs more than a case
        config.ws_protocol_class = None
        self.flags = flags
        self.state = ServerState()
        self.connection: BoundedHttpProtocol = kind(config, self.state, {})
        self.transport = Transport(self.connection)
        self.methods: list[str] = []
        """Requests that the app received, in order."""
        self.bad_length: list[str] = []
        self.now = 0.0
        self.waits = False
        self.left = 0
        """Apps that have not returned."""

    def _clock(self) -> float:
        self.now += SLICE / 4
        return self.now

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        self.methods.append(scope["method"])
        self.left += 1
        try:
            await self._answer(scope["path"], receive, send)
        finally:
            self.left -= 1

    async def _answer(self, path: str, receive: Any, send: Any) -> None:
        size = 0
        while path == "/waits":
            self.waits = True  # data after it is not read
            if (await receive())["type"] == "http.disconnect":
                return
        while path != "/early":
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            size += len(message["body"])
            if not message["more_body"]:
                break
        if path == "/slow":
            for _ in range(7):
                await asyncio.sleep(0)
        content = b"%d" % size
        streamed = path in {"/stream", "/slow"}
        headers = [] if streamed else [(b"content-length", b"%d" % len(content))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for _ in range(5 * streamed):
            await send({"type": "http.response.body", "body": b"part", "more_body": True})
            await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": content})

    async def run(self, sent: bytes, cut: int) -> None:
        made, transport = self.connection, self.transport
        made.connection_made(transport)
        pieces = mutators.pieces(random.Random(cut), sent) if cut else iter((sent,))
        for number, piece in enumerate(pieces):
            if transport.closing:
                break
            if self.flags & _PAUSED and number == 1:
                made.pause_writing()
            made.data_received(piece)
            demand(len(made._unread) <= len(piece) + _PIECE, "too many unread bytes")
            cycle = made.cycle
            demand(cycle is None or len(cycle.body) <= _BODY + _PIECE, "unread body too large")
            demand(len(made.pipeline) <= _PIECE // 14, "too many queued requests")
            if number % 3 == 0:
                await asyncio.sleep(0)
            if self.flags & _PAUSED and number == 3:
                made.resume_writing()
            if not await self.readable():
                break
        made.resume_writing()
        cut = bool(self.flags & _CUT)
        if self.flags & _HALF and not transport.closing:
            cut |= not made.eof_received()
        if not cut:
            await self.settled()
        ended_by_server = transport.closing
        transport.close()
        await self.gone()
        self.check(whole=ended_by_server)

    async def readable(self) -> bool:
        for turn in range(10 * _SETTLING):
            if not self.transport.paused or self.transport.closing:
                return True
            if turn == _SETTLING:
                self.connection.resume_writing()  # no reading from clients that do not read
            await asyncio.sleep(0)
            if self.waits and self.connection not in self.connection.turns:
                return False
        raise Finding("the connection has stopped reading")

    async def settled(self) -> None:
        quiet, seen = 0, -1
        for _ in range(10 * _SETTLING):
            await asyncio.sleep(0)
            now = len(self.transport.written) + len(self.connection._unread)
            quiet = quiet + 1 if now == seen and self.connection not in self.connection.turns else 0
            seen = now
            if quiet > 12:
                return

    async def gone(self) -> None:
        made = self.connection
        for _ in range(_SETTLING):
            if not (self.left or self.state.connections or self.state.tasks or made in made.turns):
                break
            await asyncio.sleep(0)
        demand(not self.state.connections, "the connection was not closed")
        demand(not self.left and not self.state.tasks, "a request was not removed")
        demand(made._head_timer is None and made._check_timer is None, "a timer was not cancelled")

    def check(self, *, whole: bool) -> None:
        """Parse all output like a client that sent these requests."""
        rest, closed = bytes(self.transport.written), False
        for method in [*self.methods, "GET", None]:
            if not rest:
                return
            demand(method is not None, f"more responses than requests: {rest[:200]!r}")
            demand(not closed, f"a response after connection: close: {rest[:200]!r}")
            assert method is not None
            rest, closed = _one_answer(method, rest, whole=whole)


def _one_answer(method: str, data: bytes, *, whole: bool) -> tuple[bytes, bool]:
    """Read one response; return the remaining data, and whether it must be empty."""
    client = h11.Connection(h11.CLIENT)
    if method == "CONNECT":
        method = "POST"  # its response has no body only if a tunnel is established
    client.send(h11.Request(method=method, target="/", headers=[("host", "x")]))
    client.send(h11.EndOfMessage())
    try:
        client.receive_data(data)
        if whole:
            client.receive_data(b"")
        while True:
            event = client.next_event()
            if event is h11.NEED_DATA or event is h11.PAUSED:
                return b"", False
            if isinstance(event, h11.EndOfMessage):
                rest = client.trailing_data[0]
                return (
                    rest,
                    client.their_state is h11.MUST_CLOSE or client.their_state is h11.CLOSED,
                )
    except h11.RemoteProtocolError as error:
        raise Finding(f"invalid HTTP: {error}: {data[:300]!r}") from error


def seeds() -> Iterable[bytes]:
    """Requests of every kind."""
    get = b"GET /len HTTP/1.1\r\nhost: x\r\n\r\n"
    post = b"POST /stream HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhello"
    chunks = (
        b"POST /early HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        b"5\r\nhello\r\n5;a=b\r\nworld\r\n0\r\ntrailer: x\r\n\r\n"
    )
    old = b"GET /slow HTTP/1.0\r\nconnection: keep-alive\r\n\r\n"
    waits = (
        b"POST /slow HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\nhello"
    )
    head = b"HEAD /stream HTTP/1.1\r\nhost: x\r\n\r\n"
    upgrade = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
    for data in (get, post, chunks, old, waits, head, upgrade, get + post + chunks + head + old):
        yield b"\0\0" + data
        yield b"\0\x07" + data
    yield b"\2\0" + post
    yield b"\1\x05" + chunks + post
    yield b"\4\x05" + post + post
    yield b"\0\0" + post + b"nonsense\r\n\r\n"
    yield b"\1\0GET /waits HTTP/1.1\r\nhost: x\r\n\r\n" + get
