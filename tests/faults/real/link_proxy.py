"""A TCP proxy between ranks and router whose connections can be reset or frozen."""

import asyncio
import contextlib
import socket
import struct
from dataclasses import dataclass, field

import psutil

_CHUNK = 64 * 1024


@dataclass(eq=False, slots=True)
class _Pair:
    """A rank's connection to the proxy, and the proxy's to the router."""

    rank_port: int
    """The rank's local port, which identifies its process."""
    writers: list[asyncio.StreamWriter]
    flowing: asyncio.Event = field(default_factory=asyncio.Event)


class LinkProxy:
    """Forwards bytes to the router's join port."""

    def __init__(self, target_port: int) -> None:
        self.port = 0
        self._target_port = target_port
        self._pairs: set[_Pair] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen on a free port of the loopback."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Reset all connections and stop listening."""
        if self._server is not None:
            self._server.close()
        for pair in tuple(self._pairs):
            self._drop(pair)
        await asyncio.sleep(0.1)

    def drop(self, pid: int | None = None) -> int:
        """Reset the connections of process ``pid``, or all; return their number."""
        mine = self._of(pid)
        for pair in mine:
            self._drop(pair)
        return len(mine)

    def freeze(self, pid: int | None = None) -> int:
        """Stop forwarding for process ``pid``, or for all; return the number of connections."""
        mine = self._of(pid)
        for pair in mine:
            pair.flowing.clear()
        return len(mine)

    def _of(self, pid: int | None) -> list[_Pair]:
        if pid is None:
            return list(self._pairs)
        ports = {
            connection.laddr.port
            for connection in psutil.Process(pid).net_connections("tcp")
            if connection.raddr and connection.raddr.port == self.port
        }
        return [pair for pair in self._pairs if pair.rank_port in ports]

    def _drop(self, pair: _Pair) -> None:
        for writer in pair.writers:
            raw = writer.get_extra_info("socket")
            with contextlib.suppress(OSError):
                # With linger time 0 the peer gets a reset.
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        pair.flowing.set()
        self._pairs.discard(pair)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            writer.transport.abort()
            return
        pair = _Pair(writer.get_extra_info("peername")[1], [writer, back])
        pair.flowing.set()
        self._pairs.add(pair)
        tasks = [
            asyncio.create_task(_pump(reader, back, pair.flowing)),
            asyncio.create_task(_pump(there, writer, pair.flowing)),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            self._pairs.discard(pair)
            for one in pair.writers:
                one.transport.abort()


async def _pump(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, flowing: asyncio.Event
) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(_CHUNK):
            await flowing.wait()
            writer.write(data)
            await writer.drain()
