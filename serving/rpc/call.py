"""One RPC on the server: runs its handler, and is the context that the handler sees.

The context's methods are those of ``grpc.aio.ServicerContext`` that servicers use: ours, and
gRPC's own for health and reflection.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import grpc
import grpc.aio
import structlog
from h2.errors import ErrorCodes
from h2.stream import H2Stream

from serving.rpc.head import CONTENT_TYPE, NotGrpc, Refusal, Refused, RequestHead, status_code
from serving.rpc.wire import (
    ACCEPTED_ENCODINGS,
    Headers,
    MessageReader,
    MessageTooLarge,
    Metadata,
    WireError,
    framed,
    headers_of,
    status_text,
)

if TYPE_CHECKING:
    from serving.rpc.connection import Connection

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

EOF: Any = getattr(grpc.aio, "EOF")  # noqa: B009  missing in grpc's type stubs
_Code = grpc.StatusCode

_HEADERS: Headers = [
    (b":status", b"200"),
    (b"content-type", CONTENT_TYPE),
    (b"grpc-accept-encoding", ACCEPTED_ENCODINGS.encode()),
]
_LATE = 1.0
"""Seconds after its deadline at which a call is ended that has not ended by itself, with words
of its own."""


_TOO_MANY = Refusal(_Code.UNIMPLEMENTED, "the method takes one message, and more came")
STOPPING = Refusal(_Code.UNAVAILABLE, "the server stops")


class Details(NamedTuple):
    """What interceptors see of a call; as ``grpc.HandlerCallDetails``."""

    method: str
    invocation_metadata: Metadata


class Call:
    """One RPC."""

    __slots__ = (
        "_call_done",
        "_cancelled",
        "_connection",
        "_deadline",
        "_decode",
        "_ended",
        "_fault",
        "_messages",
        "_metadata",
        "_method",
        "_only_one",
        "_owed",
        "_reader",
        "_room",
        "_serialize",
        "_started",
        "_status",
        "_task",
        "_timer",
        "_trailing",
        "_waiting",
        "_whole",
        "began",
        "served",
        "stream",
        "stream_id",
        "went_well",
    )

    def __init__(self, connection: "Connection", stream: H2Stream, headers: Headers) -> None:
        server = connection.server
        self.stream = stream
        self.stream_id: int = stream.stream_id
        self.began = connection.loop.time()
        self.served = False
        """A handler has its request."""
        self.went_well = False
        self._connection = connection
        self._method = ""
        self._metadata: Metadata = ()
        self._deadline: float | None = None
        self._reader = MessageReader(server.max_message_bytes)
        self._messages: deque[bytes] = deque()
        self._owed = 0
        """Bytes taken in that the client may not yet send again."""
        self._whole = False
        """The client has sent its last message."""
        self._only_one = False
        """The handler has the one message that there may be."""
        self._fault: Refusal | None = None
        self._waiting: asyncio.Future[None] | None = None
        """The handler waits for a message."""
        self._room: asyncio.Future[None] | None = None
        """It waits to send one."""
        self._decode: Callable[[bytes], Any] = bytes
        self._serialize: Callable[[Any], bytes] = bytes
        self._started = False
        """Headers are out."""
        self._ended = False
        """Nothing more can be sent."""
        self._cancelled = False
        self._status: tuple[grpc.StatusCode, str] = (_Code.OK, "")
        self._trailing: Metadata = ()
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._call_done: list[Callable[[Any], object]] = []
        try:
            head = RequestHead.of(headers, server.max_metadata_bytes)
        except NotGrpc as error:
            self._answer_http(error.status)
        except Refused as refused:
            self._fault = refused.refusal
        else:
            self._method, self._metadata = head.method, head.metadata
            self._reader = MessageReader(server.max_message_bytes, head.encoding)
            if head.timeout is not None:
                self._deadline = self.began + head.timeout
                self._timer = connection.loop.call_at(self._deadline + _LATE, self._expire)

    def start(self) -> None:
        """Run it in a task of its own, unless it is refused at once."""
        server = self._connection.server
        if server.stopping and self._fault is None:
            self._fault = STOPPING
        if self._fault is not None:
            self._finish(*self._fault)
        if self._ended:
            self._over()
            return
        self._task = self._connection.loop.create_task(self._run())
        server.tasks.add(self._task)
        self._task.add_done_callback(server.tasks.discard)

    # -- what servicers see -------------------------------------------------------------

    def invocation_metadata(self) -> Metadata:
        """Return what the client sent along."""
        return self._metadata

    def peer(self) -> str:
        """Return the client's address."""
        return self._connection.peer

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

    async def send_initial_metadata(self, metadata: Iterable[tuple[str, str | bytes]]) -> None:
        """Send the headers now, with ``metadata``."""
        if self._started:
            raise grpc.aio.UsageError("the initial metadata is out already")
        self._start_answer(metadata)

    def set_trailing_metadata(self, metadata: Iterable[tuple[str, str | bytes]]) -> None:
        """Send ``metadata`` with the status."""
        self._trailing = tuple(metadata)

    def set_code(self, code: grpc.StatusCode | int) -> None:
        """End with this status when the handler returns, or raises something.

        Raises:
            ValueError: there is no such status.
        """
        self._status = (status_code(code), self._status[1])

    def set_details(self, details: str) -> None:
        """End with this message when the handler returns, or raises something with a code set."""
        self._status = (self._status[0], details)

    def code(self) -> grpc.StatusCode:
        """Return the status that was set."""
        return self._status[0]

    def details(self) -> str:
        """Return the message that was set."""
        return self._status[1]

    def trailing_metadata(self) -> Metadata:
        """Return what was set."""
        return self._trailing

    async def abort(
        self,
        code: grpc.StatusCode | int,
        details: str = "",
        trailing_metadata: Iterable[tuple[str, str | bytes]] = (),
    ) -> NoReturn:
        """End the call with an error; raises, so that the handler ends, too.

        Without details it takes those that were set; the metadata come to those that were set.
        """
        details = details or self._status[1]
        self._finish(status_code(code), details, (*self._trailing, *trailing_metadata))
        raise grpc.aio.AbortError("the call was aborted")

    async def read(self) -> Any:
        """Return the client's next message, or EOF."""
        while not self._messages:
            if self._fault is not None:
                await self.abort(*self._fault)
            if self._whole:
                return EOF
            self._waiting = self._connection.loop.create_future()
            try:
                await self._waiting
            finally:
                self._waiting = None
        message = self._messages.popleft()
        if not self._messages:
            owed, self._owed = self._owed, 0
            self._connection.acknowledge(self.stream_id, owed)
        try:
            return self._decode(self._reader.plain(message))
        except WireError as error:
            self._fault = _fault_of(error)
            await self.abort(*self._fault)

    async def write(self, message: Any) -> None:
        """Send a message; returns when it is with the transport.

        Raises:
            CancelledError: the client does not take it in the server's ``write_timeout``.
        """
        if not self.try_write(message):
            try:
                async with asyncio.timeout(self._connection.server.write_timeout):
                    await self._write_in_parts(framed(self._serialize(message)))
            except TimeoutError as error:
                raise asyncio.CancelledError("the client does not take a message") from error
        elif self._connection.crowded:
            # Else a handler that waits for nothing keeps the loop, and fills the memory.
            await asyncio.sleep(0)

    def try_write(self, message: Any) -> bool:
        """Send a message if it can go out at once; whether it did.

        Who has many without waiting for them should write some of them.
        """
        if self._ended:
            return False
        if not self._started:
            self._start_answer(())
        return self._connection.try_send(self, framed(self._serialize(message)))

    # -- what the connection tells ------------------------------------------------------

    def feed(self, data: bytes, size: int) -> bool:
        """Take in the bytes of a DATA frame, which count for ``size`` in flow control.

        Returns:
            Whether a message is complete with them.
        """
        before = len(self._messages)
        if self._fault is None and not self._ended:
            try:
                self._messages.extend(self._reader.feed(data))
            except WireError as error:
                self._fault = _fault_of(error)
        complete = len(self._messages) > before
        if complete and self._only_one:
            self.end(_TOO_MANY)
        if self._messages:
            # Until they are read: a client that sends faster than its handler reads waits.
            self._owed += size
        else:
            self._connection.acknowledge(self.stream_id, size)
        if self._messages or self._fault is not None:
            self._wake(self._waiting)
        return complete

    def no_more(self) -> None:
        """The client has sent all."""
        self._whole = True
        if not self._reader.empty and self._fault is None:
            self._fault = Refusal(_Code.INTERNAL, "the last message is not whole")
        self._wake(self._waiting)

    def has_room(self) -> None:
        """Let the handler try again to send."""
        self._wake(self._room)

    def cut(self) -> None:
        """The client is gone or has given up."""
        self._ended = self._cancelled = True
        self._over()

    def end(self, refusal: Refusal) -> None:
        """End the call from the server's side."""
        if not self._ended:
            self._cancelled = True
            self._finish(*refusal)
            self._over()

    # -- inside -------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            handler = await self._connection.server.handler_of(
                Details(self._method, self._metadata)
            )
            if handler is None:
                await self.abort(_Code.UNIMPLEMENTED, f"there is no method {self._method}")
            await self._serve(handler)
            self._finish(*self._status, self._trailing)
            self.went_well = True
        except grpc.aio.AbortError:
            pass
        except asyncio.CancelledError:
            # Somebody gave the call up: the client is told, if it is still there.
            self._cancelled = True
            if not self._ended:
                self._finish(_Code.CANCELLED, "the server gave the call up")
        except Exception as error:  # noqa: BLE001  it is logged
            self._failed(error)
        finally:
            self._over()

    def _failed(self, error: Exception) -> None:
        """End a call whose handler raised; with the status that it has set, if any."""
        code, details = self._status
        unexpected = f"Unexpected {type(error).__name__}"
        if code is _Code.OK:
            code, details = _Code.UNKNOWN, unexpected
        if not isinstance(error, NotImplementedError):  # methods that a servicer leaves out
            log.error("unhandled error in a call", method=self._method, exc_info=error)
        try:
            self._finish(code, details or unexpected, self._trailing)
        except ValueError:  # metadata that cannot be sent: perhaps just what failed
            self._finish(code, details or unexpected)

    async def _serve(self, handler: Any) -> None:
        """Give the handler what came, and send what it answers."""
        if handler.response_serializer is not None:
            self._serialize = handler.response_serializer
        if handler.request_deserializer is not None:
            self._decode = self._guarded(handler.request_deserializer)
        if handler.request_streaming:
            given: Any = self._requests()
            behaviour = handler.stream_stream or handler.stream_unary
        else:
            given = await self._only_message()
            behaviour = handler.unary_stream or handler.unary_unary
        self.served = True
        answer = behaviour(given, self)
        if not handler.response_streaming:
            message = await answer
            if self._status[0] is _Code.OK:  # else there is none that counts
                await self.write(message)
        elif hasattr(answer, "__aiter__"):
            try:
                async for message in answer:
                    await self.write(message)
            finally:
                if hasattr(answer, "aclose"):
                    await answer.aclose()
        else:
            await answer  # it writes by itself

    async def _only_message(self) -> Any:
        """Return the one message of a unary request."""
        if self._messages:
            message = await self.read()
        else:
            try:
                async with asyncio.timeout(self._connection.server.request_timeout):
                    message = await self.read()
            except TimeoutError:
                await self.abort(_Code.DEADLINE_EXCEEDED, "the request did not come")
        if message is EOF:
            await self.abort(_Code.UNIMPLEMENTED, "the call ended without a message")
        if self._messages:
            await self.abort(*_TOO_MANY)
        self._only_one = True
        return message

    async def _requests(self) -> AsyncIterator[Any]:
        while (message := await self.read()) is not EOF:
            yield message

    def _guarded(self, decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
        def decoded(message: bytes) -> Any:
            try:
                return decode(message)
            except Exception as error:
                self._finish(*self._connection.server.undecodable)
                raise grpc.aio.AbortError("the message cannot be decoded") from error

        return decoded

    async def _write_in_parts(self, payload: bytes) -> None:
        rest = memoryview(payload)
        connection = self._connection
        while rest:
            if self._ended:
                await asyncio.sleep(0)  # this task is being cancelled
                return
            room = connection.room_for(self)
            if room <= 0:
                self._room = connection.loop.create_future()
                connection.wait_for_room(self)
                try:
                    await self._room
                finally:
                    self._room = None
                continue
            connection.try_send(self, bytes(rest[:room]))
            connection.had_room(self)
            rest = rest[room:]
            if connection.crowded:
                await asyncio.sleep(0)

    def _start_answer(self, metadata: Iterable[tuple[str, str | bytes]]) -> None:
        headers = [*_HEADERS, *headers_of(metadata)]
        self._started = True
        if not self._ended:
            self._connection.send_headers(self.stream_id, headers)

    def _finish(self, code: grpc.StatusCode, details: str, trailing: Metadata = ()) -> None:
        """Send the status; the first one counts."""
        if self._ended:
            return
        trailers: Headers = [] if self._started else list(_HEADERS)
        trailers.append((b"grpc-status", str(code.value[0]).encode()))
        if details:
            trailers.append((b"grpc-message", status_text(details)))
        trailers.extend(headers_of(trailing))
        self._ended = True
        self._connection.send_headers(self.stream_id, trailers, end=True)
        if not self._whole:
            # The client need not send the rest; it has its answer.
            self._connection.reset(self.stream_id, ErrorCodes.NO_ERROR)

    def _answer_http(self, status: bytes) -> None:
        """Answer a client that does not speak gRPC."""
        self._ended = True
        text = b"this port speaks gRPC: POST with content-type application/grpc"
        headers = [(b":status", status), (b"content-type", b"text/plain")]
        headers.append((b"grpc-status", b"13"))
        headers.append((b"grpc-message", text))
        self._connection.send_headers(self.stream_id, headers, end=True)
        self._connection.reset(self.stream_id, ErrorCodes.NO_ERROR)

    def _expire(self) -> None:
        self.end(Refusal(_Code.DEADLINE_EXCEEDED, "the deadline passed"))

    def _over(self) -> None:
        """Let go of everything; the task, if it still runs, is cancelled. Safe to call twice."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        owed, self._owed = self._owed, 0
        self._messages.clear()
        self._connection.acknowledge(self.stream_id, owed)
        self._connection.forget(self)
        task, self._task = self._task, None
        if task is not None and not task.done() and task is not asyncio.current_task():
            task.cancel()
        callbacks, self._call_done = self._call_done, []
        for callback in callbacks:
            try:
                callback(self)
            except Exception:
                log.exception("a callback failed at the end of a call", method=self._method)

    def _wake(self, future: asyncio.Future[None] | None) -> None:
        if future is not None and not future.done():
            future.set_result(None)


def _fault_of(error: WireError) -> Refusal:
    too_large = isinstance(error, MessageTooLarge)
    return Refusal(_Code.RESOURCE_EXHAUSTED if too_large else _Code.INTERNAL, str(error))
