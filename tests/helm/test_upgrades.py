"""A change of values changes exactly the expected objects."""

from typing import Any

import pytest

from tests.helm.chart import PRESETS, find, render, serve_config, workers
from tests.helm.gpu import gpu

ALL = ["default", *PRESETS]

POOL: dict[str, Any] = {
    "name": "cpu",
    "accelerator": "cpu",
    "cpusPerRank": 1,
    "resources": {"cpu": "2", "memory": "4Gi"},
}


SCALER: dict[str, Any] = {
    "enabled": True,
    "prometheusUrl": "http://prometheus:9090",
    "maxGroups": 3,
    "settings": {"selector": 'job="moe-routers"'},
}


def changed(**values: Any) -> set[str]:
    """Return the kinds and names of objects that differ from the default rendering."""
    before, after = (
        {
            f"{i['kind']} {i['metadata']['name'].replace('serve-moe-serving', '')}": i
            for i in objects
        }
        for objects in (render(), render(**values))
    )
    names = before.keys() | after.keys()
    return {name for name in names if before.get(name) != after.get(name)}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param({}, set(), id="nothing"),
        pytest.param({"router": {"replicas": 5}}, {"Deployment -router"}, id="routers"),
        pytest.param(
            {"image": {"router": {"tag": "2"}}},
            {"Deployment -router", "Pod -test"},
            id="router-image",
        ),
        pytest.param({"image": {"engine": {"tag": "2"}}}, {"RayService "}, id="engine-image"),
        pytest.param(
            {"router": {"requestTimeout": 60}},
            {"Deployment -router", "ConfigMap -settings"},
            id="router-setting",
        ),
        pytest.param(
            {"settings": {"admission": {"queue_requests": 9}}},
            {"Deployment -router", "ConfigMap -settings"},
            id="admission-setting",
        ),
        pytest.param(
            {"engine": {"maxNumSeqs": 8}},
            {"RayService ", "Deployment -router", "ConfigMap -settings"},
            id="engine-setting",
        ),
        pytest.param(
            {"model": {"name": "other"}},
            {"RayService ", "Deployment -router", "ConfigMap -settings"},
            id="model-name",
        ),
        pytest.param(
            {"pools": [POOL | {"groups": 3}]},
            {"RayService ", "PodDisruptionBudget -cpu"},
            id="groups",
        ),
        pytest.param(
            {"ray": {"deletionDelaySeconds": 600}}, {"RayService "}, id="time-to-hand-over"
        ),
        pytest.param(
            {"security": {"tls": {"existingSecret": "other"}}},
            {"Deployment -router", "Pod -test"},
            id="certificate",
        ),
        pytest.param(
            {"autoscaler": SCALER},
            {
                "ClusterRole prod:-autoscaler",
                "ClusterRoleBinding prod:-autoscaler",
                "ConfigMap -settings",
                "Deployment -autoscaler",
                "Lease -autoscaler-leader",
                "NetworkPolicy -autoscaler",
                "NetworkPolicy -ray",
                "NetworkPolicy -router",
                "PodDisruptionBudget -autoscaler",
                "PodDisruptionBudget -cpu",
                "Role -autoscaler",
                "RoleBinding -autoscaler",
                "ServiceAccount -autoscaler",
            },
            id="autoscaler",
        ),
        pytest.param(
            {"monitoring": {"podMonitor": {"enabled": True}}},
            {"PodMonitor -ray", "NetworkPolicy -ray"},
            id="pod-monitor",
        ),
        pytest.param(
            {"monitoring": {"dashboards": {"enabled": True}}},
            {
                "ConfigMap -dashboard-autoscaler",
                "ConfigMap -dashboard-batches",
                "ConfigMap -dashboard-cost",
                "ConfigMap -dashboard-experts",
                "ConfigMap -dashboard-fleet",
            },
            id="dashboards",
        ),
        pytest.param(
            {
                "monitoring": {
                    "prometheusRule": {"enabled": True},
                    "serviceMonitor": {"enabled": True, "existingSecret": "metrics"},
                }
            },
            {"PrometheusRule ", "ServiceMonitor -router", "NetworkPolicy -router"},
            id="rules",
        ),
        pytest.param(
            {"tests": {"enabled": False}}, {"Pod -test", "NetworkPolicy -test"}, id="test"
        ),
    ],
)
def test_only_what_should_change_does(values: dict[str, Any], expected: set[str]) -> None:
    assert changed(**values) == expected


def cluster(**values: Any) -> Any:
    """Return the fields whose change starts a new cluster: all except replica numbers."""
    spec = find(render(**values), "RayService")["spec"]["rayClusterConfig"]
    numbers = {"replicas", "minReplicas", "maxReplicas"}
    groups = [
        {key: value for key, value in group.items() if key not in numbers}
        for group in spec["workerGroupSpecs"]
    ]
    return spec | {"workerGroupSpecs": groups}


def test_more_groups_restart_nothing() -> None:
    """KubeRay does not change the running cluster's number of pods: deploy/docs/kubernetes.md."""
    grown = {"pools": [POOL | {"groups": 3}]}
    assert cluster(**grown) == cluster()
    assert workers(render(**grown))["cpu"]["replicas"] == 6
    before, after = (serve_config(o)["applications"][0] for o in (render(), render(**grown)))
    assert after["deployments"][0]["num_replicas"] == 6
    # Serve restarts all replicas when the arguments change, and none when the number does.
    assert after["args"] == before["args"]


@pytest.mark.parametrize("preset", ALL)
@pytest.mark.parametrize(
    "values",
    [
        pytest.param(SCALER, id="on"),
        pytest.param(SCALER | {"minGroups": 2, "maxGroups": 9}, id="other-numbers"),
        pytest.param(
            SCALER | {"replicas": 1, "existingSecret": "other", "priorityClassName": "high"},
            id="other-pods",
        ),
    ],
)
def test_the_autoscaler_changes_nothing_of_the_rayservice(
    preset: str, values: dict[str, Any]
) -> None:
    """KubeRay starts a second Ray cluster, with the same number of GPUs, for most changes to it."""
    without = {"autoscaler": {"enabled": False}}
    before = find(render(preset, **without), "RayService")
    assert find(render(preset, autoscaler=values), "RayService") == before


@pytest.mark.parametrize(
    "monitoring",
    [
        pytest.param({"serviceMonitor": {"enabled": True, "existingSecret": "m"}}, id="monitor"),
        pytest.param({"scrapeAnnotations": False}, id="no-annotations"),
    ],
)
def test_who_scrapes_changes_nothing_of_the_rayservice(monitoring: dict[str, Any]) -> None:
    assert find(render(monitoring=monitoring), "RayService") == find(render(), "RayService")


def partial(before: Any, after: Any) -> bool:
    """Return whether KubeRay adds worker groups to the running cluster instead of starting another.

    KubeRay compares all groups except new ones at the end (isClusterSpecHashEqual, partial).
    """
    old, new = before["workerGroupSpecs"], after["workerGroupSpecs"]
    return bool(len(new) >= len(old) and before == after | {"workerGroupSpecs": new[: len(old)]})


def test_a_further_pool_joins_the_running_cluster() -> None:
    second = POOL | {"name": "more", "parallelism": {"data": 4}}
    assert partial(cluster(pools=[POOL]), cluster(pools=[POOL, second]))
    # A group inserted before the others means another cluster, as does a removed one.
    assert not partial(cluster(pools=[POOL]), cluster(pools=[second, POOL]))
    assert not partial(cluster(pools=[POOL, second]), cluster(pools=[POOL]))


@pytest.mark.parametrize("groups", [2, 3, 5])
def test_a_further_group_with_a_block_joins_the_running_cluster(groups: int) -> None:
    topology = {"key": "example.com/block", "required": True}
    before, after = (
        cluster(**gpu({"groups": number, "topology": topology})) for number in (groups, groups + 1)
    )
    assert len(after["workerGroupSpecs"]) == groups + 1
    assert partial(before, after)


@pytest.mark.parametrize("pool", [0, 1])
def test_each_pools_settings_are_in_its_own_pods(pool: int) -> None:
    pools = [POOL, POOL | {"name": "more"}]
    changed = [dict(entry) for entry in pools]
    changed[pool]["parallelism"] = {"data": 4}
    before, after = cluster(pools=pools), cluster(pools=changed)
    assert before["headGroupSpec"] == after["headGroupSpec"]
    same = [
        old["template"] == new["template"]
        for old, new in zip(before["workerGroupSpecs"], after["workerGroupSpecs"], strict=True)
    ]
    assert same == [pool != 0, pool != 1]
    assert not partial(before, after)


@pytest.mark.parametrize(
    "values",
    [
        pytest.param({"engine": {"maxNumSeqs": 8}}, id="engine-setting"),
        pytest.param({"image": {"engine": {"tag": "2"}}}, id="image"),
        pytest.param({"model": {"name": "other"}}, id="model"),
        pytest.param({"parallelism": {"data": 4}}, id="layout"),
    ],
)
def test_what_ranks_must_restart_for_brings_a_second_cluster(values: dict[str, Any]) -> None:
    assert cluster(**values) != cluster()
    assert find(render(**values), "RayService")["spec"]["upgradeStrategy"] == {"type": "NewCluster"}


@pytest.mark.parametrize(
    "values",
    [
        pytest.param({"router": {"replicas": 5, "requestTimeout": 60}}, id="routers"),
        pytest.param({"router": {"drainTimeout": 30}}, id="drain"),
        pytest.param({"settings": {"routing": {"sessions": 5}}}, id="routing"),
        pytest.param({"security": {"openMetrics": True}}, id="metrics"),
    ],
)
def test_ranks_do_not_restart_for_a_routers_setting(values: dict[str, Any]) -> None:
    assert find(render(**values), "RayService") == find(render(), "RayService")


def test_a_router_comes_before_one_goes() -> None:
    strategy = find(render(), "Deployment", "-router")["spec"]["strategy"]["rollingUpdate"]
    assert strategy == {"maxSurge": 1, "maxUnavailable": 0}


def test_an_autoscaled_number_of_routers_is_left_alone() -> None:
    objects = render(router={"autoscaling": {"enabled": True}})
    assert "replicas" not in find(objects, "Deployment", "-router")["spec"]
