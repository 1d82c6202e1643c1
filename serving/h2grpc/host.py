"""Protocols: the parts of a server used by its connections, and of a connection used by its calls.

Imports go in one direction: server > connection > call > context > response_writer >
request_reader.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol

from h2.errors import ErrorCodes
from h2.stream import H2Stream

from serving.h2grpc.budget import PendingBytes
from serving.h2grpc.head import Refusal
from serving.h2grpc.turns import IterationLimit, Turns
from serving.h2grpc.wire import Headers, Metadata


class Details(NamedTuple):
    """Call details passed to interceptors; same fields as ``grpc.HandlerCallDetails``."""

    method: str
    """Full name of the method, ``/package.Service/Method``."""
    invocation_metadata: Metadata


class Stream(Protocol):
    """A call that sends, as seen by its connection."""

    stream: H2Stream

    def retry_send(self) -> None:
        """Retry sending."""


class ServerHost(Protocol):
    """A server as seen by its connections and calls. ``Server`` documents the settings."""

    max_message_bytes: int
    max_metadata_bytes: int
    max_streams: int
    keepalive_time: float
    keepalive_timeout: float
    request_timeout: float
    write_timeout: float | None
    undecodable: Refusal
    full: Refusal
    encoding: str | None
    clock: Callable[[], float]
    turns: Turns
    cancel_limit: IterationLimit
    pending: PendingBytes
    tasks: set[asyncio.Task[None]]
    stopping: bool
    goaway_confirmed: asyncio.Event

    def connected(self, connection: Any) -> None:
        """Register a connection."""

    def disconnected(self, connection: Any) -> None:
        """Remove a closed connection."""

    def refusal(self) -> Refusal | None:
        """Return the status for new calls if none are accepted now, otherwise None."""

    async def handler_of(self, details: Details) -> Any:
        """Run the interceptors and return the call's handler, or None for an unknown method."""


class Sender(Protocol):
    """The sending side of a connection as seen by its calls."""

    @property
    def congested(self) -> bool:
        """Whether writers should yield to the event loop."""

    def send_headers(self, stream_id: int, headers: Headers, *, end: bool = False) -> None:
        """Send headers or trailers; no-op if the stream is closed."""

    def try_send(self, call: Stream, payload: bytes) -> bool:
        """Send the whole payload in one frame and return True, if flow control allows it now."""

    def sendable_bytes(self, call: Stream) -> int:
        """Return the number of bytes that can be sent now in one frame."""

    def await_room(self, call: Stream) -> None:
        """Call ``call.retry_send`` when the window may have grown, until ``stop_awaiting_room``."""

    def stop_awaiting_room(self, call: Stream) -> None:
        """Remove the call from the queue of waiting calls; ``await_room`` adds it at the end."""

    def reset(self, stream_id: int, code: ErrorCodes) -> None:
        """Reset a stream; no-op if it is closed."""

    def acknowledge(self, stream_id: int, size: int) -> None:
        """Return ``size`` bytes to the client's flow-control window."""


class CallHost(Protocol):
    """A connection as seen by its calls."""

    loop: asyncio.AbstractEventLoop
    peer: str

    @property
    def server(self) -> ServerHost:
        """The connection's server."""

    @property
    def output(self) -> Sender:
        """The connection's sending side."""

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """Return the TLS properties of the client, keyed by gRPC's property names."""

    def remove_call(self, call: Any) -> None:
        """Remove a call that has ended."""
