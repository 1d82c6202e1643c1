"""Builds the autoscaler from settings, and takes it apart again."""

import asyncio
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import structlog

from serving.autoscaler.actuators.actuator import Actuator
from serving.autoscaler.actuators.ray_serve import RayServeActuator
from serving.autoscaler.decision import PolicyState
from serving.autoscaler.drains import Drains
from serving.autoscaler.loop import Autoscaler
from serving.autoscaler.prometheus import PrometheusApi
from serving.autoscaler.recording import load_state
from serving.autoscaler.routers import Routers
from serving.autoscaler.schedule import parse_cron
from serving.autoscaler.signals import Signals
from serving.clock import SystemClock
from serving.errors import SettingsError
from serving.settings import AutoscalerSettings, Settings
from serving.telemetry import metrics

log: structlog.stdlib.BoundLogger = structlog.get_logger("serving.autoscaler")


@dataclass(frozen=True, slots=True)
class Assembly:
    """An autoscaler that is ready to run."""

    autoscaler: Autoscaler
    leading: Callable[[], bool]
    """Whether this process is the one that decides."""


def gpus_of_group(settings: Settings) -> float:
    """Return the GPUs that one group counts as for the cost cap."""
    given = settings.autoscaler.gpus_per_group
    ranks = settings.group.data_parallel * settings.group.tensor_parallel
    return float(ranks) if given is None else given


def check(settings: AutoscalerSettings) -> None:
    """Return if the schedule can be read.

    Raises:
        SettingsError: it cannot.
    """
    for entry in settings.schedule:
        parse_cron(entry.when, entry.timezone)


@asynccontextmanager
async def assembled(settings: Settings, *, dry_run: bool) -> AsyncIterator[Assembly]:
    """Build the autoscaler; its connections are closed on leaving.

    Raises:
        SettingsError: a file or the schedule cannot be read.
    """
    law = settings.autoscaler
    check(law)
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(
            # Proxies of the environment are for the world outside.
            httpx.AsyncClient(trust_env=False, verify=_trust(law.ca_file))
        )
        routers = Routers(client, law, settings.ray.app_name)
        drains = Drains(law)
        serve = RayServeActuator(
            client,
            law,
            app=settings.ray.app_name,
            ranks=settings.group.data_parallel,
            groups=routers,
            drains=drains,
        )
        actuator: Actuator = serve
        leading: Callable[[], bool] = _always
        if law.kubernetes.enabled:
            actuator, leading = await _on_kubernetes(stack, law, serve, routers, drains, dry_run)
        else:
            metrics.AUTOSCALER_LEADER.set(1)
        state = PolicyState() if law.state_file is None else load_state(Path(law.state_file))
        signals = Signals(
            PrometheusApi(client, law.prometheus_url, law.prometheus_timeout), routers, law
        )
        autoscaler = Autoscaler(
            signals,
            actuator,
            law,
            SystemClock(),
            gpus=gpus_of_group(settings),
            state=state,
            dry_run=dry_run,
        )
        yield Assembly(autoscaler, leading)


async def _on_kubernetes(
    stack: AsyncExitStack,
    law: AutoscalerSettings,
    serve: RayServeActuator,
    routers: Routers,
    drains: Drains,
    dry_run: bool,  # noqa: FBT001  handed on
) -> tuple[Actuator, Callable[[], bool]]:
    """Add the worker group, the election and the watch over nodes; they end with ``stack``."""
    from serving.autoscaler.actuators.disruption_budget import DisruptionBudget
    from serving.autoscaler.actuators.kubernetes import KubernetesActuator, KubernetesObserver
    from serving.autoscaler.actuators.kubernetes_api import KubernetesApi, cluster_configuration
    from serving.autoscaler.actuators.lease import LeaseElection
    from serving.autoscaler.actuators.node_watch import NodeWatch
    from serving.autoscaler.actuators.rights import missing
    from serving.autoscaler.actuators.worker_group import WorkerGroupActuator

    try:
        configuration = await cluster_configuration()
    except SettingsError as error:
        raise SettingsError(f"autoscaler.kubernetes.enabled, and {error}") from error
    api = KubernetesApi(law.kubernetes, configuration)
    stack.push_async_callback(api.close)
    workers = WorkerGroupActuator(api, law.kubernetes, routers, serve)
    if dry_run:
        # Asks for no lease: another one decides, this one only tells what it would do.
        return KubernetesObserver(
            serve, workers, lambda cluster: missing(api, law.kubernetes, cluster)
        ), _always
    identity = f"{socket.gethostname()}-{os.getpid()}"
    election = LeaseElection(api, law.kubernetes, identity, SystemClock())
    watch = NodeWatch(api, workers, routers, drains, law)
    watching = asyncio.create_task(watch.run(lambda: election.leading))
    stack.push_async_callback(_ended, watching)
    # In reverse: no more claims, then the lease is given back, then what may take a while.
    stack.push_async_callback(election.release)
    stack.push_async_callback(_ended, asyncio.create_task(election.run()))
    named = law.kubernetes.disruption_budget
    budget = DisruptionBudget(api, law.kubernetes) if named else None
    return KubernetesActuator(serve, workers, budget), lambda: election.leading


def _always() -> bool:
    return True


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


def _trust(ca_file: str | None) -> ssl.SSLContext | bool:
    if ca_file is None:
        return True
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(f"cannot use {ca_file}: {error}") from error
