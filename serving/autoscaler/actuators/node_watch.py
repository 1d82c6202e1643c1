"""Hands groups over before their nodes go: drains, preemption and spot terminations.

Watches the nodes and the worker pods. A group with a rank on a pod that goes is drained at the
routers, at once: its streams go on in other groups while it still lives.
"""

import asyncio
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import structlog

from serving.autoscaler.actuators.actuator import ActuatorError
from serving.autoscaler.actuators.kubernetes_api import KubernetesApi
from serving.autoscaler.actuators.kubernetes_watch import Mirror
from serving.autoscaler.actuators.ray_serve import GroupSource
from serving.autoscaler.actuators.worker_group import WorkerGroupActuator
from serving.autoscaler.drains import Drainer
from serving.settings import AutoscalerSettings
from serving.telemetry import metrics

TAINTS = frozenset(
    {
        "node.kubernetes.io/unschedulable",  # kubectl drain and cordon
        "node.kubernetes.io/out-of-service",
        "ToBeDeletedByClusterAutoscaler",
        "DeletionCandidateOfClusterAutoscaler",
        "karpenter.sh/disrupted",
        "karpenter.sh/disruption",
        "aws-node-termination-handler/spot-itn",
        "aws-node-termination-handler/scheduled-maintenance",
        "aws-node-termination-handler/asg-lifecycle-termination",
        "aws-node-termination-handler/rebalance-recommendation",
        "cloud.google.com/impending-node-termination",
        "kubernetes.azure.com/scheduled-events",
    }
)
"""Keys that say that a node goes. A soft one (PreferNoSchedule) only makes a candidate."""

_ENDED = frozenset({"Succeeded", "Failed"})

log: structlog.stdlib.BoundLogger = structlog.get_logger("serving.autoscaler")


@dataclass(frozen=True, slots=True)
class _Pod:
    address: str
    node: str
    cluster: str
    goes: str
    """Why; empty: it stays."""


class NodeWatch:
    """Looks after the groups of one worker group."""

    def __init__(
        self,
        api: KubernetesApi,
        workers: WorkerGroupActuator,
        groups: GroupSource,
        drains: Drainer,
        settings: AutoscalerSettings,
    ) -> None:
        self._workers = workers
        self._groups = groups
        self._drains = drains
        self._interval = settings.interval
        self._changed = asyncio.Event()
        kubernetes = settings.kubernetes
        self._nodes = Mirror(
            api, kubernetes, "nodes", lambda node: node_goes(node) or "", self._changed.set
        )
        self._pods = Mirror(
            api,
            kubernetes,
            "pods",
            _pod,
            self._changed.set,
            selector=f"ray.io/group={kubernetes.worker_group}",
        )
        self._handed: dict[str, asyncio.Task[bool]] = {}
        """Group: its hand-over, on its way or done, well or not."""

    async def run(self, leading: Callable[[], bool]) -> None:
        """Watch for ever, and hand over while ``leading``.

        What is seen of the cluster is acted on when it changes, and what routers see of the groups
        each ``interval``.
        """
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._nodes.run())
            tasks.create_task(self._pods.run())
            try:
                while True:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(self._interval):
                            await self._changed.wait()
                    self._changed.clear()
                    if leading():
                        await self._guarded_look()
            finally:
                await _ended(self._handed.values())

    async def _guarded_look(self) -> None:
        try:
            await self._look()
        except ActuatorError as error:
            metrics.AUTOSCALER_FAILURES.labels("nodes").inc()
            log.warning("groups are not handed over", error=str(error))
        except Exception:
            metrics.AUTOSCALER_FAILURES.labels("nodes").inc()
            log.exception("a look at the nodes failed")

    async def _look(self) -> None:
        """Drain groups on what goes; give groups their work back whose nodes stay after all."""
        goes = await self._fates()
        if not any(goes.values()) and not self._handed:
            return
        living = {group.group_id: group for group in await self._groups.groups()}
        for group_id, group in living.items():
            why = next((goes[at] for at in sorted(group.nodes) if goes.get(at)), None)
            task = self._handed.get(group_id)
            if why is not None and (task is None or (task.done() and not task.result())):
                if task is None:
                    metrics.AUTOSCALER_HANDOVERS.inc()
                # Each on its own: a long drain must not keep the next group waiting. Again where
                # a router was not told or had work left.
                self._handed[group_id] = asyncio.create_task(self._hand_over(group_id, why))
            elif why is None and task is not None and group.nodes <= goes.keys():
                await _ended([self._handed.pop(group_id)])
                await self._drains.restore(group_id)
                log.info("its nodes stay", group=group_id)
        for group_id in set(self._handed) - set(living):
            if self._handed[group_id].done():
                del self._handed[group_id]

    async def _fates(self) -> dict[str, str]:
        """Return why the workers at each address go, empty: they stay.

        An address whose node is not known is not there, unless its pod goes by itself.
        """
        cluster = self._workers.present or await self._workers.cluster()
        found: dict[str, str] = {}
        for pod in self._pods.items.values():
            why = pod.goes or self._nodes.items.get(pod.node)
            if pod.cluster == cluster and why is not None:
                # With the host's network several pods have one address.
                found[pod.address] = found.get(pod.address) or why
        return found

    async def _hand_over(self, group_id: str, why: str) -> bool:
        log.info("handing over", group=group_id, reason=why)
        try:
            finished = await self._drains.drain(group_id, why)
        except Exception:
            metrics.AUTOSCALER_FAILURES.labels("nodes").inc()
            log.exception("a hand-over failed", group=group_id)
            return False
        log.info("handed over", group=group_id, reason=why, finished=finished)
        return finished


async def _ended(tasks: Collection[asyncio.Task[bool]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def node_goes(node: Any) -> str | None:
    """Return why a node goes, or None."""
    name = node.metadata.name
    if node.metadata.deletion_timestamp is not None:
        return f"node {name} is being deleted"
    for taint in node.spec.taints or ():
        if taint.key in TAINTS and taint.effect != "PreferNoSchedule":
            return f"node {name}: {taint.key}"
    return f"node {name} is cordoned" if node.spec.unschedulable else None


def pod_goes(pod: Any) -> str | None:
    """Return why a pod goes, or None."""
    if pod.metadata.deletion_timestamp is not None:
        return f"pod {pod.metadata.name} is being deleted"
    for condition in pod.status.conditions or ():
        if condition.type == "DisruptionTarget" and condition.status == "True":
            return f"pod {pod.metadata.name}: {condition.reason}"
    return None


def _pod(pod: Any) -> _Pod | None:
    """Return what matters of a pod; None if nothing runs there (its address may be another's)."""
    if not pod.status.pod_ip or pod.status.phase in _ENDED:
        return None
    labels = pod.metadata.labels or {}
    cluster = labels.get("ray.io/cluster", "")
    return _Pod(pod.status.pod_ip, pod.spec.node_name or "", cluster, pod_goes(pod) or "")
