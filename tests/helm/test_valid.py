"""Helm 3 and 4 accept the chart with every preset, and the rendered objects are valid."""

import copy

import pytest

from tests.helm import chart, schemas

ALL = ["default", *chart.PRESETS]


@pytest.mark.parametrize("preset", ALL)
@pytest.mark.parametrize("helm", ["3", "4"])
def test_lint(preset: str, helm: str) -> None:
    assert "0 chart(s) failed" in chart.rendered_text(preset, helm=helm, command="lint")


@pytest.mark.parametrize("preset", ALL)
def test_both_helms_render_the_same(preset: str) -> None:
    assert chart.render(preset, helm="3") == chart.render(preset, helm="4")


@pytest.mark.parametrize("preset", ALL)
@pytest.mark.parametrize("version", schemas.VERSIONS)
def test_every_object_is_valid_and_no_field_unknown(preset: str, version: str) -> None:
    wrong = {
        f"{item['kind']} {item['metadata']['name']}": found
        for item in chart.render(preset)
        if (found := schemas.problems(item, version))
    }
    assert wrong == {}


def test_everything_renders_every_kind() -> None:
    assert {item["kind"] for item in chart.render("everything")} == {
        "ClusterRole", "ClusterRoleBinding", "ConfigMap", "DaemonSet", "Deployment", "GRPCRoute",
        "HTTPRoute", "HorizontalPodAutoscaler", "Ingress", "Job", "Lease",
        "NetworkPolicy", "Pod", "PodDisruptionBudget", "PodMonitor", "PrometheusRule", "RayService",
        "Role", "RoleBinding", "Service", "ServiceAccount", "ServiceMonitor",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        pytest.param("RayService", ["spec", "rayClusterConfig", "headGroupSpecs"], id="ray"),
        pytest.param(
            "RayService",
            ["spec", "rayClusterConfig", "workerGroupSpecs", 0, "template", "spec", "tolerate"],
            id="ray-pod",
        ),
        pytest.param("ServiceMonitor", ["spec", "endpoint"], id="service-monitor"),
        pytest.param("PodMonitor", ["spec", "podMetricsEndpoints", 0, "ports"], id="pod-monitor"),
        pytest.param("PrometheusRule", ["spec", "groups", 0, "rule"], id="rule"),
        pytest.param("HTTPRoute", ["spec", "rules", 0, "timeouts", "requests"], id="http-route"),
        pytest.param("HTTPRoute", ["spec", "hosts"], id="http-route-hosts"),
        pytest.param("GRPCRoute", ["spec", "rules", 0, "matches", 0, "path"], id="grpc-route"),
        pytest.param("NetworkPolicy", ["spec", "ingres"], id="built-in"),
    ],
)
def test_the_schemas_refuse_unknown_fields(kind: str, path: list[str | int]) -> None:
    item = copy.deepcopy(next(i for i in chart.render("everything") if i["kind"] == kind))
    at = item
    for step in path[:-1]:
        at = at[step]  # type: ignore[index]
    at[path[-1]] = "x"  # type: ignore[index]
    assert any(str(path[-1]) in found for found in schemas.problems(item, "1.30"))


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        pytest.param("HTTPRoute", ["rules", 0, "timeouts", "request"], "never", id="duration"),
        pytest.param("HTTPRoute", ["rules", 0, "matches", 0, "path", "type"], "Prefix", id="path"),
        pytest.param("HTTPRoute", ["rules", 0, "backendRefs", 0, "port"], "rest", id="port"),
        pytest.param("HTTPRoute", ["hostnames", 0], "https://api.example.com", id="host"),
        pytest.param("GRPCRoute", ["parentRefs", 0, "name"], "", id="parent"),
    ],
)
def test_the_gateways_schemas_refuse_wrong_values(
    kind: str, path: list[str | int], value: str
) -> None:
    item = copy.deepcopy(next(i for i in chart.render("everything") if i["kind"] == kind))
    at = item["spec"]
    for step in path[:-1]:
        at = at[step]
    assert at[path[-1]] != value
    at[path[-1]] = value
    [found] = schemas.problems(item, "1.30")
    assert found.startswith(f"{['spec', *path]}:")


@pytest.mark.parametrize("preset", ALL)
def test_names_are_unique_and_short_enough(preset: str) -> None:
    names = [(item["kind"], item["metadata"]["name"]) for item in chart.render(preset)]
    assert len(names) == len(set(names))
    long = chart.render(preset, fullnameOverride="x" * 60)
    assert max(len(item["metadata"]["name"]) for item in long) <= 63
    for item in long:
        assert schemas.problems(item, "1.36") == []
