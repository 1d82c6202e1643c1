"""The context passed to handlers, with the methods of ``grpc.aio.ServicerContext``."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

import grpc
import grpc.aio
from h2.stream import H2Stream

from serving.h2grpc.compression import name_of
from serving.h2grpc.head import status_code
from serving.h2grpc.host import CallHost
from serving.h2grpc.peer import IDENTITY_KEYS
from serving.h2grpc.request_reader import RequestError
from serving.h2grpc.response_writer import ResponseWriter
from serving.h2grpc.wire import Metadata

EOF: Any = getattr(grpc.aio, "EOF")  # noqa: B009  missing in grpc's type stubs


class Context(ResponseWriter):
    """The handler's view of a call, with ``write`` and ``try_write`` of ``ResponseWriter``."""

    __slots__ = (
        "_call_done",
        "_cancelled",
        "_deadline",
        "_decode",
        "_status",
        "_trailing",
    )

    def __init__(self, connection: CallHost, stream: H2Stream) -> None:
        super().__init__(connection, stream)
        self._decode: Callable[[bytes], Any] = bytes
        self._deadline: float | None = None
        self._cancelled = False
        self._status: tuple[grpc.StatusCode | None, str] = (None, "")
        self._trailing: Metadata = ()
        self._call_done: list[Callable[[Any], object]] = []

    # -- the client ---------------------------------------------------------------------

    def invocation_metadata(self) -> Metadata:
        """Return the client's metadata."""
        return self._head.metadata

    def peer(self) -> str:
        """Return the client's address."""
        return self._connection.peer

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """Return the TLS properties of connection and client, keyed by gRPC's property names."""
        return self._connection.auth_context()

    def peer_identity_key(self) -> str | None:
        """Return the key of ``auth_context`` that identifies the client, or None."""
        properties = self._connection.auth_context()
        return next((key for key in IDENTITY_KEYS if key in properties), None)

    def peer_identities(self) -> Iterable[bytes] | None:
        """Return the client's identities, or None without a client certificate."""
        key = self.peer_identity_key()
        return None if key is None else self._connection.auth_context()[key]

    # -- lifecycle ----------------------------------------------------------------------

    def time_remaining(self) -> float | None:
        """Return the time to the client's deadline, seconds, or None without a deadline."""
        if self._deadline is None:
            return None
        return max(self._deadline - self._connection.loop.time(), 0.0)

    def cancelled(self) -> bool:
        """Return whether the call has been cancelled by the client or the server."""
        return self._cancelled

    def done(self) -> bool:
        """Return whether the call has ended, so that nothing can be sent."""
        return self._ended

    def add_done_callback(self, callback: Callable[[Any], object]) -> None:
        """Register ``callback``, called with this context when the call has ended."""
        self._call_done.append(callback)

    # -- metadata, status, compression --------------------------------------------------

    async def send_initial_metadata(self, metadata: Iterable[tuple[str, str | bytes]]) -> None:
        """Send the response headers immediately, with ``metadata``.

        Raises:
            UsageError: The headers have already been sent, or the call has ended.
        """
        self._check_open()
        if self._headers_sent:
            raise grpc.aio.UsageError("the initial metadata has already been sent")
        self._send_headers(metadata)

    def set_trailing_metadata(self, metadata: Iterable[tuple[str, str | bytes]]) -> None:
        """Set the metadata to send with the status.

        Raises:
            TypeError: ``metadata`` is not a sequence of pairs.
        """
        self._trailing = _pairs(metadata)

    def trailing_metadata(self) -> Metadata:
        """Return the trailing metadata set so far."""
        return self._trailing

    def set_code(self, code: grpc.StatusCode | int) -> None:
        """Set the status code to send when the handler returns or raises an exception."""
        self._status = (status_code(code), self._status[1])

    def code(self) -> grpc.StatusCode | None:
        """Return the status code set so far, or None."""
        return self._status[0]

    def set_details(self, details: str) -> None:
        """Set the status message to send when the handler returns, or raises with a code set.

        Raises:
            TypeError: ``details`` is not text.
        """
        self._status = (self._status[0], _text(details))

    def details(self) -> str:
        """Return the status message set so far."""
        return self._status[1]

    def set_compression(self, compression: grpc.Compression) -> None:
        """Set the compression of messages; used if the client accepts it.

        Raises:
            RuntimeError: The headers, which announce the compression, have been sent.
        """
        if self._headers_sent:
            raise RuntimeError("set_compression must be called before the initial metadata is sent")
        self._requested_encoding = name_of(compression)

    def disable_next_message_compression(self) -> None:
        """Send the next message uncompressed."""
        self._next_uncompressed = True

    async def abort(
        self,
        code: grpc.StatusCode | int,
        details: str = "",
        trailing_metadata: Iterable[tuple[str, str | bytes]] = (),
    ) -> NoReturn:
        """End the call with an error, and raise an exception to end the handler.

        Args:
            code: The status code.
            details: The status message. If empty, the one set by ``set_details``.
            trailing_metadata: Sent in addition to the metadata of ``set_trailing_metadata``.

        Raises:
            AbortError: Always, except in the following cases.
            UsageError: The call has already been aborted.
            TypeError: ``details`` is not text, or ``trailing_metadata`` is not a sequence of pairs.
        """
        if self._aborted:
            raise grpc.aio.UsageError("the call has already been aborted")
        details = _text(details) or self._status[1]
        code = status_code(code)
        self._send_status(code, details, (*self._trailing, *_pairs(trailing_metadata)))
        self._aborted = True
        self._status = (code, details)
        raise grpc.aio.AbortError("the call was aborted")

    async def abort_with_status(self, status: grpc.Status) -> NoReturn:
        """End the call with a ``grpc.Status``; see ``abort``."""
        await self.abort(status.code, status.details, status.trailing_metadata or ())

    # -- messages -----------------------------------------------------------------------

    async def read(self) -> Any:
        """Return the client's next message, or EOF."""
        try:
            message = await self._incoming.read()
        except RequestError as fault:
            await self.abort(*fault.refusal)
        if message is None:
            return EOF
        try:
            return self._decode(message)
        except Exception:
            await self.abort(*self._connection.server.undecodable)
            raise


def _text(details: Any) -> str:
    if details is None or isinstance(details, str):
        return details or ""
    raise TypeError(f"details must be text, not {type(details).__name__}")


def _pairs(metadata: Any) -> Metadata:
    if isinstance(metadata, Iterable) and not isinstance(metadata, Mapping | str | bytes):
        pairs = tuple(metadata)
        if all(isinstance(each, tuple | list) and len(each) == 2 for each in pairs):  # noqa: PLR2004
            return pairs
    raise TypeError(f"trailing metadata must be a sequence of (key, value) pairs, not {metadata!r}")
