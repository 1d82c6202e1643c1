"""The gRPC edge: inference, fleet, standard health and reflection on one port."""

from dataclasses import dataclass

import grpc
import grpc.aio
from fastapi import FastAPI
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from serving.api.v1 import fleet_pb2, fleet_pb2_grpc, inference_pb2, inference_pb2_grpc
from serving.clock import Clock
from serving.credentials.grpc_tls import server_credentials
from serving.credentials.tls import TlsMaterial
from serving.credentials.watched import Watched
from serving.edge.auth import Authenticator
from serving.edge.fleet_service import FleetOperator, FleetService
from serving.edge.grpc_auth import AuthInterceptor
from serving.edge.grpc_call import CallRunner
from serving.edge.grpc_decoding import DecodingInterceptor
from serving.edge.inference_service import InferenceService
from serving.edge.rest import RouterPages
from serving.errors import SettingsError
from serving.settings import RouterSettings
from serving.telemetry.tracing import NO_TRACING, Tracing

INFERENCE = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name
FLEET = fleet_pb2.DESCRIPTOR.services_by_name["FleetService"].full_name
SERVICES = (INFERENCE, FLEET, health.SERVICE_NAME, reflection.SERVICE_NAME)

_PENDING_CALLS = 65536
_PENDING_SECONDS = 300
"""gRPC's own is 30; a client that is not as patient has its deadline."""

_OVERALL = ""
"""Name under which health.proto keeps the whole server's status."""


@dataclass(frozen=True, slots=True)
class GrpcGuard:
    """What protects the port."""

    authenticator: Authenticator
    tls: Watched[TlsMaterial] | None = None
    """None: plain text."""
    max_header_bytes: int = 32 * 2**10
    """Of a call's metadata."""


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
        tracing: Tracing = NO_TRACING,
    ) -> None:
        self._settings = settings
        self._tls = guard.tls
        self._health = HealthServicer()
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", settings.max_body_bytes),
                ("grpc.max_send_message_length", -1),
                # Clients may ping while they wait for a long first token.
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
                ("grpc.keepalive_permit_without_calls", 1),
                # A client whose machine or network is gone is noticed, and its calls end.
                ("grpc.keepalive_time_ms", 30_000),
                ("grpc.keepalive_timeout_ms", 20_000),
                # Two routers on one port would each get half of the clients.
                ("grpc.so_reuseport", 0),
                # gRPC turns some away from the soft limit on, all from the absolute one on.
                ("grpc.max_metadata_size", guard.max_header_bytes),
                ("grpc.absolute_max_metadata_size", guard.max_header_bytes),
                # Calls that the event loop has not come to yet. From a thousand on gRPC would
                # cancel some by chance: a burst got CANCELLED, which no client tries again,
                # instead of admission's RESOURCE_EXHAUSTED and when to come back.
                ("grpc.server.max_pending_requests", _PENDING_CALLS),
                ("grpc.server.max_pending_requests_hard_limit", _PENDING_CALLS),
                ("grpc.server_max_unrequested_time_in_server", _PENDING_SECONDS),
            ],
            interceptors=[
                AuthInterceptor(guard.authenticator, pages.model, clock),
                DecodingInterceptor(),
            ],
        )
        runner = CallRunner(pages.gate, pages.model, clock, tracing, settings.write_timeout)
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(
            InferenceService(app, runner), self._server
        )
        fleet_pb2_grpc.add_FleetServiceServicer_to_server(
            FleetService(pages.view, operator, settings.drain_timeout), self._server
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(SERVICES, self._server)

    async def start(self) -> int:
        """Listen; returns the port.

        Raises:
            SettingsError: the address cannot be bound.
        """
        address = f"{self._settings.host}:{self._settings.grpc_port}"
        try:
            port = (
                self._server.add_insecure_port(address)
                if self._tls is None
                else self._server.add_secure_port(address, server_credentials(self._tls))
            )
        except RuntimeError as error:
            raise SettingsError(
                f"cannot listen for gRPC on {address}: stop what listens there, or set "
                "router.grpc_port (--grpc-port) to a free port"
            ) from error
        await self.set_ready(ready=False)
        await self._server.start()
        return port

    async def set_ready(self, *, ready: bool) -> None:
        """Tell health clients, watching ones at once."""
        status = (
            health_pb2.HealthCheckResponse.SERVING
            if ready
            else health_pb2.HealthCheckResponse.NOT_SERVING
        )
        for name in (_OVERALL, INFERENCE, FLEET):
            await self._health.set(name, status)

    async def stop(self, grace: float) -> None:
        """Take no more calls; running ones get ``grace`` seconds, then they are cancelled."""
        await self._server.stop(grace)
