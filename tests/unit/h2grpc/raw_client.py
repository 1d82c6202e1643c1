"""A client that sends HTTP/2 frames and reads only while a test waits for something."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    DataReceived,
    PingAckReceived,
    PingReceived,
    ResponseReceived,
    SettingsAcknowledged,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from hyperframe.frame import GoAwayFrame

from tests.support.waiting import PATIENCE

REQUEST = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/t.T/uu"),
    (":authority", "test"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
]

Headers = Iterable[tuple[str, str]]


def message(data: bytes, *, compressed: bool = False) -> bytes:
    """Return a gRPC message with its prefix."""
    return struct.pack(">BI", compressed, len(data)) + data


def messages_in(data: bytes) -> list[bytes]:
    """Return the messages in the contents of DATA frames; the last must be complete."""
    found = []
    while data:
        _, size = struct.unpack_from(">BI", data)
        found.append(data[5 : 5 + size])
        assert len(found[-1]) == size
        data = data[5 + size :]
    return found


def request(path: str, more: Headers = ()) -> list[tuple[str, str]]:
    """Return a request's headers, with ``more`` replaced or added."""
    more = list(more)
    names = {name for name, _ in more}
    whole = [(name, value) for name, value in REQUEST if name not in names] + more
    whole = [(name, path if name == ":path" and path else value) for name, value in whole]
    return sorted(whole, key=lambda pair: not pair[0].startswith(":"))


@dataclass
class Answer:
    """What arrived on one stream."""

    headers: dict[str, str] = field(default_factory=dict)
    data: bytearray = field(default_factory=bytearray)
    trailers: dict[str, str] = field(default_factory=dict)
    ended: bool = False
    reset: int | None = None

    @property
    def over(self) -> bool:
        return self.ended or self.reset is not None

    @property
    def messages(self) -> list[bytes]:
        return messages_in(bytes(self.data))

    @property
    def status(self) -> int | None:
        """The number of the gRPC status."""
        found = self.trailers.get("grpc-status", self.headers.get("grpc-status"))
        return None if found is None else int(found)

    @property
    def details(self) -> str | None:
        return self.trailers.get("grpc-message", self.headers.get("grpc-message"))


class ClientH2(H2Connection):
    """h2, which continues after GOAWAY, so that tests can examine what follows."""

    def __init__(self) -> None:
        super().__init__(H2Configuration(client_side=True, header_encoding="utf-8"))
        self.config.validate_outbound_headers = False
        self.config.normalize_outbound_headers = False
        self.goaways: list[GoAwayFrame] = []

    def _receive_goaway_frame(self, frame):
        self.goaways.append(frame)
        return [], []


class Answers:
    """Collects h2's events by stream."""

    def __init__(self) -> None:
        self.by_stream: dict[int, Answer] = {}
        self.pings = 0
        self.pongs = 0
        self.settings_acks = 0

    def take_in(self, events) -> None:
        for event in events:
            match event:
                case ResponseReceived():
                    self[event.stream_id].headers.update(event.headers)
                case TrailersReceived():
                    self[event.stream_id].trailers.update(event.headers)
                case DataReceived():
                    self[event.stream_id].data += event.data
                case StreamEnded():
                    self[event.stream_id].ended = True
                case StreamReset():
                    self[event.stream_id].reset = int(event.error_code)
                case PingAckReceived():
                    self.pongs += 1
                case PingReceived():
                    self.pings += 1
                case SettingsAcknowledged():
                    self.settings_acks += 1

    def __getitem__(self, stream_id: int) -> Answer:
        return self.by_stream.setdefault(stream_id, Answer())


class RawClient:
    """One connection."""

    def __init__(self, reader, writer, *, acknowledge: bool = True) -> None:
        self.h2 = ClientH2()
        self.answers = Answers()
        self.closed = False
        """Whether the server has closed the connection."""
        self.acknowledge = acknowledge
        """Whether received data is acknowledged in flow control."""
        self._reader = reader
        self._writer = writer

    @classmethod
    async def connect(cls, port: int, settings=None, *, buffer: int = 0, **kwargs) -> "RawClient":
        """Connect and send the preface; ``buffer`` is the size of the socket buffer, bytes."""
        # With the protocol named: asyncio turns Nagle's algorithm off only where it is.
        ours = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        if buffer:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        ours.setblocking(False)
        await asyncio.get_running_loop().sock_connect(ours, ("127.0.0.1", port))
        streams = await asyncio.open_connection(sock=ours, limit=2**12 if buffer else 2**16)
        client = cls(*streams, **kwargs)
        client.greet(settings)
        return client

    def greet(self, settings=None) -> None:
        if settings:
            self.h2.local_settings.update(settings)
            self.h2.local_settings.acknowledge()
        self.h2.initiate_connection()
        self.send()

    # -- sending ------------------------------------------------------------------------

    def send(self, raw: bytes = b"") -> None:
        """Send h2's pending data, then raw bytes."""
        self._writer.write(self.h2.data_to_send() + raw)

    async def drained(self) -> None:
        async with asyncio.timeout(PATIENCE):
            await self._writer.drain()

    def begin(self, path: str = "/t.T/uu", more: Headers = (), *, end: bool = False) -> int:
        """Send the headers of a call; returns its stream."""
        stream_id = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream_id, request(path, more), end_stream=end)
        self.send()
        return stream_id

    def data(self, stream_id: int, data: bytes, *, end: bool = False, pad: int | None = None):
        self.h2.send_data(stream_id, data, end_stream=end, pad_length=pad)
        self.send()

    def call(self, path: str = "/t.T/uu", body: bytes = b"x", more: Headers = ()) -> int:
        """Send a whole call with one message."""
        stream_id = self.begin(path, more)
        self.data(stream_id, message(body), end=True)
        return stream_id

    def reset(self, stream_id: int, code: int = 8) -> None:
        self.h2.reset_stream(stream_id, code)
        self.send()

    # -- reading ------------------------------------------------------------------------

    async def step(self) -> None:
        """Read once."""
        data = b""
        with contextlib.suppress(ConnectionError):
            data = await self._reader.read(2**16)
        if not data:
            self.closed = True
            return
        events = self.h2.receive_data(data)
        self.answers.take_in(events)
        if self.acknowledge:
            for event in events:
                if isinstance(event, DataReceived) and event.flow_controlled_length:
                    size, stream_id = event.flow_controlled_length, event.stream_id
                    self.h2.acknowledge_received_data(size, stream_id)
        self.send()

    async def until(self, so: Callable[[], object]) -> None:
        """Read until ``so()`` is true."""
        async with asyncio.timeout(PATIENCE):
            while not so():
                assert not self.closed, "the server hung up"
                await self.step()

    async def answer(self, stream_id: int) -> Answer:
        """Return the answer on a stream when it is over."""
        answer = self.answers[stream_id]
        await self.until(lambda: answer.over)
        return answer

    async def ping(self) -> None:
        """Wait until the server has read everything that was sent."""
        seen = self.answers.pongs
        self.h2.ping(b"testtest")
        self.send()
        await self.until(lambda: self.answers.pongs > seen)

    async def hung_up(self) -> None:
        """Read until the server closes."""
        async with asyncio.timeout(PATIENCE):
            while not self.closed:
                await self.step()

    @property
    def goaway(self) -> int | None:
        """The code of the last GOAWAY."""
        return self.h2.goaways[-1].error_code if self.h2.goaways else None

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(ConnectionError, TimeoutError):
            await self._writer.wait_closed()

    def abort(self) -> None:
        self._writer.transport.abort()
