"""Bytes into a gRPC connection: it responds or ends, within bounds, and leaves nothing behind."""

import asyncio
import contextlib
import random
import struct
from collections.abc import Iterable
from typing import Any
from unittest import mock

import grpc
from hpack import Decoder
from hpack.exceptions import HPACKError

from serving.h2grpc import budget, call, connection, output
from serving.h2grpc.connection import Connection
from serving.h2grpc.http2 import MAX_STREAMS
from serving.h2grpc.server import Server
from serving.h2grpc.turns import SLICE, Turns
from tests.fuzz import mutators
from tests.fuzz.guided.finding import demand, errors_of
from tests.fuzz.guided.transport import Transport
from tests.support.clock import SteppingClock

PACKAGES = ("serving.h2grpc", "h2", "hpack", "hyperframe")
_PREFACE, _PAUSED, _CUT = 1, 2, 4
"""Flags in the first byte: send the preface first; stop reading; disconnect at once.
The second byte determines how the rest is split into reads; with zero, it is not split."""
_STREAMS = 8
_MESSAGE = 2**12
_METADATA = 2**11
_FRAME = 2**14
_PING = mutators.frame(6, 0, 0, b"harness!")
_PONG = mutators.frame(6, 1, 0, b"harness!")
_MOST_READ = 2 * connection._MAX_FRAMES
"""Frames of one turn: those that come with the bytes, and those of the turn that follows."""
_SETTLING = 400
"""Turns of the loop within which everything must have ended."""


async def _uu(request: bytes, context: Any) -> bytes:
    context.set_trailing_metadata((("x-size", str(len(request))),))
    return request


async def _us(request: bytes, context: Any) -> Any:
    for _ in range(len(request) % 40):
        yield request


async def _su(requests: Any, context: Any) -> bytes:
    return b"".join([each async for each in requests])[:_MESSAGE]


async def _ss(requests: Any, context: Any) -> Any:
    async for each in requests:
        yield each


async def _waits(request: bytes, context: Any) -> bytes:
    await asyncio.Event().wait()
    return request


def _handlers() -> Any:
    return grpc.method_handlers_generic_handler(
        "t.T",
        {
            "uu": grpc.unary_unary_rpc_method_handler(_uu),
            "us": grpc.unary_stream_rpc_method_handler(_us),
            "su": grpc.stream_unary_rpc_method_handler(_su),
            "ss": grpc.stream_stream_rpc_method_handler(_ss),
            "waits": grpc.unary_unary_rpc_method_handler(_waits),
        },
    )


class Frames:
    """The target."""

    name = "frames"
    packages = PACKAGES

    async def open(self) -> None:
        """Set small bounds, so that short inputs reach them."""
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(mock.patch.object(budget, "MAX_UNITS", 200))
        self._stack.enter_context(mock.patch.object(connection, "_MAX_PREMATURE", 20))
        self._stack.enter_context(mock.patch.object(output, "MAX_UNSENT", 2**14))
        self._errors = self._stack.enter_context(errors_of(connection, call))

    async def close(self) -> None:
        self._stack.close()

    def seeds(self) -> Iterable[bytes]:
        return seeds()

    def mutate(self, rng: random.Random, data: bytes) -> bytes:
        head, rest = data[:2].ljust(2, b"\0"), data[2:]
        if rng.random() < 0.15:
            head = bytes((rng.choice((1, 1, 1, 3, 5, 7)), rng.choice((0, rng.randrange(256)))))
        change = mutators.frames_changed if rng.random() < 0.8 else mutators.bytes_changed
        return head + change(rng, rest)

    async def run(self, data: bytes) -> None:
        flags, cut, sent = data[0] if data else 0, data[1] if len(data) > 1 else 0, data[2:]
        if flags & _PREFACE:
            sent = mutators.PREFACE + sent
        self._errors.found.clear()
        await _Case(self._errors.found, flags).run(sent, cut)


class _Case:
    """The lifetime of one connection."""

    def __init__(self, errors: list[str], flags: int) -> None:
        server = Server(
            max_message_bytes=_MESSAGE, max_metadata_bytes=_METADATA, max_streams=_STREAMS
        )
        server.add_generic_rpc_handlers((_handlers(),))
        server.clock = SteppingClock(step=SLICE / 8).monotonic  # eight reads per slice
        server.turns = Turns(server.clock)
        self.server = server
        self.errors = errors
        self.flags = flags
        self.connection = Connection(server)
        self.transport = Transport(self.connection)
        self.read = 0
        """Frames in this turn."""
        receive = self.connection.h2.receive

        def counted(frame: Any) -> Any:
            self.read += 1
            return receive(frame)

        self.connection.h2.receive = counted  # type: ignore[method-assign]

    async def run(self, sent: bytes, cut: int) -> None:
        made, transport = self.connection, self.transport
        made.connection_made(transport)
        pieces = mutators.pieces(random.Random(cut), sent) if cut else iter((sent,))
        for number, piece in enumerate(pieces):
            if self.flags & _PAUSED and number == 1:
                made.pause_writing()
            if transport.closing:
                break
            made.data_received(piece)
            self.bounded(len(piece))
            if number % 3 == 0:
                await self.turn()
            await self.readable()
        if self.flags & _PAUSED:
            made.resume_writing()
        if not self.flags & _CUT:
            await self.settled()
            await self.answers()
        transport.close()
        await self.gone()
        demand(not self.errors, f"an error was logged: {self.errors}")
        _Written(bytes(transport.written)).check(len(sent))

    async def turn(self) -> None:
        await asyncio.sleep(0)
        demand(self.read <= _MOST_READ, f"{self.read} frames were read in one turn")
        self.read = 0

    async def readable(self) -> None:
        for _ in range(10 * _SETTLING):
            if not self.transport.paused or self.transport.closing:
                return
            await self.turn()
        demand(condition=False, what="the connection has stopped reading")

    async def settled(self) -> None:
        quiet = 0
        for _ in range(_SETTLING):
            before = len(self.transport.written)
            await self.turn()
            busy = len(self.transport.written) > before or self.connection in self.server.turns
            quiet = 0 if busy else quiet + 1
            if quiet > 5:
                return

    async def answers(self) -> None:
        """Between two frames, a live connection answers a PING."""
        made = self.connection
        frames = made.h2.incoming_buffer
        between = made._preface_received and not frames.unread and not frames._headers_buffer
        if made.lost or self.transport.closing or not between or frames._preamble_len:
            return
        at = len(self.transport.written)
        made.data_received(_PING)
        for _ in range(_SETTLING):
            await self.turn()
            if made.lost or self.transport.closing or _PONG in self.transport.written[at:]:
                return
        demand(condition=False, what="a PING was not acknowledged")

    async def gone(self) -> None:
        server, made = self.server, self.connection
        for _ in range(_SETTLING):
            if not (server.tasks or server.connections or made.calls or made in server.turns):
                break
            await self.turn()
        demand(not server.connections, "the connection was not closed")
        demand(not made.calls and not made.output.waiting, "a call was not removed")
        demand(not server.tasks, "a task was not removed")

    def bounded(self, arrived: int) -> None:
        h2 = self.connection.h2
        block = sum(len(part.data) for part in h2.incoming_buffer._headers_buffer)
        demand(len(h2.incoming_buffer.unread) <= arrived + _FRAME + 9, "too many unread bytes")
        demand(block <= 2 * _METADATA + _FRAME, "header block too large")
        demand(len(self.connection.calls) <= _STREAMS, "more calls than allowed streams")
        demand(len(h2.streams) <= 8 * _STREAMS + 140, "too many closed streams")
        demand(len(h2._resets) <= MAX_STREAMS * 4, "too many resets")
        unread = sum(map(_unread_bytes, self.connection.calls.values()))
        demand(unread <= 2**22, "too many unread messages")


def _unread_bytes(one: Any) -> int:
    """Return the bytes of the messages that a call keeps for its handler."""
    reader = getattr(one, "_incoming", one)
    return sum(map(len, reader._messages))


class _Written:
    """Checks the server's output without its library: frames, order in a stream, headers."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.decoder = Decoder()
        self.ended: set[int] = set()
        self.resets: set[int] = set()
        self.begun: set[int] = set()

    def check(self, received: int) -> None:
        if self.data.startswith(b"HTTP/1.1 400"):
            return
        size = 0
        for frame in mutators.frames_in(self.data):
            demand(len(frame) == 9 + int.from_bytes(frame[:3]), "a frame is truncated")
            demand(len(frame) <= 9 + _FRAME, "a frame is too long")
            if frame[3] == 0:
                size += len(frame)
            self._frame(frame[3], frame[4], int.from_bytes(frame[5:9]), frame[9:])
        # Each request frame may bring one message forty times, beside status and headers.
        demand(size <= 40 * (received + 100) * 8, "too much output for the input")

    def _frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        demand(
            (stream == 0) == (kind in {4, 6, 7}) or kind == 8, f"frame {kind} on stream {stream}"
        )
        if kind == 3:
            demand(stream not in self.resets, f"stream {stream} was reset twice")
            self.resets.add(stream)
        if kind in {0, 1}:
            demand(stream not in self.ended, f"stream {stream} has frames after its end")
            demand(stream not in self.resets, f"stream {stream} has frames after its reset")
        if kind == 1:
            self._headers(flags, stream, payload)
        elif kind == 0:
            demand(stream in self.begun, "data before headers")
        if kind in {0, 1} and flags & 1:
            self.ended.add(stream)

    def _headers(self, flags: int, stream: int, payload: bytes) -> None:
        try:
            fields = dict(self.decoder.decode(payload, raw=True))
        except HPACKError as error:
            demand(condition=False, what=f"cannot decode headers: {error}")
        if stream not in self.begun:
            demand(b":status" in fields, "a response without :status")
        self.begun.add(stream)
        if flags & 1 and fields.get(b":status", b"200") == b"200":
            demand(b"grpc-status" in fields, "a response ends without a status")


def seeds() -> Iterable[bytes]:
    """Calls of every kind, as a client writes them, plus recorded ones."""
    from hpack import Encoder

    def request(path: str, *more: tuple[str, str]) -> bytes:
        fields = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "x")]
        fields += [("te", "trailers"), ("content-type", "application/grpc"), *more]
        return Encoder().encode([(name, value, True) for name, value in fields])

    message = struct.pack(">BI", 0, 5) + b"hello"
    for kind in ("uu", "us", "su", "ss", "waits", "none"):
        data = mutators.frame(4, 0, 0, b"") + b"".join(
            mutators.frame(1, 4, stream, request(f"/t.T/{kind}", ("x-bin", "AAAA")))
            + mutators.frame(0, 0, stream, message)
            + mutators.frame(0, 1, stream, message if kind in {"su", "ss"} else b"")
            for stream in (1, 3, 5)
        )
        yield b"\x01\0" + data
        yield b"\x03\x07" + data + mutators.frame(3, 0, 5, b"\0\0\0\x08")
    yield b"\0\0GET / HTTP/1.1\r\n\r\n"
    yield b"\x01\0" + b"".join(
        mutators.frame(*each)
        for each in (
            (4, 0, 0, b"\0\x04\0\0\0\0\0\x05\0\0\x40\0"),
            (1, 4, 1, request("/t.T/us", ("grpc-timeout", "5S"), ("grpc-encoding", "gzip"))),
            (0, 1, 1, message),
            (8, 0, 1, b"\0\0\0\x09"),
            (8, 0, 0, b"\0\0\1\0"),
            (2, 0, 1, b"\0\0\0\0\x10"),
            (6, 0, 0, b"12345678"),
            (7, 0, 0, b"\0\0\0\0\0\0\0\0"),
            (4, 1, 0, b""),
            (1, 0, 3, request("/t.T/uu")[:20]),
            (9, 4, 3, request("/t.T/uu")[20:]),
            (0, 1, 3, b"\1" + message[1:]),
        )
    )
