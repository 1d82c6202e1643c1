"""One REST request and its response on their way through the edge.

Holds the start of a streamed response back until its first part, so that an error that comes
first has its proper status; keeps silent streams alive; knows at the end what there is to log.
"""

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from http import HTTPStatus
from math import ceil
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send
from vllm.entrypoints.serve.engine.protocol import ErrorResponse

from serving.clock import Clock
from serving.edge.auth.rest import Visitor
from serving.edge.callers import EXPLAIN, explanation_of, line_of
from serving.edge.request_context import REQUEST_ID
from serving.edge.rest.content_encoding import (
    SUPPORTED,
    BrokenBody,
    Decompressor,
    OversizedBody,
    UnknownEncoding,
    decompressor,
)
from serving.edge.rest.json_bounds import MOST_VALUES, JsonBounds, TooManyValues, most_values_of
from serving.edge.rest.keepalive import COMMENT, KeepAlive
from serving.request_context import Caller
from serving.telemetry.logs import RequestLine
from serving.vllm_adapter import anthropic_errors
from serving.vllm_adapter.error_response import (
    content_of,
    error_response,
    event_response,
    is_retryable,
    reason_of,
    reason_of_status,
    retry_after_in,
    retry_after_of,
)

FAILED = "moe_serving_failed"
"""Name in a request's state under which error handlers leave the reason for its log line."""

_ERROR_EVENTS = (b'data: {"error":', b"event: error\n")
_EVENT_END = b"\n\n"

# Of a streamed answer that becomes an error body: without them a browser would not show it.
_KEPT_HEADERS = (b"access-control-", b"vary", b"accept-encoding")

_OF_SENT_BODY = frozenset({b"content-encoding", b"content-length"})
"""Headers that describe a body as it was sent."""

_OF_EVENT_STREAM = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))
"""What keeps proxies from storing a stream of events, or holding it back."""


class BadBody(HTTPException):
    """The body is not taken; FastAPI passes HTTP exceptions through."""

    def __init__(self, status: int, text: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(status_code=status, detail=text, headers=headers)
        self.response = error_response(text, status=status, reason="INVALID_REQUEST")


class TooLarge(BadBody):
    """The body is over the limit, as sent or decompressed."""

    def __init__(self, limit: int) -> None:
        super().__init__(
            413, f"the request body is larger than {limit} bytes (router.max_body_bytes)"
        )


@dataclass(slots=True)
class _Progress:
    held: Message | None = None
    """Start of a response that waits for its first part: a streamed one may be an error after all,
    a retryable error says in its body when to come back."""
    started_at: float | None = None
    """When the first part of the answer left."""
    streamed: bool = False
    flowing: bool = False
    """Of a streamed response: its first part is out, and parts go on as they are."""
    between_events: bool = True
    """Of a streamed response: whether a comment may go out now."""
    status: int = 0
    replaced: bool = False
    """An error body went out instead of what the app sends."""
    responded: bool = False
    complete: bool = False
    explained: bool = False
    """It has been said why the rank was picked."""
    reason: str | None = None


class Exchange:
    """One request and its response on their way through."""

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        clock: Clock,
        max_body_bytes: int,
        keepalive_interval: float,
        max_body_values: int = MOST_VALUES,
    ) -> None:
        self.scope = scope
        self.request_id: str | None = None
        self.visitor: Visitor | None = None
        self._receive = receive
        self._send = send
        self._clock = clock
        self._limit = max_body_bytes
        self._keepalive_interval = keepalive_interval
        self._keepalive: KeepAlive | None = None
        self._sending = asyncio.Lock()
        self._received = 0
        self.began = clock.monotonic()
        self._now = _Progress()
        self._bad_body: BadBody | None = None
        self._decompressor: Decompressor | None = None
        self._disconnected = False
        self._bounds = JsonBounds(most_values_of(scope["path"], max_body_values))

    @property
    def responded(self) -> bool:
        """Whether any part of a response is out."""
        return self._now.responded

    @property
    def complete(self) -> bool:
        """Whether all of the response is out."""
        return self._now.complete

    @property
    def blames_client(self) -> bool:
        """Whether an answer is out that says the request was wrong."""
        bad, broken = HTTPStatus.BAD_REQUEST, HTTPStatus.INTERNAL_SERVER_ERROR
        return self._now.complete and bad <= self._now.status < broken

    @property
    def caller(self) -> Caller | None:
        """Who asks, once that is known; none for pages."""
        return None if self.visitor is None else self.visitor.caller

    def check_length(self) -> None:
        """Refuse a body that announces itself as too large.

        Raises:
            TooLarge: it does.
        """
        length = Headers(scope=self.scope).get("content-length", "")
        if length.isdigit() and int(length) > self._limit:
            raise TooLarge(self._limit)

    def decode_body(self) -> None:
        """Let the app see a compressed body as it was before.

        Raises:
            BadBody: it is compressed in a way that is not supported.
        """
        encoding = Headers(scope=self.scope).get("content-encoding", "")
        try:
            self._decompressor = decompressor(encoding, self._limit)
        except UnknownEncoding as error:
            supported = {"accept-encoding": ", ".join(SUPPORTED)}
            raise BadBody(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, str(error), supported) from error
        if self._decompressor is not None:
            self.scope["headers"] = [
                pair for pair in self.scope["headers"] if pair[0].lower() not in _OF_SENT_BODY
            ]

    def pass_id_on(self) -> None:
        """Let vLLM's handlers see the request id, given by the client or not."""
        assert self.request_id is not None
        name = REQUEST_ID.encode()
        others = [pair for pair in self.scope["headers"] if pair[0].lower() != name]
        self.scope["headers"] = [*others, (name, self.request_id.encode("latin-1"))]

    async def receive(self) -> Message:
        """Hand the request on, counting its body."""
        message = await self._receive()
        if message["type"] == "http.request":
            try:
                return await self._body_part(message)
            except BadBody as error:
                self._bad_body = error
                raise
        elif message["type"] == "http.disconnect" and not self._now.complete:
            self._disconnected = True
        return message

    async def _body_part(self, message: Message) -> Message:
        self._received += len(message.get("body", b""))
        if self._received > self._limit:
            raise TooLarge(self._limit)
        if self._decompressor is None:
            self._bound(message.get("body", b""))
            return message
        more = message.get("more_body", False)
        try:
            body = await self._decompressor.feed(message.get("body", b""), last=not more)
        except OversizedBody as error:
            raise TooLarge(self._limit) from error
        except BrokenBody as error:
            raise BadBody(HTTPStatus.BAD_REQUEST, str(error)) from error
        self._bound(body)
        return {"type": "http.request", "body": body, "more_body": more}

    def _bound(self, body: bytes) -> None:
        """Refuse a body of more values than can be looked at in a turn of the event loop."""
        try:
            self._bounds.feed(body)
        except TooManyValues as error:
            raise BadBody(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, str(error)) from error

    async def send(self, message: Message) -> None:
        """Hand the response on, with its status right even if it fails at its first part."""
        async with self._sending:
            await self._pass_on(message)

    async def push(self, event: bytes) -> None:
        """Hand an event of a streamed response on; as ``send`` does with it."""
        now = self._now
        if (
            not now.flowing
            or self._sending.locked()
            or event.startswith(_ERROR_EVENTS)
            or not event.endswith(_EVENT_END)
        ):
            await self.send({"type": "http.response.body", "body": event, "more_body": True})
            return
        # Nearly all of them: nothing is held back, and nobody speaks in between.
        if self._keepalive is not None:
            self._keepalive.heard()
        await self._send({"type": "http.response.body", "body": event, "more_body": True})

    def close(self) -> None:
        """Send nothing more on our own."""
        if self._keepalive is not None:
            self._keepalive.stop()

    async def _pass_on(self, message: Message) -> None:
        now = self._now
        if now.replaced:
            return
        if self._bad_body is not None and not now.responded:
            await self.fail_body(self._bad_body)
        elif message["type"] == "http.response.start":
            headers = Headers(raw=message["headers"])
            if headers.get("content-type", "").startswith("text/event-stream"):
                present = headers.keys()
                message["headers"] = [
                    *message["headers"],
                    *(pair for pair in _OF_EVENT_STREAM if pair[0].decode() not in present),
                ]
                now.held = message
                now.streamed = True
                self._keepalive = KeepAlive(self._keepalive_interval, self._comment)
            elif is_retryable(message["status"]) or self._translates(message["status"]):
                now.held = message
            else:
                await self._start(message)
        else:
            await self._body(message)

    async def _body(self, message: Message) -> None:
        now = self._now
        body = message.get("body", b"")
        if now.held is not None and not now.streamed:
            if self._translates(now.held["status"]):
                message = self._translated(now.held, message)
            await self._start_held(now.held, retry_after_in(body))
        elif now.held is not None:
            if body.startswith(_ERROR_EVENTS):
                # Nothing is out yet, so the error can still have its proper status.
                response, content = event_response(body)
                await self.fail(response, now.held["headers"], content)
                return
            await self._start_held(now.held)
        between_events = now.between_events
        if now.streamed and body:
            now.started_at = now.started_at or self._clock.monotonic()
            now.between_events = body.endswith(_EVENT_END)
            if self._keepalive is not None:
                self._keepalive.heard()
        if body.startswith(_ERROR_EVENTS):
            now.reason = reason_of(event_response(body)[0].error)
        if now.streamed and between_events and (why := self._explanation()) is not None:
            # It began before a rank was picked; a comment comes before the first event.
            comment = f": {EXPLAIN} {why}\n".encode()
            await self._send({"type": "http.response.body", "body": comment, "more_body": True})
        await self._send(message)
        explains = self.caller is not None and self.caller.explain and not now.explained
        now.flowing = now.streamed and now.between_events and not explains
        if not message.get("more_body", False):
            now.complete = True
            now.flowing = False
            self.close()

    async def _comment(self) -> None:
        """Break the silence of a streamed response; from then on its status is out."""
        async with self._sending:
            now = self._now
            if now.complete or now.replaced or not now.between_events:
                return
            if now.held is not None:
                await self._start_held(now.held)
            await self._send({"type": "http.response.body", "body": COMMENT, "more_body": True})

    async def _start_held(self, start: Message, retry_after: float | None = None) -> None:
        self._now.held = None
        await self._start(start, retry_after)

    async def fail(
        self,
        response: ErrorResponse,
        headers_of_app: Iterable[tuple[bytes, bytes]] = (),
        body: dict[str, Any] | None = None,
    ) -> None:
        """Answer with an error body; what the app sends from here on is dropped.

        Args:
            response: the error.
            headers_of_app: of these, what a browser needs is kept.
            body: the error in the form of the route, if that is not OpenAI's.

        """
        self.close()
        self._now.flowing = False
        whole = body or content_of(response)
        if self._translates(response.error.code):
            code = response.error.code
            whole = anthropic_errors.body_of(code, whole["error"], self.request_id)
        content = json.dumps(whole).encode()
        headers = [
            *(pair for pair in headers_of_app if pair[0].startswith(_KEPT_HEADERS)),
            (b"content-type", b"application/json"),
            (b"content-length", str(len(content)).encode()),
        ]
        self._now.reason = reason_of(response.error)
        await self._start(
            {"type": "http.response.start", "status": response.error.code, "headers": headers},
            retry_after_of(response.error),
        )
        await self._send({"type": "http.response.body", "body": content})
        self._now.complete = self._now.replaced = True

    async def fail_body(self, error: BadBody) -> None:
        """Answer a request whose body is not taken."""
        headers = [(n.encode(), v.encode()) for n, v in (error.headers or {}).items()]
        await self.fail(error.response, headers)

    def _translates(self, status: int) -> bool:
        """Tell whether an answer of this status gets another shape here."""
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
        own = self._own_headers(status, message["headers"], retry_after)
        message["headers"] = [*map(_relative, message["headers"]), *own]
        self._now.status = status
        self._now.responded = True
        if self.caller is not None:
            self.caller.journal.responded = True
        await self._send(message)

    def _own_headers(
        self, status: int, present: Iterable[tuple[bytes, bytes]], retry_after: float | None
    ) -> Iterable[tuple[bytes, bytes]]:
        if self.request_id is not None:
            value = self.request_id.encode("latin-1")
            yield REQUEST_ID.encode(), value
            if anthropic_errors.reads_request_id(self.scope["path"], self.scope["headers"]):
                yield anthropic_errors.REQUEST_ID, value
        named = any(name.lower() == b"retry-after" for name, _ in present)
        if is_retryable(status) and retry_after is not None and not named:
            # Whole seconds, as HTTP has it; not before it is worth it, and never at once.
            yield b"retry-after", str(max(ceil(retry_after), 1)).encode()
        if status == HTTPStatus.UNAUTHORIZED:
            yield b"www-authenticate", b"Bearer"
        # A streamed response starts with its first part, so the rank is mostly known by now.
        if (why := self._explanation()) is not None:
            yield EXPLAIN.encode(), why.encode()

    def _explanation(self) -> str | None:
        """Return why the rank was picked: once, if it is asked for and known."""
        caller, now = self.caller, self._now
        if now.explained or not (caller and caller.explain and caller.journal.picks):
            return None
        now.explained = True
        return explanation_of(caller.journal)

    def line(self, model: str) -> RequestLine:
        """Say how it went."""
        now = self._now
        usage = _usage(self.scope)
        reason = now.reason or self.scope.get("state", {}).get(FAILED)
        if reason is not None:
            outcome = reason
        elif self._disconnected:
            outcome = "CANCELLED"
        else:
            ok = now.status < HTTPStatus.BAD_REQUEST
            outcome = "ok" if ok else reason_of_status(now.status)
        first_at = now.started_at
        if first_at is None and self.caller is not None:
            first_at = self.caller.journal.first_token_at
        line = RequestLine(
            request_id=self.request_id or "",
            protocol="rest",
            method=self.scope["path"],
            model=model,
            outcome=outcome,
            status=str(now.status),
            duration=self._clock.monotonic() - self.began,
            ttft=None if first_at is None else first_at - self.began,
            prompt_tokens=None if usage is None else usage.prompt_tokens,
            completion_tokens=None if usage is None else usage.completion_tokens,
        )
        return line if self.caller is None else replace(line, **line_of(self.caller))


def _relative(header: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
    """Take scheme and host out of a redirect: a proxy in front has others."""
    name, value = header
    if name.lower() != b"location":
        return header
    parts = urlsplit(value.decode("latin-1"))
    return name, urlunsplit(("", "", *parts[2:])).encode("latin-1")


def _usage(scope: Scope) -> Any:
    """Return the usage that vLLM's handlers leave in the request's state, if any."""
    metadata = scope.get("state", {}).get("request_metadata")
    return None if metadata is None else metadata.final_usage_info
