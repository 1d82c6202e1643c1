"""A KubeRay worker group: the nodes that the groups' ranks run on.

Raised before Ray Serve is asked for more groups, so that GPU nodes are on their way when the gang
asks for them; lowered when the ranks are gone. KubeRay would delete any pods, so those that no
living group uses are named to it (``scaleStrategy.workersToDelete``).
"""

from typing import Any

import structlog

from serving.autoscaler.actuators.actuator import ActuatorError
from serving.autoscaler.actuators.kubernetes_api import Conflict, KubernetesApi
from serving.autoscaler.actuators.ray_serve import GroupSource
from serving.settings import KubernetesSettings

RAY = "ray.io/v1"
CLUSTERS = "rayclusters"
SERVICES = "rayservices"
_READS = 3
"""Times that the object is read again after a conflict."""

log: structlog.stdlib.BoundLogger = structlog.get_logger("serving.autoscaler")


class WorkerGroupActuator:
    """Sets replicas and minReplicas of one worker group; a group is ``workers_per_group`` pods."""

    def __init__(
        self, api: KubernetesApi, settings: KubernetesSettings, groups: GroupSource
    ) -> None:
        self._api = api
        self._settings = settings
        self._groups = groups
        self.present = settings.cluster
        """What ``cluster`` returned last; empty before."""

    async def target(self) -> int:
        """Return for how many whole groups workers are asked for."""
        _, spec = await self._read(await self.cluster())
        return int(spec.get("replicas") or 0) // self._settings.workers_per_group

    async def scale(self, groups: int) -> None:
        """Ask for the workers of so many groups.

        Fewer: only as many go as are used by no living group; call again for the rest.
        """
        if groups < 0:
            raise ActuatorError(f"{groups} groups cannot be")
        wanted = groups * self._settings.workers_per_group
        cluster = await self.cluster()
        for _ in range(_READS):
            index, spec = await self._read(cluster)
            patch = await self._patch(index, spec, wanted)
            if not patch:
                return
            try:
                await self._api.patch(RAY, CLUSTERS, cluster, patch)
            except Conflict:
                continue
            log.info("workers", wanted=wanted, before=spec.get("replicas"))
            return
        raise ActuatorError(f"RayCluster {cluster} is changed all the time")

    async def pods(self) -> list[Any]:
        """Return the pods of the worker group."""
        cluster = await self.cluster()
        return await self._api.pods(
            f"ray.io/cluster={cluster},ray.io/group={self._settings.worker_group}"
        )

    async def cluster(self) -> str:
        """Return the name of the RayCluster: the one that is set, or the RayService's present one.

        KubeRay makes up the name, and another one at each blue/green upgrade. Until it switches,
        the active cluster is the old one; only a RayService that has none yet has its first one
        pending, and that needs its workers to become active.

        KubeRay's RayService controller compares clusters without replicas, minReplicas and
        workersToDelete, so it does not take them back.

        Raises:
            ActuatorError: the RayService has none yet.
        """
        if self._settings.cluster:
            return self._settings.cluster
        service = await self._api.get(RAY, SERVICES, self._settings.service)
        status = service.get("status") or {}
        for which in ("activeServiceStatus", "pendingServiceStatus"):
            if name := str((status.get(which) or {}).get("rayClusterName") or ""):
                self.present = name
                return name
        raise ActuatorError(f"RayService {self._settings.service} has no RayCluster yet")

    async def _read(self, name: str) -> tuple[int, dict[str, Any]]:
        cluster = await self._api.get(RAY, CLUSTERS, name)
        specs = cluster.get("spec", {}).get("workerGroupSpecs", [])
        for index, spec in enumerate(specs):
            if spec.get("groupName") == self._settings.worker_group:
                return index, spec
        raise ActuatorError(f"RayCluster {name} has no worker group {self._settings.worker_group}")

    async def _patch(self, index: int, spec: dict[str, Any], wanted: int) -> list[dict[str, Any]]:
        path = f"/spec/workerGroupSpecs/{index}"
        now = int(spec.get("replicas") or 0)
        leaving: list[str] = []
        if wanted < now:
            leaving = (await self._unused())[: now - wanted]
            wanted = now - len(leaving)
        if wanted == now and spec.get("minReplicas") == now:
            return []
        patch: list[dict[str, Any]] = [
            {"op": "test", "path": f"{path}/groupName", "value": spec["groupName"]}
        ]
        if "replicas" in spec:
            patch.append({"op": "test", "path": f"{path}/replicas", "value": spec["replicas"]})
        values: dict[str, Any] = {"replicas": wanted, "minReplicas": wanted}
        if int(spec.get("maxReplicas") or 0) < wanted:
            values["maxReplicas"] = wanted
        if leaving:
            values["scaleStrategy"] = {"workersToDelete": leaving}
        # "add" also replaces what is there (RFC 6902, 4.1).
        patch += [{"op": "add", "path": f"{path}/{key}", "value": values[key]} for key in values]
        return patch

    async def _unused(self) -> list[str]:
        """Return the names of pods on whose address no living group has a rank."""
        used = {node for group in await self._groups.groups() for node in group.nodes}
        return [
            pod.metadata.name
            for pod in await self.pods()
            if pod.status.pod_ip not in used and pod.metadata.deletion_timestamp is None
        ]
