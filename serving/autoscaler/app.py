"""Builds the autoscaler from settings; leaving the context closes everything in reverse order."""

import asyncio
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import structlog

from serving.autoscaler.actuators.actuator import Actuator
from serving.autoscaler.actuators.ray_serve import RayServeActuator
from serving.autoscaler.decision import PolicyState
from serving.autoscaler.drains import RouterDrainer
from serving.autoscaler.loop import Autoscaler
from serving.autoscaler.prometheus import PrometheusApi, SignalReader
from serving.autoscaler.recording import load_state
from serving.autoscaler.routers import RouterReader
from serving.autoscaler.schedule import parse_cron
from serving.clock import SystemClock
from serving.errors import SettingsError
from serving.settings import AutoscalerSettings, KubernetesSettings, Settings, gpus_per_group
from serving.telemetry import autoscaler_metrics as metrics

if TYPE_CHECKING:
    from serving.autoscaler.actuators.kubernetes_api import KubernetesApi
    from serving.autoscaler.actuators.lease import LeaseElection

log: structlog.stdlib.BoundLogger = structlog.get_logger("serving.autoscaler")


@dataclass(frozen=True, slots=True)
class AutoscalerApp:
    """An autoscaler that is ready to run."""

    autoscaler: Autoscaler
    is_leader: Callable[[], bool]
    """Returns whether this process makes the decisions."""


def gpus_of_group(settings: Settings) -> float:
    """Return the number of GPUs per group, for the cost cap."""
    return gpus_per_group(settings.autoscaler, settings.group)


def check_schedule(settings: AutoscalerSettings) -> None:
    """Check that every entry of both schedules parses.

    Raises:
        SettingsError: An entry is invalid.
    """
    for entry in settings.schedule:
        parse_cron(entry.when, entry.timezone)
    for entry in settings.batch.schedule:
        parse_cron(entry.when, entry.timezone, "autoscaler.batch.schedule")


@asynccontextmanager
async def autoscaler_app(settings: Settings, *, dry_run: bool) -> AsyncIterator[AutoscalerApp]:
    """Build the autoscaler; leaving the context closes its connections and releases the lease.

    Args:
        settings: All settings.
        dry_run: Whether to make decisions without acting on them and without joining the leader
            election.

    Raises:
        SettingsError: A file or the schedule cannot be read, or no cluster is configured.
    """
    scaling = settings.autoscaler
    check_schedule(scaling)
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(
            # Ignores the environment's proxies, which are for destinations outside the cluster.
            httpx.AsyncClient(trust_env=False, verify=trust(scaling.ca_file))
        )
        routers = RouterReader(client, scaling, settings.ray.app_name)
        drains = RouterDrainer(scaling)
        serve = RayServeActuator(
            client,
            scaling,
            app=settings.ray.app_name,
            ranks=settings.group.data_parallel,
            groups=routers,
            drains=drains,
        )
        actuator: Actuator = serve
        is_leader: Callable[[], bool] = always
        if scaling.kubernetes.enabled:
            actuator, is_leader = await _on_kubernetes(
                stack, scaling, serve, routers, drains, dry_run
            )
        else:
            metrics.AUTOSCALER_LEADER.set(1)
        state = (
            PolicyState() if scaling.state_file is None else load_state(Path(scaling.state_file))
        )
        signals = SignalReader(
            PrometheusApi(client, scaling.prometheus_url, scaling.prometheus_timeout),
            routers,
            scaling,
        )
        autoscaler = Autoscaler(
            signals,
            actuator,
            scaling,
            SystemClock(),
            gpus=gpus_of_group(settings),
            state=state,
            dry_run=dry_run,
        )
        yield AutoscalerApp(autoscaler, is_leader)


async def _on_kubernetes(
    stack: AsyncExitStack,
    scaling: AutoscalerSettings,
    serve: RayServeActuator,
    routers: RouterReader,
    drains: RouterDrainer,
    dry_run: bool,  # noqa: FBT001  passed on
) -> tuple[Actuator, Callable[[], bool]]:
    """Add the worker group, the leader election and the node watch; ``stack`` closes them."""
    api = await connect(stack, scaling.kubernetes)
    parts = PoolParts(serve, routers, drains)
    if dry_run:
        # A dry run needs no lease: it reports what it would do while the leader acts.
        return observed_workers(api, scaling, parts), always
    election = election_of(api, scaling.kubernetes)
    actuator = with_workers(stack, api, scaling, parts, lambda: election.leading)
    campaign(stack, election)
    return actuator, lambda: election.leading


async def connect(stack: AsyncExitStack, settings: KubernetesSettings) -> "KubernetesApi":
    """Return a client of the cluster's API server; ``stack`` closes it.

    Raises:
        SettingsError: No cluster is configured.
    """
    from serving.autoscaler.actuators.kubernetes_api import KubernetesApi, cluster_configuration

    try:
        configuration = await cluster_configuration()
    except SettingsError as error:
        raise SettingsError(f"autoscaler.kubernetes.enabled is set, but {error}") from error
    api = KubernetesApi(settings, configuration)
    stack.push_async_callback(api.close)
    return api


def election_of(api: "KubernetesApi", settings: KubernetesSettings) -> "LeaseElection":
    """Return this process as a candidate of the leader election, which ``campaign`` starts."""
    from serving.autoscaler.actuators.lease import LeaseElection

    return LeaseElection(api, settings, f"{socket.gethostname()}-{os.getpid()}", SystemClock())


def campaign(stack: AsyncExitStack, election: "LeaseElection") -> None:
    """Run for leader until ``stack`` closes.

    Called last: when the stack closes, the lease is released before the slower steps.
    """
    stack.push_async_callback(election.release)
    stack.push_async_callback(_cancel, asyncio.create_task(election.run()))


@dataclass(frozen=True, slots=True)
class PoolParts:
    """The parts that act on the groups of one pool, without Kubernetes."""

    serve: RayServeActuator
    routers: RouterReader
    drains: RouterDrainer


def observed_workers(
    api: "KubernetesApi", scaling: AutoscalerSettings, parts: PoolParts
) -> Actuator:
    """Return an actuator of one pool that only observes its worker group and the permissions."""
    from serving.autoscaler.actuators.kubernetes import KubernetesObserver
    from serving.autoscaler.actuators.rbac import missing_access
    from serving.autoscaler.actuators.worker_group import WorkerGroupActuator

    workers = WorkerGroupActuator(api, scaling.kubernetes, parts.routers, parts.serve)
    return KubernetesObserver(
        parts.serve, workers, lambda cluster: missing_access(api, scaling.kubernetes, cluster)
    )


def with_workers(
    stack: AsyncExitStack,
    api: "KubernetesApi",
    scaling: AutoscalerSettings,
    parts: PoolParts,
    is_leader: Callable[[], bool],
) -> Actuator:
    """Return an actuator of one pool with its worker group, and watch the pool's nodes.

    Args:
        stack: Ends the watch.
        api: The API server.
        scaling: The settings of the pool.
        parts: The parts that act on the pool's groups.
        is_leader: Returns whether this process makes the decisions.
    """
    from serving.autoscaler.actuators.disruption_budget import DisruptionBudget
    from serving.autoscaler.actuators.kubernetes import KubernetesActuator
    from serving.autoscaler.actuators.node_watch import NodeWatch
    from serving.autoscaler.actuators.worker_group import WorkerGroupActuator

    kubernetes = scaling.kubernetes
    workers = WorkerGroupActuator(api, kubernetes, parts.routers, parts.serve)
    watch = NodeWatch(api, workers, parts.routers, parts.drains, scaling)
    stack.push_async_callback(_cancel, asyncio.create_task(watch.run(is_leader)))
    budget = DisruptionBudget(api, kubernetes) if kubernetes.disruption_budget else None
    return KubernetesActuator(parts.serve, workers, budget)


def always() -> bool:
    """Return True, because without an election this process makes the decisions."""
    return True


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


def trust(ca_file: str | None) -> ssl.SSLContext | bool:
    """Return the authorities that routers are verified with; True means the system's authorities.

    Raises:
        SettingsError: The file cannot be read.
    """
    if ca_file is None:
        return True
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(f"cannot load {ca_file}: {error}") from error
