"""A KubeRay worker group: the nodes that the groups' ranks run on.

Raised before Ray Serve is asked for more groups, so that GPU nodes are on their way when the gang
asks for them; lowered when the ranks are gone. KubeRay would delete any pods, so those that nothing
uses are named to it (``scaleStrategy.workersToDelete``). The RayService above holds the number too
(``ray_service``): first on the way up, last on the way down.
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
    RayServiceNumbers,
    ServiceSeen,
    numbers_patch,
)
from serving.clock import Clock, SystemClock
from serving.settings import KubernetesSettings

CLUSTERS = "rayclusters"
_READS = 3
"""Times that the objects are read again after a conflict."""
_FORGET = 60.0
"""Seconds for which a pod that is gone stays named. The operator's view may be behind, and one that
it still counts and that is no longer named would cost another pod."""

log: structlog.stdlib.BoundLogger = structlog.get_logger("serving.autoscaler")


class ReplicaSource(Protocol):
    """Says which nodes hold ranks or will; ``ray_serve.RayServeActuator`` is the real one."""

    async def occupied(self) -> frozenset[str]:
        """Return the addresses of all nodes that hold a replica, starting and stopping ones too.

        Raises:
            ActuatorError: that is not known, or a replica that is to come has no node yet.
        """
        ...


@dataclass(frozen=True, slots=True)
class _Step:
    """What one call does to the worker group."""

    replicas: int
    leaving: tuple[str, ...]
    """Pods that are named to go, in this step."""
    named: tuple[str, ...]
    """All that are named after it, those of earlier steps among them."""
    pods: int
    """Most pods that there can be after it: the replicas, and named ones that still exist."""


class WorkerGroupActuator:
    """Sets replicas and minReplicas of one worker group; a group is ``workers_per_group`` pods."""

    def __init__(
        self,
        api: KubernetesApi,
        settings: KubernetesSettings,
        groups: GroupSource,
        placement: ReplicaSource,
        clock: Clock | None = None,
    ) -> None:
        """Name only pods to go that neither a group of ``groups`` nor ``placement`` uses."""
        self._api = api
        self._settings = settings
        self._groups = groups
        self._placement = placement
        self._clock = clock or SystemClock()
        self._numbers = RayServiceNumbers(api, settings)
        self._gone: dict[str, float] = {}
        """Named pods that no longer exist, and since when."""
        self._kept = ""
        """Why no pod was named last; said once."""
        self._pending = ""
        self.present = settings.cluster
        """Name of the RayCluster as read last; empty before."""
        self.replicas = 0
        """Pods that are asked for, as read or written last."""

    async def target(self) -> int:
        """Return for how many whole groups workers are asked for; changes nothing."""
        service = await self._service()
        _, spec = await self._read(self.present if service is None else service.cluster)
        self.replicas = int(spec.get("replicas") or 0)
        return self.replicas // self._settings.workers_per_group

    async def scale(self, groups: int) -> None:
        """Ask for the workers of so many groups.

        Fewer: only as many go as are used by nobody; call again for the rest.
        """
        if groups < 0:
            raise ActuatorError(f"{groups} groups cannot be")
        wanted = groups * self._settings.workers_per_group
        said = ""
        for _ in range(_READS):
            try:
                await self._scale_once(wanted)
            except Conflict as error:
                said = str(error)
                continue
            return
        raise ActuatorError(f"RayCluster {self.present} is changed all the time: {said}")

    def notices(self) -> tuple[str, ...]:
        """Return what an operator should know of the RayService."""
        found = [self._numbers.trouble] if self._numbers.trouble else []
        if self._pending:
            found.append(
                f"RayService {self._settings.service} has a second RayCluster pending, "
                f"{self._pending}: it asks for as many nodes again, and {self.present} keeps "
                "serving until it is ready. If it does not get them, look at its pods (kubectl "
                f"get pods -l ray.io/cluster={self._pending}) and add nodes, or free some: "
                "upgradeStrategy None does not end one that is pending already."
            )
        return tuple(found)

    async def pods(self) -> list[Any]:
        """Return the pods of the worker group."""
        await self._service()
        return await self._pods()

    async def cluster(self) -> str:
        """Return the name of the RayCluster: the one that is set, or the RayService's present one.

        Raises:
            ActuatorError: the RayService has none yet.
        """
        await self._service()
        return self.present

    async def _pods(self) -> list[Any]:
        return await self._api.pods(
            f"ray.io/cluster={self.present},ray.io/group={self._settings.worker_group}"
        )

    async def _service(self) -> ServiceSeen | None:
        """Return the RayService, None where a RayCluster is set that nobody overwrites."""
        if self._settings.cluster:
            return None
        seen = await self._numbers.read()
        self.present, self._pending = seen.cluster, seen.pending
        return seen

    async def _scale_once(self, wanted: int) -> None:
        service = await self._service()
        index, spec = await self._read(self.present)
        step = await self._step(spec, wanted)
        above = service is not None and step.pods > self._numbers.held(service)
        if service is not None and above:
            await self._numbers.hold(service, step.pods)
        if patch := self._patch(index, spec, step):
            await self._api.patch(RAY, CLUSTERS, self.present, patch)
            log.info(
                "workers", wanted=wanted, before=spec.get("replicas"), replicas=step.replicas,
                leaving=step.leaving,
            )  # fmt: skip
        self.replicas = step.replicas
        if service is not None and not above:
            await self._numbers.hold(service, step.pods)

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
        # A named pod counts until it is gone, and a name that was seen gone says nothing more.
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
        """Return the names of earlier steps that a new list must hold too."""
        now = self._clock.monotonic()
        self._gone = {name: self._gone.get(name, now) for name in before if name not in existing}
        return tuple(name for name in before if now - self._gone.get(name, now) < _FORGET)

    def _patch(self, index: int, spec: dict[str, Any], step: _Step) -> list[dict[str, Any]]:
        """Return how the RayCluster becomes as ``step`` says; empty: it is so already."""
        now = (spec.get("replicas"), spec.get("minReplicas"))
        if now == (step.replicas, step.replicas) and not step.leaving:
            return []
        path = f"/spec/workerGroupSpecs/{index}"
        patch = numbers_patch(path, spec, step.replicas)
        if step.leaving:
            value = {"workersToDelete": list(step.named)}
            patch.append({"op": "add", "path": f"{path}/scaleStrategy", "value": value})
        return patch

    async def _unused(self, pods: Sequence[Any]) -> list[str]:
        """Return the names of pods that hold nothing: those that go by themselves, then idle ones.

        None where a router or Ray Serve does not answer, or a replica is still to be placed.
        """
        try:
            used = {node for group in await self._groups.groups() for node in group.nodes}
            used |= await self._placement.occupied()
        except ActuatorError as error:
            if self._kept != str(error):
                log.info("no pod is named to go", reason=str(error))
            self._kept = str(error)
            return []
        self._kept = ""
        free = [pod for pod in pods if not used.intersection(_addresses(pod))]
        free.sort(key=lambda pod: (pod.metadata.deletion_timestamp is None, bool(_addresses(pod))))
        return [pod.metadata.name for pod in free]


def _addresses(pod: Any) -> set[str]:
    """Return all addresses of a pod; empty before it has one."""
    status = pod.status
    if status is None:
        return set()
    more = (one.ip for one in status.pod_ips or ())
    return {ip for ip in (status.pod_ip, *more) if ip}
