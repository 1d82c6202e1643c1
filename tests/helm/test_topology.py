"""Affinity of a group's ranks: within the group, not across groups or clusters."""

from typing import Any

import pytest

from tests.helm import schemas
from tests.helm.chart import Refused, find, render, serve_config, workers
from tests.helm.gpu import BLOCK, gpu, tied, topology_terms

REQUIRED = {"key": BLOCK, "required": True}
BLUE, GREEN = {"ray.io/cluster": "r1-blue"}, {"ray.io/cluster": "r1-green"}


def labels(objects: list[dict[str, Any]]) -> dict[str, dict[str, str]]:
    return {
        name: group["template"]["metadata"]["labels"] for name, group in workers(objects).items()
    }


def test_each_group_has_a_block_of_its_own() -> None:
    objects = render(**gpu({"groups": 3, "topology": REQUIRED}))
    groups = workers(objects)
    assert list(groups) == ["h200-0", "h200-1", "h200-2"]
    found = labels(objects)
    for name, group in groups.items():
        (term,) = topology_terms(group["template"]["spec"], required=True)
        assert term["topologyKey"] == BLOCK
        for other in groups:
            same = tied(term, found[name] | BLUE, found[other] | BLUE)
            assert same is (name == other)
        # The first pod of a group must match its own term, or it is never scheduled.
        assert tied(term, found[name] | BLUE, found[name] | BLUE)


@pytest.mark.parametrize("topology", [REQUIRED, {"key": BLOCK}, REQUIRED | {"scope": "pool"}])
@pytest.mark.parametrize("groups", [1, 2])
def test_blue_and_green_are_not_tied(topology: dict[str, Any], groups: int) -> None:
    objects = render(**gpu({"groups": groups, "topology": topology}))
    found = labels(objects)
    for name, group in workers(objects).items():
        required = topology.get("required", False)
        (term,) = topology_terms(group["template"]["spec"], required=required)
        assert tied(term, found[name] | BLUE, found[name] | BLUE)
        assert not tied(term, found[name] | BLUE, found[name] | GREEN)


def test_a_group_is_one_worker_group_and_one_application() -> None:
    """Ray Serve uses any pods that offer the resource: only the group's pods offer it."""
    objects = render(**gpu({"groups": 2, "topology": REQUIRED, "minAvailablePods": 3}))
    applications = {app["name"]: app for app in serve_config(objects)["applications"]}
    assert set(applications) == {"serve-moe-serving-h200-0", "serve-moe-serving-h200-1"}
    for name, group in workers(objects).items():
        assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] == 2
        app = applications[f"serve-moe-serving-{name}"]
        assert app["deployments"] == [{"name": "ranks", "num_replicas": 16}]
        assert app["args"]["settings"]["group"]["node_resource"] == f"pool-{name}"
        assert f'"pool-{name}"' in group["rayStartParams"]["resources"]
    # One budget for the pool's pods together, as without topology.
    budget = find(objects, "PodDisruptionBudget", "-h200")["spec"]
    assert budget["minAvailable"] == 3
    for pod in labels(objects).values():
        assert budget["selector"]["matchLabels"].items() <= pod.items()


@pytest.mark.parametrize(
    "pool",
    [
        pytest.param({"topology": REQUIRED}, id="one-group"),
        pytest.param({"groups": 3, "topology": {"key": BLOCK}}, id="preferred"),
        pytest.param({"groups": 3, "topology": REQUIRED | {"scope": "pool"}}, id="pool"),
        pytest.param({"groups": 3}, id="no-topology"),
        pytest.param({"groups": 1, "maxGroups": 3, "topology": {"key": BLOCK}}, id="autoscaled"),
    ],
)
def test_otherwise_a_pool_is_one_worker_group(pool: dict[str, Any]) -> None:
    objects = render(**gpu(pool))
    assert list(workers(objects)) == ["h200"]
    assert "moe-serving/group-slot" not in labels(objects)["h200"]
    assert len(serve_config(objects)["applications"]) == 1


@pytest.mark.parametrize("most", [1, 3])
def test_a_group_of_one_pod_is_near_itself(most: int) -> None:
    pool = {"groups": 1, "maxGroups": most, "topology": REQUIRED}
    objects = render(**gpu(pool, parallelism={"data": 8}))
    assert list(workers(objects)) == ["h200"]
    assert "affinity" not in workers(objects)["h200"]["template"]["spec"]
    # All groups in one block is a different setting.
    pool["topology"] = REQUIRED | {"scope": "pool"}
    spec = workers(render(**gpu(pool, parallelism={"data": 8})))["h200"]["template"]["spec"]
    assert len(topology_terms(spec, required=True)) == 1


def test_affinity_of_the_values_is_kept() -> None:
    near = {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"a": "b"}}}
    required = "requiredDuringSchedulingIgnoredDuringExecution"
    preferred = "preferredDuringSchedulingIgnoredDuringExecution"
    own = {
        "podAffinity": {
            required: [near],
            preferred: [{"weight": 1, "podAffinityTerm": near}],
        },
        "podAntiAffinity": {required: [near]},
    }
    for topology in (REQUIRED, {"key": BLOCK}):
        spec = workers(render(**gpu({"affinity": own, "topology": topology})))["h200"]
        spec = spec["template"]["spec"]
        assert near in topology_terms(spec, required=True)
        assert near in topology_terms(spec, required=False)
        assert spec["affinity"]["podAntiAffinity"] == own["podAntiAffinity"]
        terms = [t for r in (True, False) for t in topology_terms(spec, required=r)]
        assert sorted(term["topologyKey"] for term in terms) == [
            BLOCK,
            "kubernetes.io/hostname",
            "kubernetes.io/hostname",
        ]


@pytest.mark.parametrize("preset", ["deepseek-r1-2x8-h200", "deepseek-r1-4x8-h100"])
def test_presets_require_no_label_of_nodes_but_the_gpus(preset: str) -> None:
    (group,) = workers(render(preset)).values()
    assert topology_terms(group["template"]["spec"], required=True) == []


def test_more_groups_of_one_block_each_are_valid_objects() -> None:
    for item in render(**gpu({"groups": 2, "topology": REQUIRED}), fabricCheck={"enabled": True}):
        for version in ("1.30", "1.36"):
            assert schemas.problems(item, version) == []


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        pytest.param(
            gpu({"groups": 1, "maxGroups": 4, "topology": REQUIRED}),
            ["maxGroups to 1", "required to false", "scope to pool"],
            id="growing",
        ),
        pytest.param(
            gpu(
                {"groups": 2, "topology": REQUIRED},
                ray={"auth": {"existingSecret": "token"}},
                autoscaler={
                    "enabled": True,
                    "prometheusUrl": "http://prometheus:9090",
                    "existingSecret": "key",
                },
            ),
            ["only one worker group can be scaled", "scope to pool"],
            id="autoscaler",
        ),
    ],
)
def test_contradictions(values: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(Refused) as refused:
        render(**values)
    for part in parts:
        assert part in str(refused.value)


def test_two_pools_never_share_a_name() -> None:
    values = gpu({"groups": 2, "topology": REQUIRED})
    values["pools"].append(values["pools"][0] | {"name": "h200-1", "groups": 1})
    with pytest.raises(Refused, match="rename one"):
        render(**values)
