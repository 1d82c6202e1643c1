"""What a handler sees of its call: the methods of ``grpc.aio.ServicerContext``."""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
import grpc.aio
from h2.stream import H2Stream

from serving.h2grpc.answer import Answer
from serving.h2grpc.compression import name_of
from serving.h2grpc.head import status_code
from serving.h2grpc.incoming import Faulty
from serving.h2grpc.peer import IDENTITY_KEYS
from serving.h2grpc.wire import Metadata

if TYPE_CHECKING:
    from serving.h2grpc.connection import Connection

EOF: Any = getattr(grpc.aio, "EOF")  # noqa: B009  missing in grpc's type stubs


class Context(Answer):
    """One call, to its handler; ``write`` and ``try_write`` are the answer's."""

    __slots__ = (
        "_call_done",
        "_cancelled",
        "_deadline",
        "_decode",
        "_status",
        "_trailing",
    )

    def __init__(self, connection: "Connection", stream: H2Stream) -> None:
        super().__init__(connection, stream)
        self._decode: Callable[[bytes], Any] = bytes
        self._deadline: float | None = None
        self._cancelled = False
        self._status: tuple[grpc.StatusCode | None, str] = (None, "")
        self._trailing: Metadata = ()
        self._call_done: list[Callable[[Any], object]] = []

    # -- the client ---------------------------------------------------------------------

    def invocation_metadata(self) -> Metadata:
        """Return what the client sent along."""
        return self._head.metadata

    def peer(self) -> str:
        """Return the client's address."""
        return self._connection.peer

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """Return what TLS says of the connection and its client, by gRPC's names."""
        return self._connection.auth_context()

    def peer_identity_key(self) -> str | None:
        """Return which item of ``auth_context`` names the client; None: TLS does not."""
        known = self._connection.auth_context()
        return next((key for key in IDENTITY_KEYS if key in known), None)

    def peer_identities(self) -> Iterable[bytes] | None:
        """Return the client's names; None if it has shown no certificate."""
        key = self.peer_identity_key()
        return None if key is None else self._connection.auth_context()[key]

    # -- the call's life ----------------------------------------------------------------

    def time_remaining(self) -> float | None:
        """Return the seconds until the client's deadline; none if it has none."""
        if self._deadline is None:
            return None
        return max(self._deadline - self._connection.loop.time(), 0.0)

    def cancelled(self) -> bool:
        """Whether the client, or the server, has given the call up."""
        return self._cancelled

    def done(self) -> bool:
        """Whether nothing more can be sent."""
        return self._ended

    def add_done_callback(self, callback: Callable[[Any], object]) -> None:
        """Call back when the call is over."""
        self._call_done.append(callback)

    # -- metadata, status, compression --------------------------------------------------

    async def send_initial_metadata(self, metadata: Iterable[tuple[str, str | bytes]]) -> None:
        """Send the headers now, with ``metadata``.

        Raises:
            UsageError: they are out already, or the call is over.
        """
        self._check_open()
        if self._started:
            raise grpc.aio.UsageError("the initial metadata is out already")
        self._start_answer(metadata)

    def set_trailing_metadata(self, metadata: Iterable[tuple[str, str | bytes]]) -> None:
        """Send ``metadata`` with the status.

        Raises:
            TypeError: they are no pairs.
        """
        self._trailing = _pairs(metadata)

    def trailing_metadata(self) -> Metadata:
        """Return what was set."""
        return self._trailing

    def set_code(self, code: grpc.StatusCode | int) -> None:
        """End with this status when the handler returns, or raises something."""
        self._status = (status_code(code), self._status[1])

    def code(self) -> grpc.StatusCode | None:
        """Return the status that was set."""
        return self._status[0]

    def set_details(self, details: str) -> None:
        """End with this message when the handler returns, or raises something with a code set."""
        self._status = (self._status[0], details)

    def details(self) -> str:
        """Return the message that was set."""
        return self._status[1]

    def set_compression(self, compression: grpc.Compression) -> None:
        """Compress messages in this way if the client reads it; else send them as they are.

        Raises:
            RuntimeError: the headers, which say so, are out.
        """
        if self._started:
            raise RuntimeError("the compression is set after the initial metadata was sent")
        self._said_encoding = name_of(compression)

    def disable_next_message_compression(self) -> None:
        """Send the next message as it is."""
        self._plain_next = True

    async def abort(
        self,
        code: grpc.StatusCode | int,
        details: str = "",
        trailing_metadata: Iterable[tuple[str, str | bytes]] = (),
    ) -> NoReturn:
        """End the call with an error; raises, so that the handler ends, too.

        Without details it takes those that were set; the metadata come to those that were set.

        Raises:
            AbortError: always, but for the following.
            UsageError: it was called before.
            TypeError: the metadata are no pairs.
        """
        if self._aborted:
            raise grpc.aio.UsageError("the call was aborted before")
        details = details or self._status[1]
        code = status_code(code)
        self._finish(code, details, (*self._trailing, *_pairs(trailing_metadata)))
        self._aborted = True
        self._status = (code, details)
        raise grpc.aio.AbortError("the call was aborted")

    async def abort_with_status(self, status: grpc.Status) -> NoReturn:
        """End the call with an error that comes with all that belongs to it; see ``abort``."""
        await self.abort(status.code, status.details, status.trailing_metadata or ())

    # -- messages -----------------------------------------------------------------------

    async def read(self) -> Any:
        """Return the client's next message, or EOF."""
        try:
            message = await self._incoming.read()
        except Faulty as fault:
            await self.abort(*fault.refusal)
        if message is None:
            return EOF
        try:
            return self._decode(message)
        except Exception:
            await self.abort(*self._connection.server.undecodable)
            raise


def _pairs(metadata: Any) -> Metadata:
    if isinstance(metadata, Iterable) and not isinstance(metadata, Mapping | str | bytes):
        pairs = tuple(metadata)
        if all(isinstance(each, tuple | list) and len(each) == 2 for each in pairs):  # noqa: PLR2004
            return pairs
    raise TypeError(f"trailing metadata are pairs of a name and a value, not {metadata!r}")
