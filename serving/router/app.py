"""The only place where objects are built from ``Settings``: here, a whole router process.

vLLM's server code takes seconds to import, so it is imported when a router starts, not with
this module.
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, cast

import structlog

from serving import gc_tuning
from serving.clock import Clock, SystemClock
from serving.credentials.tls import following_context
from serving.edge.auth.exposure import require_guarded
from serving.edge.gate import Gate
from serving.edge.rest.server import RestServer
from serving.listening import bind
from serving.settings import Settings

if TYPE_CHECKING:
    from serving.admission.controller import AdmissionController
    from serving.edge.grpc.server import GrpcEdge
    from serving.fleet.join_server import LinkServer
    from serving.fleet.membership import Roster
    from serving.requests.client import FleetClient
    from serving.telemetry.tracing import Tracing

PORTS_FILE_VARIABLE = "MOE_SERVING_PORTS_FILE"

_STOP_GRACE = 1.0
"""Seconds that requests get to notice that they are cancelled, after the drain time-out."""

_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # no tensor is computed here
    "VLLM_CONFIGURE_LOGGING": "0",  # ours takes its records
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}

log: structlog.stdlib.BoundLogger = structlog.get_logger("serving.router")


def serve_router(settings: Settings, ports_file: Path | None = None) -> None:
    """Run a router on a fast event loop until a signal ends it; see ``run_router``."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run_router(settings, ports_file))


async def run_router(settings: Settings, ports_file: Path | None = None) -> None:
    """Run a router: REST, gRPC, and the port that ranks join, until SIGTERM or SIGINT.

    The first signal makes it unready and lets requests in flight finish, for at most
    ``router.drain_timeout``; a second one ends the process at once.

    Args:
        settings: all settings; port 0 takes any free one.
        ports_file: gets the addresses that were bound, as JSON, once all are. Default: the
            file that ``MOE_SERVING_PORTS_FILE`` names, if it is set.

    Raises:
        SettingsError: an address cannot be bound, or vLLM refuses its arguments.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # vLLM imports Ray, where it is installed, only to ask whether it runs inside Ray. A router
    # never does; this spares it a second and Ray's own threads and log records.
    sys.modules.setdefault("ray", cast("ModuleType", None))
    from serving.telemetry.logs import configure_logs

    configure_logs(settings.telemetry, process="router")
    named = os.environ.get(PORTS_FILE_VARIABLE)
    ports_file = ports_file or (Path(named) if named else None)
    stopping = asyncio.Event()
    with _signals(stopping):
        with gc_tuning.importing():
            router = await Router.start(settings)
        configure_logs(settings.telemetry, process="router")  # imports have meddled with it
        from serving.edge.settling import settle_down

        settle_down()
        heap_task = asyncio.create_task(gc_tuning.look_after(lambda: router.gate.inflight == 0))
        try:
            if ports_file is not None:
                _write_atomically(ports_file, json.dumps(asdict(router.addresses)))
            log.info("router is up", **asdict(router.addresses))
            await stopping.wait()
            log.info("router drains", inflight=router.gate.inflight)
            await router.drain(settings.router.drain_timeout)
        finally:
            heap_task.cancel()
            await router.stop()
            log.info("router stopped")


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a router listens, for people and for programs."""

    rest: str
    """URL."""
    grpc: str
    """host:port."""
    join: str
    """host:port that ranks dial."""
    rest_port: int
    grpc_port: int
    join_port: int
    pid: int


@dataclass(slots=True)
class Router:
    """A running router. Also what integration tests start, in their own process."""

    addresses: Addresses
    gate: Gate
    roster: "Roster"
    client: "FleetClient"
    _admission: "AdmissionController"
    _link: "LinkServer"
    _grpc: "GrpcEdge"
    _rest: RestServer
    _tracing: "Tracing"
    _tasks: tuple[asyncio.Task[None], ...]
    _stopped: bool = False

    @classmethod
    async def start(cls, settings: Settings, clock: Clock | None = None) -> "Router":
        """Build everything and listen.

        Raises:
            SettingsError: an address cannot be bound, or vLLM refuses its arguments.
            LinkRefused: the join address cannot be bound.
        """
        # Before the slow imports: an open door, or a port that is taken, should be known at once.
        require_guarded(settings)
        router_settings = settings.router
        listening = bind(
            "REST",
            router_settings.host,
            router_settings.rest_port,
            "router.rest_port (--port)",
            cut_after=router_settings.write_timeout,
        )
        async with contextlib.AsyncExitStack() as undo:
            undo.callback(listening.close)
            router = await cls._build(settings, clock or SystemClock(), listening, undo)
            undo.pop_all()
        return router

    @classmethod
    async def _build(
        cls,
        settings: Settings,
        clock: Clock,
        listening: socket.socket,
        undo: contextlib.AsyncExitStack,
    ) -> "Router":
        import prometheus_client

        from serving.admission.controller import AdmissionController
        from serving.admission.limits import default_limits
        from serving.edge.auth.security import Security
        from serving.edge.grpc.server import GrpcEdge, GrpcGuard
        from serving.edge.pages import RouterPages
        from serving.edge.rest.app import build_rest_app
        from serving.edge.rest.http_protocol import bounded_protocol
        from serving.engine.arguments import router_args, router_vllm_config
        from serving.fleet.canary import Canary, first_token_id
        from serving.fleet.collector import fleet_registry
        from serving.fleet.join_guard import JoinGuard
        from serving.fleet.join_server import LinkServer
        from serving.fleet.membership import Roster
        from serving.fleet.operations import FleetOperations
        from serving.link.protocol import model_fingerprint
        from serving.requests.client import FleetClient
        from serving.routing.prefix_index import PrefixIndex
        from serving.telemetry import metrics
        from serving.telemetry.tracing import tracing_of

        tracing = tracing_of(settings.telemetry)
        undo.push_async_callback(tracing.close)
        security = Security.load(settings.security, clock)
        gate = Gate()
        prefixes = PrefixIndex(settings.routing.prefix_blocks, settings.routing.history_blocks)
        roster = Roster(settings.fleet, clock, prefixes=prefixes)
        admission = AdmissionController(
            settings.admission,
            ready=lambda: roster.ready,
            clock=clock,
            limits_of=security.limits_of(default_limits(settings.admission)),
        )
        undo.push_async_callback(admission.stop)
        client = FleetClient(router_vllm_config(settings), roster, settings, clock, admission)
        undo.callback(client.shutdown)
        canary = Canary(
            roster,
            token_id=first_token_id(client.model_config.hf_text_config),
            timeout=settings.fleet.canary_timeout,
        )
        undo.callback(canary.stop)
        link = LinkServer(
            roster,
            settings.link,
            settings.router,
            model_name=settings.model.name,
            fingerprint=model_fingerprint(settings.model.path),
            clock=clock,
            guard=JoinGuard(security.join_tokens, security.join_tls),
        )
        pages = RouterPages(
            fleet=roster.snapshot,
            # Python's and vLLM's own, then ours.
            registries=(prometheus_client.REGISTRY, metrics.REGISTRY, fleet_registry(roster)),
            gate=gate,
            model=settings.model.name,
        )
        app = await build_rest_app(
            client,
            router_args(settings),
            pages,
            max_body_bytes=settings.router.max_body_bytes,
            max_body_values=settings.security.max_body_values,
            keepalive_interval=settings.router.keepalive_interval,
            clock=clock,
            door=security.door(),
            tracing=tracing,
            cors_origins=settings.router.cors_origins,
        )
        grpc_edge = GrpcEdge(
            app.inner,
            pages,
            settings.router,
            clock,
            operator=FleetOperations(roster),
            guard=GrpcGuard(
                security.authenticator,
                security.tls,
                settings.security.max_header_bytes,
                settings.security.max_body_values,
            ),
            tracing=tracing,
        )
        rest = RestServer(
            app.asgi,
            listening,
            stop_grace=_STOP_GRACE,
            protocol=bounded_protocol(settings.security),
            tls=None if security.tls is None else following_context(security.tls),
        )
        app.inner.state.server = rest  # vLLM's handlers look for it when an engine is dead
        undo.push_async_callback(grpc_edge.stop, 0)
        grpc_port = await grpc_edge.start()
        undo.push_async_callback(rest.stop)
        await rest.start()
        # The last one: who can join can also be asked.
        join_port = await link.start()
        health = asyncio.create_task(_follow(roster, gate, grpc_edge))
        reload = asyncio.create_task(security.keep_fresh())
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
        tasks = (health, reload)
        return cls(
            addresses, gate, roster, client, admission, link, grpc_edge, rest, tracing, tasks
        )

    async def drain(self, timeout: float) -> bool:
        """Be unready, take no new work, and wait for what is in flight.

        Returns:
            Whether all of it finished within ``timeout`` seconds.
        """
        await self._grpc.set_ready(ready=False)
        await self._grpc.leave()  # a channel keeps its connection: told now, it loses no call
        self.gate.close("it is shutting down")
        finished = await self.gate.idle(timeout)
        if not finished:
            log.warning("drain timed out", inflight=self.gate.inflight, timeout=timeout)
        return finished

    async def stop(self) -> None:
        """End everything; what is still in flight is cancelled. Safe to call twice."""
        if self._stopped:
            return
        self._stopped = True
        self.gate.close("it is shutting down")
        self._admission.close()  # who waits for a turn gets an answer, not a cut connection
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        await self._grpc.stop(_STOP_GRACE if self.gate.inflight else 0)
        await self._rest.stop()
        await self._link.stop()
        await self._admission.stop()
        self.client.shutdown()
        await self._tracing.close()


async def _follow(roster: "Roster", gate: Gate, grpc_edge: "GrpcEdge") -> None:
    """Keep gRPC health equal to whether a group is ready."""
    changed = asyncio.Event()
    unsubscribe = roster.subscribe(changed.set)
    try:
        while True:
            changed.clear()
            await grpc_edge.set_ready(ready=roster.ready and gate.open)
            await changed.wait()
    finally:
        unsubscribe()


@contextlib.contextmanager
def _signals(stopping: asyncio.Event) -> Iterator[None]:
    loop = asyncio.get_running_loop()

    def stop(number: signal.Signals) -> None:
        if stopping.is_set():
            os._exit(128 + number)
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def _write_atomically(file: Path, text: str) -> None:
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    temporary.write_text(text + "\n", "utf-8")
    temporary.replace(file)


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
