"""The body of a REST request: size and time limits, and decompression."""

import asyncio
from http import HTTPStatus

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope

from serving.clock import Clock
from serving.edge.rest.content_encoding import (
    SUPPORTED,
    BrokenBody,
    Decompressor,
    OversizedBody,
    UnknownEncoding,
    decompressor,
)
from serving.edge.value_bounds import JsonBounds, TooManyValues, max_values_of
from serving.errors import Overloaded
from serving.h2grpc.budget import PendingBytes
from serving.h2grpc.turns import TaskTurns
from serving.vllm_adapter.error_response import error_response, response_of

BODY_TIMEOUT = 60.0
"""Time for a client to send a request body, seconds; same as for a gRPC message."""
_RETRY_AFTER = 1.0
"""Retry delay sent when a request exceeds ``max_pending_bytes``, seconds."""

_BODY_HEADERS = frozenset({b"content-encoding", b"content-length"})
"""Headers that describe the compressed body; removed on decompression."""


class BadBody(HTTPException):
    """The body is rejected. This is an HTTPException because FastAPI does not wrap those."""

    def __init__(self, status: int, text: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(status_code=status, detail=text, headers=headers)
        self.response = error_response(text, status=status, reason="INVALID_REQUEST")


class TooLarge(BadBody):
    """The body exceeds the limit, as sent or decompressed."""

    def __init__(self, limit: int) -> None:
        super().__init__(413, f"the request body exceeds {limit} bytes (router.max_body_bytes)")


class TooManyPending(BadBody):
    """Incomplete bodies take too much memory in total."""

    def __init__(self, limit: int) -> None:
        text = (
            f"incomplete requests exceed the total limit of {limit} bytes "
            "(security.max_pending_bytes)"
        )
        super().__init__(HTTPStatus.TOO_MANY_REQUESTS, text)
        self.response = response_of(Overloaded(text, _RETRY_AFTER))


class TooSlow(BadBody):
    """The body did not arrive in time."""

    def __init__(self) -> None:
        super().__init__(
            HTTPStatus.REQUEST_TIMEOUT,
            f"the request body did not arrive within {BODY_TIMEOUT:.0f} seconds",
        )


class RequestBody:
    """Passes the body of a request to the app, part by part."""

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        clock: Clock,
        *,
        max_bytes: int,
        max_values: int,
        turns: TaskTurns,
        pending: PendingBytes,
    ) -> None:
        """Create the body of a request.

        Args:
            scope: ASGI scope of the request.
            receive: ASGI's receive function.
            clock: The router's clock.
            max_bytes: Maximum size, both as sent and decompressed.
            max_values: Maximum number of JSON values.
            turns: Shared by all requests; long bodies are counted and parsed one per turn.
            pending: Shared by all requests; total size of incomplete bodies.
        """
        self._scope = scope
        self._receive = receive
        self._clock = clock
        self._max_bytes = max_bytes
        self._bounds = JsonBounds(max_values_of(scope["path"], max_values))
        self._turns = turns
        self._pending = pending
        self._held = 0
        """Number of bytes counted as pending."""
        self._received = 0
        self._complete = False
        self._decompressor: Decompressor | None = None
        self.arrived_at = clock.monotonic()
        """Arrival time of the request on the router's monotonic clock, seconds."""
        self.error: BadBody | None = None
        """Error with which the body was rejected, or None."""

    def check_length(self) -> None:
        """Reject a body whose content-length exceeds the limit.

        Raises:
            TooLarge: The content-length exceeds the limit.
        """
        length = Headers(scope=self._scope).get("content-length", "")
        if length.isdigit() and int(length) > self._max_bytes:
            raise TooLarge(self._max_bytes)

    def decode(self) -> None:
        """Set up decompression according to content-encoding.

        Raises:
            BadBody: The encoding is not supported.
        """
        encodings = Headers(scope=self._scope).getlist("content-encoding")
        if not encodings:
            return
        try:
            self._decompressor = decompressor(", ".join(encodings), self._max_bytes)
        except UnknownEncoding as error:
            supported = {"accept-encoding": ", ".join(SUPPORTED)}
            raise BadBody(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, str(error), supported) from error
        if self._decompressor is not None:
            self._scope["headers"] = [
                pair for pair in self._scope["headers"] if pair[0].lower() not in _BODY_HEADERS
            ]

    async def receive(self) -> Message:
        """Return the next ASGI message of the request.

        Raises:
            BadBody: The body exceeds a limit, is corrupt, or arrives too slowly.
        """
        message = await (self._receive() if self._complete else self._receive_in_time())
        if message["type"] != "http.request":
            return message
        try:
            return await self._part(message)
        except BadBody as error:
            self.error = error
            raise

    def release(self) -> None:
        """Stop counting the body as pending. Idempotent."""
        if self._held:
            self._pending.release(self._held)
            self._held = 0

    async def _receive_in_time(self) -> Message:
        """Return the next part of the body.

        Raises:
            TooSlow: The body does not arrive in time.
        """
        left = self.arrived_at + BODY_TIMEOUT - self._clock.monotonic()
        try:
            async with asyncio.timeout(max(left, 0.0)):
                return await self._receive()
        except TimeoutError as error:
            self.error = TooSlow()
            raise self.error from error

    async def _part(self, message: Message) -> Message:
        self._received += len(message.get("body", b""))
        if self._received > self._max_bytes:
            raise TooLarge(self._max_bytes)
        more = message.get("more_body", False)
        if self._decompressor is None:
            await self._check_part(message.get("body", b""), last=not more)
            return message
        try:
            body = await self._decompressor.feed(message.get("body", b""), last=not more)
        except OversizedBody as error:
            raise TooLarge(self._max_bytes) from error
        except BrokenBody as error:
            raise BadBody(HTTPStatus.BAD_REQUEST, str(error)) from error
        await self._check_part(body, last=not more)
        return {"type": "http.request", "body": body, "more_body": more}

    async def _check_part(self, body: bytes, *, last: bool) -> None:
        """Reject a body that would block other requests or exhaust memory.

        A body is rejected if it has too many values to process in one event-loop iteration, or if
        incomplete bodies take too much memory. Long bodies are counted, and later parsed, one per
        iteration.
        """
        if last:
            self._complete = True
            self.release()
        elif self._pending.take(len(body)):
            self._held += len(body)
        else:
            raise TooManyPending(self._pending.limit)
        if b"\0" in body:
            # Python's decoder also accepts UTF-16 and UTF-32, whose values are miscounted.
            raise BadBody(
                HTTPStatus.BAD_REQUEST,
                "the body must be JSON in UTF-8 (RFC 8259, section 8.1), which has no NUL bytes",
            )
        bounds = self._bounds
        bounds.take(body)
        try:
            while bounds.uncounted:
                await self._turns.turn()
                bounds.count_some()
        except TooManyValues as error:
            raise BadBody(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, str(error)) from error
        if last and bounds.heavy:
            await self._turns.turn()
