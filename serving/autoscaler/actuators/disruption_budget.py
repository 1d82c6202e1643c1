"""The PodDisruptionBudget of the worker group: prevents evictions from stopping two groups at once.

Evicting one pod stops its whole group. With several groups, one pod may be evicted at a time. With
one group, no pod may be evicted before the group is drained. Without groups, there is nothing to
protect. A budget without ``minAvailable`` permits no evictions.
"""

from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from serving.autoscaler.actuators.field_ownership import patch_without_owning, release_ownership
from serving.autoscaler.actuators.kubernetes_api import KubernetesApi
from serving.settings import KubernetesSettings

POLICY = "policy/v1"
BUDGETS = "poddisruptionbudgets"

log: structlog.stdlib.BoundLogger = structlog.get_logger("serving.autoscaler")


def min_available(groups: int, pods_per_group: int) -> int:
    """Return ``minAvailable`` for ``groups`` groups."""
    pods = groups * pods_per_group
    return pods - 1 if groups > 1 else pods


class DisruptionBudget:
    """Keeps ``minAvailable`` of one budget in step with the worker group."""

    def __init__(self, api: KubernetesApi, settings: KubernetesSettings) -> None:
        self._api = api
        self._settings = settings

    async def update(self, replicas: int, pods: Callable[[], Awaitable[list[Any]]]) -> None:
        """Set ``minAvailable`` for a worker group of ``replicas`` pods, if it differs.

        The value is raised only once the pods are ready: pods that wait for a node for hours must
        not block all evictions during that time.

        Args:
            replicas: Requested pods.
            pods: Returns the pods of the worker group; called only if the value would be raised.

        Raises:
            ActuatorError: The server does not respond or rejects the request.
        """
        name = self._settings.disruption_budget
        live = await self._api.get(POLICY, BUDGETS, name)
        now = (live.get("spec") or {}).get("minAvailable")
        least = await self._least(replicas, now, pods)
        if least is None or least == now:
            await release_ownership(self._api, POLICY, BUDGETS, live)
            return
        patch = [{"op": "add", "path": "/spec/minAvailable", "value": least}]
        await patch_without_owning(self._api, POLICY, BUDGETS, name, patch)
        log.info("disruption budget updated", name=name, min_available=least, before=now)

    async def _least(
        self, replicas: int, now: Any, pods: Callable[[], Awaitable[list[Any]]]
    ) -> int | None:
        """Return the new ``minAvailable``, or None to leave it unset."""
        each = self._settings.workers_per_group
        least = min_available(replicas // each, each)
        if isinstance(now, int) and least <= now:
            return least
        ready = sum(map(_ready, await pods()))
        least = min(least, min_available(ready // each, each))
        if now is None:
            # Until the first group is ready, an unset budget blocks all evictions.
            return least if least or not replicas else None
        # Do not lower it while the pods are still requested, whether ready or not.
        return max(least, now) if isinstance(now, int) else least


def _ready(pod: Any) -> bool:
    if pod.metadata.deletion_timestamp is not None or pod.status is None:
        return False
    conditions = pod.status.conditions or ()
    return any(one.type == "Ready" and one.status == "True" for one in conditions)
