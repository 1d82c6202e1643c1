"""The groups as a Ray Serve application: one gang a group, one replica a rank.

Ray Serve places the gang (all ranks or none), tells each rank its place, restarts a broken
gang and scales in whole groups. It carries no request: a rank dials the routers itself
(``rank_server``). Where Serve runs proxies (on Kubernetes, for KubeRay's health checks), their
requests are answered by ``misdirected``; elsewhere the application has no route and no proxy.

    Serve ── starts ──> RankReplica: meet peers -> VllmEngine -> RankServer -> routers
          ── asks ────> check_health: has the engine made progress?
          ── stops ───> drain through the routers, then the engine, then no child is left
"""

import asyncio
import logging
import os
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import psutil

from serving import gc_tuning
from serving.clock import SystemClock
from serving.engine import misdirected
from serving.engine.metrics_page import MetricsPage, open_page
from serving.engine.processes import EngineProcesses
from serving.engine.ray import cluster
from serving.engine.ray.log_handlers import kept_handlers
from serving.engine.ray.node_network import free_port, network_environment
from serving.engine.ray.placement import rank_resources
from serving.engine.ray.rendezvous import GangMember, GcsStore, Meeting, Rendezvous
from serving.engine.ray.startup_progress import Stage, StageBoard, StageWriter
from serving.engine.router_link.node_drain import LeaveWatch
from serving.engine.start_checks import fabric_environment
from serving.errors import EngineError
from serving.settings import EngineSettings, Platform, Settings

if TYPE_CHECKING:
    from serving.engine.base import Engine
    from serving.engine.router_link.server import RankServer

DEPLOYMENT = "ranks"
HEALTH_PERIOD = 2.0
HEALTH_TIMEOUT = 10.0
DRAIN_TIMEOUT = 5.0
"""For requests in flight when Serve stops a rank; less than Serve's own patience."""
STOP_TIMEOUT = 12.0
"""After this long Serve kills a replica that is stopping."""
START_ATTEMPTS = 3
"""Starts of a gang that never ran before the deployment is given up. One that did run is
restarted without limit."""
CHILD_TIMEOUT = 3.0

_log = logging.getLogger(__name__)


class RankReplica:
    """One rank: an engine and its link to the routers, inside one Serve replica."""

    # Serve awaits it.
    async def __init__(self, app: str, settings: dict[str, Any]) -> None:  # type: ignore[misc]
        """Start the rank; Serve counts it as started when this returns.

        Args:
            app: name of the Serve application.
            settings: ``Settings`` as JSON data.
        """
        from ray import serve

        gang = serve.get_replica_context().gang_context
        if gang is None:
            raise EngineError("the ranks deployment needs Ray Serve's gang scheduling")
        address = cluster.own_address()
        keep_serve_on(address)
        member = GangMember(
            app, gang.gang_id, gang.rank, gang.world_size, tuple(gang.member_replica_ids)
        )
        self._rank = Rank(Settings(**settings), member, address)
        with kept_handlers(logging.getLogger("ray.serve")):
            await self._rank.start()
        settle_down(settings["engine"]["kind"])

    async def check_health(self) -> None:
        """Raise if the engine has failed or stands still; Serve then restarts the gang."""
        await self._rank.check_health()

    async def status(self) -> dict[str, Any]:
        """Return how the links to the routers are; for people, not for traffic."""
        return self._rank.status()

    async def __call__(self) -> Any:
        """Refuse a request that came through Serve's proxy: clients use the routers."""
        # Without a parameter for the request Serve answers WebSockets with this, too.
        return misdirected.answer()

    async def __del__(self) -> None:
        """Serve awaits this when it stops the replica in good order."""
        rank = getattr(self, "_rank", None)
        if rank is not None:
            await rank.stop()


class Rank:
    """The life of one rank, apart from Serve."""

    def __init__(self, settings: Settings, member: GangMember, address: str) -> None:
        clock = SystemClock()
        store = GcsStore()
        self._settings = settings
        self._member = member
        self._address = address
        self._clock = clock
        self._board = StageBoard(store, member.app)
        self._stages = StageWriter(self._board, member, address, os.getpid(), clock)
        self._rendezvous = Rendezvous(store, member, clock)
        self._engine: Engine | None = None
        self._server: RankServer | None = None
        self._page: MetricsPage | None = None
        self._leave: LeaveWatch | None = None

    async def start(self) -> None:
        """Meet the gang, start the engine, join the routers.

        Raises:
            ServingError: the rank cannot start; the stage board has the reason too.
        """
        try:
            await self._start()
        except BaseException as error:
            self._stages.fail(error)
            _log.exception("rank %d of gang %s failed", self._member.rank, self._member.gang_id)
            await self._stop_parts()
            raise

    async def check_health(self) -> None:
        """Return if the engine makes progress.

        Raises:
            EngineError: it does not.
        """
        if self._engine is None:
            raise EngineError("the engine is not running")
        await self._engine.check_health()

    def status(self) -> dict[str, Any]:
        """Return the state of the links, by router."""
        return {} if self._server is None else dict(self._server.status())

    async def stop(self) -> None:
        """Hand over or finish the requests, stop the engine, leave no child behind."""
        await self._stop_parts()
        self._rendezvous.leave()
        self._board.remove(self._member)

    async def _start(self) -> None:
        self._stages.enter(Stage.PLACED)
        if self._member.rank == 0:
            self._board.sweep(self._clock.time())
        os.environ.update(network_environment(self._address))
        # Its imports and file reads must not delay Serve's health checks.
        os.environ.update(await asyncio.to_thread(fabric_environment, self._settings))
        if self._settings.group.placement == "strict_spread":
            self._rendezvous.claim_node(self._address)
        self._stages.enter(Stage.MEETING)
        meeting = await self._rendezvous.meet(
            self._address, free_port, self._settings.group.start_timeout
        )
        self._stages.enter(Stage.LOADING)
        self._engine = make_engine(self._settings, self._member, meeting)
        async with asyncio.timeout(self._settings.group.start_timeout):
            await self._engine.start()
        self._stages.enter(Stage.JOINING)
        self._page = open_page(self._settings.telemetry, self._address)
        self._server = make_server(
            self._engine,
            self._settings,
            self._member,
            meeting,
            self._address,
            metrics_address="" if self._page is None else self._page.address,
        )
        await self._server.start()
        self._leave = LeaveWatch(self._server.drain, self._clock)
        self._leave.start()

    async def _stop_parts(self) -> None:
        server, self._server = self._server, None
        engine, self._engine = self._engine, None
        page, self._page = self._page, None
        leave, self._leave = self._leave, None
        if leave is not None:
            await leave.stop()
        if page is not None:
            await asyncio.to_thread(page.close)
        if server is not None:
            await server.drain("the rank is being stopped", DRAIN_TIMEOUT)
            await server.stop()
        if engine is not None:
            await engine.shutdown()
        await asyncio.to_thread(end_children, CHILD_TIMEOUT)


def settle_down(engine_kind: str) -> None:
    """Make what is the same for every token cheap, in a process that holds one started rank."""
    if engine_kind == "vllm":
        from vllm import envs

        envs.enable_envs_cache()  # vLLM reads some for each token
    gc_tuning.keep()


def keep_serve_on(address: str) -> None:
    """Let this replica's own gRPC server listen on ``address`` instead of everywhere.

    Serve opens one in each replica for calls between deployments, on all interfaces and
    without a setting for that. We make no such calls, and on loopback nothing may listen to
    the outside.
    """
    from ray.serve._private import replica

    add_port = replica.add_port_to_grpc_server
    host = f"[{address}]" if ":" in address else address

    def add_port_here(server: object, where: str) -> object:
        return add_port(server, where.replace("[::]", host))

    replica.add_port_to_grpc_server = add_port_here


def make_engine(settings: Settings, member: GangMember, meeting: Meeting) -> "Engine":
    """Build the engine that the settings name; nothing is loaded yet."""
    if settings.engine.kind == "fake":
        from serving.engine.fake.engine import FakeEngine

        return FakeEngine(settings, rank=member.rank)
    processes = EngineProcesses(SystemClock())
    if settings.platform is Platform.CPU:
        processes.fork()
    with gc_tuning.importing():
        from serving.engine.vllm_engine import VllmEngine
    return VllmEngine(
        settings,
        rank=member.rank,
        address=meeting.address,
        rpc_port=meeting.rpc_port,
        processes=processes,
    )


def make_server(
    engine: "Engine",
    settings: Settings,
    member: GangMember,
    meeting: Meeting,
    node: str,
    *,
    metrics_address: str = "",
) -> "RankServer":
    """Build the rank's side of the links."""
    from serving.engine.router_link.server import RankIdentity, RankServer

    identity = RankIdentity(
        group_id=member.gang_id,
        epoch=meeting.epoch,
        rank=member.rank,
        world_size=member.world_size,
        node=node,
        started_at=meeting.made_at,
        metrics_address=metrics_address,
        app=origin(member.app, os.environ),
    )
    return RankServer(engine, settings.link, identity, clock=SystemClock())


def origin(app: str, environment: Mapping[str, str]) -> str:
    """Return what operators know the application by, as in ``Hello.app``.

    Blue and green of a RayService upgrade are the same application in two RayClusters; KubeRay
    tells the pods the name of theirs (``RAY_CLUSTER_NAME``).
    """
    cluster_name = environment.get("RAY_CLUSTER_NAME", "")
    return f"{cluster_name}/{app}" if cluster_name else app


def end_children(timeout: float, keep: Collection[psutil.Process] = ()) -> None:
    """Kill what this process started and has not ended by itself after ``timeout`` seconds.

    Processes in ``keep`` are left alone.
    """
    children = set(psutil.Process().children(recursive=True)) - set(keep)
    _, alive = psutil.wait_procs(children, timeout=timeout)
    for child in alive:
        _log.warning("process %d outlived the engine: killing it", child.pid)
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(alive, timeout=timeout)


def replica_environment(settings: Settings) -> dict[str, str]:
    """Return the environment of the replica processes (and the engine's under them)."""
    environment = {"RAY_USAGE_STATS_ENABLED": "0"}
    engine: EngineSettings = settings.engine
    if engine.kind == "vllm":
        from serving.engine.environment import engine_environment

        environment |= engine_environment(settings)
    return environment


def deployment_options(settings: Settings) -> dict[str, Any]:
    """Return the options of the Serve deployment, as ``serve.deployment`` takes them."""
    from ray.serve.config import (
        GangPlacementStrategy,
        GangRuntimeFailurePolicy,
        GangSchedulingConfig,
    )

    group = settings.group
    resources = rank_resources(group, settings.platform)
    actor: dict[str, Any] = {
        "num_cpus": resources.pop("CPU"),
        "num_gpus": resources.pop("GPU", 0),
        "runtime_env": {"env_vars": replica_environment(settings)},
    }
    if resources:
        actor["resources"] = resources
    pack = group.placement == "pack"
    return {
        "name": DEPLOYMENT,
        "num_replicas": group.count * group.data_parallel,
        "ray_actor_options": actor,
        # No per-replica bundles: then Serve makes one bundle a rank from the actor options,
        # and the engine runs inside it.
        "gang_scheduling_config": GangSchedulingConfig(
            gang_size=group.data_parallel,
            gang_placement_strategy=(
                GangPlacementStrategy.PACK if pack else GangPlacementStrategy.SPREAD
            ),
            runtime_failure_policy=GangRuntimeFailurePolicy.RESTART_GANG,
        ),
        "max_ongoing_requests": 4,
        "max_queued_requests": 4,
        "health_check_period_s": HEALTH_PERIOD,
        "health_check_timeout_s": HEALTH_TIMEOUT,
        "graceful_shutdown_timeout_s": STOP_TIMEOUT,
        "graceful_shutdown_wait_loop_s": 0.2,
        "max_constructor_retry_count": START_ATTEMPTS,
    }


def application(settings: Settings) -> Any:
    """Return the groups as a Serve application (``ray.serve.Application``), not yet deployed."""
    from ray import serve

    deployment = serve.deployment(RankReplica).options(**deployment_options(settings))
    return deployment.bind(settings.ray.app_name, settings.model_dump(mode="json"))


def deploy(settings: Settings) -> None:
    """Ask Serve for the groups and return at once; Ray must be connected.

    A second call with other settings updates the application in place.
    """
    from ray import serve
    from ray.serve.api import RunTarget

    # Its running commentary would run through our progress; errors come back as exceptions.
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    app = settings.ray.app_name
    serve.start(proxy_location="Disabled")
    serve.run_many(
        [
            RunTarget(
                application(settings),
                name=app,
                route_prefix=None,
                # The autoscaler sets the number of replicas over Serve's REST interface.
                external_scaler_enabled=True,
            )
        ],
        wait_for_ingress_deployment_creation=False,
        wait_for_applications_running=False,
    )
