"""A release's lifecycle with real Helm 3 and 4 against the fake API server and the fake KubeRay.

Helm, the chart and the requests are real. The API server (tests/kube states which recorded
exchanges and documents it follows), KubeRay and the nodes are simulated; no container runs.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import yaml

from serving.autoscaler.actuators.kubernetes_api import KubernetesApi
from serving.autoscaler.actuators.lease import LeaseElection
from serving.clock import SystemClock
from serving.settings import KubernetesSettings, Settings
from tests.helm.chart import PRESETS
from tests.helm.lifecycle import NAMESPACE, Cluster, Refused
from tests.helm.test_upgrades import POOL, SCALER
from tests.integration.autoscaler.kube import workers_of
from tests.kube import rbac

GROUPS: dict[str, dict[str, Any]] = {
    "routers": {"router": {"replicas": 5, "requestTimeout": 60}},
    "engine": {"engine": {"maxNumSeqs": 8}},
    "image": {"image": {"router": {"tag": "2"}, "engine": {"tag": "2"}}},
    "groups": {"pools": [POOL | {"groups": 3}]},
    "another-pool": {"pools": [POOL, POOL | {"name": "second"}]},
    "autoscaler": {"autoscaler": SCALER},
    "monitoring": {
        "monitoring": {
            "podMonitor": {"enabled": True},
            "serviceMonitor": {"enabled": True, "existingSecret": "metrics"},
            "prometheusRule": {"enabled": True},
            "dashboards": {"enabled": True},
        }
    },
    "security": {"security": {"insecure": True}},
    "settings": {"settings": {"admission": {"queue_requests": 9}}},
    "network": {"networkPolicy": {"enabled": False}},
}
SAME_CLUSTER = {
    "routers",
    "groups",
    "another-pool",
    "autoscaler",
    "monitoring",
    "settings",
    "network",
}
"""Groups of values whose change keeps the Ray cluster running; all others start a second one."""


@pytest.fixture(scope="module", params=["3", "4"])
def cluster(request, tmp_path_factory):
    """One cluster for a version of Helm, with release ``serve`` of the default values."""
    with Cluster(request.param, tmp_path_factory.mktemp("helm")).up() as made:
        made.helm("install", "serve", "--wait")
        yield made


def test_an_installed_release_is_ready(cluster):
    cluster.settle()
    [service] = cluster.server.items("rayservices")
    ready = {c["type"]: c["status"] for c in service["status"]["conditions"]}
    assert ready == {"Ready": "True", "UpgradeInProgress": "False"}
    assert service["metadata"]["finalizers"] == ["ray.io/rayservice-finalizer"]
    for budget in cluster.server.items("poddisruptionbudgets"):
        assert budget["status"]["currentHealthy"] == budget["status"]["expectedPods"] > 0
    assert "deployed" in cluster.helm("status", "serve")
    assert "Succeeded" in cluster.helm("test", "serve")


def test_the_operator_owns_no_field_that_helm_renders(cluster):
    """The operator becomes the owner of fields that it writes differently: an upgrade conflicts."""
    cluster.settle()
    [service] = cluster.server.items("rayservices")
    owned = {
        entry["manager"]: entry["fieldsV1"]
        for entry in service["metadata"]["managedFields"]
        if entry.get("subresource") != "status"
    }
    finalizers = {".": {}, 'v:"ray.io/rayservice-finalizer"': {}}
    assert owned["kuberay-operator"] == {"f:metadata": {"f:finalizers": finalizers}}


def test_an_identical_upgrade_changes_nothing(cluster):
    cluster.settle()
    before = cluster.manifest("serve")
    cluster.helm("upgrade", "serve")
    cluster.settle()
    assert cluster.manifest("serve") == before
    assert len(cluster.server.items("rayclusters")) == 1


@pytest.mark.parametrize("group", GROUPS)
def test_an_upgrade_and_its_rollback(cluster, group):
    cluster.settle()
    before = cluster.manifest("serve")
    [old] = [item["metadata"]["name"] for item in cluster.server.items("rayclusters")]
    cluster.helm("upgrade", "serve", **GROUPS[group])
    cluster.settle()
    assert cluster.manifest("serve") != before
    [new] = [item["metadata"]["name"] for item in cluster.server.items("rayclusters")]
    assert (new == old) is (group in SAME_CLUSTER)
    cluster.helm("rollback", "serve")
    cluster.settle()
    assert cluster.manifest("serve") == before


def test_a_release_whose_applications_do_not_run_is_not_ready(tmp_path):
    """``--wait`` waits for the RayService's Ready condition, so the other tests are meaningful."""
    with Cluster("4", tmp_path).up() as cluster:
        cluster.operator.serves = lambda _: False
        # Helm considers an object without a status ready, so the operator must start first.
        cluster.helm("install", "serve")
        cluster.settle()
        with pytest.raises(Refused, match=r"context deadline exceeded|not ready"):
            cluster.helm("upgrade", "serve", "--wait", "--timeout", "3s")


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_upgraded_with_itself(preset, tmp_path):
    """The rejection of an identical upgrade was recorded for each of them, with Helm 4."""
    with Cluster("4", tmp_path).up() as cluster:
        cluster.helm("install", "serve", preset=preset)
        cluster.settle()
        before, [ray] = cluster.manifest("serve"), cluster.server.items("rayclusters")
        cluster.helm("upgrade", "serve", preset=preset)
        cluster.settle()
        assert cluster.manifest("serve") == before
        assert [ray["metadata"]["uid"]] == [
            item["metadata"]["uid"] for item in cluster.server.items("rayclusters")
        ]


@pytest.mark.parametrize("helm", ["3", "4"])
async def test_what_the_autoscaler_scaled_survives_upgrades(helm, tmp_path):
    """With the chart's permissions and settings; upgrades by Helm and of KubeRay."""
    with Cluster(helm, tmp_path).up() as cluster:
        cluster.helm("install", "serve", autoscaler=SCALER)
        cluster.settle()
        async with _autoscaler(cluster) as (api, scaling):
            workers = workers_of(api, scaling)
            await workers.scale(2)
            cluster.settle()
            running = cluster.workers()
            assert len(running) == 2 * scaling.workers_per_group
            cluster.helm("upgrade", "serve", autoscaler=SCALER)
            cluster.helm("upgrade", "serve", autoscaler=SCALER, router={"replicas": 3})
            cluster.settle()
            await workers.scale(2)
            cluster.operator.version = "v1.8.0"
            cluster.settle()
            assert cluster.workers() == running
            cluster.helm("rollback", "serve")
            cluster.settle()
            assert cluster.workers() == running


@pytest.mark.parametrize("helm", ["3", "4"])
async def test_nothing_is_left_after_an_uninstall(helm, tmp_path):
    """No objects of the chart, KubeRay or the autoscaler remain."""
    with Cluster(helm, tmp_path).up() as cluster:
        cluster.helm("install", "serve", preset="everything")
        cluster.settle()
        async with _autoscaler(cluster) as (api, scaling):
            election = LeaseElection(api, scaling, "one", SystemClock())
            await election.acquire_or_renew()
            assert election.leading
        assert {"RayService serve-moe-serving", "Lease serve-moe-serving-autoscaler-leader"} <= (
            cluster.names()
        )
        # Labels of all pods change, including those of Jobs, which are immutable.
        cluster.helm("upgrade", "serve", preset="everything", commonLabels={"a": "b"})
        cluster.settle()
        cluster.helm("uninstall", "serve", "--wait")
        cluster.settle()
        assert cluster.names() == set()


@asynccontextmanager
async def _autoscaler(
    cluster: Cluster,
) -> AsyncIterator[tuple[KubernetesApi, KubernetesSettings]]:
    """Yield the rendered autoscaler's permissions and settings."""
    [settings] = (
        item["data"]["autoscaler.yaml"]
        for item in cluster.server.items("configmaps", NAMESPACE)
        if "autoscaler.yaml" in item["data"]
    )
    scaling = Settings(**yaml.safe_load(settings)).autoscaler.kubernetes
    [account] = (
        item["spec"]["template"]["spec"]["serviceAccountName"]
        for item in cluster.server.items("deployments", NAMESPACE)
        if item["metadata"]["name"].endswith("-autoscaler")
    )
    token = rbac.service_account_token(NAMESPACE, account)
    api = KubernetesApi(scaling, cluster.server.configuration(token))
    try:
        yield api, scaling
    finally:
        await api.close()
