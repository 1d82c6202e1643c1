"""One RPC on the server: from its headers to its status, whatever ends it first."""

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc
import grpc.aio
import structlog
from h2.stream import H2Stream

from serving.h2grpc.context import EOF, Context
from serving.h2grpc.head import NO_HEAD, NotGrpc, Refusal, Refused, RequestHead
from serving.h2grpc.incoming import Incoming
from serving.h2grpc.wire import Headers, Metadata

if TYPE_CHECKING:
    from serving.h2grpc.connection import Connection

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_Code = grpc.StatusCode
_LATE = 1.0
"""Seconds after its deadline at which a call is ended that has not ended by itself, with words
of its own."""
_TOO_MANY = Refusal(_Code.UNIMPLEMENTED, "the method takes one message, and more came")
STOPPING = Refusal(_Code.UNAVAILABLE, "the server stops")


class Details(NamedTuple):
    """What interceptors see of a call; as ``grpc.HandlerCallDetails``."""

    method: str
    invocation_metadata: Metadata


class Call(Context):
    """One RPC."""

    __slots__ = ("_only_one", "_refusal", "_task", "_timer", "began", "served", "went_well")

    def __init__(self, connection: "Connection", stream: H2Stream, headers: Headers) -> None:
        super().__init__(connection, stream)
        server = connection.server
        self.began = connection.loop.time()
        self.served = False
        """A handler has its request."""
        self.went_well = False
        self._only_one = False
        """The handler has the one message that there may be."""
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
        """Run it in a task of its own, unless it is refused at once."""
        server = self._connection.server
        refusal = self._refusal or server.refusal()
        if refusal is not None:
            self._finish(*refusal)
        if self._ended:
            self._over()
            return
        self._task = self._connection.loop.create_task(self._run())
        server.tasks.add(self._task)
        self._task.add_done_callback(server.tasks.discard)

    # -- what the connection tells ------------------------------------------------------

    def feed(self, data: bytes, size: int) -> bool:
        """Take in the bytes of a DATA frame, which count for ``size`` in flow control.

        Returns:
            Whether a message is complete with them.
        """
        complete = self._incoming.feed(data, size, wanted=not self._ended)
        if complete and self._only_one:
            self.end(_TOO_MANY)
        return complete

    def no_more(self) -> None:
        """The client has sent all."""
        self._incoming.end()

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
        if code is None or code is _Code.OK:
            code, details = _Code.UNKNOWN, unexpected
        if not isinstance(error, NotImplementedError):  # methods that a servicer leaves out
            log.error("unhandled error in a call", method=self._head.method, exc_info=error)
        self._finish(code, details or unexpected, self._trailing)

    async def _serve(self, handler: Any) -> None:
        """Give the handler what came, and send what it answers."""
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
        answer = behaviour(given, self)
        if not handler.response_streaming:
            message = await answer
            if (self._status[0] or _Code.OK) is _Code.OK:  # else there is none that counts
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
        """Let go of everything; the task, if it still runs, is cancelled. Safe to call twice."""
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
