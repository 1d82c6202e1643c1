"""The PodDisruptionBudget of the worker group: an eviction must not take pods of two groups.

A pod that is evicted takes its whole group with it. With several groups one pod may go at a time;
with one group none may, before it is drained; with none there is nothing to keep. A budget without
``minAvailable`` allows no eviction at all.
"""

from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from serving.autoscaler.actuators.kubernetes_api import KubernetesApi
from serving.autoscaler.actuators.unclaimed import disown, patch_unclaimed
from serving.settings import KubernetesSettings

POLICY = "policy/v1"
BUDGETS = "poddisruptionbudgets"

log: structlog.stdlib.BoundLogger = structlog.get_logger("serving.autoscaler")


def least_pods(groups: int, pods_per_group: int) -> int:
    """Return ``minAvailable`` for so many groups."""
    pods = groups * pods_per_group
    return pods - 1 if groups > 1 else pods


class DisruptionBudget:
    """Keeps one budget's ``minAvailable``."""

    def __init__(self, api: KubernetesApi, settings: KubernetesSettings) -> None:
        self._api = api
        self._settings = settings

    async def follow(self, replicas: int, pods: Callable[[], Awaitable[list[Any]]]) -> None:
        """Write what fits a worker group of ``replicas`` pods, where it differs.

        More are kept only when they are there: pods that wait for a node for hours must not forbid
        every eviction meanwhile.

        Args:
            replicas: pods that are asked for.
            pods: returns the worker group's pods; called only before more are kept.

        Raises:
            ActuatorError: the server does not answer or refuses.
        """
        name = self._settings.disruption_budget
        live = await self._api.get(POLICY, BUDGETS, name)
        now = (live.get("spec") or {}).get("minAvailable")
        least = await self._least(replicas, now, pods)
        if least is None or least == now:
            await disown(self._api, POLICY, BUDGETS, live)
            return
        patch = [{"op": "add", "path": "/spec/minAvailable", "value": least}]
        await patch_unclaimed(self._api, POLICY, BUDGETS, name, patch)
        log.info("disruption budget", name=name, min_available=least, before=now)

    async def _least(
        self, replicas: int, now: Any, pods: Callable[[], Awaitable[list[Any]]]
    ) -> int | None:
        """Return what ``minAvailable`` should be; None: as it is."""
        each = self._settings.workers_per_group
        least = least_pods(replicas // each, each)
        if isinstance(now, int) and least <= now:
            return least
        ready = sum(map(_ready, await pods()))
        least = min(least, least_pods(ready // each, each))
        if now is None:
            # Before the first group is ready nothing may be evicted.
            return least if least or not replicas else None
        # What is kept already stays while it is asked for, ready or not.
        return max(least, now) if isinstance(now, int) else least


def _ready(pod: Any) -> bool:
    if pod.metadata.deletion_timestamp is not None or pod.status is None:
        return False
    conditions = pod.status.conditions or ()
    return any(one.type == "Ready" and one.status == "True" for one in conditions)
