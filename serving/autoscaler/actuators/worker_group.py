"""Scales a KubeRay worker group: the pods that the ranks run on.

The worker group is scaled up before more groups are requested from Ray Serve, so that GPU nodes are
being provisioned when the gang requests them, and scaled down once the ranks have stopped. KubeRay
would delete arbitrary pods, so the unused ones are listed in ``scaleStrategy.workersToDelete``. The
owning RayService is set to the same number (``ray_service``): first when scaling up, last when
scaling down.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from serving.autoscaler.actuators.actuator import ActuatorError
from serving.autoscaler.actuators.kubernetes_api import KubernetesApi
from serving.autoscaler.actuators.kubernetes_errors import Conflict
from serving.autoscaler.actuators.ray_serve import GroupSource
from serving.autoscaler.actuators.ray_service import (
    RAY,
    ObservedRayService,
    RayServiceReplicas,
    replicas_patch,
)
from serving.clock import Clock, SystemClock
from serving.settings import KubernetesSettings

CLUSTERS = "rayclusters"
_READS = 3
"""Number of attempts after conflicts, each with a new read."""
_FORGET = 60.0
"""Time for which a deleted pod stays listed for deletion, seconds. The operator's cache may be
stale: if it counts a deleted pod that is not listed, it deletes another pod."""

log: structlog.stdlib.BoundLogger = structlog.get_logger("serving.autoscaler")


class ReplicaSource(Protocol):
    """Source of the nodes in use; implemented by ``ray_serve.RayServeActuator``."""

    async def occupied(self) -> frozenset[str]:
        """Return the addresses of all nodes with a replica, including starting and stopping ones.

        Raises:
            ActuatorError: The nodes are unknown, or a pending replica has no node yet.
        """
        ...


@dataclass(frozen=True, slots=True)
class _Step:
    """One change of the worker group."""

    replicas: int
    leaving: tuple[str, ...]
    """Pods newly listed for deletion."""
    named: tuple[str, ...]
    """All pods listed for deletion after the change, including those of earlier changes."""
    pods: int
    """Upper bound on the number of pods after the change: replicas plus listed pods that still
    exist."""


class WorkerGroupActuator:
    """Sets replicas and minReplicas of a worker group with ``workers_per_group`` pods per group."""

    def __init__(
        self,
        api: KubernetesApi,
        settings: KubernetesSettings,
        groups: GroupSource,
        placement: ReplicaSource,
        clock: Clock | None = None,
    ) -> None:
        """Delete only pods that neither ``groups`` nor ``placement`` reports as in use."""
        self._api = api
        self._settings = settings
        self._groups = groups
        self._placement = placement
        self._clock = clock or SystemClock()
        self._service_replicas = RayServiceReplicas(api, settings)
        self._gone: dict[str, float] = {}
        """Listed pods that no longer exist, with the time this was first seen (monotonic)."""
        self._kept = ""
        """Last logged reason for not listing any pod."""
        self._pending = ""
        self.present = settings.cluster
        """Name of the RayCluster at the last read; empty before the first read."""
        self.replicas = 0
        """Number of requested pods at the last read or write."""

    async def target(self) -> int:
        """Return the number of groups that the requested workers can host; changes nothing."""
        service = await self._service()
        _, spec = await self._read(self.present if service is None else service.cluster)
        self.replicas = int(spec.get("replicas") or 0)
        return self.replicas // self._settings.workers_per_group

    async def scale(self, groups: int) -> None:
        """Request the workers for ``groups`` groups.

        Scaling down removes only unused pods; call again to remove the others later.
        """
        if groups < 0:
            raise ActuatorError(f"invalid number of groups: {groups}")
        wanted = groups * self._settings.workers_per_group
        reason = ""
        for _ in range(_READS):
            try:
                await self._scale_once(wanted)
            except Conflict as error:
                reason = str(error)
                continue
            return
        raise ActuatorError(f"RayCluster {self.present} changed during each attempt: {reason}")

    def notices(self) -> tuple[str, ...]:
        """Return notices about the RayService."""
        found = [self._service_replicas.problem] if self._service_replicas.problem else []
        if self._pending:
            found.append(
                f"RayService {self._settings.service} has a second, pending RayCluster "
                f"{self._pending}: it requests the same number of nodes again, and {self.present} "
                "keeps serving until it is ready. If its pods stay pending (kubectl get pods "
                f"-l ray.io/cluster={self._pending}), add nodes or free some: upgradeStrategy "
                "None does not remove a RayCluster that is already pending."
            )
        return tuple(found)

    async def pods(self) -> list[Any]:
        """Return the pods of the worker group."""
        await self._service()
        return await self._pods()

    async def cluster(self) -> str:
        """Return the name of the RayCluster: the configured one, or the RayService's active one.

        Raises:
            ActuatorError: The RayService does not have a RayCluster yet.
        """
        await self._service()
        return self.present

    async def _pods(self) -> list[Any]:
        return await self._api.pods(
            f"ray.io/cluster={self.present},ray.io/group={self._settings.worker_group}"
        )

    async def _service(self) -> ObservedRayService | None:
        """Return the RayService; None if a standalone RayCluster is configured."""
        if self._settings.cluster:
            return None
        seen = await self._service_replicas.read()
        self.present, self._pending = seen.cluster, seen.pending
        return seen

    async def _scale_once(self, wanted: int) -> None:
        service = await self._service()
        index, spec = await self._read(self.present)
        step = await self._step(spec, wanted)
        above = service is not None and step.pods > self._service_replicas.replicas(service)
        if service is not None and above:
            await self._service_replicas.set_replicas(service, step.pods)
        if patch := self._patch(index, spec, step):
            await self._api.patch(RAY, CLUSTERS, self.present, patch)
            log.info(
                "worker group scaled",
                wanted=wanted, before=spec.get("replicas"), replicas=step.replicas,
                leaving=step.leaving,
            )  # fmt: skip
        self.replicas = step.replicas
        if service is not None and not above:
            await self._service_replicas.set_replicas(service, step.pods)

    async def _read(self, name: str) -> tuple[int, dict[str, Any]]:
        cluster = await self._api.get(RAY, CLUSTERS, name)
        specs = cluster.get("spec", {}).get("workerGroupSpecs", [])
        for index, spec in enumerate(specs):
            if spec.get("groupName") == self._settings.worker_group:
                return index, spec
        raise ActuatorError(f"RayCluster {name} has no worker group {self._settings.worker_group}")

    async def _step(self, spec: dict[str, Any], wanted: int) -> _Step:
        now = int(spec.get("replicas") or 0)
        before = tuple((spec.get("scaleStrategy") or {}).get("workersToDelete") or ())
        # The pods matter only when scaling down or while listed pods may still exist.
        if wanted >= now and self._gone.keys() >= set(before):
            return _Step(wanted, (), before, wanted)
        pods = await self._pods()
        existing = {pod.metadata.name for pod in pods}
        named = self._still_named(before, existing)
        leaving: tuple[str, ...] = ()
        if wanted < now:
            free = await self._unused([pod for pod in pods if pod.metadata.name not in before])
            leaving = tuple(free[: now - wanted])
        replicas = max(wanted, now - len(leaving))
        going = len(existing.intersection(named)) + len(leaving)
        return _Step(replicas, leaving, (*named, *leaving), replicas + going)

    def _still_named(self, before: Sequence[str], existing: set[str]) -> tuple[str, ...]:
        """Return the pods of earlier changes that a new list must still contain."""
        now = self._clock.monotonic()
        self._gone = {name: self._gone.get(name, now) for name in before if name not in existing}
        return tuple(name for name in before if now - self._gone.get(name, now) < _FORGET)

    def _patch(self, index: int, spec: dict[str, Any], step: _Step) -> list[dict[str, Any]]:
        """Return the patch that applies ``step``; empty if the RayCluster matches already."""
        now = (spec.get("replicas"), spec.get("minReplicas"))
        if now == (step.replicas, step.replicas) and not step.leaving:
            return []
        path = f"/spec/workerGroupSpecs/{index}"
        patch = replicas_patch(path, spec, step.replicas)
        if step.leaving:
            value = {"workersToDelete": list(step.named)}
            patch.append({"op": "add", "path": f"{path}/scaleStrategy", "value": value})
        return patch

    async def _unused(self, pods: Sequence[Any]) -> list[str]:
        """Return the names of unused pods: those being deleted first, then idle ones.

        Empty if a router or Ray Serve does not respond, or a replica is not placed yet.
        """
        try:
            used = {node for group in await self._groups.groups() for node in group.nodes}
            used |= await self._placement.occupied()
        except ActuatorError as error:
            if self._kept != str(error):
                log.info("no pod chosen for removal", reason=str(error))
            self._kept = str(error)
            return []
        self._kept = ""
        free = [pod for pod in pods if not used.intersection(_addresses(pod))]
        free.sort(key=lambda pod: (pod.metadata.deletion_timestamp is None, bool(_addresses(pod))))
        return [pod.metadata.name for pod in free]


def _addresses(pod: Any) -> set[str]:
    """Return all addresses of a pod; empty until it has one."""
    status = pod.status
    if status is None:
        return set()
    more = (one.ip for one in status.pod_ips or ())
    return {ip for ip in (status.pod_ip, *more) if ip}
