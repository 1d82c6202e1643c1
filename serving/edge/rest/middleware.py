"""Around vLLM's OpenAI app, as plain ASGI: keys, ids, deadlines, body limit, request log.

Plain ASGI because Starlette's ``BaseHTTPMiddleware`` hides disconnects from the app, and a
disconnect must abort the request in the engine.
"""

from collections.abc import Callable

import structlog
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.clock import Clock, SystemClock
from serving.edge.auth.authenticator import Authenticator, identified
from serving.edge.auth.rest import Door
from serving.edge.callers import as_caller
from serving.edge.gate import Gate
from serving.edge.request_context import deadline_in, request_id_of, timeout_of
from serving.edge.rest.json_bounds import MOST_VALUES
from serving.edge.rest.response import BadBody, Exchange
from serving.errors import PermissionDenied, ServingError, Unauthenticated
from serving.telemetry.logs import log_request
from serving.telemetry.tracing import NO_TRACING, Tracing
from serving.vllm_adapter.error_response import INTERNAL_MESSAGE, error_response, response_of
from serving.vllm_adapter.stream_bypass import EXCHANGE

_WORK_PREFIXES = ("/v1/", "/tokenize", "/detokenize", "/invocations")
GENERATING = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses"})
"""Where work is refused before its body is read and parsed, which costs more than all else. Their
errors have OpenAI's form; other routes ask for themselves."""
_POLICY_VIOLATION = 1008
"""WebSocket close code; the handshake ends with 403."""

_log = structlog.get_logger("serving.edge")


class EdgeMiddleware:
    """Wraps the whole app, its own error handling included."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        gate: Gate,
        model: str,
        max_body_bytes: int,
        max_body_values: int = MOST_VALUES,
        keepalive_interval: float = 10.0,
        clock: Clock | None = None,
        door: Door | None = None,
        tracing: Tracing = NO_TRACING,
        admit: Callable[[], None] | None = None,
    ) -> None:
        self._app = app
        self._admit = admit
        self._gate = gate
        self._model = model
        self._max_body_bytes = max_body_bytes
        self._max_body_values = max_body_values
        self._keepalive_interval = keepalive_interval
        self._clock = clock or SystemClock()
        self._door = door or Door(Authenticator(None, self._clock))
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection's request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
            return
        exchange = Exchange(
            scope,
            receive,
            send,
            self._clock,
            self._max_body_bytes,
            self._keepalive_interval,
            self._max_body_values,
        )
        scope[EXCHANGE] = exchange
        is_work = scope["path"].startswith(_WORK_PREFIXES) and scope["method"] == "POST"
        if not is_work:
            await self._serve(exchange, scope)
            return
        try:
            with self._gate.passing():
                await self._serve(exchange, scope, self._gate)
        finally:
            self._end(exchange)

    async def _serve(self, exchange: "Exchange", scope: Scope, gate: Gate | None = None) -> None:
        """Check what the request brings, and let the app answer it."""
        try:
            exchange.request_id = request_id_of(Headers(scope=scope))
            exchange.visitor = self._door.enter(scope, is_work=gate is not None)
            self._begin(exchange)
            timeout = timeout_of(Headers(scope=scope))
            exchange.check_length()
            exchange.decode_body()
            if gate is not None:
                gate.check()
        except BadBody as error:
            await exchange.fail_body(error)
            return
        except ServingError as error:
            await exchange.fail(response_of(error))
            if gate is None and isinstance(error, Unauthenticated | PermissionDenied):
                self._end(exchange)
            return
        exchange.pass_id_on()
        visitor = exchange.visitor
        assert visitor is not None
        with (
            identified(visitor.identity),
            as_caller(visitor.caller),
            deadline_in(timeout, self._clock),
        ):
            if self._admit is not None and gate is not None and scope["path"] in GENERATING:
                try:
                    self._admit()
                except ServingError as error:
                    await exchange.fail(response_of(error))
                    return
            await self._run(exchange)

    def _begin(self, exchange: "Exchange") -> None:
        """Let the fleet know since when the request is here, and begin its trace."""
        if exchange.caller is None:
            return
        journal, scope = exchange.caller.journal, exchange.scope
        journal.arrived_at = exchange.began
        journal.trace = self._tracing.begin(
            f"{scope['method']} {scope['path']}",
            Headers(scope=scope),
            {"http.request.method": scope["method"], "url.path": scope["path"]},
        )

    def _end(self, exchange: "Exchange") -> None:
        """Write the request's log line and end its trace."""
        line = exchange.line(self._model)
        log_request(line)
        if exchange.caller is not None:
            exchange.caller.journal.trace.end(line)

    async def _run(self, exchange: "Exchange") -> None:
        try:
            await self._app(exchange.scope, exchange.receive, exchange.send)
        except BadBody as error:
            if not exchange.responded:
                await exchange.fail_body(error)
        except Exception:
            if exchange.blames_client:
                return  # Starlette raises errors again that its handlers have answered
            _log.exception("unhandled error", request_id=exchange.request_id)
            if exchange.responded:
                if not exchange.complete:
                    # Half an answer is out: only a cut connection tells the client so.
                    raise
                return
            await exchange.fail(error_response(INTERNAL_MESSAGE, status=500, reason="INTERNAL"))
        finally:
            exchange.close()
