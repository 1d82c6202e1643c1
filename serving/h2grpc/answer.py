"""The sending side of one call: headers, messages (compressed if negotiated) and status."""

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import grpc
import grpc.aio
import structlog
from h2.errors import ErrorCodes
from h2.stream import H2Stream

from serving.h2grpc.compression import ACCEPTED, MIN_BYTES, PIECE_PACKED, packed
from serving.h2grpc.head import CONTENT_TYPE, RequestHead
from serving.h2grpc.host import CallHost
from serving.h2grpc.incoming import Incoming
from serving.h2grpc.wire import Headers, Metadata, framed, headers_of, status_text

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_HEADERS: Headers = [
    (b":status", b"200"),
    (b"content-type", CONTENT_TYPE),
    (b"grpc-accept-encoding", ACCEPTED.encode()),
]
_UNSENDABLE = (grpc.StatusCode.INTERNAL, "the server's metadata cannot be sent")
_NOT_GRPC = b"this port speaks gRPC: POST with content-type application/grpc"


class Answer:
    """The sending side of a call."""

    __slots__ = (
        "_aborted",
        "_connection",
        "_ended",
        "_head",
        "_incoming",
        "_plain_next",
        "_room",
        "_said_encoding",
        "_sent_encoding",
        "_serialize",
        "_started",
        "stream",
        "stream_id",
    )

    def __init__(self, connection: CallHost, stream: H2Stream) -> None:
        self.stream = stream
        self.stream_id: int = stream.stream_id
        self._connection = connection
        self._head: RequestHead
        self._incoming: Incoming
        self._serialize: Callable[[Any], bytes] = _as_it_is
        self._started = False
        """Whether the headers have been sent."""
        self._ended = False
        """Whether nothing more can be sent."""
        self._aborted = False
        """Whether the handler has called ``abort``."""
        self._room: asyncio.Future[None] | None = None
        """Set while the handler waits for flow control to send a message."""
        self._said_encoding = connection.server.encoding
        """Compression set by the server or the handler. None: same as the client's messages."""
        self._sent_encoding: str | None = None
        """Compression in use, valid once the headers are sent. None: uncompressed."""
        self._plain_next = False
        """Whether to send the next message uncompressed."""

    async def write(self, message: Any) -> None:
        """Send a message; returns once it has been passed to the transport.

        Raises:
            CancelledError: the client did not read for the server's ``write_timeout``.
            AbortError: the call has been aborted.
        """
        if not self.try_write(message):
            self._check_open()
            await self._write_slowly(message)
        elif self._connection.output.crowded:
            # A handler that never awaits would block the loop and exhaust memory.
            await asyncio.sleep(0)

    def try_write(self, message: Any) -> bool:
        """Send a message without blocking, and return whether it was sent.

        Handlers with many messages should use ``write`` for some of them so that the event loop
        can run.
        """
        if self._ended:
            return False
        data = self._serialize(message)
        if not self._started:
            self._start_answer(())
        if self._sent_encoding is None:
            return self._connection.output.try_send(self, framed(data))
        if len(data) > PIECE_PACKED:
            return False
        if len(data) >= MIN_BYTES and not self._plain_next:
            payload = _smaller(data, list(packed(data, self._sent_encoding)))
        else:
            payload = framed(data)
        if not self._connection.output.try_send(self, payload):
            return False
        self._plain_next = False
        return True

    def has_room(self) -> None:
        """Wake the handler to retry sending."""
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def _check_open(self) -> None:
        if self._aborted:
            raise grpc.aio.AbortError("the call was aborted")

    async def _packed(self, data: bytes) -> bytes:
        """Return the framed message; yields to the event loop between pieces of compression."""
        plain, self._plain_next = self._plain_next, False
        if self._sent_encoding is None or plain or len(data) < MIN_BYTES:
            return framed(data)
        parts = []
        for part in packed(data, self._sent_encoding):
            parts.append(part)
            await asyncio.sleep(0)
        return _smaller(data, parts)

    async def _write_slowly(self, message: Any) -> None:
        try:
            async with asyncio.timeout(self._connection.server.write_timeout):
                await self._write_in_parts(await self._packed(self._serialize(message)))
        except TimeoutError as error:
            raise asyncio.CancelledError("the client does not take a message") from error

    async def _write_in_parts(self, payload: bytes) -> None:
        rest = memoryview(payload)
        connection = self._connection
        while rest:
            if self._ended:
                await asyncio.sleep(0)  # this task is being cancelled
                return
            room = connection.output.room_for(self)
            if room <= 0:
                self._room = connection.loop.create_future()
                connection.output.wait_for_room(self)
                try:
                    await self._room
                finally:
                    self._room = None
                continue
            connection.output.try_send(self, bytes(rest[:room]))
            connection.output.had_room(self)
            rest = rest[room:]
            if connection.output.crowded:
                await asyncio.sleep(0)

    def _start_answer(self, metadata: Iterable[tuple[str, str | bytes]]) -> None:
        try:
            headers = [*_HEADERS, *headers_of(metadata)]
        except ValueError:
            self._finish(*_UNSENDABLE)
            raise
        self._started = True
        encoding = self._sent_encoding = self._head.answers_as(self._said_encoding)
        if encoding is not None:
            headers.append((b"grpc-encoding", encoding.encode()))
        if not self._ended:
            self._connection.output.send_headers(self.stream_id, headers)

    def _finish(self, code: grpc.StatusCode, details: str, trailing: Metadata = ()) -> None:
        """Send the status, unless one was sent; INTERNAL if ``trailing`` cannot be sent."""
        if self._ended:
            return
        try:
            more = headers_of(trailing)
        except ValueError as error:
            log.error("the trailing metadata cannot be sent", reason=str(error))  # noqa: TRY400
            (code, details), more = _UNSENDABLE, []
        trailers: Headers = [] if self._started else list(_HEADERS)
        trailers.append((b"grpc-status", str(code.value[0]).encode()))
        if details:
            trailers.append((b"grpc-message", status_text(details)))
        trailers.extend(more)
        self._ended = True
        self._connection.output.send_headers(self.stream_id, trailers, end=True)
        if not self._incoming.whole:
            # Stop the client from sending its remaining messages.
            self._connection.output.reset(self.stream_id, ErrorCodes.NO_ERROR)

    def _answer_http(self, status: bytes) -> None:
        """Respond to a request that is not gRPC with an HTTP status."""
        self._ended = True
        headers = [(b":status", status), (b"content-type", b"text/plain")]
        headers.append((b"grpc-status", b"13"))
        headers.append((b"grpc-message", _NOT_GRPC))
        self._connection.output.send_headers(self.stream_id, headers, end=True)
        self._connection.output.reset(self.stream_id, ErrorCodes.NO_ERROR)


def _smaller(data: bytes, parts: list[bytes]) -> bytes:
    """Return the framed message: ``parts`` (compressed) if smaller, else ``data``."""
    size = sum(map(len, parts))
    return framed(b"".join(parts), compressed=True) if size < len(data) else framed(data)


def _as_it_is(message: Any) -> bytes:
    """Return a message unchanged, for methods without a serializer; it must be bytes."""
    if isinstance(message, bytes | bytearray | memoryview):
        return bytes(message)
    raise TypeError(f"without a serializer a message is bytes, not {type(message).__name__}")
