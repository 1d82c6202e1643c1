"""The RayService above the RayCluster: which cluster is the active one, and how many pods it keeps.

KubeRay compares a RayService with its RayCluster without their numbers of replicas, so neither a
number in the RayService nor one in the RayCluster is carried over in normal running. But a new
version of the operator overwrites the whole spec of the active RayCluster from the RayService, and
what is more than the number there is deleted at once, live ranks or not. So the RayService holds
the number too, and never one below the pods that exist.
"""

from dataclasses import dataclass
from typing import Any

import structlog

from serving.autoscaler.actuators.actuator import ActuatorError
from serving.autoscaler.actuators.kubernetes_api import KubernetesApi
from serving.autoscaler.actuators.kubernetes_errors import Invalid, OwnedByOther, Refused
from serving.autoscaler.actuators.unclaimed import disown, patch_unclaimed
from serving.settings import KubernetesSettings

RAY = "ray.io/v1"
SERVICES = "rayservices"

log: structlog.stdlib.BoundLogger = structlog.get_logger("serving.autoscaler")


@dataclass(frozen=True, slots=True)
class ServiceSeen:
    """A RayService as it was read."""

    live: dict[str, Any]
    cluster: str
    """The active RayCluster; that of a RayService that has none yet is the pending one."""
    pending: str
    """A second RayCluster that is to replace the active one; empty: none."""


class RayServiceNumbers:
    """The numbers of one worker group in a RayService."""

    def __init__(self, api: KubernetesApi, settings: KubernetesSettings) -> None:
        self._api = api
        self._settings = settings
        self.trouble = ""
        """Why the RayService does not hold the number, for an operator; empty: it does."""

    async def read(self) -> ServiceSeen:
        """Return the RayService and its cluster.

        KubeRay makes up the cluster's name, and another one at each blue/green upgrade. Until it
        switches, the active cluster is the old one; only a RayService that has none yet has its
        first one pending, and that needs its workers to become active.

        Raises:
            ActuatorError: it has no cluster yet, or as for ``KubernetesApi.get``.
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
        return ServiceSeen(live, active or pending, pending if active else "")

    def held(self, seen: ServiceSeen) -> int:
        """Return the replicas that the RayService holds; 0 where it has no such worker group."""
        _, spec = self._group(seen)
        return max(int(spec.get("replicas") or 0), int(spec.get("minReplicas") or 0))

    async def hold(self, seen: ServiceSeen, replicas: int) -> None:
        """Write the number where it differs.

        What would be refused again is told in ``trouble`` and stops nobody: without it only an
        upgrade of the operator is dangerous.

        Raises:
            Conflict: the RayService changed since it was read.
            ActuatorError: the server does not answer.
        """
        index, spec = self._group(seen)
        if index is None:
            self.trouble = (
                f"RayService {self._settings.service} has no worker group "
                f"{self._settings.worker_group}: set autoscaler.kubernetes.worker_group to one of "
                "its own"
            )
            return
        now = tuple(spec.get(key) for key in ("replicas", "minReplicas"))
        try:
            if now == (replicas, replicas):
                await disown(self._api, RAY, SERVICES, seen.live)
            else:
                patch = numbers_patch(
                    f"/spec/rayClusterConfig/workerGroupSpecs/{index}", spec, replicas
                )
                await patch_unclaimed(self._api, RAY, SERVICES, self._settings.service, patch)
                log.info("rayservice", replicas=replicas, before=spec.get("replicas"))
        except (Refused, Invalid, OwnedByOther) as error:
            self.trouble = (
                f"RayService {self._settings.service} keeps {now[0]} replicas of worker group "
                f"{self._settings.worker_group} instead of {replicas}: an upgrade of the KubeRay "
                "operator would set the RayCluster back to that and delete pods with ranks. "
                f"{error}"
            )
        else:
            self.trouble = ""

    def _group(self, seen: ServiceSeen) -> tuple[int | None, dict[str, Any]]:
        config = (seen.live.get("spec") or {}).get("rayClusterConfig") or {}
        for index, spec in enumerate(config.get("workerGroupSpecs") or ()):
            if spec.get("groupName") == self._settings.worker_group:
                return index, spec
        return None, {}


def numbers_patch(path: str, spec: dict[str, Any], replicas: int) -> list[dict[str, Any]]:
    """Return the JSON patch that asks a worker group at ``path`` for exactly so many pods.

    It fails where another group is at ``path`` by now, or its number is not the one in ``spec``.
    ``maxReplicas`` is raised with it: KubeRay takes the number down to it without a word.
    """
    patch: list[dict[str, Any]] = [
        {"op": "test", "path": f"{path}/groupName", "value": spec["groupName"]}
    ]
    if "replicas" in spec:
        patch.append({"op": "test", "path": f"{path}/replicas", "value": spec["replicas"]})
    values = {"replicas": replicas, "minReplicas": replicas}
    if int(spec.get("maxReplicas") or 0) < replicas:
        values["maxReplicas"] = replicas
    # "add" also replaces what is there (RFC 6902, 4.1).
    patch += [{"op": "add", "path": f"{path}/{key}", "value": values[key]} for key in values]
    return patch
