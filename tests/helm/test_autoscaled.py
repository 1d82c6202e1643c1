"""Rendered objects of the autoscaler: Lease, pods, scraping, disruption budgets."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving.settings import load_settings
from tests.helm.chart import CHART, HELMS, PRESETS, Object, find, render, serve_config, workers
from tests.kube import objects as cluster_objects
from tests.kube.server import KubeServer

OPEN: dict[str, Any] = {"security": {"openMetrics": True}}
POOL: dict[str, Any] = {
    "name": "cpu",
    "accelerator": "cpu",
    "resources": {"cpu": "2", "memory": "4Gi"},
}


def scaler(**values: Any) -> dict[str, Any]:
    """Return values with which the autoscaler runs, scraped by annotations."""
    own = {"enabled": True, "prometheusUrl": "http://prometheus:9090", "maxGroups": 4}
    return OPEN | {"autoscaler": own | values}


def settings(rendered: list[Object], folder: Path) -> Any:
    """Return the autoscaler's settings, loaded as the autoscaler loads them."""
    file = folder / "autoscaler.yaml"
    file.write_text(find(rendered, "ConfigMap", "-settings")["data"]["autoscaler.yaml"], "utf-8")
    return load_settings(file).autoscaler


def pod_of(rendered: list[Object], component: str) -> Object:
    template: Object = find(rendered, "Deployment", f"-{component}")["spec"]["template"]
    return template


def test_the_leaders_lease_goes_with_the_release(tmp_path: Path) -> None:
    rendered = render(**scaler())
    lease = find(rendered, "Lease")
    # The leader fills it in; a spec here would be reset by each upgrade.
    assert "spec" not in lease
    assert lease["metadata"]["name"] == settings(rendered, tmp_path).kubernetes.lease
    assert not [item for item in render() if item["kind"] == "Lease"]


def test_every_name_that_the_autoscaler_patches_is_in_its_role(tmp_path: Path) -> None:
    rendered = render(**scaler())
    loaded = settings(rendered, tmp_path).kubernetes
    rights = {rule["resources"][0]: rule for rule in find(rendered, "Role")["rules"]}
    assert rights["rayservices"]["resourceNames"] == [loaded.service]
    assert rights["leases"]["resourceNames"] == [loaded.lease]
    assert rights["poddisruptionbudgets"]["resourceNames"] == [loaded.disruption_budget]
    assert find(rendered, "PodDisruptionBudget", "-cpu")["metadata"]["name"] == (
        loaded.disruption_budget
    )
    for resource in ("rayservices", "rayclusters", "leases", "poddisruptionbudgets"):
        assert rights[resource]["verbs"] == ["get", "patch"]


def test_a_pool_that_says_how_many_pods_stay_keeps_its_number(tmp_path: Path) -> None:
    rendered = render(**scaler(), pools=[POOL | {"minAvailablePods": 1}])
    assert find(rendered, "PodDisruptionBudget", "-cpu")["spec"]["minAvailable"] == 1
    assert settings(rendered, tmp_path).kubernetes.disruption_budget == ""
    rights = {rule["resources"][0] for rule in find(rendered, "Role")["rules"]}
    assert "poddisruptionbudgets" not in rights


def test_budgets_of_the_autoscaler_and_of_the_head() -> None:
    budget = find(render(**scaler()), "PodDisruptionBudget", "-autoscaler")["spec"]
    assert budget["maxUnavailable"] == 1
    labels = pod_of(render(**scaler()), "autoscaler")["metadata"]["labels"]
    assert budget["selector"]["matchLabels"].items() <= labels.items()
    assert find(render(), "PodDisruptionBudget", "-ray-head")["spec"]["minAvailable"] == 1
    outlived = find(render("everything"), "PodDisruptionBudget", "-ray-head")["spec"]
    assert outlived["minAvailable"] == 0
    without = render(ray={"head": {"pdb": {"enabled": False}}})
    names = [i["metadata"]["name"] for i in without if i["kind"] == "PodDisruptionBudget"]
    assert "serve-moe-serving-ray-head" not in names


def test_its_pods_are_probed_and_placed() -> None:
    where = {
        "nodeSelector": {"pool": "system"},
        "tolerations": [{"key": "system", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "priorityClassName": "high",
    }
    spec = pod_of(render(**scaler(**where)), "autoscaler")["spec"]
    assert {key: spec[key] for key in where} == where
    (container,) = spec["containers"]
    (port,) = container["ports"]
    assert (port["name"], port["containerPort"]) == ("metrics", 9464)
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"] == {"path": "/livez", "port": "metrics"}
    spread = pod_of(render(**scaler()), "autoscaler")["spec"]["affinity"]["podAntiAffinity"]
    assert "preferredDuringSchedulingIgnoredDuringExecution" in spread


MONITOR = {"serviceMonitor": {"enabled": True, "existingSecret": "metrics"}}


@pytest.mark.parametrize(
    ("values", "routers", "autoscalers"),
    [
        pytest.param({}, True, True, id="open"),
        pytest.param({"security": {"openMetrics": False}}, False, True, id="with-keys"),
        pytest.param({"security": {"insecure": True}}, True, True, id="insecure"),
        pytest.param({"monitoring": MONITOR}, False, False, id="monitor"),
        pytest.param({"monitoring": {"scrapeAnnotations": False}}, False, False, id="off"),
    ],
)
def test_pods_are_annotated_where_prometheus_can_read_them(
    values: dict[str, Any], routers: bool, autoscalers: bool
) -> None:
    """Scraping twice counts twice, and an annotation cannot provide an API key."""
    rendered = render(**scaler(settings={"selector": 'job="x"'}) | values)
    for component, port, expected in (
        ("router", "8000", routers),
        ("autoscaler", "9464", autoscalers),
    ):
        annotations = pod_of(rendered, component)["metadata"]["annotations"]
        assert annotations.get("prometheus.io/port") == (port if expected else None)
        assert ("prometheus.io/scrape" in annotations) is expected
    ingress = find(rendered, "NetworkPolicy", "-router")["spec"]["ingress"]
    peers = [peer for rule in ingress for peer in rule["from"]]
    monitored = {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}
    let_in = {"namespaceSelector": monitored} in peers
    assert let_in is (routers or values.get("monitoring") == MONITOR)


def test_annotations_say_the_scheme() -> None:
    def scheme(**security: Any) -> str:
        rendered = render(security={"openMetrics": True} | security)
        text = pod_of(rendered, "router")["metadata"]["annotations"]["prometheus.io/scheme"]
        return str(text)

    assert scheme() == "https"
    assert scheme(tls={"mode": "elsewhere"}) == "http"


@pytest.mark.parametrize("monitoring", [MONITOR, {}], ids=["monitor", "annotations"])
def test_the_selector_finds_the_series_of_either_way_to_scrape(
    monitoring: dict[str, Any], tmp_path: Path
) -> None:
    """The operator's relabelling sets ``fleet``; otherwise, a labelmap copies the pod's label."""
    rendered = render(**scaler(), monitoring=monitoring)
    assert settings(rendered, tmp_path).selector == 'namespace="prod",fleet="serve-moe-serving"'
    if monitoring:
        (endpoint,) = find(rendered, "ServiceMonitor")["spec"]["endpoints"]
        fleet = {entry["targetLabel"]: entry["replacement"] for entry in endpoint["relabelings"]}
    else:
        fleet = pod_of(rendered, "router")["metadata"]["labels"]
    assert fleet["fleet"] == "serve-moe-serving"


@pytest.mark.parametrize(
    ("interval", "seconds"), [("15s", 15), ("500ms", 0.5), ("1m", 60), ("5s", 5), ("1h", 3600)]
)
def test_gaps_are_counted_by_the_interval_of_scraping(
    interval: str, seconds: float, tmp_path: Path
) -> None:
    loaded = settings(render(**scaler(), monitoring={"interval": interval}), tmp_path)
    assert loaded.scrape_interval == seconds
    # Four samples at least, and the newest may be as old as a missed scrape makes it.
    assert loaded.window >= max(60, 4 * seconds)
    assert loaded.max_age >= 2 * seconds


def test_insecure_leaves_rays_token_out() -> None:
    rendered = render(**scaler() | {"security": {"insecure": True}})
    assert "authOptions" not in find(rendered, "RayService")["spec"]["rayClusterConfig"]
    volumes = pod_of(rendered, "autoscaler")["spec"]["volumes"]
    assert {volume["name"] for volume in volumes} == {"settings", "tmp"}


@pytest.mark.parametrize(
    ("values", "on"),
    [
        pytest.param({"redisAddress": "redis:6379"}, True, id="named"),
        pytest.param({}, False, id="not-named"),
        pytest.param({"redisAddress": "redis:6379", "enabled": False}, False, id="switched-off"),
        pytest.param({"redisAddress": "redis:6379", "enabled": True}, True, id="switched-on"),
    ],
)
def test_a_redis_that_is_named_keeps_rays_control_data(values: dict[str, Any], on: bool) -> None:
    rendered = render(
        ray={"gcsFaultTolerance": values},
        networkPolicy={"redis": [{"podSelector": {"matchLabels": {"app": "redis"}}}]},
    )
    cluster = find(rendered, "RayService")["spec"]["rayClusterConfig"]
    assert ("gcsFaultToleranceOptions" in cluster) is on
    egress = find(rendered, "NetworkPolicy", "-ray")["spec"]["egress"]
    peers = [peer for rule in egress for peer in rule["to"]]
    assert ({"podSelector": {"matchLabels": {"app": "redis"}}} in peers) is on


GPU_PRESETS = sorted(name for name in PRESETS if name.startswith(("deepseek", "qwen")))


@pytest.mark.parametrize("preset", GPU_PRESETS)
def test_a_redis_can_be_named_for_every_gpu_preset(preset: str) -> None:
    rendered = render(
        preset,
        ray={"gcsFaultTolerance": {"redisAddress": "redis:6379"}},
        networkPolicy={"redis": [{"podSelector": {}}]},
    )
    cluster = find(rendered, "RayService")["spec"]["rayClusterConfig"]
    assert cluster["gcsFaultToleranceOptions"] == {"redisAddress": "redis:6379"}


OWNED: dict[str, Any] = {
    "labels": {"app.kubernetes.io/managed-by": "Helm"},
    "annotations": {
        "meta.helm.sh/release-name": "serve",
        "meta.helm.sh/release-namespace": "prod",
    },
}


def rendered_in(server: KubeServer, folder: Path, helm: str, **values: Any) -> list[Object]:
    """Return the objects that Helm renders with a cluster for lookups."""
    program = HELMS[helm]
    if not program.is_file():
        pytest.skip(f"no Helm {helm}: .ci/tools could not fetch it")
    config = server.kubeconfig(folder / "kubeconfig", namespace="prod")
    done = subprocess.run(
        [
            program, "template", "serve", CHART, "--namespace", "prod", "--dry-run=server",
            "--kubeconfig", config, "--values", "-",
        ],
        input=json.dumps(values),
        env={"PATH": os.environ["PATH"], "HOME": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [item for item in yaml.load_all(done.stdout, yaml.CSafeLoader) if item]


@pytest.mark.parametrize("helm", ["3", "4"])
def test_an_upgrade_keeps_the_number_of_pods_that_the_autoscaler_asked_for(
    helm: str, tmp_path: Path
) -> None:
    """A new operator, or one that detects an added pool, copies it from the RayService."""
    group = cluster_objects.worker_group("cpu", replicas=6, minReplicas=6, maxReplicas=12)
    other = cluster_objects.worker_group("spare", replicas=6, minReplicas=6, maxReplicas=12)
    pools = [POOL, POOL | {"name": "spare"}]
    with KubeServer(("default", "prod")) as server:
        service = cluster_objects.rayservice("serve-moe-serving", group, other, namespace="prod")
        service["metadata"] |= OWNED
        server.create(service)
        scaled = rendered_in(server, tmp_path, helm, **scaler(), pools=pools)
        fixed = rendered_in(server, tmp_path, helm, pools=pools)

    def numbers(rendered: list[Object], pool: str) -> tuple[int, int, int]:
        spec = workers(rendered)[pool]
        return spec["replicas"], spec["minReplicas"], spec["maxReplicas"]

    assert numbers(scaled, "cpu") == (6, 6, 12)
    # The initial number of a second cluster in a blue/green upgrade.
    assert serve_config(scaled)["applications"][0]["deployments"][0]["num_replicas"] == 6
    # Other pools follow the values, as does this one without the autoscaler or a cluster.
    assert numbers(scaled, "spare") == numbers(fixed, "cpu") == (2, 2, 2)
    assert numbers(render(**scaler(), pools=pools), "cpu") == (2, 2, 2)
