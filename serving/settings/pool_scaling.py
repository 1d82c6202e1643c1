"""Settings of the autoscaler for one pool of a model, and their defaults."""

from collections.abc import Sequence
from typing import Any

from pydantic import Field

from serving.settings.autoscaler import AutoscalerSettings, KubernetesSettings, ScheduleFloor
from serving.settings.base import Seconds, SettingsGroup
from serving.settings.ranks import GroupSettings


class PoolKubernetesSettings(SettingsGroup):
    """The KubeRay worker group of a pool."""

    cluster: str | None = None
    """Name of the RayCluster of the pool. Null means autoscaler.kubernetes.cluster."""
    service: str | None = None
    """Name of the RayService of the pool. Null means autoscaler.kubernetes.service."""
    worker_group: str | None = None
    """Name of the pool's worker group (groupName in workerGroupSpecs). Null means
    autoscaler.kubernetes.worker_group."""
    workers_per_group: int | None = Field(None, ge=1)
    """Number of worker pods per group. Null means autoscaler.kubernetes.workers_per_group."""
    disruption_budget: str | None = None
    """Name of the worker group's PodDisruptionBudget. Null means
    autoscaler.kubernetes.disruption_budget."""


class PoolBatchScalingSettings(SettingsGroup):
    """Groups of a pool that batches may hold or add."""

    schedule: tuple[ScheduleFloor, ...] | None = None
    """Number of groups of the pool that are kept or added while lines of batches run or wait, by
    time of day and week. Null means autoscaler.batch.schedule."""
    max_hourly_cost: float | None = Field(None, gt=0)
    """Maximum cost of the pool's groups per hour at which batches hold or add groups, in the
    tariff's currency. Null means autoscaler.batch.max_hourly_cost."""


class PoolScalingSettings(SettingsGroup):
    """The number of groups of a pool. Null means the setting of the same name under autoscaler."""

    min_groups: int | None = Field(None, ge=0, le=1024)
    """Minimum number of groups of the pool."""
    max_groups: int | None = Field(None, ge=1, le=1024)
    """Maximum number of groups of the pool."""
    ttft_slo: Seconds | None = None
    """Target p90 time to first token of the pool's requests, seconds."""
    itl_slo: Seconds | None = None
    """Target p90 inter-token latency of the pool's requests, seconds."""
    queue_wait_slo: Seconds | None = None
    """Target p90 wait in the model's admission queue, seconds."""
    group_tokens_per_second: float | None = Field(None, gt=0)
    """Measured throughput of one group of the pool at full load, generated tokens per second."""
    idle_timeout: Seconds | None = None
    """Idle time of the pool before it is scaled to zero, seconds."""
    warming_timeout: Seconds | None = None
    """Time for a new group to become ready, seconds; after that, another group is requested."""
    gpus_per_group: float | None = Field(None, ge=0)
    """Number of GPUs of one group of the pool, for the limits on GPUs and GPU-hours."""
    schedule: tuple[ScheduleFloor, ...] | None = None
    """Minimum number of groups of the pool by time of day and week."""
    batch: PoolBatchScalingSettings = PoolBatchScalingSettings()
    dashboard_url: str | None = None
    """URL of the dashboard of the pool's Ray cluster."""
    dashboard_token_file: str | None = None
    """File with the token of the pool's Ray cluster."""
    kubernetes: PoolKubernetesSettings = PoolKubernetesSettings()


def scaling_of_pool(shared: AutoscalerSettings, pool: PoolScalingSettings) -> AutoscalerSettings:
    """Return the settings of the autoscaler for one pool.

    Args:
        shared: The settings group ``autoscaler``.
        pool: Settings of the pool.

    Raises:
        ValueError: The values contradict each other; the message names the keys.
    """
    own = _given(pool)
    kubernetes = own.pop("kubernetes", {})
    batch = shared.batch.model_dump() | own.pop("batch", {})
    merged = shared.kubernetes.model_dump() | kubernetes
    # A pool's service takes precedence over the shared cluster.
    if kubernetes.get("service") and not kubernetes.get("cluster"):
        merged["cluster"] = ""
    changes = own | {"kubernetes": KubernetesSettings(**merged), "batch": batch}
    return AutoscalerSettings.model_validate(shared.model_dump() | changes)


def gpus_per_group(scaling: AutoscalerSettings, group: GroupSettings) -> float:
    """Return the number of GPUs of one group."""
    ranks = group.data_parallel * group.tensor_parallel
    return float(ranks) if scaling.gpus_per_group is None else scaling.gpus_per_group


def require_room(
    shared: AutoscalerSettings, pools: Sequence[tuple[AutoscalerSettings, GroupSettings]]
) -> None:
    """Check that the minimum numbers of groups of all pools together fit the shared limits.

    Args:
        shared: The settings group ``autoscaler``.
        pools: Settings of the autoscaler for each pool, and the shape of its groups.

    Raises:
        ValueError: The minimums exceed a limit; the message contains both numbers.
    """
    gpus = sum(scaling.min_groups * gpus_per_group(scaling, group) for scaling, group in pools)
    if shared.max_gpus is not None and gpus > shared.max_gpus:
        raise ValueError(
            f"the min_groups of all pools need {gpus:g} GPUs, but autoscaler.max_gpus is "
            f"{shared.max_gpus:g}: raise it, or lower min_groups"
        )
    nodes = sum(scaling.min_groups * scaling.kubernetes.workers_per_group for scaling, _ in pools)
    if shared.max_nodes is not None and nodes > shared.max_nodes:
        raise ValueError(
            f"the min_groups of all pools need {nodes} worker pods, but autoscaler.max_nodes is "
            f"{shared.max_nodes}: raise it, or lower min_groups"
        )


def require_cluster(scaling: AutoscalerSettings) -> None:
    """Check that the worker group's cluster is named if Kubernetes is enabled.

    Raises:
        ValueError: The cluster is not named.
    """
    kubernetes = scaling.kubernetes
    if kubernetes.enabled and not (kubernetes.cluster or kubernetes.service):
        raise ValueError("kubernetes.enabled requires kubernetes.cluster or kubernetes.service")


def _given(group: SettingsGroup) -> dict[str, Any]:
    return group.model_dump(exclude_none=True)
