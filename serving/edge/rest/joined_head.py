"""Sends the head of a response together with the first part of its body."""

import asyncio


class JoinedHead:
    """The transport as seen by one response: sends the head together with the data that follows it.

    uvicorn writes head and body separately, with a system call for each, although the body is
    nearly always available immediately. A head without following data is sent in the next iteration
    of the event loop.
    """

    __slots__ = ("_head", "_loop", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._head: bytes | None = None
        """The head while it is held; empty once it has been sent."""

    def write(self, data: bytes) -> None:
        """Hold the head, which is the first data; send it together with the next data."""
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
        """Send the written data, then close the connection."""
        self.flush()
        self._transport.close()

    def is_closing(self) -> bool:
        """Return whether the connection is closed or closing."""
        return self._transport.is_closing()
