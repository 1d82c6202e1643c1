"""A KubeRay operator for tests: RayServices, their RayClusters, and the pods of those.

Follows KubeRay 1.7.0 as recorded and as its source says (rayservice_controller.go,
raycluster_controller.go):

- a RayService gets a finalizer by an update of the whole object in the form of Go's types, by which
  the operator owns what is spelled otherwise; then a pending RayCluster ``NAME-xxxxx``, which is
  promoted to active when its head and its applications are ready (``serves``);
- a second RayCluster is created when the hash of the cluster's specification differs, except with
  ``upgradeStrategy: None``; the hash omits replicas, minReplicas, maxReplicas, workersToDelete,
  tolerations and schedulingGates; worker groups appended at the end are added in place;
- an operator with a different version overwrites the active RayCluster with the RayService's
  specification, including replicas, unless an upgrade is in progress;
- the pods named in ``workersToDelete`` are deleted first, regardless of replicas; then pods in
  excess of the number (the oldest here; in reality there is no order); pods that are being deleted
  count until they are gone, and one that the operator deleted freezes its worker group until then;
- a RayService is Ready while at least one worker pod is Ready, which needs Serve's proxy to answer
  ``/-/healthz`` (:func:`proxy_health` says what it answers).

Not implemented: suspend, incremental upgrades, GCS fault tolerance, multi-host groups, ingresses.
Clusters that are no longer referenced are deleted without the deletion delay unless ``keep_old`` is
set.
"""

import functools
from collections.abc import Callable
from typing import Any

import yaml

from tests.helm.operator_form import operator_form
from tests.kube.copies import copied
from tests.kube.kuberay_cluster import Cluster, spec_hash
from tests.kube.kuberay_common import Writer, is_true, pod_ready, pods_of, set_condition
from tests.kube.server import KubeServer
from tests.kube.store import now, owned_by

Item = dict[str, Any]
Health = Callable[[Item], bool]

FINALIZER = "ray.io/rayservice-finalizer"
_HASH = "ray.io/hash-without-replicas-and-workers-to-delete"
_VERSION = "ray.io/kuberay-version"
_GROUPS = "ray.io/num-worker-groups"


def proxy_health(server: KubeServer) -> Health:
    """Return the readiness check of a pod: Ray Serve's proxy on a worker, none on the head.

    The proxy answers ``/-/healthz`` with 200 when an application of the pod's RayService has a
    route prefix; with none it always answers 503 "Route table is not populated yet" (recorded).
    """

    def healthy(pod: Item) -> bool:
        if (pod["metadata"].get("labels") or {}).get("ray.io/node-type") != "worker":
            return True
        cluster = server.get("rayclusters", *_cluster_of(pod))
        if cluster is None:
            return False
        labels = cluster["metadata"].get("labels") or {}
        service = labels.get("ray.io/originated-from-cr-name")
        if service is None:
            return True  # for a RayCluster without a RayService, Serve is not queried
        found = server.get("rayservices", service, pod["metadata"]["namespace"])
        if found is None:
            return False
        return _has_route(found["spec"].get("serveConfigV2") or "{}")

    return healthy


@functools.lru_cache
def _has_route(config: str) -> bool:
    applications = (yaml.safe_load(config) or {}).get("applications", ())
    return any(one.get("route_prefix", "/") is not None for one in applications)


def _cluster_of(pod: Item) -> tuple[str, str]:
    metadata = pod["metadata"]
    return (metadata.get("labels") or {}).get("ray.io/cluster", ""), metadata["namespace"]


class KubeRay:
    """A controller for :mod:`tests.kube.controllers`."""

    def __init__(self, version: str = "v1.7.0", serves: Health | None = None):
        self.version = version
        """Version of the operator; if a cluster has another one, it is an upgrade."""
        self.serves = serves or (lambda cluster: True)
        """Whether a cluster's applications are running, according to Ray's dashboard."""
        self.keep_old = False
        """Keep clusters that a promotion replaced."""
        self.deleting: set[str] = set()
        """UIDs of pods that this operator process deleted; lost on restart."""
        self._started_as = version

    def __call__(self, server: KubeServer) -> None:
        if self.version != self._started_as:
            self._started_as = self.version
            self.deleting.clear()
        for service in server.view("rayservices"):
            _Service(self, server, service).reconcile()
        for cluster in server.view("rayclusters"):
            if "deletionTimestamp" not in cluster["metadata"]:
                Cluster(self, server, cluster).reconcile()


class _Service(Writer):
    def reconcile(self) -> None:
        status = copied(self.item.get("status") or {})
        active_name = (status.get("activeServiceStatus") or {}).get("rayClusterName", "")
        pending_name = (status.get("pendingServiceStatus") or {}).get("rayClusterName", "")
        self._clean_up({active_name, pending_name})
        if "deletionTimestamp" in self.metadata:
            if not self._clusters():
                self._write(without_finalizer=True)
            return
        if FINALIZER not in (self.metadata.get("finalizers") or ()):
            self._write()
            return
        active, pending = self._named(active_name), self._named(pending_name)
        if pending_name and pending is None:
            pending = self.create(self._cluster(pending_name))
        active = self._in_place(active, status, active=True)
        pending = self._in_place(pending, status, active=False)
        if pending is not None and self._ready(pending):
            active, active_name, pending, pending_name = pending, pending_name, None, ""
        elif self._needs_another(active, pending):
            pending, pending_name = None, f"{self.metadata['name']}-{self.server.store.suffix()}"
        self._report(status, (active_name, active), (pending_name, pending))

    def _clusters(self) -> list[Item]:
        uid = self.metadata["uid"]
        return self.server.view("rayclusters", self.namespace, lambda item: owned_by(item, uid))

    def _named(self, name: str) -> Item | None:
        return self.server.get("rayclusters", name, self.namespace) if name else None

    def _clean_up(self, named: set[str]) -> None:
        deleted = "deletionTimestamp" in self.metadata
        for cluster in self._clusters():
            old = cluster["metadata"]["name"] not in named and not self.operator.keep_old
            if (deleted or old) and "deletionTimestamp" not in cluster["metadata"]:
                self.delete(cluster)

    def _write(self, *, without_finalizer: bool = False) -> None:
        """Update the whole object as the Go client does, with or without the finalizer."""
        item = copied(self.item)
        item["spec"] = operator_form(item["spec"])
        others = [one for one in self.metadata.get("finalizers") or () if one != FINALIZER]
        item["metadata"]["finalizers"] = others if without_finalizer else [*others, FINALIZER]
        self.update(item)

    @functools.cached_property
    def _cluster_spec(self) -> Item:
        found: Item = operator_form(self.item["spec"])["rayClusterConfig"]
        return found

    def _cluster(self, name: str) -> Item:
        """Return the RayCluster described by the RayService."""
        metadata, spec = self.metadata, self._cluster_spec
        return {
            "apiVersion": "ray.io/v1",
            "kind": "RayCluster",
            "metadata": {
                "name": name,
                "namespace": self.namespace,
                "labels": (metadata.get("labels") or {})
                | {
                    "ray.io/originated-from-cr-name": metadata["name"],
                    "ray.io/originated-from-crd": "RayService",
                },
                "annotations": (metadata.get("annotations") or {})
                | {
                    _HASH: spec_hash(spec),
                    _GROUPS: str(len(spec.get("workerGroupSpecs", ()))),
                    _VERSION: self.operator.version,
                },
                "ownerReferences": [self.owner()],
            },
            "spec": spec,
        }

    def _in_place(self, cluster: Item | None, status: Item, *, active: bool) -> Item | None:
        """Overwrite a cluster after an operator upgrade or if worker groups were appended."""
        if cluster is None:
            return None
        if active and is_true(status, "UpgradeInProgress"):
            return cluster
        annotations = cluster["metadata"].get("annotations") or {}
        upgraded = active and annotations.get(_VERSION) != self.operator.version
        if not upgraded and (self._same(cluster) or not self._same(cluster, partial=True)):
            return cluster
        goal, changed = self._cluster(cluster["metadata"]["name"]), copied(cluster)
        changed["spec"] = goal["spec"]
        for key in ("labels", "annotations"):
            changed["metadata"][key] = goal["metadata"][key]
        return self.update(changed)

    def _same(self, cluster: Item, *, partial: bool = False) -> bool:
        spec = self._cluster_spec
        annotations = cluster["metadata"].get("annotations") or {}
        if partial:
            count = int(annotations.get(_GROUPS, 0))
            if len(spec.get("workerGroupSpecs", ())) <= count:
                return False
            spec = {**spec, "workerGroupSpecs": spec["workerGroupSpecs"][:count]}
        return annotations.get(_HASH) == spec_hash(spec)

    def _needs_another(self, active: Item | None, pending: Item | None) -> bool:
        cluster = pending or active
        if cluster is None:
            return True
        if self._same(cluster) or self._same(cluster, partial=True):
            return False
        strategy = (self.item["spec"].get("upgradeStrategy") or {}).get("type", "NewCluster")
        return bool(strategy != "None")

    def _ready(self, cluster: Item) -> bool:
        heads = [pod for pod in pods_of(self.server, cluster, "head") if pod_ready(pod)]
        return bool(heads) and self.operator.serves(cluster)

    def _report(
        self, status: Item, active: tuple[str, Item | None], pending: tuple[str, Item | None]
    ) -> None:
        generation = self.metadata["generation"]
        pods = [] if active[1] is None else pods_of(self.server, active[1], "worker")
        endpoints = sum(pod_ready(pod) for pod in pods)
        conditions = status.get("conditions") or []
        start = "RayService is initializing"
        if not conditions:
            for name in ("Ready", "UpgradeInProgress"):
                set_condition(conditions, generation, name, "False", "Initializing", start)
        if endpoints:
            message = "Number of serve endpoints is greater than 0"
            set_condition(conditions, generation, "Ready", "True", "NonZeroServeEndpoints", message)
        elif is_true(status, "Ready"):
            message = "Number of serve endpoints dropped to 0"
            set_condition(conditions, generation, "Ready", "False", "ZeroServeEndpoints", message)
        if active[0] and pending[0]:
            message = "Both active and pending Ray clusters exist"
            reason = "BothActivePendingClustersExist"
            set_condition(conditions, generation, "UpgradeInProgress", "True", reason, message)
        elif active[0]:
            message = "Active Ray cluster exists and no pending Ray cluster"
            reason = "NoPendingCluster"
            set_condition(conditions, generation, "UpgradeInProgress", "False", reason, message)
        new = {
            **{k: v for k, v in status.items() if k not in {"numServeEndpoints", "serviceStatus"}},
            "activeServiceStatus": _cluster_status(*active),
            "pendingServiceStatus": _cluster_status(*pending),
            "conditions": conditions,
            "observedGeneration": generation,
        }
        if endpoints:
            new |= {"numServeEndpoints": endpoints, "serviceStatus": "Running"}
        if new != self.item.get("status"):
            self.update({**self.item, "status": new | {"lastUpdateTime": now()}}, "status")


def _cluster_status(name: str, cluster: Item | None) -> Item:
    status = {"desiredCPU": "0", "desiredGPU": "0", "desiredMemory": "0", "desiredTPU": "0"}
    found = {"head": {}, **status, **((cluster or {}).get("status") or {})}
    return {"rayClusterStatus": found, **({"rayClusterName": name} if name else {})}
