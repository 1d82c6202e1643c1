"""A fake scheduler and kubelet: pods get a node and an address, become ready, and end when deleted.

Follows "Pod Lifecycle". No container runs; ``ready`` gives the result of its
probes. Pods whose restartPolicy is not Always succeed at once unless ``fails`` is true for them.
"""

from collections.abc import Callable
from typing import Any

from tests.kube.api import Options, Place
from tests.kube.copies import copied
from tests.kube.server import KubeServer

Item = dict[str, Any]
Says = Callable[[Item], bool]


class Kubelet:
    """A controller for :mod:`tests.kube.controllers`."""

    def __init__(self, ready: Says | None = None):
        self.ready = ready or (lambda pod: True)
        """Whether a running pod's readiness probes succeed."""
        self.fails: Says = lambda pod: False
        """Whether a finished pod has failed."""
        self.schedules: Says = lambda pod: True
        """Whether a pod can be scheduled."""
        self.ends: Says = lambda pod: True
        """Whether a deleted pod's containers have ended."""
        self._addresses = 0

    def __call__(self, server: KubeServer) -> None:
        for pod in server.view("pods"):
            self._pod(server, pod)

    def _pod(self, server: KubeServer, pod: Item) -> None:
        metadata, status = pod["metadata"], pod.get("status") or {}
        if "deletionTimestamp" in metadata:
            if self.ends(pod):
                server.delete("pods", metadata["name"], metadata["namespace"], grace=0)
            return
        if status.get("phase") in {"Succeeded", "Failed"}:
            return
        if not pod["spec"].get("nodeName"):
            if not self.schedules(pod):
                return
            with server.store.lock:
                kind = server.store.kinds.named("pods")
                pod = server.store.get(kind, metadata["name"], metadata["namespace"])
                pod["spec"]["nodeName"] = f"node-{metadata['name']}"
                pod = server.store.put(kind, pod)
        if pod["spec"].get("restartPolicy") != "Always":
            new = status | {"phase": "Failed" if self.fails(pod) else "Succeeded"}
        else:
            new = status | {"phase": "Running", "podIP": status.get("podIP") or self._address()}
            is_ready = "True" if self.ready(pod) else "False"
            new["conditions"] = [
                c for c in status.get("conditions") or () if c["type"] != "Ready"
            ] + [{"type": "Ready", "status": is_ready}]
        write_status(server, pod, new, "kubelet")

    def _address(self) -> str:
        self._addresses += 1
        return f"10.1.{self._addresses // 250}.{self._addresses % 250 + 1}"


def write_status(server: KubeServer, item: Item, status: Item, manager: str) -> None:
    """Write an object's status if it differs."""
    if status == item.get("status"):
        return
    kind = server.store.kinds.of(item)
    metadata = item["metadata"]
    place = Place(kind, metadata["name"], metadata["namespace"])
    changed = {**copied(item), "status": status}
    server.api.update(place, changed, Options(manager, subresource="status"))
