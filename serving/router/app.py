"""A router: builds all its parts from ``Settings``.

vLLM's server code takes seconds to import, so it is imported when a router starts, not with this
module.
"""

import asyncio
import contextlib
import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from serving.clock import Clock, SystemClock
from serving.credentials.tls import following_context
from serving.edge.auth.security import require_secure_bind
from serving.edge.gate import DrainGate
from serving.edge.rest.server import RestServer
from serving.net import bind
from serving.settings import Settings

if TYPE_CHECKING:
    from serving.admission.controller import AdmissionController
    from serving.edge.auth.security import Security
    from serving.edge.grpc.server import GrpcEdge
    from serving.fleet.join_server import LinkServer
    from serving.fleet.membership import FleetMembership
    from serving.requests.client import FleetClient
    from serving.telemetry.tracing import Tracing

_STOP_GRACE = 1.0
"""Grace period for requests cancelled at the end of a drain, seconds."""

log: structlog.stdlib.BoundLogger = structlog.get_logger("serving.router")


@dataclass(frozen=True, slots=True)
class Addresses:
    """The addresses of a router."""

    rest: str
    """URL of the REST API."""
    grpc: str
    """host:port of the gRPC API."""
    join: str
    """host:port that ranks connect to."""
    rest_port: int
    grpc_port: int
    join_port: int
    pid: int


@dataclass(slots=True)
class Router:
    """A running router; integration tests start it in the test process."""

    addresses: Addresses
    gate: DrainGate
    membership: "FleetMembership"
    admission: "AdmissionController"
    client: "FleetClient"
    rest: RestServer
    grpc: "GrpcEdge"
    join_server: "LinkServer"
    _exit: contextlib.AsyncExitStack
    """Undoes the start in reverse order."""

    @classmethod
    async def start(cls, settings: Settings, clock: Clock | None = None) -> "Router":
        """Build all parts and listen.

        If a step fails, the previous steps are undone in reverse order, as in ``stop``.

        Raises:
            SettingsError: An address cannot be bound, or vLLM rejects its arguments.
            LinkRefused: The join address cannot be bound.
        """
        # Before the slow imports, to report an insecure address or a port in use immediately.
        require_secure_bind(settings)
        undo = contextlib.AsyncExitStack()
        try:
            listening = bind(
                "REST",
                settings.router.host,
                settings.router.rest_port,
                "router.rest_port (--port)",
                cut_after=settings.router.write_timeout,
            )
            undo.callback(listening.close)
            return await cls._build(settings, clock or SystemClock(), listening, undo)
        except BaseException:
            await undo.aclose()
            raise

    @classmethod
    async def _build(
        cls,
        settings: Settings,
        clock: Clock,
        listening: socket.socket,
        undo: contextlib.AsyncExitStack,
    ) -> "Router":
        """Start the parts from the fleet up to the edges, and push their clean-up onto ``undo``.

        The join port opens last, because a rank that joins receives requests immediately.
        """
        from serving.admission.controller import AdmissionController
        from serving.admission.quotas import default_limits
        from serving.dispatch.dispatcher import Dispatcher
        from serving.edge.auth.security import Security
        from serving.engine.arguments import router_vllm_config
        from serving.fleet.canary import Canary, first_token_id
        from serving.fleet.join_server import JoinGuard, LinkServer
        from serving.fleet.membership import FleetMembership
        from serving.link.protocol import model_fingerprint
        from serving.requests.client import FleetClient
        from serving.routing.prefix_index import PrefixIndex
        from serving.telemetry.tracing import tracing_of

        tracing = tracing_of(settings.telemetry)
        if tracing is not None:
            undo.push_async_callback(tracing.close)
        security = Security.load(settings.security, clock)
        gate = DrainGate()
        vllm_config = router_vllm_config(settings)
        canary = Canary(
            token_id=first_token_id(vllm_config.model_config.hf_text_config),
            timeout=settings.fleet.canary_timeout,
        )
        undo.callback(canary.stop)
        membership = FleetMembership(
            settings.fleet,
            clock,
            prefixes=PrefixIndex(settings.routing.prefix_blocks, settings.routing.history_blocks),
            canary=canary,
        )
        admission = AdmissionController(
            settings.admission,
            Dispatcher(membership, settings.routing, clock),
            clock=clock,
            limits_of=security.limits_of(default_limits(settings.admission)),
        )
        undo.push_async_callback(admission.stop)
        client = FleetClient(vllm_config, membership, admission, settings, clock)
        undo.callback(client.shutdown)
        join_server = LinkServer(
            membership,
            settings.link,
            settings.router,
            model_name=settings.model.name,
            fingerprint=model_fingerprint(settings.model.path),
            clock=clock,
            guard=JoinGuard(security.join_tokens, security.join_tls),
        )
        undo.push_async_callback(join_server.stop)
        rest, grpc = await _build_edges(settings, clock, listening, security, client, gate, tracing)
        undo.push_async_callback(rest.stop)
        await rest.start()
        undo.push_async_callback(_stop_grpc, grpc, gate)
        grpc_port = await grpc.start()
        join_port = await join_server.start()
        for background in (_follow(membership, gate, grpc), security.keep_fresh()):
            undo.push_async_callback(_cancel, asyncio.create_task(background))
        # Pushed last and so run first: queued requests get a response, not a cut connection.
        undo.callback(admission.close)
        undo.callback(gate.close, "it is shutting down")
        host, join_host = _in_url(settings.router.host), _in_url(settings.router.join_host)
        addresses = Addresses(
            rest=f"{'http' if security.tls is None else 'https'}://{host}:{rest.port}",
            grpc=f"{host}:{grpc_port}",
            join=f"{join_host}:{join_port}",
            rest_port=rest.port,
            grpc_port=grpc_port,
            join_port=join_port,
            pid=os.getpid(),
        )
        return cls(addresses, gate, membership, admission, client, rest, grpc, join_server, undo)

    async def drain(self, timeout: float) -> bool:
        """Become unready, reject new requests, and wait for requests in flight.

        Args:
            timeout: Maximum wait, seconds.

        Returns:
            Whether all requests finished in time.
        """
        await self.grpc.set_ready(ready=False)
        # Before the gate closes: a channel that gets GOAWAY now does not lose a call.
        await self.grpc.leave()
        self.gate.close("it is shutting down")
        finished = await self.gate.wait_idle(timeout)
        if not finished:
            log.warning("drain timed out", inflight=self.gate.inflight, timeout=timeout)
        return finished

    async def stop(self) -> None:
        """Undo the start in reverse order; requests in flight are cancelled. Safe to call twice."""
        await self._exit.aclose()


async def _build_edges(
    settings: Settings,
    clock: Clock,
    listening: socket.socket,
    security: "Security",
    client: "FleetClient",
    gate: DrainGate,
    tracing: "Tracing | None",
) -> tuple[RestServer, "GrpcEdge"]:
    """Build the REST and the gRPC server on top of a client; neither listens yet."""
    import prometheus_client

    from serving.edge.grpc.server import GrpcEdge, GrpcGuard
    from serving.edge.pages import RouterPages
    from serving.edge.rest.app import build_rest_app
    from serving.edge.rest.http_protocol import bounded_protocol
    from serving.engine.arguments import router_args
    from serving.fleet.collector import fleet_registry
    from serving.fleet.operations import FleetOperations
    from serving.telemetry import metrics

    membership = client.membership
    pages = RouterPages(
        fleet=membership.snapshot,
        # Metrics of the process and vLLM, of this package, and of the fleet.
        registries=(prometheus_client.REGISTRY, metrics.REGISTRY, fleet_registry(membership)),
        gate=gate,
        model=settings.model.name,
    )
    app = await build_rest_app(
        client,
        router_args(settings),
        pages,
        max_body_bytes=settings.router.max_body_bytes,
        max_body_values=settings.security.max_body_values,
        max_pending_bytes=settings.security.max_pending_bytes,
        keepalive_interval=settings.router.keepalive_interval,
        clock=clock,
        authenticator=security.authenticator,
        open_metrics=settings.security.open_metrics,
        tracing=tracing,
        cors_origins=settings.router.cors_origins,
    )
    rest = RestServer(
        app.asgi,
        listening,
        stop_grace=_STOP_GRACE,
        protocol=bounded_protocol(settings.security),
        tls=None if security.tls is None else following_context(security.tls),
    )
    app.inner.state.server = rest  # vLLM's handlers read it when an engine is dead
    grpc = GrpcEdge(
        app.inner,
        pages,
        settings.router,
        clock,
        operator=FleetOperations(membership),
        guard=GrpcGuard(
            security.authenticator,
            security.tls,
            settings.security.max_header_bytes,
            settings.security.max_body_values,
            settings.security.max_pending_bytes,
        ),
        tracing=tracing,
        turns=client.turns,
    )
    return rest, grpc


async def _stop_grpc(grpc: "GrpcEdge", gate: DrainGate) -> None:
    await grpc.stop(_STOP_GRACE if gate.inflight else 0)


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})


async def _follow(membership: "FleetMembership", gate: DrainGate, grpc: "GrpcEdge") -> None:
    """Keep the gRPC health status in line with the readiness of the fleet and the gate."""
    changed = asyncio.Event()
    unsubscribe = membership.subscribe(changed.set)
    try:
        while True:
            changed.clear()
            await grpc.set_ready(ready=membership.ready and gate.open)
            await changed.wait()
    finally:
        unsubscribe()


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
