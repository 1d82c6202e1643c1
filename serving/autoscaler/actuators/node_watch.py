"""Hands groups over before their nodes go: drains, preemption and spot terminations.

Looks at the nodes and the worker pods each turn (two lists). A group with a rank on a pod that
goes is drained at the routers: its streams go on in other groups while it still lives.
"""

from typing import Any

import structlog

from serving.autoscaler.actuators.actuator import ActuatorError
from serving.autoscaler.actuators.kubernetes_api import KubernetesApi
from serving.autoscaler.actuators.ray_serve import GroupSource
from serving.autoscaler.actuators.worker_group import WorkerGroupActuator
from serving.autoscaler.drains import Drainer
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

log: structlog.stdlib.BoundLogger = structlog.get_logger("serving.autoscaler")


class NodeWatch:
    """Looks after the groups of one worker group."""

    def __init__(
        self,
        api: KubernetesApi,
        workers: WorkerGroupActuator,
        groups: GroupSource,
        drains: Drainer,
    ) -> None:
        self._api = api
        self._workers = workers
        self._groups = groups
        self._drains = drains
        self._handed: dict[str, str] = {}
        """Group: why it was drained."""

    async def look(self) -> None:
        """Drain groups on what goes; give groups their work back whose nodes stay after all.

        Never raises for an API server that does not answer: then nothing is done.
        """
        try:
            leaving = await self._leaving()
        except ActuatorError as error:
            metrics.AUTOSCALER_FAILURES.labels("nodes").inc()
            log.warning("nodes are not known", error=str(error))
            return
        living = {group.group_id: group for group in await self._groups.groups()}
        for group_id, group in living.items():
            why = next((leaving[node] for node in sorted(group.nodes) if node in leaving), None)
            if why is not None and group_id not in self._handed:
                self._handed[group_id] = why
                metrics.AUTOSCALER_HANDOVERS.inc()
                finished = await self._drains.drain(group_id, why)
                log.info("handed over", group=group_id, reason=why, finished=finished)
            elif why is None and group_id in self._handed:
                del self._handed[group_id]
                await self._drains.restore(group_id)
                log.info("its nodes stay", group=group_id)
        for group_id in set(self._handed) - set(living):
            del self._handed[group_id]

    async def _leaving(self) -> dict[str, str]:
        """Return the addresses of worker pods that go, and why."""
        nodes = {
            node.metadata.name: why
            for node in await self._api.nodes()
            if (why := node_goes(node)) is not None
        }
        found: dict[str, str] = {}
        for pod in await self._workers.pods():
            why = pod_goes(pod) or nodes.get(pod.spec.node_name)
            if why is not None and pod.status.pod_ip:
                found[pod.status.pod_ip] = why
        return found


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
