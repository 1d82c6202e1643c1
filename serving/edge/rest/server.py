"""uvicorn as a part: it listens when told, stops when told, and leaves signals alone."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from serving.edge.rest.http_protocol import BoundedHttpProtocol
from serving.errors import SettingsError
from serving.h2grpc.accepting import Acceptor

_KEEP_ALIVE = 75
"""Seconds that an idle connection stays; longer than client pools keep theirs."""


class RestServer(uvicorn.Server):
    """Serves an ASGI app on a socket that is bound already."""

    def __init__(
        self,
        app: ASGIApp,
        listening: socket.socket,
        *,
        stop_grace: float,
        protocol: type[BoundedHttpProtocol],
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Serve ``app``.

        Args:
            app: what answers.
            listening: the socket, bound.
            stop_grace: seconds that requests get when it stops.
            protocol: of a connection, made by ``bounded_protocol``.
            tls: none for plain text.
        """
        super().__init__(
            uvicorn.Config(
                app,
                loop="none",
                http=protocol,
                ssl_context_factory=None if tls is None else lambda _config, _default: tls,
                ws="none",
                access_log=False,
                log_config=None,
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE,
                timeout_graceful_shutdown=max(1, int(stop_grace)),
            )
        )
        self._listening = listening
        self._protocol_class = protocol
        self._acceptor: Acceptor | None = None
        self._ready = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        """Where it listens."""
        port: int = self._listening.getsockname()[1]
        return port

    async def start(self) -> None:
        """Serve from here on.

        Raises:
            SettingsError: the app did not start.
        """
        self._task = asyncio.create_task(self.serve(sockets=[self._listening]))
        ready = asyncio.create_task(self._ready.wait())
        try:
            await asyncio.wait({ready, self._task}, return_when=asyncio.FIRST_COMPLETED)
            if self._task.done():
                raise SettingsError("the REST server did not start; its log lines say why")
        finally:
            ready.cancel()

    async def stop(self) -> None:
        """Take no more connections; requests get the grace, then they are cancelled."""
        self.should_exit = True
        if self._task is not None:
            await asyncio.wait({self._task})

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the process."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        del sockets
        await super().startup([])
        self._acceptor = Acceptor(self._listening, self._protocol, self.config.ssl)
        self._acceptor.start()
        self._ready.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more connections, and let requests end."""
        del sockets
        if self._acceptor is not None:
            self._acceptor.close()
        await super().shutdown([])

    def _protocol(self) -> asyncio.Protocol:
        made: asyncio.Protocol = self._protocol_class(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return made
