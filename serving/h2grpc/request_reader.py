"""The receiving side of one call: messages that the handler has not read yet."""

import asyncio
from collections import deque

import grpc

from serving.h2grpc.head import Refusal
from serving.h2grpc.host import CallHost
from serving.h2grpc.wire import Compressed, MessageReader, MessageTooLarge, WireError

_CALL_BYTES = 2**12
"""Approximate size of the headers and task of a call, which count as pending, bytes."""


class RequestError(Exception):
    """The client violated the gRPC protocol; the call ends with ``refusal``."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.details)
        self.refusal = refusal


class RequestReader:
    """The receiving side of one call."""

    __slots__ = (
        "_call_bytes",
        "_connection",
        "_messages",
        "_pending",
        "_read_waiter",
        "_reader",
        "_stream_id",
        "_unacknowledged",
        "fault",
        "whole",
    )

    def __init__(self, connection: CallHost, stream_id: int, encoding: str) -> None:
        self.whole = False
        """Whether the client has sent its last message."""
        self.fault: Refusal | None = None
        """Status with which to end the call after invalid or excessive data, or None."""
        self._connection = connection
        self._stream_id = stream_id
        self._reader = MessageReader(connection.server.max_message_bytes, encoding)
        self._messages: deque[bytes] = deque()
        self._unacknowledged = 0
        """Number of received bytes not yet returned to the client's flow-control window."""
        self._read_waiter: asyncio.Future[None] | None = None
        """Set while the handler waits for a message."""
        self._call_bytes = 0
        self._pending = 0
        """Number of bytes of this call counted as pending."""

    def __len__(self) -> int:
        """Return the number of unread messages."""
        return len(self._messages)

    def begin(self) -> bool:
        """Count the call as pending until ``serve``; return False if the limit is exceeded."""
        self._call_bytes = _CALL_BYTES
        return self._set_pending(_CALL_BYTES)

    def serve(self) -> None:
        """Stop counting the call itself as pending, because its handler has received a request."""
        self._call_bytes = 0
        self._set_pending(self._reader.unfinished)

    def feed(self, data: bytes, size: int, *, keep: bool) -> bool:
        """Add the contents of a DATA frame.

        Args:
            data: The contents.
            size: Size of the frame in flow control, bytes.
            keep: Whether the call still reads; otherwise the data is dropped.

        Returns:
            Whether the frame completes a message.
        """
        messages = self._messages
        before = len(messages)
        if keep and self.fault is None:
            try:
                messages.extend(self._reader.feed(data))
            except WireError as error:
                self.fault = _refusal_of(error)
            # Nearly all messages arrive in one frame.
            if (self._pending or not self._reader.empty) and not self._set_pending(
                self._call_bytes + self._reader.unfinished
            ):
                self.fault = self._connection.server.full
        complete = len(messages) > before
        if messages:
            # Acknowledged once the messages are read, which throttles the client.
            self._unacknowledged += size
        else:
            self._connection.output.acknowledge(self._stream_id, size)
        if messages or self.fault is not None:
            self._wake()
        return complete

    def end(self) -> None:
        """Mark the end of the client's messages."""
        self.whole = True
        if not self._reader.empty and self.fault is None:
            self.fault = Refusal(grpc.StatusCode.INTERNAL, "the last message is incomplete")
        self._wake()

    async def read(self) -> bytes | None:
        """Return the next message, decompressed, or None after the last one.

        Raises:
            RequestError: The client violated the gRPC protocol.
        """
        while not self._messages:
            if self.fault is not None:
                raise RequestError(self.fault)
            if self.whole:
                return None
            self._read_waiter = self._connection.loop.create_future()
            try:
                await self._read_waiter
            finally:
                self._read_waiter = None
        message = self._messages.popleft()
        if not self._messages:
            self._acknowledge()
        if type(message) is not Compressed:
            return message
        try:
            return await self._unpack(message)
        except WireError as error:
            self.fault = _refusal_of(error)
            raise RequestError(self.fault) from error

    def drop(self) -> None:
        """Discard all unread messages."""
        self._messages.clear()
        self._set_pending(0)
        self._acknowledge()

    def _set_pending(self, size: int) -> bool:
        """Set the number of pending bytes, or return False if the limit would be exceeded."""
        pending, more = self._connection.server.pending, size - self._pending
        if more > 0 and not pending.take(more):
            return False
        if more < 0:
            pending.release(-more)
        self._pending = size
        return True

    async def _unpack(self, message: Compressed) -> bytes:
        parts = []
        for part in self._reader.plain(message):
            parts.append(part)
            await asyncio.sleep(0)  # many small messages may decompress to large ones
        return b"".join(parts)

    def _acknowledge(self) -> None:
        size, self._unacknowledged = self._unacknowledged, 0
        self._connection.output.acknowledge(self._stream_id, size)

    def _wake(self) -> None:
        if self._read_waiter is not None and not self._read_waiter.done():
            self._read_waiter.set_result(None)


def _refusal_of(error: WireError) -> Refusal:
    too_large = isinstance(error, MessageTooLarge)
    code = grpc.StatusCode.RESOURCE_EXHAUSTED if too_large else grpc.StatusCode.INTERNAL
    return Refusal(code, str(error))
