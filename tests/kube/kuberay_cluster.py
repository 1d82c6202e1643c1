"""The RayCluster controller of the fake KubeRay: secret, service and pods of a cluster.

Follows raycluster_controller.go of KubeRay 1.7.0, mainly ``reconcilePods``: finished pods are
deleted first and alone, then those named in ``workersToDelete``; then the number is set to
``replicas``, bounded by ``minReplicas`` and ``maxReplicas``. While a deleted pod still exists, the
operator does nothing else for that worker group.
"""

import base64
import hashlib
import json
from typing import Any

from tests.kube import kuberay_pods
from tests.kube.copies import copied
from tests.kube.kuberay_common import Writer, pod_ready, pods_of

Item = dict[str, Any]
_MUTED = ("replicas", "minReplicas", "maxReplicas")


class Cluster(Writer):
    def reconcile(self) -> None:
        self._secret()
        self._service()
        if not pods_of(self.server, self.item, "head"):
            hashed = spec_hash(self.item["spec"])
            self.create(kuberay_pods.head(self.item, self.operator.version, hashed))
        for group in self.item["spec"].get("workerGroupSpecs", ()):
            self._workers(group)
        self._report()

    def _secret(self) -> None:
        options = self.item["spec"].get("authOptions") or {}
        name = self.metadata["name"]
        if options.get("mode") != "token" or options.get("secretName"):
            return
        if self.server.get("secrets", name, self.namespace) is None:
            token = hashlib.sha256(self.metadata["uid"].encode()).hexdigest().encode()
            self.create(
                {
                    "apiVersion": "v1",
                    "kind": "Secret",
                    "metadata": {"name": name, "ownerReferences": [self.owner()]},
                    "type": "Opaque",
                    "data": {"auth_token": base64.b64encode(token).decode()},
                }
            )

    def _service(self) -> None:
        name = f"{self.metadata['name']}-head-svc"
        if self.server.get("services", name, self.namespace) is not None:
            return
        selector = {"ray.io/cluster": self.metadata["name"], "ray.io/node-type": "head"}
        containers = self.item["spec"]["headGroupSpec"]["template"]["spec"]["containers"]
        ports = [
            {"name": port["name"], "port": port["containerPort"]}
            for port in containers[0].get("ports", ())
        ] or [{"name": "gcs-server", "port": 6379}]
        self.create(
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": name, "ownerReferences": [self.owner()]},
                "spec": {"clusterIP": "None", "selector": selector, "ports": ports},
            }
        )

    def _workers(self, group: Item) -> None:
        pods = pods_of(self.server, self.item, "worker", group["groupName"])
        if any(pod["metadata"]["uid"] in self.operator.deleting for pod in pods):
            return
        if ended := [pod for pod in pods if _phase(pod) in {"Succeeded", "Failed"}]:
            for pod in ended:
                self._gone(pod)
            return
        named = set((group.get("scaleStrategy") or {}).get("workersToDelete") or ())
        for name in named:
            if (pod := self.server.get("pods", name, self.namespace)) is not None:
                self._gone(pod)
        left = [pod for pod in pods if pod["metadata"]["name"] not in named]
        least, most = int(group.get("minReplicas") or 0), int(group.get("maxReplicas", 2**31))
        wanted = min(max(int(group.get("replicas") or 0), least), most)
        for _ in range(wanted - len(left)):
            used = {
                int(pod["metadata"]["labels"]["ray.io/worker-group-replica-index"]) for pod in left
            }
            index = next(number for number in range(len(used) + 1) if number not in used)
            left.append(self.create(kuberay_pods.worker(self.item, group, index)))
        for pod in left[: max(0, len(left) - wanted)]:
            self._gone(pod)

    def _gone(self, pod: Item) -> None:
        if "deletionTimestamp" not in pod["metadata"]:
            self.operator.deleting.add(pod["metadata"]["uid"])
            self.delete(pod)

    def _report(self) -> None:
        heads = pods_of(self.server, self.item, "head")
        workers = pods_of(self.server, self.item, "worker")
        groups = self.item["spec"].get("workerGroupSpecs", ())
        ready = sum(pod_ready(pod) for pod in workers)
        status = copied(self.item.get("status") or {})
        new = status | {
            "desiredWorkerReplicas": sum(int(group.get("replicas") or 0) for group in groups),
            "minWorkerReplicas": sum(int(group.get("minReplicas") or 0) for group in groups),
            "head": {
                "podName": heads[0]["metadata"]["name"] if heads else "",
                "serviceName": f"{self.metadata['name']}-head-svc",
            },
            "observedGeneration": self.metadata["generation"],
        }
        new |= {"readyWorkerReplicas": ready, "availableWorkerReplicas": ready} if ready else {}
        if heads and all(map(pod_ready, heads)) and ready == len(workers):
            new["state"] = "ready"
        if new != status:
            self.update({**self.item, "status": new}, "status")


def spec_hash(spec: Item) -> str:
    """Return KubeRay's hash of a cluster; ``spec`` is in normal form."""
    spec = copied(spec)
    spec.pop("upgradeStrategy", None)
    groups = spec.get("workerGroupSpecs", [])
    for group in (spec["headGroupSpec"], *groups):
        for key in ("tolerations", "schedulingGates"):
            group["template"]["spec"].pop(key, None)
    for group in groups:
        for key in _MUTED:
            group.pop(key, None)
        group["scaleStrategy"] = {
            key: value
            for key, value in (group.get("scaleStrategy") or {}).items()
            if key != "workersToDelete"
        }
    digest = hashlib.sha1(json.dumps(spec, sort_keys=True).encode(), usedforsecurity=False)
    return base64.b32hexencode(digest.digest()).decode()


def _phase(pod: Item) -> str:
    return str((pod.get("status") or {}).get("phase", ""))
