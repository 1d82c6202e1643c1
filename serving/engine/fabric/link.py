"""A TCP connection between two peers: JSON lines, and a heartbeat each way.

The heartbeats tell which two pods still reach each other while a collective hangs, which no
collectives library can say. Nothing waits for the other side to read: messages are small, and a
connection whose buffer fills up is ended.
"""

import asyncio
import contextlib
import json
from collections.abc import Callable
from typing import Any

BEAT = 0.5
"""Seconds between two heartbeats."""
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
        """The other side closed it, or it broke."""
        self.said_goodbye = ""
        """Why the other side left, in its own words."""

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
        """Seconds of heartbeats missed in a row.

        Counted in beats of our own, so that a pause of this process is not taken for one of the
        other's.
        """
        return self._quiet_beats * BEAT

    async def receive(self, limit: float) -> Message | None:
        """Return the next message before ``start``; ``None`` if none comes in ``limit`` seconds."""
        try:
            async with asyncio.timeout(limit):
                return _parse(await self._reader.readline())
        except (OSError, TimeoutError, ValueError):
            return None

    def send(self, message: Message) -> None:
        """Send a message; a connection that takes no more is ended."""
        if self._writer.is_closing():
            return
        self._writer.write(json.dumps(message).encode() + b"\n")
        if self._writer.transport.get_write_buffer_size() > _BUFFER_LIMIT:
            self._writer.transport.abort()

    def start(self, on_message: Callable[[Message], None]) -> None:
        """Begin to send heartbeats and to hand messages to ``on_message``."""
        self._tasks = [
            asyncio.create_task(self._read(on_message)),
            asyncio.create_task(self._beat()),
        ]

    async def close(self, flush: float = 0.0) -> None:
        """Close it, after ``flush`` seconds at most for what is still to be sent."""
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
                    self.said_goodbye = str(message.get("why", ""))
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
    """Connect.

    Raises:
        OSError: refused, or no answer in ``limit`` seconds.
    """
    async with asyncio.timeout(limit):
        reader, writer = await asyncio.open_connection(host, port, limit=_LINE_LIMIT)
    return Link(reader, writer)


async def listen(host: str, port: int, accept: Callable[[Link], None]) -> asyncio.Server:
    """Accept connections at one address.

    Raises:
        OSError: the address is not this machine's, or the port is taken.
    """

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accept(Link(reader, writer))

    return await asyncio.start_server(connected, host, port, limit=_LINE_LIMIT)


def _parse(line: bytes) -> Message | None:
    """Return the message of a line; ``None`` if it is not one of ours."""
    try:
        message = json.loads(line)
    except ValueError:
        return None
    return message if isinstance(message, dict) and isinstance(message.get("t"), str) else None
