"""Authentication of RPCs, including health and reflection."""

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from serving.clock import Clock
from serving.edge.auth.authenticator import (
    Authenticator,
    Permission,
    principal_var,
    rpc_permission,
)
from serving.edge.grpc.errors import rpc_error
from serving.errors import ServingError
from serving.telemetry import metrics
from serving.telemetry.logs import RequestLine, log_request


class AuthInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Rejects RPCs without the required permission and sets ``principal_var`` for the others.

    Must be the last interceptor, because it looks up the handler before authenticating the call.
    gRPC runs the interceptors and the handler of a call in one task, so ``principal_var`` needs no
    reset.
    """

    def __init__(self, authenticator: Authenticator, model: str, clock: Clock) -> None:
        self._authenticator = authenticator
        self._model = model
        self._clock = clock

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        """Return the handler of the RPC, or a handler that rejects the call."""
        method: str = handler_call_details.method
        metadata = {
            key: value
            for key, value in (handler_call_details.invocation_metadata or ())
            if isinstance(value, str)
        }
        handler = await continuation(handler_call_details)
        # An unknown method requires only a valid key: a client that supports several versions of a
        # service falls back to an older one on UNIMPLEMENTED, not on PERMISSION_DENIED.
        required = Permission.ANY_KEY if handler is None else rpc_permission(method)
        try:
            principal = self._authenticator.authenticate(metadata, required)
        except ServingError as error:
            return self._refusal(method, error)
        principal_var.set(principal)
        return handler

    def _refusal(self, method: str, error: ServingError) -> Any:
        failure = rpc_error(error)
        metrics.AUTH_FAILURES.labels("grpc", failure.reason).inc()
        started_at = self._clock.monotonic()

        async def refuse(_: Any, context: Any) -> None:
            log_request(
                RequestLine(
                    request_id="",
                    protocol="grpc",
                    method=method.rpartition("/")[2],
                    model=self._model,
                    outcome=failure.reason,
                    status=failure.code.name,
                    duration=self._clock.monotonic() - started_at,
                )
            )
            await context.abort(failure.code, failure.status.message, failure.trailers)

        # A stream-stream handler suits every method because it runs before a message is read.
        return grpc.stream_stream_rpc_method_handler(refuse)
