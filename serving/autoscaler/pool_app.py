"""Builds the autoscaler of several pools; leaving the context closes everything in reverse order.

All pools share the routers' pages, the queries to Prometheus and the leader election. Each pool has
an actuator for its Ray Serve application and, on Kubernetes, for its worker group.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from serving.autoscaler.actuators.actuator import Actuator
from serving.autoscaler.actuators.ray_serve import RayServeActuator
from serving.autoscaler.app import (
    PoolParts,
    always,
    campaign,
    check_schedule,
    connect,
    election_of,
    gpus_of_group,
    observed_workers,
    trust,
    with_workers,
)
from serving.autoscaler.drains import RouterDrainer
from serving.autoscaler.pool_loop import PoolsAutoscaler
from serving.autoscaler.pool_signals import PoolFleetReader, PoolSignalReader
from serving.autoscaler.pools import ScaledPool
from serving.autoscaler.prometheus import PrometheusApi
from serving.autoscaler.recording import load_states
from serving.autoscaler.routers import RouterPages, RouterReader
from serving.clock import SystemClock
from serving.settings import Pool, Settings, served_models
from serving.telemetry import autoscaler_metrics as metrics


@dataclass(frozen=True, slots=True)
class PoolsApp:
    """An autoscaler of several pools that is ready to run."""

    autoscaler: PoolsAutoscaler
    is_leader: Callable[[], bool]
    """Returns whether this process makes the decisions."""


def scaled_pools(settings: Settings) -> list[ScaledPool]:
    """Return all pools in the order of the settings.

    Raises:
        SettingsError: A schedule is invalid.
    """
    found = []
    for name, pool in _pools(settings):
        check_schedule(pool.settings.autoscaler)
        gpus = gpus_of_group(pool.settings)
        found.append(ScaledPool(name, pool.name, pool.settings.autoscaler, gpus))
    return found


@asynccontextmanager
async def pools_app(settings: Settings, *, dry_run: bool) -> AsyncIterator[PoolsApp]:
    """Build the autoscaler of all pools; leaving the context releases the lease.

    Args:
        settings: All settings, with ``models``.
        dry_run: Whether to make decisions without acting on them and without joining the leader
            election.

    Raises:
        SettingsError: A file or a schedule cannot be read, or no cluster is configured.
    """
    scaling = settings.autoscaler
    pools = scaled_pools(settings)
    keys = [pool.key for pool in pools]
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(
            # Ignores the environment's proxies, which are for destinations outside the cluster.
            httpx.AsyncClient(trust_env=False, verify=trust(scaling.ca_file))
        )
        pages, drains = RouterPages(client, scaling), RouterDrainer(scaling)
        parts = {
            key: _parts(client, name, pool, pages, drains)
            for key, (name, pool) in zip(keys, _pools(settings), strict=True)
        }
        actuators: dict[str, Actuator] = {key: each.serve for key, each in parts.items()}
        is_leader: Callable[[], bool] = always
        if scaling.kubernetes.enabled:
            actuators, is_leader = await _on_kubernetes(
                stack, settings, pools, parts, dry_run=dry_run
            )
        else:
            metrics.AUTOSCALER_LEADER.set(1)
        autoscaler = PoolsAutoscaler(
            pools,
            PoolSignalReader(
                PrometheusApi(client, scaling.prometheus_url, scaling.prometheus_timeout),
                PoolFleetReader(pages, {key: each.routers for key, each in parts.items()}),
                scaling,
                [(pool.model, pool.name) for pool in pools],
            ),
            actuators,
            scaling,
            SystemClock(),
            states=None
            if scaling.state_file is None
            else load_states(Path(scaling.state_file), keys),
            dry_run=dry_run,
        )
        stack.push_async_callback(autoscaler.close)
        yield PoolsApp(autoscaler, is_leader)


def _pools(settings: Settings) -> list[tuple[str, Pool]]:
    return [(model.name, pool) for model in served_models(settings) for pool in model.pools]


def _parts(
    client: httpx.AsyncClient,
    model: str,
    pool: Pool,
    pages: RouterPages,
    drains: RouterDrainer,
) -> PoolParts:
    settings = pool.settings
    app = settings.ray.app_name
    routers = RouterReader(client, settings.autoscaler, app, pool=(model, pool.name), pages=pages)
    serve = RayServeActuator(
        client,
        settings.autoscaler,
        app=app,
        ranks=settings.group.data_parallel,
        groups=routers,
        drains=drains,
    )
    return PoolParts(serve, routers, drains)


async def _on_kubernetes(
    stack: AsyncExitStack,
    settings: Settings,
    pools: list[ScaledPool],
    parts: dict[str, PoolParts],
    *,
    dry_run: bool,
) -> tuple[dict[str, Actuator], Callable[[], bool]]:
    kubernetes = settings.autoscaler.kubernetes
    api = await connect(stack, kubernetes)
    if dry_run:
        return {
            pool.key: observed_workers(api, pool.settings, parts[pool.key]) for pool in pools
        }, always
    election = election_of(api, kubernetes)
    actuators = {
        pool.key: with_workers(stack, api, pool.settings, parts[pool.key], lambda: election.leading)
        for pool in pools
    }
    campaign(stack, election)
    return actuators, lambda: election.leading
