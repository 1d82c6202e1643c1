"""A fake controller manager for Deployments, Jobs and PodDisruptionBudgets.

Covers the parts of these kinds that Helm and this project use. A Deployment has one ReplicaSet for
its template (a changed template replaces it at once) with the given number of pods. A Job has one
pod and ends with it. A budget counts the ready pods of its selector. Endpoints, horizontal
autoscaling and DaemonSets are not implemented.
"""

import hashlib
import json
import math
from typing import Any

from tests.kube.api import Options
from tests.kube.copies import copied
from tests.kube.kubelet import write_status
from tests.kube.server import KubeServer
from tests.kube.store import now, owned_by

Item = dict[str, Any]
_MANAGER = "kube-controller-manager"
_HASH = "pod-template-hash"


def workloads(server: KubeServer) -> None:
    """Run one pass, for :mod:`tests.kube.controllers`."""
    for deployment in server.view("deployments"):
        _deployment(server, deployment)
    for job in server.view("jobs"):
        _job(server, job)
    for budget in server.view("poddisruptionbudgets"):
        _budget(server, budget)


def ready(pod: Item) -> bool:
    """Return whether a pod counts as ready."""
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return "deletionTimestamp" not in pod["metadata"] and any(
        c["type"] == "Ready" and c["status"] == "True" for c in conditions
    )


def _owned(server: KubeServer, owner: Item, plural: str) -> list[Item]:
    uid, space = owner["metadata"]["uid"], owner["metadata"]["namespace"]
    return server.view(plural, space, lambda item: owned_by(item, uid))


def _reference(owner: Item) -> Item:
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def _create(server: KubeServer, owner: Item, template: Item, **labels: str) -> None:
    metadata = owner["metadata"]
    given = template.get("metadata") or {}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": f"{metadata['name']}-",
            "labels": (given.get("labels") or {}) | labels,
            "annotations": given.get("annotations") or {},
            "ownerReferences": [_reference(owner)],
        },
        "spec": copied(template["spec"]),
    }
    kind = server.store.kinds.named("pods")
    server.api.create(kind, metadata["namespace"], pod, Options(_MANAGER))


def _deployment(server: KubeServer, deployment: Item) -> None:
    template, wanted = deployment["spec"]["template"], deployment["spec"].get("replicas", 1)
    text = json.dumps(template, sort_keys=True).encode()
    mark = hashlib.sha256(text).hexdigest()[:10]
    sets = _owned(server, deployment, "replicasets")
    current = next(
        (one for one in sets if one["spec"]["template"] == _marked(template, mark)), None
    )
    for one in sets:
        if one is not current:
            server.delete("replicasets", one["metadata"]["name"], one["metadata"]["namespace"])
    if current is None:
        current = _replica_set(server, deployment, mark)
    elif current["spec"]["replicas"] != wanted:
        name, space = current["metadata"]["name"], current["metadata"]["namespace"]
        current = server.patch("replicasets", name, {"spec": {"replicas": wanted}}, space)
    there = _replicas(server, current)
    conditions = [
        {"type": "Available", "reason": "MinimumReplicasAvailable"},
        {"type": "Progressing", "reason": "NewReplicaSetAvailable"},
    ]
    if there < wanted:
        conditions[0]["reason"] = "MinimumReplicasUnavailable"
        conditions[1]["reason"] = "ReplicaSetUpdated"
    conditions[0]["status"] = "True" if there >= wanted else "False"
    conditions[1]["status"] = "True"
    status = {"observedGeneration": deployment["metadata"]["generation"], "conditions": conditions}
    counts = {"replicas": wanted, "updatedReplicas": wanted}
    counts |= {"readyReplicas": there, "availableReplicas": there} if there else {}
    write_status(server, deployment, status | counts, _MANAGER)


def _marked(template: Item, mark: str) -> Item:
    metadata = template.get("metadata") or {}
    labels = (metadata.get("labels") or {}) | {_HASH: mark}
    return {**template, "metadata": {**metadata, "labels": labels}}


def _replica_set(server: KubeServer, deployment: Item, mark: str) -> Item:
    metadata, spec = deployment["metadata"], deployment["spec"]
    matching = {**spec["selector"]["matchLabels"], _HASH: mark}
    made = {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {
            "name": f"{metadata['name']}-{mark}",
            "labels": matching,
            "ownerReferences": [_reference(deployment)],
        },
        "spec": {
            "replicas": spec.get("replicas", 1),
            "selector": {"matchLabels": matching},
            "template": _marked(copied(spec["template"]), mark),
        },
    }
    kind = server.store.kinds.named("replicasets")
    return server.api.create(kind, metadata["namespace"], made, Options(_MANAGER))


def _replicas(server: KubeServer, owner: Item) -> int:
    """Make or delete a ReplicaSet's pods; return how many are ready."""
    wanted = owner["spec"]["replicas"]
    pods = [
        pod for pod in _owned(server, owner, "pods") if "deletionTimestamp" not in pod["metadata"]
    ]
    for pod in pods[wanted:]:
        server.delete("pods", pod["metadata"]["name"], pod["metadata"]["namespace"])
    for _ in range(wanted - len(pods)):
        _create(server, owner, owner["spec"]["template"])
    there = sum(map(ready, pods[:wanted]))
    counts = {"readyReplicas": there, "availableReplicas": there} if there else {}
    status = {"observedGeneration": owner["metadata"]["generation"], "replicas": wanted}
    write_status(server, owner, status | counts, _MANAGER)
    return there


def _job(server: KubeServer, job: Item) -> None:
    status = job.get("status") or {}
    if status.get("conditions"):
        return
    pods = _owned(server, job, "pods")
    if not pods:
        labels = {"batch.kubernetes.io/job-name": job["metadata"]["name"]}
        _create(server, job, job["spec"]["template"], **labels)
    ended = [p for p in pods if (p.get("status") or {}).get("phase") in {"Succeeded", "Failed"}]
    if ended:
        well = ended[0]["status"]["phase"] == "Succeeded"
        condition = {"type": "Complete" if well else "Failed", "status": "True"}
        count = {"succeeded": 1, "completionTime": now()} if well else {"failed": 1}
        write_status(server, job, status | count | {"conditions": [condition]}, _MANAGER)
    elif not status:
        write_status(server, job, {"startTime": now(), "active": 1}, _MANAGER)


def _budget(server: KubeServer, budget: Item) -> None:
    spec, space = budget["spec"], budget["metadata"]["namespace"]
    wanted = ((spec.get("selector") or {}).get("matchLabels") or {}).items()
    pods = server.view(
        "pods", space, lambda pod: wanted <= (pod["metadata"].get("labels") or {}).items()
    )
    if "maxUnavailable" in spec:
        needed = len(pods) - _share(spec["maxUnavailable"], len(pods))
    else:
        needed = _share(spec.get("minAvailable", 1), len(pods))
    healthy = sum(map(ready, pods))
    allowed = max(0, healthy - needed)
    condition = {
        "type": "DisruptionAllowed",
        "status": "True" if allowed else "False",
        "reason": "SufficientPods" if allowed else "InsufficientPods",
        "message": "",
        "lastTransitionTime": budget["metadata"]["creationTimestamp"],
    }
    status = {
        "observedGeneration": budget["metadata"]["generation"],
        "expectedPods": len(pods),
        "currentHealthy": healthy,
        "desiredHealthy": max(0, needed),
        "disruptionsAllowed": allowed,
        "conditions": [condition],
    }
    write_status(server, budget, status, _MANAGER)


def _share(given: int | str, count: int) -> int:
    if isinstance(given, int):
        return given
    return math.ceil(count * int(given.rstrip("%")) / 100)
