"""The Kubernetes permissions that the autoscaler needs, and a check for missing ones."""

from collections.abc import Iterator
from typing import NamedTuple

from serving.autoscaler.actuators.actuator import ActuatorError
from serving.autoscaler.actuators.kubernetes_api import KubernetesApi
from serving.settings import KubernetesSettings

REMEDY = (
    "The chart's Role and ClusterRole <release>-moe-serving-autoscaler grant all required "
    "permissions (run helm upgrade); without the chart, see deploy/docs/autoscaling.md"
)


class RequiredAccess(NamedTuple):
    """A verb on a resource in the configured namespace; nodes are not namespaced."""

    verb: str
    group: str
    plural: str
    name: str = ""
    """Name of one object; empty for all objects."""

    def __str__(self) -> str:
        kind = f"{self.plural}.{self.group}" if self.group else self.plural
        return f"{self.verb} {kind} {self.name}".rstrip()


def required_access(settings: KubernetesSettings, cluster: str) -> Iterator[RequiredAccess]:
    """Yield all required permissions; ``cluster`` is the RayCluster, empty if not known yet."""
    if not settings.cluster:
        for verb in ("get", "patch"):
            yield RequiredAccess(verb, "ray.io", "rayservices", settings.service)
    for verb in ("get", "patch"):
        yield RequiredAccess(verb, "ray.io", "rayclusters", settings.cluster or cluster)
        yield RequiredAccess(verb, "coordination.k8s.io", "leases", settings.lease)
        if settings.disruption_budget:
            yield RequiredAccess(verb, "policy", "poddisruptionbudgets", settings.disruption_budget)
    for verb in ("list", "watch"):
        yield RequiredAccess(verb, "", "pods")
        yield RequiredAccess(verb, "", "nodes")


async def missing_access(
    api: KubernetesApi, settings: KubernetesSettings, cluster: str
) -> list[str]:
    """Return the permissions that this account lacks, by SelfSubjectAccessReviews.

    Empty if the server does not support the reviews; the calls themselves then report errors.
    """
    lacking = []
    for right in required_access(settings, cluster):
        try:
            if not await api.may(*right):
                lacking.append(str(right))
        except ActuatorError:
            return []
    return lacking
