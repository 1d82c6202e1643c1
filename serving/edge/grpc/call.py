"""Runs RPCs: request id, deadline, drain gate, error statuses, and the request log line."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn, TypeVar

import structlog
from fastapi import FastAPI
from starlette.requests import Request
from vllm.entrypoints.serve.engine.protocol import ErrorResponse

from serving.api.v1 import inference_pb2 as pb
from serving.clock import Clock
from serving.edge.auth.authenticator import principal_var
from serving.edge.gate import DrainGate
from serving.edge.grpc.errors import rpc_error
from serving.edge.request_headers import (
    BUDGET_WARNING,
    COST,
    EXPLAIN,
    REQUEST_ID,
    explanation_of,
    request_context_of,
    request_id_of,
    timeout_of,
)
from serving.edge.usage_recorder import UsageRecorder
from serving.errors import EngineError
from serving.request_context import RequestContext, request_context_var
from serving.telemetry.logs import RequestLine, log_request
from serving.telemetry.tracing import Tracing

ResponseT = TypeVar("ResponseT")
StreamedT = TypeVar("StreamedT", pb.ChatStreamResponse, pb.CompleteStreamResponse)

_DATA = "data: "
_DONE = "[DONE]"
_ERROR = '{"error":'

# Metadata that vLLM's handlers or this package read. All other metadata, in particular credentials,
# is dropped.
_FORWARDED = ("x-session-id", "x-priority", "traceparent", "tracestate")

_SERVICE = "serving.api.v1.InferenceService"

_log = structlog.get_logger("serving.edge")


@dataclass(slots=True)
class Call:
    """State of a running RPC."""

    method: str
    request_id: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    request_context: RequestContext | None = None
    """Set once the metadata is parsed."""
    usage: pb.Usage | None = None
    """Set when the engine reports it, usually at the end."""
    arrived_at: float = 0.0
    first_token_at: float | None = None
    state: dict[str, Any] = field(default_factory=dict)
    """Request state that is passed to vLLM's handlers."""
    status: str = "OK"
    outcome: str = "ok"

    def raw_request(self, app: FastAPI) -> Request:
        """Return a Starlette request without a connection, for vLLM's handlers."""
        return Request(
            {
                "type": "http",
                "method": "POST",
                "path": "/",
                "query_string": b"",
                "headers": [(key.encode(), value.encode()) for key, value in self.headers.items()],
                "app": app,
                "state": self.state,
            }
        )


@dataclass(frozen=True, slots=True)
class CallRunner:
    """Runs RPCs; exceptions of a handler end the call with the matching status."""

    gate: DrainGate
    model: str
    clock: Clock
    tracing: Tracing | None = None
    usage: UsageRecorder | None = None

    async def unary(
        self, method: str, context: Any, handler: Callable[[Call], Awaitable[ResponseT]]
    ) -> ResponseT:
        """Run an RPC with one response."""
        call = Call(method, arrived_at=self.clock.monotonic())
        try:
            await self._admit(call, context)
            with self._running(call):
                response = await handler(call)
            self._explain(call, context)
        except asyncio.CancelledError:
            call.status = call.outcome = "CANCELLED"
            raise
        except Exception as error:  # noqa: BLE001  every exception has a status
            await self._abort(call, context, error)
        else:
            return response
        finally:
            self._log(call)

    async def stream(
        self,
        method: str,
        context: Any,
        begin: Callable[[Call], Awaitable[AsyncGenerator[str]]],
        convert: Callable[[str], StreamedT],
    ) -> None:
        """Run an RPC with a stream of responses.

        Args:
            method: Name of the RPC.
            context: gRPC's servicer context.
            begin: Starts the response and returns vLLM's server-sent events.
            convert: Converts the data of an event to a message.
        """
        call = Call(method, arrived_at=self.clock.monotonic())
        call.status = call.outcome = "CANCELLED"
        try:
            await self._admit(call, context)
            with self._running(call):
                async with aclosing(await begin(call)) as events:
                    await self._forward(call, context, events, convert)
            self._explain(call, context)
            call.status, call.outcome = "OK", "ok"
        except Exception as error:  # noqa: BLE001  every exception has a status
            await self._abort(call, context, error)
        finally:
            self._log(call)

    async def _forward(
        self,
        call: Call,
        context: Any,
        events: AsyncGenerator[str],
        convert: Callable[[str], StreamedT],
    ) -> None:
        """Send events as messages until the event [DONE].

        Raises:
            RpcError: An event is an error.
            EngineError: The stream ends without [DONE].
            CancelledError: The client does not read the messages in time.
        """
        async for event in events:
            if not event.startswith(_DATA):
                continue  # a keep-alive comment
            data = event[len(_DATA) :]
            if data.startswith(_DONE):
                return
            if data.startswith(_ERROR):
                raise rpc_error(ErrorResponse.model_validate_json(data))
            message = convert(data)
            if call.first_token_at is None:
                call.first_token_at = self.clock.monotonic()
            if message.HasField("usage"):
                call.usage = message.usage
            if not context.try_write(message):
                await context.write(message)
        raise EngineError("the engine's stream ended before the response was complete")

    async def _admit(self, call: Call, context: Any) -> None:
        """Parse the metadata and check that the call is allowed.

        Raises:
            InvalidRequest: The metadata is malformed.
            PermissionDenied: The key does not permit an option in the metadata.
            NotReady: The router is draining.
        """
        metadata = {
            key: value
            for key, value in (context.invocation_metadata() or ())
            if isinstance(value, str)
        }
        call.request_id = request_id_of(metadata)
        await context.send_initial_metadata(((REQUEST_ID, call.request_id),))
        call.request_context = request_context_of(principal_var.get(), metadata)
        record = call.request_context.record
        record.arrived_at = call.arrived_at
        if self.tracing is not None:
            record.trace = self.tracing.begin(
                f"{_SERVICE}/{call.method}",
                metadata,
                {"rpc.system": "grpc", "rpc.method": call.method},
            )
        self.gate.check()
        forwarded = {key: metadata[key] for key in _FORWARDED if key in metadata}
        call.headers = {**forwarded, REQUEST_ID: call.request_id}
        limits = (timeout_of(metadata), context.time_remaining())
        seconds = min((limit for limit in limits if limit is not None), default=None)
        if seconds is not None:
            call.request_context = replace(
                call.request_context, deadline=self.clock.monotonic() + seconds
            )

    @contextmanager
    def _running(self, call: Call) -> Iterator[None]:
        # The variable is not reset: each call has a separate context, and after a disconnect the
        # generator of a stream is closed from a different one.
        request_context_var.set(call.request_context)
        with self.gate.track():
            yield

    async def _abort(self, call: Call, context: Any, error: Exception) -> NoReturn:
        failure = rpc_error(error)
        call.status, call.outcome = failure.code.name, failure.reason
        if failure.reason == "INTERNAL":
            _log.error("unhandled exception", request_id=call.request_id, exc_info=error)
        task = asyncio.current_task()
        if context.cancelled() or (task is not None and task.cancelling()):
            # vLLM's handlers convert a cancellation to an error body; the client has disconnected
            # by then.
            call.status = call.outcome = "CANCELLED"
            raise asyncio.CancelledError from error
        trailers = (*failure.trailers, *self._about(call))
        await context.abort(failure.code, failure.status.message, trailers)
        raise AssertionError("abort did not raise")

    def _explain(self, call: Call, context: Any) -> None:
        trailers = self._about(call)
        if trailers:
            context.set_trailing_metadata(trailers)

    def _about(self, call: Call) -> tuple[tuple[str, str], ...]:
        """Return trailing metadata: decisions and cost, if requested, and budget warnings."""
        request_context = call.request_context
        if request_context is None:
            return ()
        record = request_context.record
        found = []
        if request_context.explain and record.decisions:
            found.append((EXPLAIN, explanation_of(record)))
        if record.budget_warning is not None:
            found.append((BUDGET_WARNING, record.budget_warning))
        if self.usage is not None and request_context.shows_cost and record.ended.prompt_tokens:
            cost = self.usage.cost(request_context, self.model, _usage_of(call))
            if cost is not None:
                found.append((COST, cost))
        return tuple(found)

    def _record(self, call: Call, line: RequestLine) -> None:
        """Record the call in the ledger; its status is sent after the handler returns."""
        if self.usage is None or call.request_context is None:
            return
        self.usage.record(line, call.request_context, _usage_of(call))

    def _log(self, call: Call) -> None:
        line = self._line(call)
        self._record(call, line)
        context = call.request_context
        if context is not None and context.record.trace is not None:
            context.record.trace.end(line)
        log_request(line)

    def _line(self, call: Call) -> RequestLine:
        first_token_at = call.first_token_at
        if first_token_at is None and call.request_context is not None:
            first_token_at = call.request_context.record.first_token_at
        context = call.request_context
        fields = {} if context is None else context.log_fields()
        return RequestLine(
            request_id=call.request_id,
            protocol="grpc",
            method=call.method,
            model=self.model if context is None else context.record.model or self.model,
            outcome=call.outcome,
            status=call.status,
            duration=self.clock.monotonic() - call.arrived_at,
            ttft=None if first_token_at is None else first_token_at - call.arrived_at,
            prompt_tokens=None if call.usage is None else call.usage.prompt_tokens,
            completion_tokens=None if call.usage is None else call.usage.completion_tokens,
            **fields,
        )


def _usage_of(call: Call) -> Any:
    """Return vLLM's ``UsageInfo``, which its handlers store in the request state, if any."""
    metadata = call.state.get("request_metadata")
    return None if metadata is None else metadata.final_usage_info
