"""The pod and the Kubernetes node of each rank, for ``moe-serving status --kube``.

A rank's ``node`` is its address in Ray, which on KubeRay is the pod's address. The only request to
Kubernetes lists the Ray pods of the namespace; no permission other than listing pods is required.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from serving.errors import NotReady, PermissionDenied, SettingsError

SELECTOR = "ray.io/cluster"
"""KubeRay's label on all pods of a RayCluster; its value is the cluster's name."""
_GROUP = "ray.io/group"
_HEAD = "ray.io/node-type"
_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_TIMEOUT, _ATTEMPTS = 5.0, 2


@dataclass(frozen=True, slots=True)
class PodSeen:
    """The fields of a Ray pod that are shown."""

    name: str
    address: str
    """IP address; empty if not assigned yet."""
    node: str
    """Name of the Kubernetes node; empty if not scheduled yet."""
    cluster: str
    """Name of the RayCluster."""
    worker_group: str
    """Name of the worker group, which is a pool of the chart."""
    state: str
    """Phase in lower case, "ready", or the reason for the pod's removal."""


async def ray_pods(namespace: str | None) -> tuple[str, tuple[PodSeen, ...]]:
    """Return the namespace and its Ray worker pods.

    Args:
        namespace: Namespace. None means the namespace of this pod, or of kubectl's current context.

    Raises:
        SettingsError: No cluster is configured.
        PermissionDenied: Listing pods is not permitted.
        NotReady: The API server does not answer.
    """
    from serving.autoscaler.actuators.actuator import ActuatorError
    from serving.autoscaler.actuators.kubernetes_api import (
        KubernetesApi,
        cluster_configuration,
        current_namespace,
    )
    from serving.autoscaler.actuators.kubernetes_errors import AccessDenied
    from serving.settings import KubernetesSettings

    try:
        configuration = await cluster_configuration()
    except SettingsError as error:
        raise SettingsError(f"status --kube: {error}") from error
    space = namespace or current_namespace(_NAMESPACE_FILE)
    settings = KubernetesSettings(namespace=space, api_timeout=_TIMEOUT, attempts=_ATTEMPTS)
    api = KubernetesApi(settings, configuration)
    try:
        found = await api.pods(SELECTOR)
    except AccessDenied as error:
        raise PermissionDenied(
            f"{error}: --kube requires permission to list pods in namespace {space} "
            f"(kubectl auth can-i list pods -n {space})"
        ) from error
    except ActuatorError as error:
        raise NotReady(str(error)) from error
    finally:
        await api.close()
    return space, tuple(
        pod_seen(pod) for pod in found if (pod.metadata.labels or {}).get(_HEAD) != "head"
    )


def pod_seen(pod: Any) -> PodSeen:
    """Convert a pod of the Kubernetes client."""
    from serving.autoscaler.actuators.node_watch import pod_disruption

    labels: Mapping[str, str] = pod.metadata.labels or {}
    ready = any(
        condition.type == "Ready" and condition.status == "True"
        for condition in pod.status.conditions or ()
    )
    # The pod's name has a separate column.
    going = (pod_disruption(pod) or "").removeprefix(f"pod {pod.metadata.name}").lstrip(": ")
    return PodSeen(
        pod.metadata.name,
        pod.status.pod_ip or "",
        pod.spec.node_name or "",
        labels.get(SELECTOR, ""),
        labels.get(_GROUP, ""),
        going or ("ready" if ready else str(pod.status.phase or "unknown").lower()),
    )


def placements(fleet: Mapping[str, Any], pods: Sequence[PodSeen]) -> list[dict[str, Any]]:
    """Return an entry for each rank, and one for each pod without a rank; for --json."""
    by_address = {pod.address: pod for pod in pods if pod.address}
    used: set[str] = set()
    entries: list[dict[str, Any]] = []
    for group in fleet["groups"]:
        for rank in group["ranks"]:
            pod = by_address.get(str(rank["node"]))
            used.update(() if pod is None else (pod.name,))
            entries.append(
                {
                    "group_id": group["group_id"],
                    "app": group.get("app", ""),
                    "group_state": group["state"],
                    "rank": rank["rank"],
                    "world_size": group["world_size"],
                    "address": rank["node"],
                    "pod": None if pod is None else asdict(pod),
                }
            )
    entries += [{"group_id": None, "pod": asdict(pod)} for pod in pods if pod.name not in used]
    return entries


def pods_table(entries: Sequence[Mapping[str, Any]]) -> Table:
    """Return a table with a row for each entry of :func:`placements`."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("group", "state", "rank", "pod", "pod state", "node", "pool", "RayCluster"):
        table.add_column(name, no_wrap=True)
    before = None
    for entry in entries:
        group, pod = entry["group_id"], entry["pod"]
        cells: list[str | Text]
        if group is None:
            cells = ["-", Text("no rank", style="dim"), ""]
        else:
            first = group != before
            cells = [
                str(group) if first else "",
                str(entry["group_state"]) if first else "",
                f"{entry['rank']}/{entry['world_size']}",
            ]
        before = group
        if pod is None:
            unknown = Text(f"no pod has address {entry['address']}", style="yellow")
            table.add_row(*cells, unknown, "", "", "", "")
            continue
        table.add_row(
            *cells,
            pod["name"],
            pod["state"],
            pod["node"] or Text("not scheduled", style="yellow"),
            pod["worker_group"],
            pod["cluster"],
        )
    return table
