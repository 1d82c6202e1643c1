"""Values for GPU pools, and the affinity of two pods, for the placement tests."""

from typing import Any

Object = dict[str, Any]

POOL: Object = {
    "name": "h200",
    "accelerator": "gpu",
    "gpusPerNode": 8,
    "resources": {"cpu": "80", "memory": "900Gi"},
}
BLOCK = "example.com/block"


def gpu(pool: Object | None = None, **values: Any) -> Object:
    """Return values with one GPU pool of groups of 16 ranks on two nodes; ``pool`` adds to it."""
    return {
        "pools": [POOL | (pool or {})],
        "model": {"attentionHeads": 128, "keyValueHeads": 128, "routedExperts": 256}
        | values.pop("model", {}),
        "parallelism": {"data": 16},
    } | values


def environment(container: Object) -> dict[str, str]:
    """Return a container's variables; the names must differ."""
    names = [entry["name"] for entry in container.get("env", ())]
    assert len(names) == len(set(names)), names
    return {entry["name"]: entry.get("value", "") for entry in container.get("env", ())}


def topology_terms(spec: Object, *, required: bool) -> list[Object]:
    """Return the pod affinity terms of a pod specification, without their weights."""
    affinity = spec.get("affinity", {}).get("podAffinity", {})
    if required:
        return list(affinity.get("requiredDuringSchedulingIgnoredDuringExecution", ()))
    preferred = affinity.get("preferredDuringSchedulingIgnoredDuringExecution", ())
    return [term["podAffinityTerm"] for term in preferred]


def tied(term: Object, own: dict[str, str], other: dict[str, str]) -> bool:
    """Return whether ``term`` of a pod labelled ``own`` selects a pod labelled ``other``.

    matchLabelKeys adds the pod's own values of these labels to the selector (Kubernetes API,
    PodAffinityTerm); keys that the pod lacks are ignored.
    """
    wanted = dict(term["labelSelector"]["matchLabels"])
    assert "matchExpressions" not in term["labelSelector"]
    wanted |= {key: own[key] for key in term.get("matchLabelKeys", ()) if key in own}
    return wanted.items() <= other.items()
