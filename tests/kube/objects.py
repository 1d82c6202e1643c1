"""Builders of complete objects that a real API server accepts."""

from typing import Any

Item = dict[str, Any]


def _container(name: str) -> Item:
    return {"name": name, "image": "engine:1"}


def node(name: str, **spec: Any) -> Item:
    """Return a node, ready unless its status is changed."""
    ready = {"type": "Ready", "status": "True", "reason": "KubeletReady"}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "spec": spec,
        "status": {"conditions": [ready]},
    }


def pod(
    name: str,
    ip: str = "",
    node: str = "",
    *,
    namespace: str = "default",
    labels: dict[str, str] | None = None,
    **status: Any,
) -> Item:
    """Return a pod: ready at ``ip`` on ``node``, or pending without an address."""
    running = {"podIP": ip, "phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": labels or {}},
        "spec": {"containers": [_container("ranks")], **({"nodeName": node} if node else {})},
        "status": (running if ip else {"phase": "Pending"}) | status,
    }


def ray_labels(cluster: str, group: str = "ranks", kind: str = "worker") -> dict[str, str]:
    """Return the labels that KubeRay gives to a pod (recorded)."""
    return {"ray.io/cluster": cluster, "ray.io/group": group, "ray.io/node-type": kind}


def worker_group(name: str = "ranks", **spec: Any) -> Item:
    """Return a worker group of a RayCluster with two workers."""
    return {
        "groupName": name,
        "replicas": 2,
        "minReplicas": 0,
        "maxReplicas": 6,
        "rayStartParams": {},
        "template": {"spec": {"containers": [_container("ranks")]}},
    } | spec


def raycluster(name: str, *groups: Item, namespace: str = "default") -> Item:
    """Return a RayCluster with these worker groups."""
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "headGroupSpec": {
                "rayStartParams": {},
                "template": {"spec": {"containers": [_container("ray-head")]}},
            },
            "workerGroupSpecs": [*groups],
        },
    }


def rayservice(
    name: str, *groups: Item, active: str = "", pending: str = "", namespace: str = "default"
) -> Item:
    """Return a RayService whose status names its active and its pending RayCluster."""
    status = {
        which: {"rayClusterName": cluster}
        for which, cluster in (("activeServiceStatus", active), ("pendingServiceStatus", pending))
        if cluster
    }
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"rayClusterConfig": raycluster(name, *groups)["spec"]},
        "status": status,
    }


def service_account(name: str, namespace: str, *rules: Item, cluster: bool = False) -> list[Item]:
    """Return a service account and a role with ``rules`` that is bound to it.

    Args:
        name: name of all three objects.
        namespace: namespace of the account, and of role and binding unless ``cluster``.
        rules: rules of the role.
        cluster: create a ClusterRole and a ClusterRoleBinding.
    """
    where = {"name": name, "namespace": namespace}
    place = {"name": name} if cluster else where
    prefix, group = ("Cluster" if cluster else ""), "rbac.authorization.k8s.io"
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": where}
    role = {
        "apiVersion": f"{group}/v1",
        "kind": f"{prefix}Role",
        "metadata": place,
        "rules": [*rules],
    }
    binding = {
        "apiVersion": f"{group}/v1",
        "kind": f"{prefix}RoleBinding",
        "metadata": place,
        "roleRef": {"apiGroup": group, "kind": f"{prefix}Role", "name": name},
        "subjects": [{"kind": "ServiceAccount", **where}],
    }
    return [account, role, binding]
