"""ASGI middleware around vLLM's app: authentication, request ids, deadlines, limits, request log.

This is plain ASGI middleware, because Starlette's ``BaseHTTPMiddleware`` hides disconnects from the
app, and a disconnect must abort the request in the engine.
"""

from collections.abc import Callable
from dataclasses import replace
from http import HTTPStatus
from typing import Any

import structlog
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.clock import Clock, SystemClock
from serving.edge.auth.authenticator import (
    Authenticator,
    Principal,
    authenticate_rest,
    authenticated_as,
    count_auth_failure,
)
from serving.edge.gate import DrainGate
from serving.edge.request_headers import request_context_of, request_id_of, timeout_of
from serving.edge.rest.line_call import IN_PROCESS, InProcess
from serving.edge.rest.request_body import BadBody, RequestBody
from serving.edge.rest.response_stream import ResponseStream
from serving.edge.rest.upload_body import UPLOADS, UploadBody
from serving.edge.usage_recorder import UsageRecorder
from serving.edge.value_bounds import MAX_VALUES
from serving.errors import PermissionDenied, ServingError, Unauthenticated
from serving.h2grpc.budget import MAX_PENDING_BYTES, PendingBytes
from serving.h2grpc.turns import TaskTurns
from serving.request_context import use_request_context
from serving.telemetry.logs import RequestLine, log_request
from serving.telemetry.tracing import Tracing
from serving.vllm_adapter.error_response import (
    FAILED,
    INTERNAL_MESSAGE,
    error_response,
    reason_of_status,
    response_of,
)
from serving.vllm_adapter.routes import RESPONSE_STREAM

_WORK_PREFIXES = ("/v1/", "/tokenize", "/detokenize", "/invocations")
GENERATING = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses"})
"""Routes with an early admission check, before the expensive reading and parsing of the body. Their
errors have OpenAI's format. The handlers of other routes check admission themselves."""
_POLICY_VIOLATION = 1008
"""WebSocket close code; the client sees the handshake fail with 403."""

_log = structlog.get_logger("serving.edge")


class EdgeMiddleware:
    """Wraps the whole app, including its error handlers."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        gate: DrainGate,
        model: str,
        max_body_bytes: int,
        max_body_values: int = MAX_VALUES,
        max_pending_bytes: int = MAX_PENDING_BYTES,
        keepalive_interval: float = 10.0,
        clock: Clock | None = None,
        authenticator: Authenticator | None = None,
        open_metrics: bool = False,
        tracing: Tracing | None = None,
        check_load: Callable[[], None] | None = None,
        turns: TaskTurns | None = None,
        usage: UsageRecorder | None = None,
        max_file_bytes: int | None = None,
    ) -> None:
        self.app = app
        self._max_file_bytes = max_file_bytes
        self._check_load = check_load
        self._gate = gate
        self._model = model
        self._max_body_bytes = max_body_bytes
        self._max_body_values = max_body_values
        self._keepalive_interval = keepalive_interval
        self._clock = clock or SystemClock()
        self._authenticator = authenticator or Authenticator(None, self._clock)
        self._open_metrics = open_metrics
        self._tracing = tracing
        self._turns = turns or TaskTurns()
        self._usage = usage
        self.pending = PendingBytes(max_pending_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
            return
        uploads = self._max_file_bytes is not None and scope["path"] == UPLOADS
        body = (UploadBody if uploads else RequestBody)(
            scope,
            receive,
            self._clock,
            max_bytes=self._max_body_bytes,
            max_values=self._max_body_values,
            turns=self._turns,
            pending=self.pending,
        )
        if self._max_file_bytes is not None and isinstance(body, UploadBody):
            body.max_file_bytes = self._max_file_bytes
        response = ResponseStream(
            scope,
            send,
            body,
            self._clock,
            self._keepalive_interval,
            end=None if self._usage is None else self,
        )
        scope[RESPONSE_STREAM] = response
        is_work = scope["path"].startswith(_WORK_PREFIXES) and scope["method"] == "POST"
        if not is_work:
            await self._serve(response, scope)
            return
        try:
            with self._gate.track():
                await self._serve(response, scope, self._gate)
        finally:
            self._end(response)

    async def _serve(
        self, response: ResponseStream, scope: Scope, gate: DrainGate | None = None
    ) -> None:
        """Check the request's headers and pass it to the app."""
        try:
            response.request_id = request_id_of(Headers(scope=scope))
            principal = self._authenticate(response, is_work=gate is not None)
            self._begin(response)
            self._set_deadline(response)
            response.body.check_length()
            response.body.decode()
            if gate is not None:
                gate.check()
        except BadBody as error:
            await response.fail_body(error)
            return
        except ServingError as error:
            await response.fail(response_of(error))
            if gate is None and isinstance(error, Unauthenticated | PermissionDenied):
                self._end(response)
            return
        response.forward_request_id()
        with (
            authenticated_as(principal),
            use_request_context(response.request_context),
        ):
            if self._check_load is not None and gate is not None and scope["path"] in GENERATING:
                try:
                    self._check_load()
                except ServingError as error:
                    await response.fail(response_of(error))
                    return
            await self._run(response)

    def _authenticate(self, response: ResponseStream, *, is_work: bool) -> Principal:
        scope = response.scope
        origin: InProcess | None = scope.get(IN_PROCESS)
        if origin is not None:
            response.request_context = origin.context
            return origin.principal
        try:
            principal = authenticate_rest(
                scope, self._authenticator, open_metrics=self._open_metrics
            )
            if is_work:
                response.request_context = request_context_of(principal, Headers(scope=scope))
        except ServingError as error:
            count_auth_failure(error)
            raise
        return principal

    def _begin(self, response: ResponseStream) -> None:
        """Record the arrival of a work request and start its trace."""
        if response.request_context is None:
            return
        record, scope = response.request_context.record, response.scope
        record.arrived_at = response.arrived_at
        record.on_resumed = response.mark_resumed
        if self._tracing is not None:
            record.trace = self._tracing.begin(
                f"{scope['method']} {scope['path']}",
                Headers(scope=scope),
                {"http.request.method": scope["method"], "url.path": scope["path"]},
            )

    def _set_deadline(self, response: ResponseStream) -> None:
        seconds = timeout_of(Headers(scope=response.scope))
        if seconds is not None and response.request_context is not None:
            response.request_context = replace(
                response.request_context, deadline=self._clock.monotonic() + seconds
            )

    def _end(self, response: ResponseStream) -> None:
        """Write the request's log line and end its trace."""
        line = self._line(response)
        log_request(line)
        self._record(response, line)
        context = response.request_context
        if context is not None and context.record.trace is not None:
            context.record.trace.end(line)

    def before_last_part(self, response: ResponseStream) -> None:
        """Record the request in the ledger; see ``EndOfResponse``."""
        context = response.request_context
        if self._usage is not None and context is not None and not context.record.ledgered:
            self._record(response, self._line(response))

    def cost(self, response: ResponseStream) -> str | None:
        """Return the cost of a finished request; see ``EndOfResponse``."""
        context = response.request_context
        if self._usage is None or context is None or not context.record.ended.prompt_tokens:
            return None
        return self._usage.cost(context, self._model, _usage_of(response))

    def _record(self, response: ResponseStream, line: RequestLine) -> None:
        context = response.request_context
        if self._usage is not None and context is not None:
            self._usage.record(line, context, _usage_of(response))

    def _line(self, response: ResponseStream) -> RequestLine:
        scope, progress, context = response.scope, response.progress, response.request_context
        usage = _usage_of(response)
        reason = progress.reason or scope.get("state", {}).get(FAILED)
        if reason is not None:
            outcome = reason
        elif response.disconnected:
            outcome = "CANCELLED"
        else:
            ok = progress.status < HTTPStatus.BAD_REQUEST
            outcome = "ok" if ok else reason_of_status(progress.status)
        first_token_at = progress.started_at
        if first_token_at is None and context is not None:
            first_token_at = context.record.first_token_at
        fields = {} if context is None else context.log_fields()
        return RequestLine(
            request_id=response.request_id or "",
            protocol="rest" if IN_PROCESS not in scope else scope[IN_PROCESS].protocol,
            method=scope["path"],
            model=self._model if context is None else context.record.model or self._model,
            outcome=outcome,
            status=str(progress.status),
            duration=self._clock.monotonic() - response.arrived_at,
            ttft=None if first_token_at is None else first_token_at - response.arrived_at,
            prompt_tokens=None if usage is None else usage.prompt_tokens,
            completion_tokens=None if usage is None else usage.completion_tokens,
            **fields,
        )

    async def _run(self, response: ResponseStream) -> None:
        try:
            await self.app(response.scope, response.receive, response.send)
        except BadBody as error:
            if not response.responded:
                await response.fail_body(error)
        except Exception:
            if response.is_client_error:
                return  # Starlette re-raises exceptions after its handlers have responded
            _log.exception("unhandled exception", request_id=response.request_id)
            if response.responded:
                if not response.complete:
                    # Part of the response has been sent; closing the connection signals the error.
                    raise
                return
            await response.fail(error_response(INTERNAL_MESSAGE, status=500, reason="INTERNAL"))
        finally:
            response.close()


def _usage_of(response: ResponseStream) -> Any:
    """Return vLLM's ``UsageInfo``, which its handlers store in the request state, if any."""
    metadata = response.scope.get("state", {}).get("request_metadata")
    return None if metadata is None else metadata.final_usage_info
