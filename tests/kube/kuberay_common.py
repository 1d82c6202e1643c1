"""Shared parts of the fake KubeRay controllers: writing as the operator, pods, conditions."""

from typing import Any

from tests.kube.api import Options, Place
from tests.kube.server import KubeServer
from tests.kube.store import now

Item = dict[str, Any]


class Writer:
    """Writes one object as the operator."""

    def __init__(self, operator: Any, server: KubeServer, item: Item):
        self.operator = operator
        self.server = server
        self.item = item
        self.metadata = item["metadata"]
        self.namespace = self.metadata["namespace"]

    def place(self, item: Item) -> Place:
        kind = self.server.store.kinds.of(item)
        return Place(kind, item["metadata"]["name"], item["metadata"]["namespace"])

    def update(self, item: Item, subresource: str = "") -> Item:
        options = Options("kuberay-operator", subresource=subresource)
        return self.server.api.update(self.place(item), item, options)[0]

    def create(self, item: Item) -> Item:
        kind = self.server.store.kinds.of(item)
        return self.server.api.create(kind, self.namespace, item, Options("kuberay-operator"))

    def delete(self, item: Item) -> None:
        self.server.api.delete(self.place(item), None, Options("kuberay-operator"))

    def owner(self) -> Item:
        return {
            "apiVersion": "ray.io/v1",
            "kind": self.item["kind"],
            "name": self.metadata["name"],
            "uid": self.metadata["uid"],
            "controller": True,
            "blockOwnerDeletion": True,
        }


def pods_of(server: KubeServer, cluster: Item, kind: str, group: str = "") -> list[Item]:
    """Return a cluster's pods of a kind, the oldest first."""
    metadata = cluster["metadata"]
    wanted = {"ray.io/cluster": metadata["name"], "ray.io/node-type": kind}
    wanted |= {"ray.io/group": group} if group else {}

    def fits(pod: Item) -> bool:
        return wanted.items() <= (pod["metadata"].get("labels") or {}).items()

    found = server.view("pods", metadata["namespace"], fits)
    return sorted(found, key=lambda pod: pod["metadata"]["creationTimestamp"])


def pod_ready(pod: Item) -> bool:
    return "deletionTimestamp" not in pod["metadata"] and is_true(pod.get("status") or {}, "Ready")


def is_true(status: Item, name: str) -> bool:
    return any(c["type"] == name and c["status"] == "True" for c in status.get("conditions") or ())


def set_condition(
    conditions: list[Item], generation: int, name: str, status: str, reason: str, message: str
) -> None:
    """Set a condition as meta.SetStatusCondition does: its time changes with its status."""
    old = next((one for one in conditions if one["type"] == name), None)
    new = {
        "type": name,
        "status": status,
        "reason": reason,
        "message": message,
        "observedGeneration": generation,
        "lastTransitionTime": now(),
    }
    if old is None:
        conditions.append(new)
        return
    if old["status"] == status:
        new["lastTransitionTime"] = old["lastTransitionTime"]
    old.update(new)
