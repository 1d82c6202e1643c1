"""TCP connection between two peers: JSON lines, with heartbeats in both directions.

Heartbeats show which pods still reach each other while a collective hangs; communication libraries
do not report this. Sending never blocks: messages are small, and a connection whose buffer exceeds
the limit is closed.
"""

import asyncio
import contextlib
import json
from collections.abc import Callable
from typing import Any

BEAT = 0.5
"""Interval between heartbeats, seconds."""
_LINE_LIMIT = 2**20
_BUFFER_LIMIT = 4 * 2**20
_PING = {"t": "ping"}

Message = dict[str, Any]


class Link:
    """One end of a connection to another peer."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._tasks: list[asyncio.Task[None]] = []
        self._quiet_beats = 0
        self.ended = False
        """Whether the connection was closed by the other side or has failed."""
        self.leave_reason = ""
        """Reason for leaving, sent by the other side; empty if none was sent."""

    @property
    def local_address(self) -> str:
        """Address of this end."""
        return str(self._writer.get_extra_info("sockname")[0])

    @property
    def remote_address(self) -> str:
        """Address of the other end."""
        name = self._writer.get_extra_info("peername")
        return str(name[0]) if name else "?"

    @property
    def quiet(self) -> float:
        """Duration of consecutive missed heartbeats, seconds.

        Measured in heartbeats sent by this side, because a pause of this process must not count as
        silence of the other side.
        """
        return self._quiet_beats * BEAT

    async def receive(self, limit: float) -> Message | None:
        """Return the next message, or ``None`` after ``limit`` seconds. Call before ``start``."""
        try:
            async with asyncio.timeout(limit):
                return _parse(await self._reader.readline())
        except (OSError, TimeoutError, ValueError):
            return None

    def send(self, message: Message) -> None:
        """Send a message; close the connection if its buffer exceeds the limit."""
        if self._writer.is_closing():
            return
        self._writer.write(json.dumps(message).encode() + b"\n")
        if self._writer.transport.get_write_buffer_size() > _BUFFER_LIMIT:
            self._writer.transport.abort()

    def start(self, on_message: Callable[[Message], None]) -> None:
        """Start sending heartbeats and passing messages to ``on_message``."""
        self._tasks = [
            asyncio.create_task(self._read(on_message)),
            asyncio.create_task(self._beat()),
        ]

    async def close(self, flush: float = 0.0) -> None:
        """Close the connection; wait up to ``flush`` seconds for unsent messages."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if flush > 0 and not self.ended:
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(flush):
                    self._writer.write_eof()
                    while await self._reader.read(_LINE_LIMIT):
                        pass
        self._writer.transport.abort()

    async def _read(self, on_message: Callable[[Message], None]) -> None:
        try:
            while line := await self._reader.readline():
                message = _parse(line)
                self._quiet_beats = 0
                if message is None:
                    break
                if message["t"] == "bye":
                    self.leave_reason = str(message.get("why", ""))
                elif message["t"] != "ping":
                    on_message(message)
        except (OSError, ValueError):
            pass
        self.ended = True

    async def _beat(self) -> None:
        while True:
            self.send(_PING)
            await asyncio.sleep(BEAT)
            self._quiet_beats += 1


async def dial(host: str, port: int, limit: float) -> Link:
    """Connect to a peer.

    Raises:
        OSError: The peer refuses the connection or does not respond within ``limit`` seconds.
    """
    async with asyncio.timeout(limit):
        reader, writer = await asyncio.open_connection(host, port, limit=_LINE_LIMIT)
    return Link(reader, writer)


async def listen(host: str, port: int, accept: Callable[[Link], None]) -> asyncio.Server:
    """Accept connections at one address.

    Raises:
        OSError: The address does not belong to this machine, or the port is in use.
    """

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accept(Link(reader, writer))

    return await asyncio.start_server(connected, host, port, limit=_LINE_LIMIT)


def _parse(line: bytes) -> Message | None:
    """Return the message of a line, or ``None`` if it is malformed."""
    try:
        message = json.loads(line)
    except ValueError:
        return None
    return message if isinstance(message, dict) and isinstance(message.get("t"), str) else None
