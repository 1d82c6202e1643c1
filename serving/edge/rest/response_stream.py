"""The response to a REST request.

The start of a streamed response is held back until its first part is available, so that an early
error gets the correct status. Comments keep the connections of idle streams alive.
``ResponseProgress`` provides the data for the request's log line.
"""

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Protocol

from starlette.datastructures import Headers
from starlette.types import Message, Scope, Send
from vllm.entrypoints.serve.engine.protocol import ErrorResponse

from serving.clock import Clock
from serving.edge.request_headers import COST, EXPLAIN, REQUEST_ID, explanation_of
from serving.edge.rest.keep_alive import KeepAlive
from serving.edge.rest.request_body import BadBody, RequestBody
from serving.edge.rest.response_headers import response_headers
from serving.request_context import RequestContext
from serving.vllm_adapter import anthropic_errors
from serving.vllm_adapter.error_response import (
    content_of,
    event_response,
    is_retryable,
    reason_of,
    retry_after_in,
    retry_after_of,
)

_ERROR_EVENTS = (b'data: {"error":', b"event: error\n")
_LAST_EVENTS = (
    b"data: [DONE]",
    b"event: message_stop",
    b"event: response.completed",
    b"event: response.incomplete",
    b"event: response.failed",
)
"""Events that tell a client that the response is complete, before the connection is closed."""
_SLOW_EVENTS = (*_ERROR_EVENTS, *_LAST_EVENTS)
_EVENT_END = b"\n\n"

_KEPT_HEADERS = (b"access-control-", b"vary", b"accept-encoding")
"""Headers kept when an error body replaces a response; browsers need them to show the error."""

_EVENT_STREAM_HEADERS = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))
"""Headers that prevent proxies from caching or buffering an event stream."""

COMMENT = b": waiting\n"
"""Comment in an event stream; clients skip lines that start with a colon. It ends with one newline
only: with two, some decoders read the comment as an event without data."""
RESUMED = "x-resumed"
"""Comment in an event stream, before the first event after the request has resumed on another rank:
``: x-resumed N``, where N is the number of resumptions so far."""


@dataclass(slots=True)
class ResponseProgress:
    """Progress of sending a response."""

    held: Message | None = None
    """Start of a response, held back until its first part: a streamed response may turn out to be
    an error, and the body of a retryable error contains the value for its retry-after header."""
    started_at: float | None = None
    """Time when the first part was sent, on the router's monotonic clock, seconds."""
    streamed: bool = False
    """Whether the response is an event stream."""
    passthrough: bool = False
    """Whether events are passed on unchanged because the first part has been sent."""
    between_events: bool = True
    """Whether a stream is between two events, where a comment may be inserted."""
    status: int = 0
    replaced: bool = False
    """Whether an error body was sent; further messages from the app are dropped."""
    responded: bool = False
    """Whether any part has been sent."""
    complete: bool = False
    explained: bool = False
    """Whether the routing decision has been explained to the client."""
    resumed: bool = False
    """Whether the request has moved to another rank since the last event."""
    reason: str | None = None
    """Reason of the error that was sent, or None."""


class EndOfResponse(Protocol):
    """Steps to take before a client can see that its response is complete."""

    def before_last_part(self, response: "ResponseStream") -> None:
        """Called before the last part is sent, more than once if parts follow it."""
        ...

    def cost(self, response: "ResponseStream") -> str | None:
        """Return the cost of a finished request; None if it is not permitted or not known."""
        ...


class ResponseStream:
    """Passes the app's response to the client, replacing it with an error if necessary."""

    def __init__(
        self,
        scope: Scope,
        send: Send,
        body: RequestBody,
        clock: Clock,
        keepalive_interval: float,
        end: EndOfResponse | None = None,
    ) -> None:
        """Create the response to a request.

        Args:
            scope: ASGI scope of the request.
            send: ASGI's send function.
            body: The body of the request.
            clock: The router's clock.
            keepalive_interval: Idle time after which a comment is sent in a stream, seconds.
            end: Called before the last part of the app's response.
        """
        self._end = end
        self.scope = scope
        self.request_id: str | None = None
        self.request_context: RequestContext | None = None
        """Context of an authenticated work request. None for a page, or before authentication."""
        self.body = body
        self.arrived_at = body.arrived_at
        self._send = send
        self._clock = clock
        self._keepalive_interval = keepalive_interval
        self._keepalive: KeepAlive | None = None
        self._sending = asyncio.Lock()
        self.progress = ResponseProgress()
        self.disconnected = False

    @property
    def responded(self) -> bool:
        """Whether any part of a response has been sent."""
        return self.progress.responded

    @property
    def complete(self) -> bool:
        """Whether the whole response has been sent."""
        return self.progress.complete

    @property
    def is_client_error(self) -> bool:
        """Whether a complete response with a 4xx status has been sent."""
        bad, broken = HTTPStatus.BAD_REQUEST, HTTPStatus.INTERNAL_SERVER_ERROR
        return self.progress.complete and bad <= self.progress.status < broken

    def forward_request_id(self) -> None:
        """Add the request id to the request's headers, for vLLM's handlers."""
        assert self.request_id is not None
        name = REQUEST_ID.encode()
        others = [pair for pair in self.scope["headers"] if pair[0].lower() != name]
        self.scope["headers"] = [*others, (name, self.request_id.encode("latin-1"))]

    async def receive(self) -> Message:
        """Return the next ASGI message of the request, and record a disconnect."""
        message = await self.body.receive()
        if message["type"] == "http.disconnect" and not self.progress.complete:
            self.disconnected = True
        return message

    async def send(self, message: Message) -> None:
        """Send a message from the app; an error in the first part of a stream sets the status."""
        async with self._sending:
            await self._forward(message)

    async def push(self, event: bytes) -> None:
        """Send an event of a stream; a fast path of ``send``."""
        now = self.progress
        if (
            not now.passthrough
            or self._sending.locked()
            or event.startswith(_SLOW_EVENTS)
            or not event.endswith(_EVENT_END)
        ):
            await self.send({"type": "http.response.body", "body": event, "more_body": True})
            return
        # Nearly all events take this path: nothing is held back and no comment is being sent.
        if self._keepalive is not None:
            self._keepalive.data_sent()
        await self._send({"type": "http.response.body", "body": event, "more_body": True})

    def mark_resumed(self) -> None:
        """Tell the client with the next event that the request has moved to another rank."""
        self.progress.resumed = True
        self.progress.passthrough = False

    def close(self) -> None:
        """Stop sending comments and release the body."""
        self.body.release()
        if self._keepalive is not None:
            self._keepalive.stop()

    async def _forward(self, message: Message) -> None:
        now = self.progress
        if now.replaced:
            return
        if self.body.error is not None and not now.responded:
            await self.fail_body(self.body.error)
        elif message["type"] == "http.response.start":
            headers = Headers(raw=message["headers"])
            if headers.get("content-type", "").startswith("text/event-stream"):
                present = headers.keys()
                message["headers"] = [
                    *message["headers"],
                    *(pair for pair in _EVENT_STREAM_HEADERS if pair[0].decode() not in present),
                ]
                now.held = message
                now.streamed = True
                self._keepalive = KeepAlive(self._keepalive_interval, self._comment)
            elif is_retryable(message["status"]) or self._is_translated(message["status"]):
                now.held = message
            else:
                await self._start(message)
        else:
            await self._body(message)

    async def _body(self, message: Message) -> None:
        now = self.progress
        body = message.get("body", b"")
        if now.held is not None and not now.streamed:
            if self._is_translated(now.held["status"]):
                message = self._translated(now.held, message)
            await self._start_held(now.held, retry_after_in(body, now.held["status"]))
        elif now.held is not None:
            if body.startswith(_ERROR_EVENTS):
                # Nothing has been sent, so the response can still get the error's status.
                response, content = event_response(body)
                await self.fail(response, now.held["headers"], content)
                return
            await self._start_held(now.held)
        between_events = now.between_events
        if now.streamed and body:
            now.started_at = now.started_at or self._clock.monotonic()
            now.between_events = body.endswith(_EVENT_END)
            if self._keepalive is not None:
                self._keepalive.data_sent()
        if body.startswith(_ERROR_EVENTS):
            now.reason = reason_of(event_response(body)[0].error)
        if now.streamed and between_events and (comments := self._comments()):
            await self._send({"type": "http.response.body", "body": comments, "more_body": True})
        complete = not message.get("more_body", False)
        await self._announce(body, complete=complete)
        await self._send(message)
        explains = (
            self.request_context is not None and self.request_context.explain and not now.explained
        )
        # The request may have resumed while this part was being sent.
        now.passthrough = now.streamed and now.between_events and not explains and not now.resumed
        if complete:
            now.complete = True
            now.passthrough = False
            self.close()

    def _comments(self) -> bytes:
        """Return the comments to send before the next event of a stream."""
        comments = b""
        if (explanation := self._take_explanation()) is not None:
            # The headers were sent before a rank was chosen.
            comments = f": {EXPLAIN} {explanation}\n".encode()
        if self.progress.resumed and self.request_context is not None:
            self.progress.resumed = False
            comments += f": {RESUMED} {self.request_context.record.resumes}\n".encode()
        return comments

    async def _announce(self, body: bytes, *, complete: bool) -> None:
        """Call ``before_last_part`` if a client can see from this part that it is the last.

        The last event of a stream is preceded by a comment with the request's cost, if requested.
        """
        last = body.startswith(_LAST_EVENTS)
        if self._end is not None and (complete or last):
            self._end.before_last_part(self)
        if last and (cost := self._cost()) is not None:
            comment = f": {COST} {cost}\n".encode()
            await self._send({"type": "http.response.body", "body": comment, "more_body": True})

    def _cost(self) -> str | None:
        context = self.request_context
        if self._end is None or context is None or not context.shows_cost:
            return None
        return self._end.cost(self)

    async def _comment(self) -> None:
        """Send a comment in an idle stream, preceded by the held-back start, if any."""
        async with self._sending:
            now = self.progress
            if now.complete or now.replaced or not now.between_events:
                return
            if now.held is not None:
                await self._start_held(now.held)
            await self._send({"type": "http.response.body", "body": COMMENT, "more_body": True})

    async def _start_held(self, start: Message, retry_after: float | None = None) -> None:
        self.progress.held = None
        await self._start(start, retry_after)

    async def fail(
        self,
        response: ErrorResponse,
        headers_of_app: Iterable[tuple[bytes, bytes]] = (),
        body: dict[str, Any] | None = None,
    ) -> None:
        """Send an error body; further messages from the app are dropped.

        Args:
            response: The error.
            headers_of_app: The app's headers; those that browsers need are kept.
            body: The error in the route's format. None means OpenAI's format.
        """
        self.close()
        self.progress.passthrough = False
        whole = body or content_of(response)
        if self._is_translated(response.error.code):
            code = response.error.code
            whole = anthropic_errors.body_of(code, whole["error"], self.request_id)
        content = json.dumps(whole).encode()
        headers = [
            *(pair for pair in headers_of_app if pair[0].startswith(_KEPT_HEADERS)),
            (b"content-type", b"application/json"),
            (b"content-length", str(len(content)).encode()),
        ]
        self.progress.reason = reason_of(response.error)
        await self._start(
            {"type": "http.response.start", "status": response.error.code, "headers": headers},
            retry_after_of(response.error),
        )
        await self._send({"type": "http.response.body", "body": content})
        self.progress.complete = self.progress.replaced = True

    async def fail_body(self, error: BadBody) -> None:
        """Send the error of a rejected body."""
        headers = [(n.encode(), v.encode()) for n, v in (error.headers or {}).items()]
        await self.fail(error.response, headers)

    def _is_translated(self, status: int) -> bool:
        """Return whether a response of this status is converted to Anthropic's error format."""
        failed: bool = status >= HTTPStatus.BAD_REQUEST
        return failed and anthropic_errors.is_messages(self.scope["path"])

    def _translated(self, start: Message, message: Message) -> Message:
        given = message.get("body", b"")
        body = anthropic_errors.rewritten(start["status"], given, self.request_id)
        start["headers"] = [
            (name, str(len(body)).encode() if name == b"content-length" else value)
            for name, value in start["headers"]
        ]
        return {**message, "body": body}

    async def _start(self, message: Message, retry_after: float | None = None) -> None:
        status: int = message["status"]
        record = None if self.request_context is None else self.request_context.record
        message["headers"] = list(
            response_headers(
                self.scope,
                status,
                message["headers"],
                request_id=self.request_id,
                retry_after=retry_after,
                # A streamed response starts with its first part, when the rank is usually known.
                explanation=self._take_explanation(),
                budget_warning=None if record is None else record.budget_warning,
                # A stream reports the cost in a comment before its last event.
                cost=None if self.progress.streamed else self._cost(),
            )
        )
        self.progress.status = status
        self.progress.responded = True
        if record is not None:
            record.responded = True
        await self._send(message)

    def _take_explanation(self) -> str | None:
        """Return the routing decisions, once, if the client requested them and they are known."""
        request_context, now = self.request_context, self.progress
        if now.explained or not (
            request_context and request_context.explain and request_context.record.decisions
        ):
            return None
        now.explained = True
        return explanation_of(request_context.record)
