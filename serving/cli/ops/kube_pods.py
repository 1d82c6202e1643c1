"""Which pod and which Kubernetes node each rank runs on, for ``moe-serving status --kube``.

A rank's node is the address by which Ray knows it, and on KubeRay that is the pod's. All that is
asked of Kubernetes is the list of the namespace's Ray pods: the right to list pods is enough.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from serving.errors import NotReady, PermissionDenied, SettingsError

SELECTOR = "ray.io/cluster"
"""KubeRay's label of all pods of a RayCluster: its name."""
_GROUP = "ray.io/group"
_HEAD = "ray.io/node-type"
_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_TIMEOUT, _ATTEMPTS = 5.0, 2


@dataclass(frozen=True, slots=True)
class PodSeen:
    """A Ray pod."""

    name: str
    address: str
    """Its IP; empty before it has one."""
    node: str
    """Name of the Kubernetes node; empty while it is not scheduled."""
    cluster: str
    """RayCluster."""
    worker_group: str
    """The chart's pool."""
    state: str
    """Phase in lower case, ready, or why it goes."""


async def ray_pods(namespace: str | None) -> tuple[str, tuple[PodSeen, ...]]:
    """Return the namespace that was asked and its Ray pods, without heads.

    Args:
        namespace: none takes the pod's own, or that of kubectl's current context.

    Raises:
        SettingsError: no cluster is configured.
        PermissionDenied: pods may not be listed.
        NotReady: the API server does not answer.
    """
    from serving.autoscaler.actuators.actuator import ActuatorError
    from serving.autoscaler.actuators.kubernetes_api import (
        KubernetesApi,
        cluster_configuration,
        current_namespace,
    )
    from serving.autoscaler.actuators.kubernetes_errors import Refused
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
    except Refused as error:
        raise PermissionDenied(
            f"{error}: it takes the right to list pods in namespace {space} "
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
    """Return what is shown of a pod, an object of the official client."""
    from serving.autoscaler.actuators.node_watch import pod_goes

    labels: Mapping[str, str] = pod.metadata.labels or {}
    ready = any(
        condition.type == "Ready" and condition.status == "True"
        for condition in pod.status.conditions or ()
    )
    # Its own name is beside it.
    going = (pod_goes(pod) or "").removeprefix(f"pod {pod.metadata.name}").lstrip(": ")
    return PodSeen(
        pod.metadata.name,
        pod.status.pod_ip or "",
        pod.spec.node_name or "",
        labels.get(SELECTOR, ""),
        labels.get(_GROUP, ""),
        going or ("ready" if ready else str(pod.status.phase or "unknown").lower()),
    )


def placements(fleet: Mapping[str, Any], pods: Sequence[PodSeen]) -> list[dict[str, Any]]:
    """Return one entry a rank, and one for each pod that no rank is on; for programs."""
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
    """Return a row for each entry of :func:`placements`."""
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
