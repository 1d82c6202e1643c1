"""A gRPC client for one long-lived bidirectional call on a dedicated connection.

grpc.aio's client passes each message through its completion queue and a thread. Here, a message is
written to the socket in the same event-loop iteration in which it is sent. Messages are bytes;
compression, retries and several calls per connection are not supported.
"""

import asyncio
import ssl
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import unquote

import grpc
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings

from serving.h2grpc.keepalive import Keepalive
from serving.h2grpc.wire import MessageReader, WireError, framed, headers_of

_WINDOW = 2**20
"""Flow-control window for the server, bytes; unread messages take at most this plus one message."""
_MAX_HEADERS = 2**14
"""Maximum size of the server's headers, bytes."""
_CONFIGURATION = H2Configuration(client_side=True, header_encoding="utf-8")
_STATUS = {code.value[0]: code.name for code in grpc.StatusCode}
_OK = "OK"


class CallError(Exception):
    """The call ended with a status other than OK, or its connection was lost."""

    def __init__(self, code: str, details: str) -> None:
        """Create the error.

        Args:
            code: Name of the gRPC status.
            details: The server's message, or what happened to the connection.
        """
        super().__init__(f"{code}: {details}")
        self.code = code
        self.details = details


@dataclass(frozen=True, slots=True)
class CallOptions:
    """How to connect, and the limits of the call."""

    max_message_bytes: int
    keepalive_time: float
    """Idle time after which a ping is sent to the server, seconds."""
    keepalive_timeout: float
    """Time for the server to answer a ping, seconds."""
    tls: ssl.SSLContext | None = None
    """Client context with ALPN h2. None means plain text."""
    server_name: str | None = None
    """Name that the certificate must contain. None means the host."""


class ClientCall(asyncio.Protocol):
    """One call; create it with :meth:`open`. Use from a single event loop."""

    def __init__(self, options: CallOptions) -> None:
        """Create the call without a connection; see :meth:`open`."""
        self._options = options
        self._h2 = H2Connection(_CONFIGURATION)
        self._stream = 0
        self._transport: asyncio.Transport | None = None
        self._messages = MessageReader(options.max_message_bytes)
        self._received: deque[bytes] = deque()
        self._received_bytes = 0
        self._unacknowledged = 0
        self._arrived = asyncio.Event()
        self._unsent: deque[memoryview] = deque()
        self._writable = asyncio.Event()
        self._paused = False
        self._closed = False
        """Whether the call has ended and the connection is closed or being closed."""
        self._error: CallError | None = None
        self._status: tuple[str, str] | None = None
        """Code and details from the trailers."""
        self._keepalive = Keepalive(
            options.keepalive_time,
            options.keepalive_timeout,
            ping=self._ping,
            on_dead=self._server_dead,
            busy=lambda: False,
        )

    @classmethod
    async def open(
        cls,
        host: str,
        port: int,
        path: str,
        options: CallOptions,
        metadata: Iterable[tuple[str, str]] = (),
    ) -> "ClientCall":
        """Connect and start a call; returns before the server answers.

        Args:
            host: The server's address or name.
            port: The server's port.
            path: ``/package.Service/Method``.
            options: Options of the connection.
            metadata: Metadata of the call.

        Raises:
            CallError: The connection cannot be established.
        """
        loop = asyncio.get_running_loop()
        name = options.server_name or host
        try:
            _, call = await loop.create_connection(
                lambda: cls(options),
                host,
                port,
                ssl=options.tls,
                server_hostname=name if options.tls is not None else None,
            )
        except OSError as error:
            raise CallError("UNAVAILABLE", f"cannot connect to {host}:{port}: {error}") from error
        authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        call._start(path, authority, metadata)  # noqa: SLF001
        return call

    async def write(self, message: bytes) -> None:
        """Send a message; waits while the server does not read messages.

        Raises:
            CallError: The call has ended.
        """
        self._raise_if_over()
        self._unsent.append(memoryview(framed(message)))
        self._send()
        while self._unsent or self._paused:
            self._writable.clear()
            await self._writable.wait()
            self._raise_if_over()

    def done_writing(self) -> None:
        """Tell the server that no more messages follow."""
        if not self._closed:
            self._h2.end_stream(self._stream)
            self._flush()

    async def read(self) -> bytes | None:
        """Return the next message, or None if the server has ended the call without an error.

        Raises:
            CallError: The call failed.
        """
        while not self._received:
            if self._closed:
                if self._error is not None:
                    raise self._error
                return None
            self._arrived.clear()
            await self._arrived.wait()
        message = self._received.popleft()
        self._received_bytes -= len(message)
        self._acknowledge()
        return message

    def cancel(self) -> None:
        """End the call and close the connection. Safe to call twice."""
        if not self._closed:
            self._h2.reset_stream(self._stream, ErrorCodes.CANCEL)
            self._flush()
            self._end(CallError("CANCELLED", "this client cancelled the call"))

    # -- asyncio.Protocol ---------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the connection preface."""
        self._transport = cast("asyncio.Transport", transport)
        self._h2.local_settings = Settings(
            client=True,
            initial_values={
                SettingCodes.ENABLE_PUSH: 0,
                SettingCodes.INITIAL_WINDOW_SIZE: _WINDOW,
                SettingCodes.MAX_HEADER_LIST_SIZE: _MAX_HEADERS,
            },
        )
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(_WINDOW)
        self._keepalive.start()
        self._flush()

    def data_received(self, data: bytes) -> None:
        """Process frames from the server."""
        self._keepalive.last_received = asyncio.get_running_loop().time()
        self._keepalive.pinged = False
        if self._closed:
            return
        try:
            for event in self._h2.receive_data(data):
                self._handle(event)
        except (ProtocolError, WireError) as error:
            self._end(CallError("INTERNAL", f"the server violates the protocol: {error}"))
            return
        if not self._closed:
            self._flush()
            if self._unsent:
                self._send()

    def pause_writing(self) -> None:
        """Stop sending, because the socket's buffer is full."""
        self._paused = True

    def resume_writing(self) -> None:
        """Resume sending, because the socket accepts data again."""
        self._paused = False
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the call with the error, unless it has ended."""
        self._end(CallError("UNAVAILABLE", f"the connection was lost: {exc or 'closed by peer'}"))

    # -- protocol -----------------------------------------------------------------------

    def _start(self, path: str, authority: str, metadata: Iterable[tuple[str, str]]) -> None:
        self._stream = self._h2.get_next_available_stream_id()
        scheme = b"http" if self._options.tls is None else b"https"
        self._h2.send_headers(
            self._stream,
            [
                (b":method", b"POST"),
                (b":scheme", scheme),
                (b":path", path.encode()),
                (b":authority", authority.encode()),
                (b"te", b"trailers"),
                (b"content-type", b"application/grpc"),
                *headers_of(metadata),
            ],
        )
        self._flush()

    def _handle(self, event: Event) -> None:
        if isinstance(event, DataReceived):
            self._unacknowledged += event.flow_controlled_length
            for message in self._messages.feed(event.data):
                self._received.append(message)
                self._received_bytes += len(message)
            self._arrived.set()
            self._acknowledge()
        elif isinstance(event, ResponseReceived):
            self._check_response(dict(cast("Any", event.headers)))
        elif isinstance(event, TrailersReceived):
            self._note_status(dict(cast("Any", event.headers)))
        elif isinstance(event, StreamEnded):
            code, details = self._status or ("UNKNOWN", "the server sent no status")
            self._end(None if code == _OK else CallError(code, details))
        elif isinstance(event, StreamReset):
            self._end(CallError("UNAVAILABLE", f"the server reset the call ({event.error_code})"))
        elif isinstance(event, ConnectionTerminated) and event.error_code:
            reason = (event.additional_data or b"").decode(errors="replace")
            text = f"the server closed the connection ({event.error_code}) {reason}".rstrip()
            self._end(CallError("UNAVAILABLE", text))

    def _check_response(self, headers: dict[str, str]) -> None:
        """Check the response headers, which contain the status if the server refuses the call."""
        status = headers.get(":status")
        if status != "200":
            self._end(CallError("UNAVAILABLE", f"the server answered with HTTP status {status}"))
        elif not headers.get("content-type", "").startswith("application/grpc"):
            self._end(CallError("UNKNOWN", "the server does not speak gRPC"))
        elif "grpc-status" in headers:
            self._note_status(headers)

    def _note_status(self, headers: dict[str, str]) -> None:
        value = headers.get("grpc-status", "")
        code = _STATUS.get(int(value), "UNKNOWN") if value.isdigit() else "UNKNOWN"
        self._status = code, unquote(headers.get("grpc-message", ""))

    def _acknowledge(self) -> None:
        """Credit received bytes to the server's window, unless many messages are unread."""
        if self._unacknowledged and self._received_bytes < _WINDOW and not self._closed:
            size, self._unacknowledged = self._unacknowledged, 0
            self._h2.acknowledge_received_data(size, self._stream)
            self._flush()

    def _send(self) -> None:
        """Send as many of the queued bytes as flow control allows."""
        h2, stream = self._h2, self._stream
        while self._unsent:
            data = self._unsent[0]
            room = min(h2.local_flow_control_window(stream), h2.max_outbound_frame_size)
            if room <= 0:
                break
            h2.send_data(stream, bytes(data[:room]))
            if room < len(data):
                self._unsent[0] = data[room:]
            else:
                self._unsent.popleft()
        self._flush()
        if not self._unsent:
            self._writable.set()

    def _flush(self) -> None:
        data = self._h2.data_to_send()
        if data and self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def _ping(self) -> None:
        self._h2.ping(b"keepaliv")
        self._flush()

    def _server_dead(self, idle: float) -> None:
        self._end(CallError("UNAVAILABLE", f"the server sent nothing for {idle:.1f} s"))
        if self._transport is not None:
            self._transport.abort()

    def _raise_if_over(self) -> None:
        if self._closed:
            raise self._error or CallError(_OK, "the server has ended the call")

    def _end(self, error: CallError | None) -> None:
        """End the call, once; received messages can still be read."""
        if self._closed:
            return
        self._closed = True
        self._error = error
        self._keepalive.stop()
        self._arrived.set()
        self._writable.set()
        if self._transport is not None:
            self._transport.close()
