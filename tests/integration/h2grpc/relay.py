"""A TCP relay that counts the bytes of each connection."""

import asyncio
import contextlib


class Relay:
    """Relays connections to one port; counts bytes by the client address that the server sees."""

    def __init__(self, upstream: int = 0) -> None:
        self.upstream = upstream
        """Port of the server."""
        self._counts: dict[int, list[int]] = {}
        self._by_port: dict[int, asyncio.Task] = {}
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task] = set()
        self.port = 0

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening, and close all connections."""
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def counts(self, peer: str) -> tuple[int, int]:
        """Return the bytes from and to a client, by gRPC's name of the peer."""
        received, sent = self._counts[_port(peer)]
        return received, sent

    def cut(self, peer: str) -> None:
        """Close a client's connection."""
        self._by_port[_port(peer)].cancel()

    async def _relay(self, reader, writer) -> None:
        task = asyncio.current_task()
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        with contextlib.suppress(asyncio.CancelledError):  # at shutdown; otherwise streams log it
            there, back = await asyncio.open_connection("127.0.0.1", self.upstream)
            port = back.get_extra_info("sockname")[1]
            counts = self._counts[port] = [0, 0]
            self._by_port[port] = task
            await asyncio.gather(
                self._copy(reader, back, counts, 0), self._copy(there, writer, counts, 1)
            )

    @staticmethod
    async def _copy(reader, writer, counts, which) -> None:
        try:
            with contextlib.suppress(OSError):
                while data := await reader.read(2**16):
                    counts[which] += len(data)
                    writer.write(data)
                    await writer.drain()
        finally:
            writer.close()


def _port(peer: str) -> int:
    return int(peer.rpartition(":")[2])
