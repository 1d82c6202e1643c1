"""Listens, knows the methods, and stops in good order."""

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import Mapping, Sequence
from typing import Any

import grpc
import grpc.aio

from serving.h2grpc.accepting import Acceptor
from serving.h2grpc.call import STOPPING, Details
from serving.h2grpc.compression import name_of
from serving.h2grpc.connection import Connection
from serving.h2grpc.head import Refusal
from serving.h2grpc.http2 import MAX_STREAMS
from serving.h2grpc.turns import Turns

_LAST_WORDS = 1.0
"""Seconds for cancelled handlers to end, and for their clients to read what they were told."""


_TOO_MANY_CALLS = Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many calls at once")
UNDECODABLE = Refusal(grpc.StatusCode.INVALID_ARGUMENT, "the bytes are no message of this RPC")


class Server:
    """Serves gRPC; takes what ``grpc.aio.Server`` takes from generated code."""

    def __init__(
        self,
        *,
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),  # type: ignore[type-arg]
        max_message_bytes: int = 4 * 2**20,
        max_metadata_bytes: int = 16 * 2**10,
        max_streams: int = MAX_STREAMS,
        keepalive_time: float = 30.0,
        keepalive_timeout: float = 20.0,
        request_timeout: float = 60.0,
        write_timeout: float | None = None,
        undecodable: Refusal = UNDECODABLE,
        compression: grpc.Compression | None = None,
        maximum_concurrent_rpcs: int | None = None,
    ) -> None:
        """Prepare a server.

        Args:
            interceptors: see each call first, in this order; as in grpc.aio.
            max_message_bytes: of a request, uncompressed.
            max_metadata_bytes: of a call's headers, by HTTP/2's way of counting.
            max_streams: calls at once on a connection; further ones are refused unprocessed.
            keepalive_time: seconds of silence after which a client is pinged.
            keepalive_timeout: seconds that it has to answer.
            request_timeout: seconds that the one message of a unary call may take to come.
            write_timeout: seconds that a client may take to take a message; none: for ever.
            undecodable: how calls end whose message cannot be decoded.
            compression: of answers to clients that read it; none: as a client compresses what it
                sends. Handlers may say otherwise.
            maximum_concurrent_rpcs: on all connections; further ones are RESOURCE_EXHAUSTED.

        Raises:
            ValueError: an interceptor is none.
        """
        self.max_message_bytes = max_message_bytes
        self.max_metadata_bytes = max_metadata_bytes
        self.max_streams = max_streams
        self.keepalive_time = keepalive_time
        self.keepalive_timeout = keepalive_timeout
        self.request_timeout = request_timeout
        self.write_timeout = write_timeout
        self.undecodable = undecodable
        self.encoding = name_of(compression)
        self._most_calls = maximum_concurrent_rpcs
        self.clock = time.perf_counter
        self.turns = Turns(self.clock)
        self.connections: set[Connection] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self.stopping = False
        self._refusing = False
        self.told = asyncio.Event()
        """A client knows that it is to go, or is gone."""
        self._deserted = asyncio.Event()
        self._deserted.set()
        self._interceptors = tuple(interceptors)
        if not all(isinstance(each, grpc.aio.ServerInterceptor) for each in interceptors):
            raise ValueError(f"not all are grpc.aio.ServerInterceptor: {interceptors}")
        self._generic: list[Any] = []
        self._methods: dict[str, Any] = {}
        self._acceptor: Acceptor | None = None

    # -- what generated code calls ------------------------------------------------------

    def add_generic_rpc_handlers(self, handlers: Sequence[Any]) -> None:
        """Serve what these find."""
        self._generic.extend(handlers)

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Serve a service's methods."""
        self._methods.update({f"/{service}/{name}": method for name, method in handlers.items()})

    # -- life ---------------------------------------------------------------------------

    async def start(self, listening: socket.socket, tls: ssl.SSLContext | None = None) -> int:
        """Serve on a socket that is bound; returns its port. ``tls`` must offer ALPN ``h2``."""
        self._acceptor = Acceptor(listening, lambda: Connection(self), tls)
        self._acceptor.start()
        port: int = listening.getsockname()[1]
        return port

    async def leave(self) -> None:
        """Ask all clients that are there to take their next calls elsewhere; running ones go on.

        Returns when they know, or after a second.
        """
        for connection in tuple(self.connections):
            connection.go_away()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS):
                while not all(each.refusing for each in self.connections):
                    self.told.clear()
                    await self.told.wait()

    async def stop(self, grace: float) -> None:
        """Take no more connections; calls get ``grace`` seconds. Safe to call twice.

        Calls that are on the way when it begins are served, too.
        """
        self.stopping = True
        if self._acceptor is not None:
            self._acceptor.close()
        for connection in tuple(self.connections):
            connection.go_away()
        if grace > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace):
                    await self._served()
        self._refusing = True
        await self._cancel_calls()
        for connection in tuple(self.connections):
            connection.close()
        # Closing waits for what a client has not read.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._deserted.wait(), _LAST_WORDS)
        for connection in tuple(self.connections):
            connection.abort()

    async def _served(self) -> None:
        """Wait until all clients know, and all calls are over."""
        await self.leave()
        while self.tasks:
            await asyncio.wait(tuple(self.tasks))

    async def _cancel_calls(self) -> None:
        left = tuple(self.tasks)
        for connection in tuple(self.connections):
            for call in tuple(connection.calls.values()):
                call.end(STOPPING)
        if left:
            await asyncio.wait(left, timeout=_LAST_WORDS)

    # -- what connections tell ----------------------------------------------------------

    def connected(self, connection: Connection) -> None:
        """Keep a connection that was made."""
        self.connections.add(connection)
        self._deserted.clear()

    def disconnected(self, connection: Connection) -> None:
        """Drop one that is gone."""
        self.connections.discard(connection)
        self.told.set()
        if not self.connections:
            self._deserted.set()

    def refusal(self) -> Refusal | None:
        """Return why no call is taken now; none: one is."""
        if self._refusing:
            return STOPPING
        if self._most_calls is not None and len(self.tasks) >= self._most_calls:
            return _TOO_MANY_CALLS
        return None

    async def handler_of(self, details: Details) -> Any:
        """Return the handler of a call, as the interceptors let it have one; none if none is."""
        if not self._interceptors:
            return self._find(details)
        return await self._intercepted(0, details)

    async def _intercepted(self, index: int, details: Any) -> Any:
        if index == len(self._interceptors):
            return self._find(details)

        async def go_on(passed: Any) -> Any:
            return await self._intercepted(index + 1, passed)

        return await self._interceptors[index].intercept_service(go_on, details)

    def _find(self, details: Any) -> Any:
        known = self._methods.get(details.method)
        if known is not None:
            return known
        for handlers in self._generic:
            if (found := handlers.service(details)) is not None:
                return found
        return None
