"""Sends the head of a response together with the first part of its body."""

import asyncio


class JoinedHead:
    """The transport as seen by one response: the head leaves together with what follows it.

    uvicorn writes head and body apart, each a system call, although nearly every body is there at
    once. A head that nothing follows is sent in the event loop's next turn.
    """

    __slots__ = ("_head", "_loop", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._head: bytes | None = None
        """The head while it is held; empty once it was sent."""

    def write(self, data: bytes) -> None:
        """Send data after the held head; hold the first."""
        if self._head is None:
            self._head = data
            self._loop.call_soon(self.flush)
        elif self._head:
            data, self._head = self._head + data, b""
            self._transport.write(data)
        else:
            self._transport.write(data)

    def flush(self) -> None:
        """Send the head now, if it is held."""
        if self._head:
            data, self._head = self._head, b""
            self._transport.write(data)

    def close(self) -> None:
        """Close the connection after what was written."""
        self.flush()
        self._transport.close()

    def is_closing(self) -> bool:
        """Return whether the connection is closed or closing."""
        return self._transport.is_closing()
