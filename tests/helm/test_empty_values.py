"""What is null or empty in a values file is as if it said nothing, and opens nothing."""

from typing import Any

import pytest

from tests.helm import schemas
from tests.helm.chart import find, pod_specs, render

MAPS = [
    "commonLabels", "commonAnnotations", "scheduling.labels", "scheduling.annotations",
    "scheduling.podLabels", "scheduling.podAnnotations", "fabricCheck.labels",
    "fabricCheck.podLabels", "fabricCheck.podAnnotations", "router.podAnnotations", "router.env",
    "router.nodeSelector", "router.affinity", "router.serviceAnnotations",
    "autoscaler.podAnnotations", "autoscaler.nodeSelector", "autoscaler.settings", "settings",
    "engine.args", "ingress.annotations", "monitoring.labels", "dnsConfig",
]  # fmt: skip
LISTS = [
    "imagePrePull.extraImages", "router.tolerations", "autoscaler.tolerations",
    "ray.head.tolerations", "image.pullSecrets", "networkPolicy.ranksEgress",
]  # fmt: skip
PEERS = [
    "networkPolicy.clients", "networkPolicy.prometheus", "networkPolicy.kuberayOperator",
    "networkPolicy.dns", "networkPolicy.hub", "networkPolicy.kubernetesApi",
    "autoscaler.prometheusPeers",
]  # fmt: skip


def at(path: str, value: Any) -> dict[str, Any]:
    """Return values with ``value`` at a dotted path."""
    for key in reversed(path.split(".")):
        value = {key: value}
    assert isinstance(value, dict)
    return value


@pytest.mark.parametrize("path", MAPS + LISTS + PEERS)
@pytest.mark.parametrize("null", [True, False], ids=["null", "empty"])
def test_every_object_stays_valid(path: str, null: bool) -> None:
    empty: Any = None if null else {} if path in MAPS else []
    for item in render("everything", **at(path, empty)):
        assert schemas.problems(item, "1.36") == []


@pytest.mark.parametrize("path", PEERS)
def test_no_peer_is_nobody(path: str) -> None:
    """To a NetworkPolicy a rule without peers means everybody."""
    for item in render("everything", **at(path, [])):
        if item["kind"] != "NetworkPolicy":
            continue
        for rules, peers in (("ingress", "from"), ("egress", "to")):
            for rule in item["spec"].get(rules) or ():
                assert rule.get(peers), f"{item['metadata']['name']}: {rule}"


@pytest.mark.parametrize(
    ("values", "pod"),
    [
        pytest.param({"router": {"env": {"HOME": "/x"}}}, "serve-moe-serving-router", id="router"),
        pytest.param(
            {"image": {"pullSecrets": ["a", "b", "a"]}}, "serve-moe-serving-router", id="secrets"
        ),
    ],
)
def test_lists_that_are_maps_to_kubernetes_have_each_key_once(
    values: dict[str, Any], pod: str
) -> None:
    """A server-side apply refuses a key that is there twice."""
    spec = pod_specs(render(**values))[pod]
    lists = [spec["containers"][0]["env"], spec.get("imagePullSecrets", [])]
    for entries in lists:
        names = [entry["name"] for entry in entries]
        assert len(names) == len(set(names))


def test_a_variable_of_the_routers_wins() -> None:
    container = find(render(router={"env": {"HOME": "/x"}}), "Deployment", "-router")["spec"][
        "template"
    ]["spec"]["containers"][0]
    assert container["env"] == [{"name": "HOME", "value": "/x"}]
