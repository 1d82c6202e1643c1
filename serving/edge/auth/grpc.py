"""Asks every RPC for a key before anything else is done for it, reflection's among them."""

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from serving.clock import Clock
from serving.edge.auth.authenticator import Authenticator, identity_var
from serving.edge.auth.permissions import Need, need_of_rpc
from serving.edge.grpc.errors import rpc_error
from serving.errors import ServingError
from serving.telemetry import metrics
from serving.telemetry.logs import RequestLine, log_request


class AuthInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Refuses calls; what it lets through finds the caller in ``identity_var``.

    It must be the last interceptor: it asks for the handler before it knows who calls.

    gRPC runs interceptors and handler of a call in one task, so nothing has to be reset.
    """

    def __init__(self, authenticator: Authenticator, model: str, clock: Clock) -> None:
        self._authenticator = authenticator
        self._model = model
        self._clock = clock

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        """Return the handler of the call, or one that refuses it."""
        method: str = handler_call_details.method
        metadata = {
            key: value
            for key, value in (handler_call_details.invocation_metadata or ())
            if isinstance(value, str)
        }
        handler = await continuation(handler_call_details)
        # Any key may learn that there is no such method: clients that know several versions of a
        # service fall back to an older one on UNIMPLEMENTED alone.
        need = Need.KEY if handler is None else need_of_rpc(method)
        try:
            identity = self._authenticator.authenticate(metadata, need)
        except ServingError as error:
            return self._refusal(method, error)
        identity_var.set(identity)
        return handler

    def _refusal(self, method: str, error: ServingError) -> Any:
        failure = rpc_error(error)
        metrics.AUTH_FAILURES.labels("grpc", failure.reason).inc()
        began = self._clock.monotonic()

        async def refuse(_: Any, context: Any) -> None:
            log_request(
                RequestLine(
                    request_id="",
                    protocol="grpc",
                    method=method.rpartition("/")[2],
                    model=self._model,
                    outcome=failure.reason,
                    status=failure.code.name,
                    duration=self._clock.monotonic() - began,
                )
            )
            await context.abort(failure.code, failure.status.message, failure.trailers)

        # Of this kind whatever the method is: it is called before any message is read.
        return grpc.stream_stream_rpc_method_handler(refuse)
