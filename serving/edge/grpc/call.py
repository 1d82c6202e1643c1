"""What every RPC has in common: id, deadline, gate, errors as statuses, one log line."""

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
from serving.edge.auth.authenticator import identity_var
from serving.edge.callers import EXPLAIN, caller_of, explanation_of, line_of
from serving.edge.gate import Gate
from serving.edge.grpc.errors import rpc_error
from serving.edge.request_context import REQUEST_ID, request_id_of, set_deadline, timeout_of
from serving.errors import EngineError
from serving.request_context import Caller, caller_var
from serving.telemetry.logs import RequestLine, log_request
from serving.telemetry.tracing import NO_TRACING, Tracing

ResponseT = TypeVar("ResponseT")
StreamedT = TypeVar("StreamedT", pb.ChatStreamResponse, pb.CompleteStreamResponse)

_DATA = "data: "
_DONE = "[DONE]"
_ERROR = '{"error":'

# Metadata that vLLM's handlers or we read; the rest of a client's, keys first of all, stays
# outside.
_PASSED_ON = ("x-session-id", "x-priority", "traceparent", "tracestate")

_SERVICE = "serving.api.v1.InferenceService"

_log = structlog.get_logger("serving.edge")


@dataclass(slots=True)
class Call:
    """One RPC while it runs."""

    method: str
    request_id: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    limit: float | None = None
    """Seconds that the client gives us; none: no end."""
    caller: Caller | None = None
    """Who asks, once that is known."""
    usage: pb.Usage | None = None
    """Tokens used, once they are known."""
    began: float = 0.0
    first_at: float | None = None
    status: str = "OK"
    outcome: str = "ok"

    def raw_request(self, app: FastAPI) -> Request:
        """Return what vLLM's handlers take headers from: a real request, no connection."""
        return Request(
            {
                "type": "http",
                "method": "POST",
                "path": "/",
                "query_string": b"",
                "headers": [(key.encode(), value.encode()) for key, value in self.headers.items()],
                "app": app,
                "state": {},
            }
        )


@dataclass(frozen=True, slots=True)
class CallRunner:
    """Runs RPCs; exceptions of their handlers end the call with their status."""

    gate: Gate
    model: str
    clock: Clock
    tracing: Tracing = NO_TRACING

    async def unary(
        self, method: str, context: Any, handler: Callable[[Call], Awaitable[ResponseT]]
    ) -> ResponseT:
        """Run an RPC with one answer."""
        call = Call(method, began=self.clock.monotonic())
        try:
            await self._admit(call, context)
            with self._running(call):
                response = await handler(call)
            _explain(call, context)
        except asyncio.CancelledError:
            call.status = call.outcome = "CANCELLED"
            raise
        except Exception as error:  # noqa: BLE001  every error has a status
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
        """Run an RPC with a stream of answers.

        Args:
            method: its name.
            context: gRPC's.
            begin: starts the answer; its parts are vLLM's server-sent events.
            convert: makes a message of an event's data.

        """
        call = Call(method, began=self.clock.monotonic())
        call.status = call.outcome = "CANCELLED"
        try:
            await self._admit(call, context)
            with self._running(call):
                async with aclosing(await begin(call)) as events:
                    await self._pass_on(call, context, events, convert)
            _explain(call, context)
            call.status, call.outcome = "OK", "ok"
        except Exception as error:  # noqa: BLE001  every error has a status
            await self._abort(call, context, error)
        finally:
            self._log(call)

    async def _pass_on(
        self,
        call: Call,
        context: Any,
        events: AsyncGenerator[str],
        convert: Callable[[str], StreamedT],
    ) -> None:
        """Send events as messages, up to the one that says DONE.

        Raises:
            RpcError: an event is an error.
            EngineError: the events end without saying so.
            CancelledError: the client does not take what it is sent.
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
            if call.first_at is None:
                call.first_at = self.clock.monotonic()
            if message.HasField("usage"):
                call.usage = message.usage
            if not context.try_write(message):
                await context.write(message)
        raise EngineError("the stream ended before the answer was complete")

    async def _admit(self, call: Call, context: Any) -> None:
        """Read the metadata and let the call in.

        Raises:
            InvalidRequest: malformed metadata.
            PermissionDenied: it asks for something that the key does not allow.
            NotReady: the router drains.
        """
        metadata = {
            key: value
            for key, value in (context.invocation_metadata() or ())
            if isinstance(value, str)
        }
        call.request_id = request_id_of(metadata)
        await context.send_initial_metadata(((REQUEST_ID, call.request_id),))
        call.caller = caller_of(identity_var.get(), metadata)
        journal = call.caller.journal
        journal.arrived_at = call.began
        journal.trace = self.tracing.begin(
            f"{_SERVICE}/{call.method}", metadata, {"rpc.system": "grpc", "rpc.method": call.method}
        )
        self.gate.check()
        passed_on = {key: metadata[key] for key in _PASSED_ON if key in metadata}
        call.headers = {**passed_on, REQUEST_ID: call.request_id}
        limits = (timeout_of(metadata), context.time_remaining())
        call.limit = min((limit for limit in limits if limit is not None), default=None)

    @contextmanager
    def _running(self, call: Call) -> Iterator[None]:
        # Not taken back: every call has a context of its own, and the generator of a stream whose
        # client left is closed from another one.
        caller_var.set(call.caller)
        set_deadline(call.limit, self.clock)
        with self.gate.passing():
            yield

    async def _abort(self, call: Call, context: Any, error: Exception) -> NoReturn:
        failure = rpc_error(error)
        call.status, call.outcome = failure.code.name, failure.reason
        if failure.reason == "INTERNAL":
            _log.error("unhandled error", request_id=call.request_id, exc_info=error)
        task = asyncio.current_task()
        if context.cancelled() or (task is not None and task.cancelling()):
            # vLLM's handlers turn a cancellation into an error body; nobody waits for it.
            call.status = call.outcome = "CANCELLED"
            raise asyncio.CancelledError from error
        trailers = (*failure.trailers, *_explanation(call))
        await context.abort(failure.code, failure.status.message, trailers)
        raise AssertionError("abort returned")

    def _log(self, call: Call) -> None:
        first_at = call.first_at
        if first_at is None and call.caller is not None:
            first_at = call.caller.journal.first_token_at
        line = RequestLine(
            request_id=call.request_id,
            protocol="grpc",
            method=call.method,
            model=self.model,
            outcome=call.outcome,
            status=call.status,
            duration=self.clock.monotonic() - call.began,
            ttft=None if first_at is None else first_at - call.began,
            prompt_tokens=None if call.usage is None else call.usage.prompt_tokens,
            completion_tokens=None if call.usage is None else call.usage.completion_tokens,
        )
        if call.caller is not None:
            line = replace(line, **line_of(call.caller))
            call.caller.journal.trace.end(line)
        log_request(line)


def _explain(call: Call, context: Any) -> None:
    trailers = _explanation(call)
    if trailers:
        context.set_trailing_metadata(trailers)


def _explanation(call: Call) -> tuple[tuple[str, str], ...]:
    caller = call.caller
    if caller is None or not caller.explain or not caller.journal.picks:
        return ()
    return ((EXPLAIN, explanation_of(caller.journal)),)
