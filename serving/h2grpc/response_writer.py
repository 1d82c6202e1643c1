"""The sending side of one call: headers, messages (compressed if negotiated) and status."""

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import grpc
import grpc.aio
import structlog
from h2.errors import ErrorCodes
from h2.stream import H2Stream

from serving.h2grpc.compression import ACCEPTED, COMPRESS_CHUNK, MIN_BYTES, compressed_parts
from serving.h2grpc.head import CONTENT_TYPE, RequestHead
from serving.h2grpc.host import CallHost
from serving.h2grpc.request_reader import RequestReader
from serving.h2grpc.wire import Headers, Metadata, framed, headers_of, status_text

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_HEADERS: Headers = [
    (b":status", b"200"),
    (b"content-type", CONTENT_TYPE),
    (b"grpc-accept-encoding", ACCEPTED.encode()),
]
_UNSENDABLE = (grpc.StatusCode.INTERNAL, "the server set invalid response metadata")
_NOT_GRPC = b"this port serves gRPC: send POST with content-type application/grpc"


class ResponseWriter:
    """The sending side of a call."""

    __slots__ = (
        "_aborted",
        "_connection",
        "_encoding",
        "_ended",
        "_head",
        "_headers_sent",
        "_incoming",
        "_next_uncompressed",
        "_requested_encoding",
        "_room_waiter",
        "_serialize",
        "stream",
        "stream_id",
    )

    def __init__(self, connection: CallHost, stream: H2Stream) -> None:
        self.stream = stream
        self.stream_id: int = stream.stream_id
        self._connection = connection
        self._head: RequestHead
        self._incoming: RequestReader
        self._serialize: Callable[[Any], bytes] = _require_bytes
        self._headers_sent = False
        """Whether the headers have been sent."""
        self._ended = False
        """Whether nothing more can be sent."""
        self._aborted = False
        """Whether the handler has called ``abort``."""
        self._room_waiter: asyncio.Future[None] | None = None
        """Set while the handler waits for flow control to send a message."""
        self._requested_encoding = connection.server.encoding
        """Compression set by the server or the handler. None means the same as the client's
        messages."""
        self._encoding: str | None = None
        """Compression in use, valid once the headers are sent. None if uncompressed."""
        self._next_uncompressed = False
        """Whether to send the next message uncompressed."""

    async def write(self, message: Any) -> None:
        """Send a message; returns once it has been passed to the transport.

        Raises:
            CancelledError: The client did not read for the server's ``write_timeout``.
            AbortError: The call has been aborted.
        """
        if not self.try_write(message):
            self._check_open()
            await self._write_blocking(message)
        elif self._connection.output.congested:
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
        if not self._headers_sent:
            self._send_headers(())
        if self._encoding is None:
            return self._connection.output.try_send(self, framed(data))
        if len(data) > COMPRESS_CHUNK:
            return False
        if len(data) >= MIN_BYTES and not self._next_uncompressed:
            payload = _smaller_of(data, list(compressed_parts(data, self._encoding)))
        else:
            payload = framed(data)
        if not self._connection.output.try_send(self, payload):
            return False
        self._next_uncompressed = False
        return True

    def retry_send(self) -> None:
        """Wake the handler to retry sending."""
        if self._room_waiter is not None and not self._room_waiter.done():
            self._room_waiter.set_result(None)

    def _check_open(self) -> None:
        if self._aborted:
            raise grpc.aio.AbortError("the call was aborted")

    async def _frame(self, data: bytes) -> bytes:
        """Return the framed message; yields to the event loop between pieces of compression."""
        plain, self._next_uncompressed = self._next_uncompressed, False
        if self._encoding is None or plain or len(data) < MIN_BYTES:
            return framed(data)
        parts = []
        for part in compressed_parts(data, self._encoding):
            parts.append(part)
            await asyncio.sleep(0)
        return _smaller_of(data, parts)

    async def _write_blocking(self, message: Any) -> None:
        try:
            async with asyncio.timeout(self._connection.server.write_timeout):
                await self._write_chunks(await self._frame(self._serialize(message)))
        except TimeoutError as error:
            raise asyncio.CancelledError("the client did not read a message in time") from error

    async def _write_chunks(self, payload: bytes) -> None:
        rest = memoryview(payload)
        connection = self._connection
        while rest:
            if self._ended:
                await asyncio.sleep(0)  # this task is being cancelled
                return
            room = connection.output.sendable_bytes(self)
            if room <= 0:
                self._room_waiter = connection.loop.create_future()
                connection.output.await_room(self)
                try:
                    await self._room_waiter
                finally:
                    self._room_waiter = None
                continue
            connection.output.try_send(self, bytes(rest[:room]))
            connection.output.stop_awaiting_room(self)
            rest = rest[room:]
            if connection.output.congested:
                await asyncio.sleep(0)

    def _send_headers(self, metadata: Iterable[tuple[str, str | bytes]]) -> None:
        try:
            headers = [*_HEADERS, *headers_of(metadata)]
        except ValueError:
            self._send_status(*_UNSENDABLE)
            raise
        self._headers_sent = True
        encoding = self._encoding = self._head.response_encoding(self._requested_encoding)
        if encoding is not None:
            headers.append((b"grpc-encoding", encoding.encode()))
        if not self._ended:
            self._connection.output.send_headers(self.stream_id, headers)

    def _send_status(self, code: grpc.StatusCode, details: str, trailing: Metadata = ()) -> None:
        """Send the status, unless one was sent; INTERNAL if ``trailing`` cannot be sent."""
        if self._ended:
            return
        try:
            more = headers_of(trailing)
        except ValueError as error:
            log.error("invalid trailing metadata", reason=str(error))  # noqa: TRY400
            (code, details), more = _UNSENDABLE, []
        trailers: Headers = [] if self._headers_sent else list(_HEADERS)
        trailers.append((b"grpc-status", str(code.value[0]).encode()))
        if details:
            trailers.append((b"grpc-message", status_text(details)))
        trailers.extend(more)
        self._ended = True
        self._connection.output.send_headers(self.stream_id, trailers, end=True)
        if not self._incoming.whole:
            # Stop the client from sending its remaining messages.
            self._connection.output.reset(self.stream_id, ErrorCodes.NO_ERROR)

    def _reject_http(self, status: bytes) -> None:
        """Respond to a request that is not gRPC with an HTTP status."""
        self._ended = True
        headers = [(b":status", status), (b"content-type", b"text/plain")]
        headers.append((b"grpc-status", b"13"))
        headers.append((b"grpc-message", _NOT_GRPC))
        self._connection.output.send_headers(self.stream_id, headers, end=True)
        self._connection.output.reset(self.stream_id, ErrorCodes.NO_ERROR)


def _smaller_of(data: bytes, parts: list[bytes]) -> bytes:
    """Return the framed message: ``parts`` (compressed) if they are smaller, otherwise ``data``."""
    size = sum(map(len, parts))
    return framed(b"".join(parts), compressed=True) if size < len(data) else framed(data)


def _require_bytes(message: Any) -> bytes:
    """Return a message unchanged, for methods without a serializer; it must be bytes."""
    if isinstance(message, bytes | bytearray | memoryview):
        return bytes(message)
    raise TypeError(
        f"a method without a serializer must return bytes, not {type(message).__name__}"
    )
