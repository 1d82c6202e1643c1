"""What the autoscaler must be allowed to do at the API server, and what it is not."""

from collections.abc import Iterator
from typing import NamedTuple

from serving.autoscaler.actuators.actuator import ActuatorError
from serving.autoscaler.actuators.kubernetes_api import KubernetesApi
from serving.settings import KubernetesSettings

REMEDY = (
    "The chart's Role and ClusterRole <release>-moe-serving-autoscaler give every right that is "
    "needed (helm upgrade); elsewhere see the table in deploy/docs/autoscaling.md"
)


class Right(NamedTuple):
    """A verb on a resource, in the settings' namespace but for nodes."""

    verb: str
    group: str
    plural: str
    name: str = ""
    """One object; empty: all."""

    def __str__(self) -> str:
        kind = f"{self.plural}.{self.group}" if self.group else self.plural
        return f"{self.verb} {kind} {self.name}".rstrip()


def needed(settings: KubernetesSettings, cluster: str) -> Iterator[Right]:
    """Yield all rights that are used, for the RayCluster ``cluster``; empty: not known yet."""
    if not settings.cluster:
        for verb in ("get", "patch"):
            yield Right(verb, "ray.io", "rayservices", settings.service)
    for verb in ("get", "patch"):
        yield Right(verb, "ray.io", "rayclusters", settings.cluster or cluster)
        yield Right(verb, "coordination.k8s.io", "leases", settings.lease)
        if settings.disruption_budget:
            yield Right(verb, "policy", "poddisruptionbudgets", settings.disruption_budget)
    for verb in ("list", "watch"):
        yield Right(verb, "", "pods")
        yield Right(verb, "", "nodes")


async def missing(api: KubernetesApi, settings: KubernetesSettings, cluster: str) -> list[str]:
    """Return what this account may not do, as the server's own access review says.

    Empty too where the server has no such review: then the calls themselves will tell.
    """
    lacking = []
    for right in needed(settings, cluster):
        try:
            if not await api.may(*right):
                lacking.append(str(right))
        except ActuatorError:
            return []
    return lacking
