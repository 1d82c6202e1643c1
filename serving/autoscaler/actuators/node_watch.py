"""Drains groups before their nodes disappear in a node drain, preemption or spot termination.

Watches the nodes and the worker pods. A group with a rank on a pod or node that is being removed is
drained at the routers immediately, so that its streams resume on other groups while it still runs.
"""

import asyncio
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import structlog

from serving.autoscaler.actuators.actuator import ActuatorError
from serving.autoscaler.actuators.kubernetes_api import KubernetesApi
from serving.autoscaler.actuators.kubernetes_watch import Informer
from serving.autoscaler.actuators.ray_serve import GroupSource
from serving.autoscaler.actuators.worker_group import WorkerGroupActuator
from serving.autoscaler.drains import Drainer
from serving.settings import AutoscalerSettings
from serving.telemetry import autoscaler_metrics as metrics

DISRUPTION_TAINTS = frozenset(
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
"""Taints of nodes that are being removed. Taints with effect PreferNoSchedule only announce a
removal and are ignored."""

_ENDED = frozenset({"Succeeded", "Failed"})

log: structlog.stdlib.BoundLogger = structlog.get_logger("serving.autoscaler")


@dataclass(frozen=True, slots=True)
class _Pod:
    address: str
    node: str
    cluster: str
    disruption: str
    """Reason why the pod is being removed; empty if it is not."""


class NodeWatch:
    """Drains groups on the disrupted pods and nodes of one worker group."""

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
        self._nodes = Informer(
            api, kubernetes, "nodes", lambda node: node_disruption(node) or "", self._changed.set
        )
        self._pods = Informer(
            api,
            kubernetes,
            "pods",
            _pod,
            self._changed.set,
            selector=f"ray.io/group={kubernetes.worker_group}",
        )
        self._drain_tasks: dict[str, asyncio.Task[bool]] = {}
        """Drain task of each group on a removed pod or node, running or done."""

    async def run(self, is_leader: Callable[[], bool]) -> None:
        """Watch until cancelled, and drain groups while ``is_leader`` returns True.

        Reacts to changes in the cluster immediately, and to changes of groups every ``interval``.
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
                    if is_leader():
                        await self._guarded_check()
            finally:
                await _cancel(self._drain_tasks.values())

    async def _guarded_check(self) -> None:
        try:
            await self._check()
        except ActuatorError as error:
            metrics.AUTOSCALER_FAILURES.labels("nodes").inc()
            log.warning("cannot hand over groups", error=str(error))
        except Exception:
            metrics.AUTOSCALER_FAILURES.labels("nodes").inc()
            log.exception("checking the nodes failed")

    async def _check(self) -> None:
        """Drain groups whose nodes are being removed; restore them if the removal is cancelled."""
        disruptions = await self._disruptions()
        if not any(disruptions.values()) and not self._drain_tasks:
            return
        running = {group.group_id: group for group in await self._groups.groups()}
        for group_id, group in running.items():
            why = next((disruptions[at] for at in sorted(group.nodes) if disruptions.get(at)), None)
            task = self._drain_tasks.get(group_id)
            if why is not None and (task is None or (task.done() and not task.result())):
                if task is None:
                    metrics.AUTOSCALER_HANDOVERS.inc()
                # One task per group, so that a long drain does not delay others. A drain is
                # repeated if a router was not reached or still had requests.
                self._drain_tasks[group_id] = asyncio.create_task(self._drain_group(group_id, why))
            elif why is None and task is not None and group.nodes <= disruptions.keys():
                await _cancel([self._drain_tasks.pop(group_id)])
                await self._drains.restore(group_id)
                log.info("hand-over cancelled: its nodes stay", group=group_id)
        for group_id in set(self._drain_tasks) - set(running):
            if self._drain_tasks[group_id].done():
                del self._drain_tasks[group_id]

    async def _disruptions(self) -> dict[str, str]:
        """Return, by address, the reason for removing the worker; empty if it is not being removed.

        An address is omitted while its node is unknown, unless its pod itself is being removed.
        """
        cluster = self._workers.present or await self._workers.cluster()
        found: dict[str, str] = {}
        for pod in self._pods.items.values():
            why = pod.disruption or self._nodes.items.get(pod.node)
            if pod.cluster == cluster and why is not None:
                # With host networking, several pods share an address.
                found[pod.address] = found.get(pod.address) or why
        return found

    async def _drain_group(self, group_id: str, why: str) -> bool:
        log.info("hand-over started", group=group_id, reason=why)
        try:
            finished = await self._drains.drain(group_id, why)
        except Exception:
            metrics.AUTOSCALER_FAILURES.labels("nodes").inc()
            log.exception("hand-over failed", group=group_id)
            return False
        log.info("hand-over ended", group=group_id, reason=why, finished=finished)
        return finished


async def _cancel(tasks: Collection[asyncio.Task[bool]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def node_disruption(node: Any) -> str | None:
    """Return why a node is being removed; None if it is not."""
    name = node.metadata.name
    if node.metadata.deletion_timestamp is not None:
        return f"node {name} is being deleted"
    for taint in node.spec.taints or ():
        if taint.key in DISRUPTION_TAINTS and taint.effect != "PreferNoSchedule":
            return f"node {name}: {taint.key}"
    return f"node {name} is cordoned" if node.spec.unschedulable else None


def pod_disruption(pod: Any) -> str | None:
    """Return why a pod is being removed; None if it is not."""
    if pod.metadata.deletion_timestamp is not None:
        return f"pod {pod.metadata.name} is being deleted"
    for condition in pod.status.conditions or ():
        if condition.type == "DisruptionTarget" and condition.status == "True":
            return f"pod {pod.metadata.name}: {condition.reason}"
    return None


def _pod(pod: Any) -> _Pod | None:
    """Reduce a pod; None if it is not running, because its address may belong to another pod."""
    if not pod.status.pod_ip or pod.status.phase in _ENDED:
        return None
    labels = pod.metadata.labels or {}
    cluster = labels.get("ray.io/cluster", "")
    return _Pod(pod.status.pod_ip, pod.spec.node_name or "", cluster, pod_disruption(pod) or "")
