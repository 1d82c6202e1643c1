"""Names and texts that look like numbers, booleans or null are texts in every object."""

import itertools
import json
import re
from typing import Any

import pytest
import yaml

from tests.helm import schemas
from tests.helm.chart import Object, find, pod_specs, render, rendered_text

RELEASES = [
    "y", "n", "on", "off", "no", "yes", "true", "null", "1", "007", "1e3", "0x1f", "0b1", "1-2",
    "a.b", "1.5", "x" * 53, "9" * 53,
]  # fmt: skip
"""Helm accepts all of them."""

HOSTILE: dict[str, Any] = {
    "commonLabels": {"a": "y", "b": "1e3", "c": "null", "d": "0x1f", "e": "", "f": "012", "y": "z"},
    "commonAnnotations": {"a": "1", "b": "on", "c": "2026-01-01", "d": "1:20", "e": "~", "no": "z"},
    "image": {
        "pullSecrets": ["1", "null"],
        "router": {"repository": "1", "tag": "20"},
        "engine": {"repository": "registry:5000/x", "tag": "1.0"},
    },
    "model": {
        "path": "/1/2",
        "volume": {"type": "claim", "claimName": "1e3", "subPath": "1", "mountPath": "/1"},
    },
    "router": {
        "nodeSelector": {"on": "off"},
        "priorityClassName": "on",
        "serviceAnnotations": {"x": "1"},
        "podAnnotations": {"y": "no"},
        "env": {"NO": "1", "Y": "0x1f"},
    },
    "ray": {
        "auth": {"existingSecret": "0x1f"},
        "head": {"nodeSelector": {"a": "1_000"}, "priorityClassName": "1"},
        "gcsFaultTolerance": {"redisAddress": "1:20", "existingSecret": "1", "secretKey": "2"},
    },
    "security": {
        "apiKeys": {"existingSecret": "1", "secretKey": "1"},
        "joinToken": {"existingSecret": "null", "secretKey": "on"},
        "tls": {"existingSecret": "true"},
        "joinTls": {"enabled": True, "existingSecret": "2", "rankSecret": "1.5"},
        "runAsUser": 1000670000,
    },
    "quotas": {"redisUrl": "redis://r:1/0", "existingSecret": "1", "secretKey": "1"},
    "ledger": {
        "databaseUrl": "postgresql://u@p:1/l",
        "existingSecret": "1",
        "secretKey": "1",
        "tariff": {"currency": "USD", "models": {"1": {"cached": 1, "uncached": 1, "output": 1}}},
    },
    "networkPolicy": {
        "postgres": [{"podSelector": {"matchLabels": {"z": "1"}}}],
        "redis": [{"podSelector": {"matchLabels": {"y": "1"}}}],
    },
    "monitoring": {
        "serviceMonitor": {"enabled": True, "existingSecret": "1", "secretKey": "1"},
        "podMonitor": {"enabled": True},
        "dashboards": {"enabled": True, "labels": {"d": "1"}, "annotations": {"f": "1"}},
        "labels": {"m": "1"},
    },
    "ingress": {"enabled": True, "className": "1", "host": "1.2", "tlsSecret": "1"},
    "gateway": {"enabled": True, "parentRefs": [{"name": "1"}]},
    "autoscaler": {
        "enabled": True,
        "prometheusUrl": "http://p:9090",
        "maxGroups": 2,
        "existingSecret": "1",
        "secretKey": "1",
        "nodeSelector": {"z": "y"},
        "priorityClassName": "0",
        "podAnnotations": {"q": "1"},
    },
    "pools": [
        {
            "name": name,
            "accelerator": "cpu",
            "resources": {"cpu": "1", "memory": "4Gi"},
            "nodeSelector": {"zone": "1", "y": "y"},
            "priorityClassName": "1",
            "runtimeClassName": "null",
            "env": {"ON": "on", "NULL": "null"},
        }
        for name in ("y", "on", "null", "true", "e1")
    ],
}

AMBIGUOUS = re.compile(
    r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?(e[-+]?[0-9]+)?|[0-9]+(:[0-9]+)+(\.[0-9]*)?|0x[0-9a-f_]+|0o?[0-7_]+|0b[01_]+|[-+]?\.([0-9]+|inf)|\.nan|~|"
    r"y|n|yes|no|on|off|true|false|null|[0-9]{4}-[0-9]{2}-[0-9]{2}",
    re.IGNORECASE,
)
"""Plain text that some parser of YAML 1.1 or 1.2 does not read as a string."""

TEXTS = {
    "labels", "annotations", "matchLabels", "nodeSelector", "selector", "rayStartParams", "data",
    "name", "namespace", "secretName", "serviceAccountName", "claimName", "priorityClassName",
    "runtimeClassName", "ingressClassName", "image", "value", "key", "groupName", "path", "subPath",
    "mountPath", "host", "hosts", "hostname", "resourceNames", "replacement", "redisAddress",
}  # fmt: skip
"""Fields whose content is text, or a map of texts, anywhere in the chart."""


def plain_texts(node: yaml.Node, *, text: bool = False) -> list[str]:
    """Return the strings that a parser may read as another type."""
    if isinstance(node, yaml.ScalarNode):
        return [node.value] if text and not node.style and AMBIGUOUS.fullmatch(node.value) else []
    if isinstance(node, yaml.SequenceNode):
        return list(itertools.chain(*(plain_texts(item, text=text) for item in node.value)))
    assert isinstance(node, yaml.MappingNode)
    found: list[str] = []
    for key, value in node.value:
        found += plain_texts(key, text=True)
        inside = key.value in TEXTS or (text and isinstance(value, yaml.ScalarNode))
        found += plain_texts(value, text=inside and not _probe(node))
    return found


def unquoted(text: str) -> list[str]:
    """Return the ambiguous plain texts of all documents."""
    nodes = yaml.compose_all(text, yaml.CSafeLoader)
    return [bad for node in nodes if node for bad in plain_texts(node)]


def _probe(node: yaml.MappingNode) -> bool:
    """A policy of a HorizontalPodAutoscaler has a number for its value."""
    return any(key.value == "periodSeconds" for key, _ in node.value)


def objects(text: str) -> list[Object]:
    return [item for item in yaml.load_all(text, yaml.CSafeLoader) if item is not None]


def strings(item: Any, path: str = "") -> list[str]:
    """Return the paths of labels, annotations and environment values that are not strings."""
    if isinstance(item, list):
        return list(itertools.chain(*(strings(i, f"{path}[{n}]") for n, i in enumerate(item))))
    if not isinstance(item, dict):
        return []
    found = []
    for key, value in item.items():
        if key in {"labels", "annotations", "matchLabels", "nodeSelector"} and isinstance(
            value, dict
        ):
            found += [f"{path}.{key}.{k}" for k, v in value.items() if not isinstance(v, str)]
        elif key == "env":
            found += [
                f"{path}.env.{e['name']}" for e in value if not isinstance(e.get("value", ""), str)
            ]
        else:
            found += strings(value, f"{path}.{key}")
    return found


@pytest.mark.parametrize("helm", ["3", "4"])
@pytest.mark.parametrize("name", RELEASES)
def test_a_release_may_have_any_name_that_helm_takes(name: str, helm: str) -> None:
    namespace = name.replace(".", "-")
    text = rendered_text("everything", "{}", helm, release=name, namespace=namespace)
    assert unquoted(text) == []
    items = objects(text)
    for item in items:
        assert schemas.problems(item, "1.36") == []
        assert strings(item) == []
        labels = item["metadata"].get("labels", {})
        assert labels["app.kubernetes.io/instance"] == name
        own = item["metadata"]["name"]
        # Names of Services and RayServices; ClusterRoles may have a colon.
        form = r"[a-z]([-a-z0-9]*[a-z0-9])?" if "Cluster" not in item["kind"] else r"[-a-z0-9:]+"
        assert re.fullmatch(form, own), own
        assert len(own) <= (63 if "Cluster" not in item["kind"] else 253)
        assert isinstance(item["metadata"].get("namespace", ""), str)
    # KubeRay's limit: it adds to the name.
    assert len(find_kind(items, "RayService")["metadata"]["name"]) <= 47


def find_kind(items: list[Object], kind: str) -> Object:
    (found,) = [item for item in items if item["kind"] == kind]
    return found


def test_long_names_are_told_apart() -> None:
    names = {
        find_kind(objects(rendered_text(release=f"{'a' * 50}-{end}")), "RayService")["metadata"][
            "name"
        ]
        for end in ("x", "y")
    }
    assert len(names) == 2


@pytest.mark.parametrize("helm", ["3", "4"])
def test_texts_of_users_stay_texts(helm: str) -> None:
    text = rendered_text("default", json.dumps(HOSTILE, sort_keys=True), helm, namespace="1e3")
    assert unquoted(text) == []
    for item in objects(text):
        assert schemas.problems(item, "1.36") == []
        assert strings(item) == []


def test_the_check_finds_what_is_not_quoted() -> None:
    bad = "metadata: {name: y, labels: {a: 1e3, b: 'on'}}\nspec: {replicas: 3, x: [{name: 0x1f}]}"
    assert unquoted(bad) == ["y", "1e3", "0x1f"]


def test_a_large_user_id_is_an_integer() -> None:
    for spec in pod_specs(render(security={"runAsUser": 1000670000})).values():
        assert spec["securityContext"]["runAsUser"] == 1000670000
    text = rendered_text(changes=json.dumps({"security": {"runAsUser": 1000670000}}))
    assert "e+" not in text.replace("-e+", "")


def templates(items: list[Object]) -> dict[str, Object]:
    """Return the metadata of every object and pod template, by its role."""
    found = {}
    for item in items:
        # A Job's name has a digest of its pod template, which has these labels.
        name = re.sub(r"-[0-9a-f]{8}$", "", f"{item['kind']} {item['metadata']['name']}")
        found[name] = item["metadata"]
        if item["kind"] in {"Deployment", "Job", "DaemonSet"}:
            found[f"pod of {name}"] = item["spec"]["template"]["metadata"]
        elif item["kind"] == "RayService":
            cluster = item["spec"]["rayClusterConfig"]
            found["head"] = cluster["headGroupSpec"]["template"]["metadata"]
            for group in cluster["workerGroupSpecs"]:
                found[f"pool {group['groupName']}"] = group["template"]["metadata"]
    return found


def test_common_labels_and_annotations_are_on_every_object_and_pod() -> None:
    values = {"commonLabels": {"team": "a"}, "commonAnnotations": {"example.com/cost": "42"}}
    before = templates(render("everything"))
    after = templates(render("everything", **values))
    assert before.keys() == after.keys()
    for name, metadata in after.items():
        assert metadata["labels"] == before[name]["labels"] | values["commonLabels"], name
        expected = before[name].get("annotations", {}) | values["commonAnnotations"]
        assert metadata["annotations"] == expected, name


def test_an_objects_own_annotation_wins() -> None:
    values = {"commonAnnotations": {"a": "common"}, "router": {"serviceAnnotations": {"a": "own"}}}
    assert find(render(**values), "Service", "-rest")["metadata"]["annotations"] == {"a": "own"}
