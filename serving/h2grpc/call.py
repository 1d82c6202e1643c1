"""One RPC on the server, from request headers to status."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import structlog
from h2.stream import H2Stream

from serving.h2grpc.context import EOF, Context
from serving.h2grpc.head import NO_HEAD, NotGrpc, Refusal, Refused, RequestHead
from serving.h2grpc.host import CallHost, Details
from serving.h2grpc.request_reader import RequestReader
from serving.h2grpc.wire import Headers

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_Code = grpc.StatusCode
_DEADLINE_GRACE = 1.0
"""Grace period after a call's deadline before the server ends the call, seconds."""
_TOO_MANY_MESSAGES = Refusal(
    _Code.UNIMPLEMENTED, "the client sent more than one message to a unary method"
)
_EXPIRED = Refusal(_Code.DEADLINE_EXCEEDED, "deadline exceeded")
STOPPING = Refusal(_Code.UNAVAILABLE, "the server is shutting down")


class Call(Context):
    """One RPC."""

    __slots__ = (
        "_refusal",
        "_task",
        "_timer",
        "_unary_received",
        "served",
        "started_at",
        "succeeded",
    )

    def __init__(self, connection: CallHost, stream: H2Stream, headers: Headers) -> None:
        super().__init__(connection, stream)
        server = connection.server
        self.started_at = connection.loop.time()
        self.served = False
        """Whether the handler has received the request."""
        self.succeeded = False
        self._unary_received = False
        """Whether the handler has received the one message of a unary request."""
        self._refusal: Refusal | None = None
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._head = NO_HEAD
        self._incoming = RequestReader(connection, self.stream_id, "identity")
        try:
            head = RequestHead.of(headers, server.max_metadata_bytes)
        except NotGrpc as error:
            self._reject_http(error.status)
        except Refused as refused:
            self._refusal = refused.refusal
        else:
            self._head = head
            self._incoming = RequestReader(connection, self.stream_id, head.encoding)
            if head.timeout is not None:
                self._deadline = self.started_at + head.timeout
                self._timer = connection.loop.call_at(
                    self._deadline + _DEADLINE_GRACE, self._expire
                )

    def start(self) -> None:
        """Start the handler in a task, unless the call is refused immediately."""
        server = self._connection.server
        refusal = self._refusal or server.refusal()
        if refusal is None and not self._ended and not self._incoming.begin():
            refusal = server.full
        if refusal is not None:
            self._send_status(*refusal)
        if self._ended:
            self._clean_up()
            return
        self._task = self._connection.loop.create_task(self._run())
        server.tasks.add(self._task)
        self._task.add_done_callback(server.tasks.discard)

    # -- called by the connection -------------------------------------------------------

    def feed(self, data: bytes, size: int) -> bool:
        """Add the contents of a DATA frame.

        Args:
            data: The contents.
            size: Size of the frame in flow control, bytes.

        Returns:
            Whether the frame completes a message.
        """
        complete = self._incoming.feed(data, size, keep=not self._ended)
        if complete and self._unary_received:
            self.end(_TOO_MANY_MESSAGES)
        return complete

    def half_close(self) -> None:
        """Mark the end of the client's messages."""
        self._incoming.end()

    def cancel(self) -> None:
        """End the call because the client has reset the stream or disconnected."""
        self._ended = self._cancelled = True
        self._clean_up()

    def end(self, refusal: Refusal) -> None:
        """End the call with a status chosen by the server."""
        if not self._ended:
            self._cancelled = True
            self._send_status(*refusal)
            self._clean_up()

    # -- internals ----------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            handler = await self._connection.server.handler_of(
                Details(self._head.method, self._head.metadata)
            )
            if handler is None:
                await self.abort(_Code.UNIMPLEMENTED, f"unknown method {self._head.method}")
            await self._serve(handler)
            code, details = self._status
            if self._late and (code or _Code.OK) is _Code.OK:
                code, details = _EXPIRED.code, _EXPIRED.details
            self._send_status(code or _Code.OK, details, self._trailing)
            self.succeeded = True
        except grpc.aio.AbortError as error:
            if not self._aborted:  # raised by the handler itself
                self._handler_failed(error)
        except asyncio.CancelledError:
            # The server has cancelled the task; send the client a status.
            self._cancelled = True
            if not self._ended:
                self._send_status(_Code.CANCELLED, "the server cancelled the call")
        except Exception as error:  # noqa: BLE001  it is logged
            self._handler_failed(error)
        finally:
            self._clean_up()

    def _handler_failed(self, error: Exception) -> None:
        """End a call whose handler raised an exception; a non-OK status it has set is kept."""
        code, details = self._status
        unexpected = f"Unexpected {type(error).__name__}"
        if code is None or code is _Code.OK:
            code, details = _Code.UNKNOWN, unexpected
        if not isinstance(error, NotImplementedError):  # raised by generated base methods
            log.error("unhandled exception in a call", method=self._head.method, exc_info=error)
        self._send_status(code, details or unexpected, self._trailing)

    async def _serve(self, handler: Any) -> None:
        """Run the handler and send its responses."""
        if handler.response_serializer is not None:
            self._serialize = handler.response_serializer
        if handler.request_deserializer is not None:
            self._decode = handler.request_deserializer
        if handler.request_streaming:
            argument: Any = self._requests()
            method = handler.stream_stream or handler.stream_unary
        else:
            argument = await self._read_unary()
            method = handler.unary_stream or handler.unary_unary
        self.served = True
        self._incoming.serve()
        answer = method(argument, self)
        if not handler.response_streaming:
            message = await answer
            # With another status, the message is dropped.
            if (self._status[0] or _Code.OK) is _Code.OK and not self._late:
                await self.write(message)
        elif hasattr(answer, "__aiter__"):
            try:
                async for message in answer:
                    await self.write(message)
            finally:
                if hasattr(answer, "aclose"):
                    await answer.aclose()
        else:
            await answer  # the handler calls ``write`` itself

    async def _read_unary(self) -> Any:
        """Return the message of a unary request; abort the call if there is not exactly one."""
        incoming = self._incoming
        if incoming:
            message = await self.read()
        else:
            try:
                async with asyncio.timeout(self._connection.server.request_timeout):
                    message = await self.read()
            except TimeoutError:
                await self.abort(
                    _Code.DEADLINE_EXCEEDED, "the request message was not received in time"
                )
        if message is EOF:
            await self.abort(_Code.UNIMPLEMENTED, "the client sent no request message")
        if incoming:
            await self.abort(*_TOO_MANY_MESSAGES)
        self._unary_received = True
        return message

    async def _requests(self) -> AsyncIterator[Any]:
        while (message := await self.read()) is not EOF:
            yield message

    @property
    def _late(self) -> bool:
        """Whether the deadline has passed, so that the client no longer waits for a response."""
        return self._deadline is not None and self._connection.loop.time() >= self._deadline

    def _expire(self) -> None:
        self.end(_EXPIRED)

    def _clean_up(self) -> None:
        """Release all resources and cancel the task if it is running. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._incoming.drop()
        self._connection.remove_call(self)
        task, self._task = self._task, None
        if task is not None and not task.done() and task is not asyncio.current_task():
            task.cancel()
        callbacks, self._call_done = self._call_done, []
        for callback in callbacks:
            try:
                callback(self)
            except Exception:
                log.exception("a done callback raised an exception", method=self._head.method)
