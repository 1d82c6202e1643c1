"""What a client sends on one call: its messages, until the handler reads them."""

import asyncio
from collections import deque
from typing import TYPE_CHECKING

import grpc

from serving.h2grpc.head import Refusal
from serving.h2grpc.wire import MessageReader, MessageTooLarge, Packed, WireError

if TYPE_CHECKING:
    from serving.h2grpc.connection import Connection


class Faulty(Exception):
    """The call cannot continue: what came is not what gRPC allows."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.details)
        self.refusal = refusal


class Incoming:
    """One call's requests."""

    __slots__ = (
        "_connection",
        "_messages",
        "_owed",
        "_reader",
        "_stream_id",
        "_waiting",
        "fault",
        "whole",
    )

    def __init__(self, connection: "Connection", stream_id: int, encoding: str) -> None:
        self.whole = False
        """The client has sent its last message."""
        self.fault: Refusal | None = None
        """Why no more can be read."""
        self._connection = connection
        self._stream_id = stream_id
        self._reader = MessageReader(connection.server.max_message_bytes, encoding)
        self._messages: deque[bytes] = deque()
        self._owed = 0
        """Bytes taken in that the client may not yet send again."""
        self._waiting: asyncio.Future[None] | None = None
        """The handler waits for a message."""

    def __len__(self) -> int:
        """Return how many messages wait to be read."""
        return len(self._messages)

    @property
    def held(self) -> int:
        """Bytes of the messages that wait, as they came."""
        return sum(map(len, self._messages))

    def feed(self, data: bytes, size: int, *, wanted: bool) -> bool:
        """Take in the bytes of a DATA frame, which count for ``size`` in flow control.

        Returns:
            Whether a message is complete with them.
        """
        messages = self._messages
        before = len(messages)
        if wanted and self.fault is None:
            try:
                messages.extend(self._reader.feed(data))
            except WireError as error:
                self.fault = _refusal_of(error)
        complete = len(messages) > before
        if messages:
            # Until they are read: a client that sends faster than its handler reads waits.
            self._owed += size
        else:
            self._connection.acknowledge(self._stream_id, size)
        if messages or self.fault is not None:
            self._wake()
        return complete

    def end(self) -> None:
        """Take note that the client has sent all."""
        self.whole = True
        if not self._reader.empty and self.fault is None:
            self.fault = Refusal(grpc.StatusCode.INTERNAL, "the last message is not whole")
        self._wake()

    async def read(self) -> bytes | None:
        """Return the next message, uncompressed; None at the end.

        Raises:
            Faulty: the client broke gRPC's rules.
        """
        while not self._messages:
            if self.fault is not None:
                raise Faulty(self.fault)
            if self.whole:
                return None
            self._waiting = self._connection.loop.create_future()
            try:
                await self._waiting
            finally:
                self._waiting = None
        message = self._messages.popleft()
        if not self._messages:
            self._pay()
        if type(message) is not Packed:
            return message
        try:
            return await self._unpack(message)
        except WireError as error:
            self.fault = _refusal_of(error)
            raise Faulty(self.fault) from error

    def drop(self) -> None:
        """Let go of everything."""
        self._messages.clear()
        self._pay()

    async def _unpack(self, message: Packed) -> bytes:
        parts = []
        for part in self._reader.plain(message):
            parts.append(part)
            await asyncio.sleep(0)  # many small messages can unpack to as much as a large one
        return b"".join(parts)

    def _pay(self) -> None:
        owed, self._owed = self._owed, 0
        self._connection.acknowledge(self._stream_id, owed)

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)


def _refusal_of(error: WireError) -> Refusal:
    too_large = isinstance(error, MessageTooLarge)
    code = grpc.StatusCode.RESOURCE_EXHAUSTED if too_large else grpc.StatusCode.INTERNAL
    return Refusal(code, str(error))
