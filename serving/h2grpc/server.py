"""The gRPC server: methods, interceptors, connections and graceful shutdown."""

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import Mapping, Sequence
from typing import Any

import grpc
import grpc.aio

from serving.h2grpc.acceptor import Acceptor
from serving.h2grpc.budget import MAX_PENDING_BYTES, PendingBytes
from serving.h2grpc.call import STOPPING
from serving.h2grpc.compression import name_of
from serving.h2grpc.connection import Connection
from serving.h2grpc.head import Refusal
from serving.h2grpc.host import Details
from serving.h2grpc.http2 import MAX_STREAMS
from serving.h2grpc.turns import IterationLimit, Turns

_STEP_TIMEOUT = 1.0
"""Time for clients to confirm a GOAWAY, for cancelled handlers to end, and for clients to read the
last data, each in seconds."""
_MAX_CANCELS = 32
"""Maximum number of calls of lost connections that are cancelled per event-loop iteration. The
handlers are cleaned up in the next iteration."""

_TOO_MANY_CALLS = Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many concurrent calls")
FULL = Refusal(
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    "incomplete requests use too much memory",
)
UNDECODABLE = Refusal(grpc.StatusCode.INVALID_ARGUMENT, "cannot parse the request message")


class Server:
    """A gRPC server with the methods of ``grpc.aio.Server`` that generated code calls."""

    def __init__(
        self,
        *,
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),  # type: ignore[type-arg]
        max_message_bytes: int = 4 * 2**20,
        max_metadata_bytes: int = 16 * 2**10,
        max_streams: int = MAX_STREAMS,
        max_pending_bytes: int = MAX_PENDING_BYTES,
        keepalive_time: float = 30.0,
        keepalive_timeout: float = 20.0,
        request_timeout: float = 60.0,
        write_timeout: float | None = None,
        undecodable: Refusal = UNDECODABLE,
        full: Refusal = FULL,
        compression: grpc.Compression | None = None,
        maximum_concurrent_rpcs: int | None = None,
    ) -> None:
        """Initialize the server; ``start`` begins serving.

        Args:
            interceptors: Invoked for each call in this order, as in grpc.aio.
            max_message_bytes: Maximum uncompressed size of a request message.
            max_metadata_bytes: Maximum size of a call's headers, counted as in HTTP/2.
            max_streams: Maximum number of concurrent calls per connection; further ones are
                refused as not processed.
            max_pending_bytes: Maximum total size of incomplete requests across all connections.
            keepalive_time: Idle time after which a client is pinged, seconds.
            keepalive_timeout: Time for the client to answer the ping, seconds.
            request_timeout: Time for the message of a unary request to arrive, seconds.
            write_timeout: Time for a client to read a message, seconds. None means no limit.
            undecodable: Status of calls whose message cannot be decoded.
            full: Status of calls that exceed ``max_pending_bytes``.
            compression: Compression of responses if the client accepts it; handlers may override
                it. None means the same as the client's messages.
            maximum_concurrent_rpcs: Maximum number of concurrent calls on all connections; further
                ones end with RESOURCE_EXHAUSTED. None means no limit.

        Raises:
            ValueError: An interceptor is not a ``grpc.aio.ServerInterceptor``.
        """
        self.max_message_bytes = max_message_bytes
        self.max_metadata_bytes = max_metadata_bytes
        self.max_streams = max_streams
        self.pending = PendingBytes(max_pending_bytes)
        self.keepalive_time = keepalive_time
        self.keepalive_timeout = keepalive_timeout
        self.request_timeout = request_timeout
        self.write_timeout = write_timeout
        self.undecodable = undecodable
        self.full = full
        self.encoding = name_of(compression)
        self._max_calls = maximum_concurrent_rpcs
        self.clock = time.perf_counter
        self.turns = Turns(self.clock)
        self.cancel_limit = IterationLimit(_MAX_CANCELS)
        self.connections: set[Connection] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self.stopping = False
        self._refusing = False
        self.goaway_confirmed = asyncio.Event()
        """Set when a client has confirmed the shutdown or is disconnected."""
        self._no_connections = asyncio.Event()
        self._no_connections.set()
        self._interceptors = tuple(interceptors)
        if not all(isinstance(each, grpc.aio.ServerInterceptor) for each in interceptors):
            raise ValueError(
                f"interceptors must be grpc.aio.ServerInterceptor instances: {interceptors}"
            )
        self._generic: list[Any] = []
        self._methods: dict[str, Any] = {}
        self._acceptor: Acceptor | None = None

    # -- called by generated code -------------------------------------------------------

    def add_generic_rpc_handlers(self, handlers: Sequence[Any]) -> None:
        """Register generic handlers."""
        self._generic.extend(handlers)

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Register the methods of a service."""
        self._methods.update({f"/{service}/{name}": method for name, method in handlers.items()})

    # -- start and stop -----------------------------------------------------------------

    async def start(self, listener: socket.socket, tls: ssl.SSLContext | None = None) -> int:
        """Start serving on a bound socket.

        Args:
            listener: The socket.
            tls: TLS context that offers ALPN ``h2``. None means plaintext.

        Returns:
            The port.
        """
        self._acceptor = Acceptor(listener, lambda: Connection(self), tls)
        self._acceptor.start()
        port: int = listener.getsockname()[1]
        return port

    async def leave(self) -> None:
        """Send GOAWAY to all clients: new calls go elsewhere, running calls continue.

        Returns when all clients have confirmed it, or after a second.
        """
        for connection in tuple(self.connections):
            connection.go_away()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STEP_TIMEOUT):
                while not all(each.refusing for each in self.connections):
                    self.goaway_confirmed.clear()
                    await self.goaway_confirmed.wait()

    async def stop(self, grace: float) -> None:
        """Stop accepting connections, and cancel calls that have not ended after ``grace`` seconds.

        Calls in flight when ``stop`` is called are served. It may be called repeatedly.
        """
        self.stopping = True
        if self._acceptor is not None:
            self._acceptor.close()
        for connection in tuple(self.connections):
            connection.go_away()
        if grace > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace):
                    await self._calls_ended()
        self._refusing = True
        await self._cancel_calls()
        for connection in tuple(self.connections):
            connection.close()
        # Closing waits until the client has read all data.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._no_connections.wait(), _STEP_TIMEOUT)
        for connection in tuple(self.connections):
            connection.abort()

    async def _calls_ended(self) -> None:
        """Wait until all clients have confirmed the shutdown and all calls have ended."""
        await self.leave()
        while self.tasks:
            await asyncio.wait(tuple(self.tasks))

    async def _cancel_calls(self) -> None:
        left = tuple(self.tasks)
        for connection in tuple(self.connections):
            for call in tuple(connection.calls.values()):
                call.end(STOPPING)
        if left:
            await asyncio.wait(left, timeout=_STEP_TIMEOUT)

    # -- called by connections ----------------------------------------------------------

    def connected(self, connection: Connection) -> None:
        """Register a connection."""
        self.connections.add(connection)
        self._no_connections.clear()

    def disconnected(self, connection: Connection) -> None:
        """Remove a closed connection."""
        self.connections.discard(connection)
        self.goaway_confirmed.set()
        if not self.connections:
            self._no_connections.set()

    def refusal(self) -> Refusal | None:
        """Return the status for new calls if none are accepted now, otherwise None."""
        if self._refusing:
            return STOPPING
        if self._max_calls is not None and len(self.tasks) >= self._max_calls:
            return _TOO_MANY_CALLS
        return None

    async def handler_of(self, details: Details) -> Any:
        """Run the interceptors and return the call's handler, or None for an unknown method."""
        if not self._interceptors:
            return self._lookup(details)
        return await self._intercepted(0, details)

    async def _intercepted(self, index: int, details: Any) -> Any:
        if index == len(self._interceptors):
            return self._lookup(details)

        async def continuation(passed: Any) -> Any:
            return await self._intercepted(index + 1, passed)

        return await self._interceptors[index].intercept_service(continuation, details)

    def _lookup(self, details: Any) -> Any:
        known = self._methods.get(details.method)
        if known is not None:
            return known
        for handlers in self._generic:
            if (found := handlers.service(details)) is not None:
                return found
        return None
