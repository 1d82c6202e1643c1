"""A TCP proxy in front of a router whose connections tests cut or silence."""

import asyncio
import contextlib


class CutProxy:
    """Forwards connections to a port of this machine."""

    def __init__(self, target: int) -> None:
        self.port = 0
        self._target = target
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._flows = asyncio.Event()
        self._flows.set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._forward, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def cut(self) -> None:
        """Reset all connections; new ones are accepted."""
        for writer in tuple(self._writers):
            writer.transport.abort()

    def silence(self) -> None:
        """Forward nothing until ``speak``, without an error on any connection."""
        self._flows.clear()

    def speak(self) -> None:
        self._flows.set()

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers |= {writer, up_writer}
        pipes = [
            asyncio.create_task(self._pipe(source, sink))
            for source, sink in ((reader, up_writer), (up_reader, writer))
        ]
        self._tasks |= set(pipes)
        await asyncio.wait(pipes, return_when=asyncio.FIRST_COMPLETED)
        for each in (writer, up_writer):
            each.close()
            self._writers.discard(each)

    async def _pipe(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(2**16):
                await self._flows.wait()
                sink.write(data)
                await sink.drain()
