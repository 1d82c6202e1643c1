"""Null or empty values have the same effect as unset ones, and open no access."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.helm import schemas
from tests.helm.chart import CHART, Refused, find, pod_specs, render

VALUES = yaml.load((CHART / "values.yaml").read_text("utf-8"), yaml.CSafeLoader)


def maps_of(values: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the dotted path and default of every map in ``values``, parents first."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield f"{path}{key}", value
            yield from maps_of(value, f"{path}{key}.")


OPTIONAL = re.compile(r"\bresources\b|\.dashboards\.labels$")
"""Maps that have keys by default, and may be null."""
MAPS = [path for path, value in maps_of(VALUES) if not value or OPTIONAL.search(path)]
GROUPS = [path for path, value in maps_of(VALUES) if value and not OPTIONAL.search(path)]
LISTS = [
    "imagePrePull.extraImages", "router.tolerations", "autoscaler.tolerations",
    "ray.head.tolerations", "image.pullSecrets", "networkPolicy.ranksEgress",
]  # fmt: skip
PEERS = [
    "networkPolicy.clients", "networkPolicy.prometheus", "networkPolicy.kuberayOperator",
    "networkPolicy.dns", "networkPolicy.hub", "networkPolicy.kubernetesApi",
    "autoscaler.prometheusPeers",
]  # fmt: skip


def all_at(paths: list[str], value: Any) -> dict[str, Any]:
    """Return values with ``value`` at every one of ``paths``; no path is another one's parent."""
    found: dict[str, Any] = {}
    for path in paths:
        *groups, last = path.split(".")
        inner = found
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[last] = value
    return found


def without_parents(paths: list[str]) -> list[str]:
    """Return the paths that are not a prefix of another path."""
    return [path for path in paths if not any(other.startswith(f"{path}.") for other in paths)]


@pytest.mark.parametrize(
    "paths",
    [
        pytest.param(without_parents(MAPS), id="all-maps"),
        pytest.param(without_parents(MAPS)[::2], id="every-second-map"),
        pytest.param(without_parents(MAPS)[1::2], id="the-other-maps"),
        pytest.param([path for path in MAPS if path.endswith("resources")], id="resources"),
        pytest.param(LISTS + PEERS, id="all-lists"),
        pytest.param((LISTS + PEERS)[::2], id="every-second-list"),
    ],
)
@pytest.mark.parametrize("null", [True, False], ids=["null", "empty"])
def test_every_object_stays_valid(paths: list[str], null: bool) -> None:
    assert paths
    empty: Any = None if null else {} if paths[0] in MAPS else []
    for item in render("everything", **all_at(paths, empty)):
        assert schemas.problems(item, "1.36") == []


@pytest.mark.parametrize("helm", ["3", "4"])
@pytest.mark.parametrize("depth", [1, 2])
def test_a_group_that_is_null_is_refused_by_name(helm: str, depth: int) -> None:
    """Helm removes null keys with their defaults; one error names all missing keys."""
    groups = [path for path in GROUPS if path.count(".") == depth - 1]
    assert {1: "router", 2: "router.pdb"}[depth] in groups
    with pytest.raises(Refused) as refused:
        render(helm=helm, **all_at(groups, None))
    lines = {
        tuple(re.findall(r"[A-Za-z]+", line))
        for line in str(refused.value).replace("(root)", "").splitlines()
    }
    for path in groups:
        *parents, name = path.split(".")
        assert any(
            {*parents, name} <= set(words) and {"missing", "required"} & set(words)
            for words in lines
        ), f"{path} is not named in {refused.value}"


def test_every_group_is_tried() -> None:
    assert {path.count(".") for path in GROUPS} == {0, 1, 2}
    assert [path for path in GROUPS if path.count(".") == 2] == ["ray.head.pdb"]


@pytest.mark.parametrize("helm", ["3", "4"])
def test_a_group_within_a_group_is_refused_by_name(helm: str) -> None:
    with pytest.raises(Refused, match=r"(?s)ray.*head.*pdb"):
        render(helm=helm, ray={"head": {"pdb": None}})


def test_no_peer_is_nobody() -> None:
    """In a NetworkPolicy, a rule without peers allows all peers."""
    for item in render("everything", **all_at(PEERS, [])):
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
    """A server-side apply rejects duplicate keys."""
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
