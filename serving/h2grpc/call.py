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
from serving.h2grpc.incoming import Incoming
from serving.h2grpc.wire import Headers

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_Code = grpc.StatusCode
_LATE = 1.0
"""Grace period after a call's deadline before the server ends the call, seconds."""
_TOO_MANY = Refusal(_Code.UNIMPLEMENTED, "the method takes one message, and more came")
STOPPING = Refusal(_Code.UNAVAILABLE, "the server stops")


class Call(Context):
    """One RPC."""

    __slots__ = ("_only_one", "_refusal", "_task", "_timer", "began", "served", "went_well")

    def __init__(self, connection: CallHost, stream: H2Stream, headers: Headers) -> None:
        super().__init__(connection, stream)
        server = connection.server
        self.began = connection.loop.time()
        self.served = False
        """Whether the handler has received the request."""
        self.went_well = False
        self._only_one = False
        """Whether the handler has received the one message of a unary request."""
        self._refusal: Refusal | None = None
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._head = NO_HEAD
        self._incoming = Incoming(connection, self.stream_id, "identity")
        try:
            head = RequestHead.of(headers, server.max_metadata_bytes)
        except NotGrpc as error:
            self._answer_http(error.status)
        except Refused as refused:
            self._refusal = refused.refusal
        else:
            self._head = head
            self._incoming = Incoming(connection, self.stream_id, head.encoding)
            if head.timeout is not None:
                self._deadline = self.began + head.timeout
                self._timer = connection.loop.call_at(self._deadline + _LATE, self._expire)

    def start(self) -> None:
        """Start the handler in a task, unless the call is refused immediately."""
        server = self._connection.server
        refusal = self._refusal or server.refusal()
        if refusal is None and not self._ended and not self._incoming.begin():
            refusal = server.full
        if refusal is not None:
            self._finish(*refusal)
        if self._ended:
            self._over()
            return
        self._task = self._connection.loop.create_task(self._run())
        server.tasks.add(self._task)
        self._task.add_done_callback(server.tasks.discard)

    # -- called by the connection -------------------------------------------------------

    def feed(self, data: bytes, size: int) -> bool:
        """Add the contents of a DATA frame.

        Args:
            data: the contents.
            size: size of the frame in flow control, bytes.

        Returns:
            Whether the frame completes a message.
        """
        complete = self._incoming.feed(data, size, wanted=not self._ended)
        if complete and self._only_one:
            self.end(_TOO_MANY)
        return complete

    def half_close(self) -> None:
        """Mark the end of the client's messages."""
        self._incoming.end()

    def cancel(self) -> None:
        """End the call because the client has reset the stream or disconnected."""
        self._ended = self._cancelled = True
        self._over()

    def end(self, refusal: Refusal) -> None:
        """End the call with a status chosen by the server."""
        if not self._ended:
            self._cancelled = True
            self._finish(*refusal)
            self._over()

    # -- inside -------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            handler = await self._connection.server.handler_of(
                Details(self._head.method, self._head.metadata)
            )
            if handler is None:
                await self.abort(_Code.UNIMPLEMENTED, f"there is no method {self._head.method}")
            await self._serve(handler)
            code, details = self._status
            self._finish(code or _Code.OK, details, self._trailing)
            self.went_well = True
        except grpc.aio.AbortError:
            pass
        except asyncio.CancelledError:
            # The server has cancelled the task; send the client a status.
            self._cancelled = True
            if not self._ended:
                self._finish(_Code.CANCELLED, "the server gave the call up")
        except Exception as error:  # noqa: BLE001  it is logged
            self._failed(error)
        finally:
            self._over()

    def _failed(self, error: Exception) -> None:
        """End a call whose handler raised an exception; a non-OK status it has set is kept."""
        code, details = self._status
        unexpected = f"Unexpected {type(error).__name__}"
        if code is None or code is _Code.OK:
            code, details = _Code.UNKNOWN, unexpected
        if not isinstance(error, NotImplementedError):  # raised by generated base methods
            log.error("unhandled error in a call", method=self._head.method, exc_info=error)
        self._finish(code, details or unexpected, self._trailing)

    async def _serve(self, handler: Any) -> None:
        """Run the handler and send its responses."""
        if handler.response_serializer is not None:
            self._serialize = handler.response_serializer
        if handler.request_deserializer is not None:
            self._decode = handler.request_deserializer
        if handler.request_streaming:
            given: Any = self._requests()
            behaviour = handler.stream_stream or handler.stream_unary
        else:
            given = await self._only_message()
            behaviour = handler.unary_stream or handler.unary_unary
        self.served = True
        self._incoming.serve()
        answer = behaviour(given, self)
        if not handler.response_streaming:
            message = await answer
            if (self._status[0] or _Code.OK) is _Code.OK:  # otherwise the message is dropped
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

    async def _only_message(self) -> Any:
        """Return the message of a unary request; abort the call if there is not exactly one."""
        incoming = self._incoming
        if incoming:
            message = await self.read()
        else:
            try:
                async with asyncio.timeout(self._connection.server.request_timeout):
                    message = await self.read()
            except TimeoutError:
                await self.abort(_Code.DEADLINE_EXCEEDED, "the request did not come")
        if message is EOF:
            await self.abort(_Code.UNIMPLEMENTED, "the call ended without a message")
        if incoming:
            await self.abort(*_TOO_MANY)
        self._only_one = True
        return message

    async def _requests(self) -> AsyncIterator[Any]:
        while (message := await self.read()) is not EOF:
            yield message

    def _expire(self) -> None:
        self.end(Refusal(_Code.DEADLINE_EXCEEDED, "the deadline passed"))

    def _over(self) -> None:
        """Release all resources and cancel the task if it is running. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._incoming.drop()
        self._connection.forget(self)
        task, self._task = self._task, None
        if task is not None and not task.done() and task is not asyncio.current_task():
            task.cancel()
        callbacks, self._call_done = self._call_done, []
        for callback in callbacks:
            try:
                callback(self)
            except Exception:
                log.exception("a callback failed at the end of a call", method=self._head.method)
