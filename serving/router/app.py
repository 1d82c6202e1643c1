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

from serving import process_tuning
from serving.clock import Clock, SystemClock
from serving.credentials.tls import following_context
from serving.edge.auth.security import require_secure_bind
from serving.edge.gate import DrainGate
from serving.edge.rest.server import RestServer
from serving.net import bind
from serving.router.optional_parts import (
    batches_of,
    budgets_of,
    console_of,
    ledger_of,
    run_batches,
)
from serving.settings import Settings, served_models

if TYPE_CHECKING:
    from serving.admission.controller import AdmissionController
    from serving.batch.service import BatchService
    from serving.console.routes import Console
    from serving.edge.auth.security import Security
    from serving.edge.grpc.server import GrpcEdge
    from serving.fleet.join_server import LinkServer
    from serving.fleet.membership import FleetMembership
    from serving.fleet.models import FleetModels
    from serving.ledger.ledger import Ledger
    from serving.requests.client import FleetClient
    from serving.router.models import RouterModels
    from serving.telemetry.tracing import Tracing

_STOP_GRACE = 1.0
"""Time for requests that are cancelled at the end of a drain to return, seconds."""

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
    models: "RouterModels"
    rest: RestServer
    grpc: "GrpcEdge"
    join_server: "LinkServer"
    ledger: "Ledger | None"
    """The usage ledger. None if it is not configured."""
    batches: "BatchService | None"
    """Files and batches. None if they are not configured."""
    _exit: contextlib.AsyncExitStack
    """Undoes the start in reverse order."""

    @property
    def membership(self) -> "FleetMembership":
        """Membership of the first model."""
        return self.models.first.membership

    @property
    def admission(self) -> "AdmissionController":
        """Admission of the first model."""
        return self.models.first.admission

    @property
    def client(self) -> "FleetClient":
        """Client of the first model."""
        return self.models.client

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
        from serving.admission.quotas import default_limits
        from serving.edge.auth.security import Security
        from serving.fleet.join_server import JoinGuard, LinkServer
        from serving.ledger.budget import why_no_budgets
        from serving.router.models import RouterModels
        from serving.telemetry.tracing import tracing_of

        tracing = tracing_of(settings.telemetry)
        if tracing is not None:
            undo.push_async_callback(tracing.close)
        names = [each.name for each in served_models(settings)]
        no_budgets = why_no_budgets(settings.ledger, names, clock.time())
        security = Security.load(settings.security, clock, no_budgets)
        ledger = ledger_of(settings, clock)
        if ledger is not None:
            undo.push_async_callback(ledger.stop)
        budgets = None if ledger is None else budgets_of(settings, security, ledger, clock)
        if budgets is not None:
            undo.push_async_callback(budgets.close)
        limits_of = security.limits_of(default_limits(settings.admission))
        gate = DrainGate()
        models = RouterModels.of(
            settings,
            clock,
            limits_of,
            undo,
            None if ledger is None else ledger.database.tariff,
            budgets,
        )
        join_server = LinkServer(
            models.fleet,
            settings.link,
            settings.router,
            clock=clock,
            guard=JoinGuard(security.join_tokens, security.join_tls),
        )
        undo.push_async_callback(join_server.stop)
        batches = batches_of(settings, clock, models, limits_of, undo)
        rest, grpc, console = await _build_edges(
            settings, clock, listening, security, models, gate, tracing, ledger, batches
        )
        undo.push_async_callback(rest.stop)
        if console is not None:
            console.start()
            undo.push_async_callback(console.stop)
        # During start-up, vLLM's app scans all objects three times; frozen objects are skipped.
        process_tuning.collect_and_freeze()
        await rest.start()
        undo.push_async_callback(_stop_grpc, grpc, gate)
        grpc_port = await grpc.start()
        join_port = await join_server.start()
        backgrounds = [_follow(models.fleet, gate, grpc), security.keep_fresh()]
        if ledger is not None:
            backgrounds.append(_record_capacity(models.fleet, ledger, clock))
            ledger.start()
        for background in backgrounds:
            undo.push_async_callback(_cancel, asyncio.create_task(background))
        run_batches(batches, rest, security, undo)
        # Pushed last, so it runs first: queued requests get a response rather than a closed
        # connection.
        undo.callback(models.close_admission)
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
        return cls(addresses, gate, models, rest, grpc, join_server, ledger, batches, undo)

    async def drain(self, timeout: float) -> bool:
        """Become unready, reject new requests, and wait for requests in flight.

        Args:
            timeout: Maximum wait, seconds.

        Returns:
            Whether all requests finished in time.
        """
        await self.grpc.set_ready(ready=False)
        # This precedes the closing of the gate, so that a channel that receives GOAWAY now does not
        # lose a call.
        await self.grpc.leave()
        if self.batches is not None:
            # Other routers or the next process run the lines again.
            await self.batches.pause()
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
    models: "RouterModels",
    gate: DrainGate,
    tracing: "Tracing | None",
    ledger: "Ledger | None",
    batches: "BatchService | None",
) -> tuple[RestServer, "GrpcEdge", "Console | None"]:
    """Build the REST and gRPC servers on top of the models; neither listens yet.

    The console's routes are part of the REST server; None is returned for a disabled console.
    """
    import prometheus_client

    from serving.edge.grpc.server import GrpcEdge, GrpcGuard
    from serving.edge.pages import RouterPages
    from serving.edge.rest.app import build_rest_app
    from serving.edge.rest.http_protocol import bounded_protocol
    from serving.edge.usage_pages import UsageReader
    from serving.edge.usage_recorder import UsageRecorder
    from serving.engine.arguments import router_args
    from serving.fleet.collector import fleet_registry
    from serving.fleet.operations import FleetOperations
    from serving.telemetry import metrics

    source = None
    if ledger is not None:
        from serving.ledger.view import LedgerView

        source = LedgerView.of(settings.ledger, ledger.database)
    fleet, first, client = models.fleet, models.first.served, models.client
    pages = RouterPages(
        fleet=fleet.snapshot,
        # Metrics of the process and of vLLM, of this package, and of the fleet.
        registries=(
            prometheus_client.REGISTRY,
            metrics.REGISTRY,
            fleet_registry(fleet.snapshot, models.status, models.counters()),
        ),
        gate=gate,
        model=first.name,
        models=models.status,
        usage=UsageReader(source),
        batches=batches,
        turns=client.turns,
        adapters=models.adapters,
    )
    usage = None if ledger is None else UsageRecorder(ledger, clock)
    operator = FleetOperations(fleet)
    app = await build_rest_app(
        client,
        router_args(first.settings),
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
        usage=usage,
        models=models,
        several=models.several,
        check_load=models.check_load if models.several else None,
        max_file_bytes=None if batches is None else settings.batch.max_file_bytes,
    )
    models.use_first(app.first)
    console = None
    if settings.console.enabled:
        console = console_of(settings, clock, models, operator, gate, security, source)
        console.add_to(app.inner)
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
        operator=operator,
        guard=GrpcGuard(
            security.authenticator,
            security.tls,
            settings.security.max_header_bytes,
            settings.security.max_body_values,
            settings.security.max_pending_bytes,
        ),
        tracing=tracing,
        turns=client.turns,
        usage=usage,
    )
    return rest, grpc, console


async def _record_capacity(fleet: "FleetModels", ledger: "Ledger", clock: Clock) -> None:
    from serving.router.capacity import record_capacity

    await record_capacity(fleet.snapshot, ledger, clock)


async def _stop_grpc(grpc: "GrpcEdge", gate: DrainGate) -> None:
    await grpc.stop(_STOP_GRACE if gate.inflight else 0)


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})


async def _follow(fleet: "FleetModels", gate: DrainGate, grpc: "GrpcEdge") -> None:
    """Keep the gRPC health status in line with the readiness of the fleet and the gate."""
    changed = asyncio.Event()
    unsubscribe = fleet.subscribe(changed.set)
    try:
        while True:
            changed.clear()
            await grpc.set_ready(ready=fleet.ready and gate.open)
            await changed.wait()
    finally:
        unsubscribe()


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
