"""The gRPC server of a router: all services, including health and reflection, on one port."""

from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer

from serving.api.v1 import (
    batch_pb2,
    batch_pb2_grpc,
    fleet_pb2,
    fleet_pb2_grpc,
    inference_pb2,
    inference_pb2_grpc,
    usage_pb2,
    usage_pb2_grpc,
)
from serving.clock import Clock
from serving.credentials.tls import Alpn, TlsMaterial, following_context
from serving.credentials.watched import Watched
from serving.edge.auth.authenticator import Authenticator
from serving.edge.auth.grpc import AuthInterceptor
from serving.edge.grpc.batch_service import BatchService
from serving.edge.grpc.call import CallRunner
from serving.edge.grpc.errors import rpc_error
from serving.edge.grpc.fleet_service import FleetOperator, FleetService
from serving.edge.grpc.inference_service import InferenceService
from serving.edge.grpc.reflection import V1, V1ALPHA, add_reflection
from serving.edge.grpc.usage_service import UsageService
from serving.edge.pages import RouterPages
from serving.edge.usage_recorder import UsageRecorder
from serving.edge.value_bounds import MAX_VALUES
from serving.errors import InvalidRequest, Overloaded
from serving.h2grpc.budget import MAX_PENDING_BYTES
from serving.h2grpc.head import Refusal
from serving.h2grpc.server import Server
from serving.h2grpc.turns import TaskTurns
from serving.net import bind
from serving.settings import RouterSettings
from serving.telemetry.tracing import Tracing

INFERENCE = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name
FLEET = fleet_pb2.DESCRIPTOR.services_by_name["FleetService"].full_name
USAGE = usage_pb2.DESCRIPTOR.services_by_name["UsageService"].full_name
BATCHES = batch_pb2.DESCRIPTOR.services_by_name["BatchService"].full_name
SERVICES = (INFERENCE, FLEET, USAGE, BATCHES, health.SERVICE_NAME, V1, V1ALPHA)

_PORT_SETTING = "router.grpc_port (--grpc-port)"

_RETRY_AFTER = 1.0
"""Retry delay sent when a call exceeds ``max_pending_bytes``, seconds."""
_OVERALL = ""
"""Service name for the status of the whole server (health.proto)."""


@dataclass(frozen=True, slots=True)
class GrpcGuard:
    """Authentication, TLS and limits of the port."""

    authenticator: Authenticator
    tls: Watched[TlsMaterial] | None = None
    """TLS certificates. None means plaintext."""
    max_header_bytes: int = 32 * 2**10
    """Maximum size of an RPC's metadata, bytes."""
    max_body_values: int = MAX_VALUES
    """Maximum number of values in a request."""
    max_pending_bytes: int = MAX_PENDING_BYTES
    """Maximum total size of incomplete requests, bytes."""


class GrpcEdge:
    """Serves gRPC clients until stopped."""

    def __init__(
        self,
        app: FastAPI,
        pages: RouterPages,
        settings: RouterSettings,
        clock: Clock,
        *,
        operator: FleetOperator,
        guard: GrpcGuard,
        tracing: Tracing | None = None,
        turns: TaskTurns | None = None,
        usage: UsageRecorder | None = None,
    ) -> None:
        self._settings = settings
        self._tls = guard.tls
        self._health = HealthServicer()
        bad_bytes = rpc_error(InvalidRequest("cannot parse the request message"))
        pending = guard.max_pending_bytes
        full = rpc_error(
            Overloaded(
                f"incomplete requests exceed the total limit of {pending} bytes "
                "(security.max_pending_bytes)",
                _RETRY_AFTER,
            )
        )
        self.server = Server(
            interceptors=[AuthInterceptor(guard.authenticator, pages.model, clock)],
            max_message_bytes=settings.max_body_bytes,
            max_metadata_bytes=guard.max_header_bytes,
            max_pending_bytes=pending,
            full=Refusal(full.code, full.status.message, full.trailers),
            max_streams=settings.max_streams_per_connection,
            write_timeout=settings.write_timeout,
            undecodable=Refusal(bad_bytes.code, bad_bytes.status.message, bad_bytes.trailers),
        )
        runner = CallRunner(pages.gate, pages.model, clock, tracing, usage)
        server: Any = self.server  # the generated code is typed for grpcio's server
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(
            InferenceService(app, runner, guard.max_body_values, turns), server
        )
        fleet_pb2_grpc.add_FleetServiceServicer_to_server(
            FleetService(pages.view, operator, settings.drain_timeout, pages.adapters), server
        )
        usage_pb2_grpc.add_UsageServiceServicer_to_server(UsageService(pages.usage), server)
        batch_pb2_grpc.add_BatchServiceServicer_to_server(
            BatchService(pages.batches, pages.gate), server
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        add_reflection(SERVICES, server)

    async def start(self) -> int:
        """Start serving.

        Returns:
            The port.

        Raises:
            SettingsError: The address cannot be bound.
        """
        settings = self._settings
        listening = bind(
            "gRPC",
            settings.host,
            settings.grpc_port,
            _PORT_SETTING,
            cut_after=settings.write_timeout,
        )
        await self.set_ready(ready=False)
        tls = None if self._tls is None else following_context(self._tls, Alpn.H2)
        return await self.server.start(listening, tls)

    async def set_ready(self, *, ready: bool) -> None:
        """Set the health status of all services and notify watching clients."""
        status = (
            health_pb2.HealthCheckResponse.SERVING
            if ready
            else health_pb2.HealthCheckResponse.NOT_SERVING
        )
        for name in (_OVERALL, INFERENCE, FLEET, USAGE, BATCHES):
            await self._health.set(name, status)

    async def leave(self) -> None:
        """Send GOAWAY: new calls go elsewhere, running calls continue."""
        await self.server.leave()

    async def stop(self, grace: float) -> None:
        """Reject new calls, and cancel running ones after ``grace`` seconds."""
        await self.server.stop(grace)
