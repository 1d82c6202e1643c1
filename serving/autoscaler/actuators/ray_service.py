"""The RayService that owns the RayCluster: its active cluster and its number of workers.

KubeRay ignores replica counts when it compares a RayService with its RayCluster, so normally
neither number affects the other. A new version of the operator, however, overwrites the spec of the
active RayCluster with the RayService's, and deletes excess pods immediately, including those with
running ranks. The RayService is therefore set to the same number, never below the number of
existing pods.
"""

from dataclasses import dataclass
from typing import Any

import structlog

from serving.autoscaler.actuators.actuator import ActuatorError
from serving.autoscaler.actuators.field_ownership import patch_without_owning, release_ownership
from serving.autoscaler.actuators.kubernetes_api import KubernetesApi
from serving.autoscaler.actuators.kubernetes_errors import AccessDenied, FieldConflict, Invalid
from serving.settings import KubernetesSettings

RAY = "ray.io/v1"
SERVICES = "rayservices"

log: structlog.stdlib.BoundLogger = structlog.get_logger("serving.autoscaler")


@dataclass(frozen=True, slots=True)
class ObservedRayService:
    """A RayService as read from the API server."""

    live: dict[str, Any]
    cluster: str
    """The active RayCluster, or the pending one if none is active yet."""
    pending: str
    """The RayCluster that will replace the active one; empty if there is none."""


class RayServiceReplicas:
    """Reads and writes the replicas of one worker group in a RayService."""

    def __init__(self, api: KubernetesApi, settings: KubernetesSettings) -> None:
        self._api = api
        self._settings = settings
        self.problem = ""
        """Why the RayService could not be updated, for an operator; empty if there is no
        problem."""

    async def read(self) -> ObservedRayService:
        """Return the RayService and its RayCluster.

        KubeRay generates the cluster's name, and a new name for each blue/green upgrade. The old
        cluster remains active until the switch. The first cluster of a new RayService is pending
        and needs its workers to become active.

        Raises:
            ActuatorError: There is no cluster yet, or as for ``KubernetesApi.get``.
        """
        name = self._settings.service
        live = await self._api.get(RAY, SERVICES, name)
        status = live.get("status") or {}
        active, pending = (
            str((status.get(which) or {}).get("rayClusterName") or "")
            for which in ("activeServiceStatus", "pendingServiceStatus")
        )
        if not (active or pending):
            raise ActuatorError(f"RayService {name} has no RayCluster yet")
        return ObservedRayService(live, active or pending, pending if active else "")

    def replicas(self, seen: ObservedRayService) -> int:
        """Return the number of replicas in the RayService; 0 if it has no such worker group."""
        _, spec = self._group(seen)
        return max(int(spec.get("replicas") or 0), int(spec.get("minReplicas") or 0))

    async def set_replicas(self, seen: ObservedRayService, replicas: int) -> None:
        """Write the number of replicas if it differs.

        A permanent rejection is reported in ``problem``, not raised: a wrong number is harmful only
        during an upgrade of the operator.

        Raises:
            Conflict: The RayService has changed since it was read.
            ActuatorError: The server does not respond.
        """
        index, spec = self._group(seen)
        if index is None:
            self.problem = (
                f"RayService {self._settings.service} has no worker group "
                f"{self._settings.worker_group}: set autoscaler.kubernetes.worker_group to one of "
                "its worker groups"
            )
            return
        now = tuple(spec.get(key) for key in ("replicas", "minReplicas"))
        try:
            if now == (replicas, replicas):
                await release_ownership(self._api, RAY, SERVICES, seen.live)
            else:
                patch = replicas_patch(
                    f"/spec/rayClusterConfig/workerGroupSpecs/{index}", spec, replicas
                )
                await patch_without_owning(self._api, RAY, SERVICES, self._settings.service, patch)
                log.info("RayService scaled", replicas=replicas, before=spec.get("replicas"))
        except (AccessDenied, Invalid, FieldConflict) as error:
            self.problem = (
                f"RayService {self._settings.service} still has {now[0]} replicas of worker group "
                f"{self._settings.worker_group} instead of {replicas}: upgrading the KubeRay "
                "operator would reset the RayCluster to that number and delete pods with ranks. "
                f"{error}"
            )
        else:
            self.problem = ""

    def _group(self, seen: ObservedRayService) -> tuple[int | None, dict[str, Any]]:
        config = (seen.live.get("spec") or {}).get("rayClusterConfig") or {}
        for index, spec in enumerate(config.get("workerGroupSpecs") or ()):
            if spec.get("groupName") == self._settings.worker_group:
                return index, spec
        return None, {}


def replicas_patch(path: str, spec: dict[str, Any], replicas: int) -> list[dict[str, Any]]:
    """Return the JSON patch that sets a worker group to exactly ``replicas`` pods.

    The patch fails if another group is at ``path`` or its number differs from ``spec``. It also
    raises ``maxReplicas`` if needed, because KubeRay silently caps the number at this maximum.

    Args:
        path: JSON pointer of the worker group.
        spec: The worker group as read.
        replicas: New number of pods.
    """
    patch: list[dict[str, Any]] = [
        {"op": "test", "path": f"{path}/groupName", "value": spec["groupName"]}
    ]
    if "replicas" in spec:
        patch.append({"op": "test", "path": f"{path}/replicas", "value": spec["replicas"]})
    values = {"replicas": replicas, "minReplicas": replicas}
    if int(spec.get("maxReplicas") or 0) < replicas:
        values["maxReplicas"] = replicas
    # "add" also replaces an existing value (RFC 6902, 4.1).
    patch += [{"op": "add", "path": f"{path}/{key}", "value": values[key]} for key in values]
    return patch
