"""The groups as a Ray Serve application: one gang per group, one replica per rank.

Ray Serve places each gang atomically, assigns the ranks, restarts failed gangs and scales by whole
groups. Requests do not pass through Serve: each rank connects to the routers
(:mod:`serving.engine.router_link.server`). Where Serve runs proxies (on Kubernetes, for KubeRay's
health checks), :mod:`serving.engine.misdirected` answers their requests; elsewhere the application
has neither a route nor a proxy.

    Serve ── starts ──> RankReplica: meet peers -> VllmEngine -> RankServer -> routers
          ── checks ──> check_health: does the engine make progress?
          ── stops ───> drain through the routers, stop the engine, end all child processes
"""

import contextlib
import logging
from collections.abc import Iterator
from logging.handlers import MemoryHandler
from typing import Any

from serving.engine import misdirected
from serving.engine.ray import cluster
from serving.engine.ray.placement import rank_resources
from serving.engine.ray.rendezvous import GangMember
from serving.errors import EngineError
from serving.settings import Settings

DEPLOYMENT = "ranks"
"""Name of the Serve deployment."""

HEALTH_PERIOD = 2.0
"""Interval between health checks of a replica, seconds."""

HEALTH_TIMEOUT = 10.0
"""Timeout of a health check, seconds."""

STOP_TIMEOUT = 12.0
"""Time until Serve kills a stopping replica, seconds; more than ``rank.DRAIN_TIMEOUT``."""

START_ATTEMPTS = 3
"""Number of failed first starts of a gang after which Serve fails the deployment. A gang that has
run before is restarted without limit."""


class RankReplica:
    """One rank inside one Serve replica."""

    # Serve awaits an asynchronous constructor.
    async def __init__(self, app: str, settings: dict[str, Any]) -> None:  # type: ignore[misc]
        """Start the rank; the replica counts as started when the constructor returns.

        Args:
            app: Name of the Serve application.
            settings: ``Settings`` as JSON data.

        Raises:
            ServingError: The rank cannot start.
        """
        from ray import serve

        from serving.engine.rank import tune_rank_process
        from serving.engine.ray.rank import GangRank

        gang = serve.get_replica_context().gang_context
        if gang is None:
            raise EngineError("the ranks deployment needs Ray Serve's gang scheduling")
        address = cluster.own_address()
        bind_serve_to(address)
        member = GangMember(
            app, gang.gang_id, gang.rank, gang.world_size, tuple(gang.member_replica_ids)
        )
        self._rank: GangRank = GangRank(Settings(**settings), member, address)
        with kept_handlers(logging.getLogger("ray.serve")):
            await self._rank.start()
        tune_rank_process(settings["engine"]["kind"])

    async def check_health(self) -> None:
        """Check that the engine makes progress; Serve restarts the gang on an exception.

        Raises:
            EngineError: The engine has failed or is stalled.
        """
        await self._rank.check_health()

    async def status(self) -> dict[str, Any]:
        """Return the state of the router connections, for operators."""
        return self._rank.status()

    async def __call__(self) -> Any:
        """Reject a request from Serve's proxy; clients must use the routers."""
        # Without a request parameter, Serve calls this method for WebSockets, too.
        return misdirected.answer()

    async def __del__(self) -> None:
        """Stop the rank; Serve awaits this method when it stops the replica gracefully."""
        rank = getattr(self, "_rank", None)
        if rank is not None:
            await rank.stop()


def bind_serve_to(address: str) -> None:
    """Make the replica's gRPC server listen on ``address`` instead of all interfaces.

    Serve starts the server in each replica for calls between deployments and has no setting for
    its address. No such calls occur here, and a local installation must listen on loopback only.
    """
    from ray.serve._private import replica

    add_port = replica.add_port_to_grpc_server
    host = f"[{address}]" if ":" in address else address

    def add_port_here(server: object, where: str) -> object:
        return add_port(server, where.replace("[::]", host))

    replica.add_port_to_grpc_server = add_port_here


@contextlib.contextmanager
def kept_handlers(logger: logging.Logger) -> Iterator[None]:
    """Restore the targets of a logger's memory handlers after the block.

    At import, vLLM calls ``logging.config.dictConfig``, which closes all handlers of the process
    (logging.config._clearExistingHandlers). A closed memory handler has no target, but Serve needs
    the target's file name when a new controller recovers the replica
    (ray.serve._private.logging_utils.get_component_logger_file_path). Without the target that call
    fails and the controller stops every rank.
    """
    targets = {
        handler: handler.target for handler in logger.handlers if isinstance(handler, MemoryHandler)
    }
    try:
        yield
    finally:
        for handler, target in targets.items():
            # A closed file handler reopens its file on the next write.
            if handler.target is None:
                handler.setTarget(target)


def replica_environment(settings: Settings) -> dict[str, str]:
    """Return the environment variables of the replicas and their engines."""
    environment = {"RAY_USAGE_STATS_ENABLED": "0"}
    if settings.engine.kind == "vllm":
        from serving.engine.environment import engine_environment

        environment |= engine_environment(settings)
    return environment


def deployment_options(settings: Settings) -> dict[str, Any]:
    """Return the options of the Serve deployment, in the form of ``serve.deployment``."""
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
        # Without placement_group_bundles, Serve creates one bundle per rank from the actor
        # options, and the engine runs inside the bundle.
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
    """Submit the groups to Serve and return immediately. Ray must be connected.

    Another call with changed settings updates the application in place.
    """
    from ray import serve
    from ray.serve.api import RunTarget

    # Hide Serve's progress messages; errors are raised as exceptions.
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    app = settings.ray.app_name
    serve.start(proxy_location="Disabled")
    serve.run_many(
        [
            RunTarget(
                application(settings),
                name=app,
                route_prefix=None,
                # The autoscaler sets the number of replicas through Serve's REST API.
                external_scaler_enabled=True,
            )
        ],
        wait_for_ingress_deployment_creation=False,
        wait_for_applications_running=False,
    )
