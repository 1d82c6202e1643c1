"""uvicorn embedded in the router, without signal handlers; the router starts and stops it."""

import asyncio
import contextlib
import functools
import socket
import ssl
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from serving.edge.rest.http_protocol import BoundedHttpProtocol
from serving.errors import SettingsError
from serving.h2grpc.acceptor import Acceptor

_KEEP_ALIVE = 75
"""Time that an idle connection stays open, seconds; longer than in clients' connection pools."""


class RestServer(uvicorn.Server):
    """Serves an ASGI app on a bound socket."""

    def __init__(
        self,
        app: ASGIApp,
        listening: socket.socket,
        *,
        stop_grace: float,
        protocol: type[BoundedHttpProtocol],
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Create the server; ``start`` begins serving.

        Args:
            app: The ASGI app.
            listening: A bound socket.
            stop_grace: Time for running requests to finish when the server stops, seconds.
            protocol: Protocol class of connections, from ``bounded_protocol``.
            tls: TLS context. None means plaintext.
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
        self.app = app
        self._listening = listening
        self._protocol_class = protocol
        self._acceptor: Acceptor | None = None
        self._ready = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        """The port that the server listens on."""
        port: int = self._listening.getsockname()[1]
        return port

    async def start(self) -> None:
        """Start serving.

        Raises:
            SettingsError: The app did not start.
        """
        self._task = asyncio.create_task(self.serve(sockets=[self._listening]))
        ready = asyncio.create_task(self._ready.wait())
        try:
            await asyncio.wait({ready, self._task}, return_when=asyncio.FIRST_COMPLETED)
            if self._task.done():
                raise SettingsError("the REST server did not start; see the log for the cause")
        finally:
            ready.cancel()

    async def stop(self) -> None:
        """Stop listening, and cancel running requests after the grace period."""
        self.should_exit = True
        if self._task is not None:
            await asyncio.wait({self._task})

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Do not install signal handlers, because the process has installed others."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start listening."""
        del sockets
        await super().startup([])
        make_protocol = functools.partial(
            self._protocol_class,
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )
        self._acceptor = Acceptor(self._listening, make_protocol, self.config.ssl)
        self._acceptor.start()
        self._ready.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening and wait for running requests."""
        del sockets
        if self._acceptor is not None:
            self._acceptor.close()
        await super().shutdown([])
