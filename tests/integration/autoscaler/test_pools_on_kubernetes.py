"""The assembled autoscaler of two models on Kubernetes: one RayService and worker group each."""

import pytest

from serving.autoscaler.actuators.ray_serve import DEPLOYMENT
from serving.autoscaler.pool_app import pools_app
from serving.settings import load_settings
from tests.integration.autoscaler.http_fake import HttpFake
from tests.integration.autoscaler.kube import LEASE, SETTINGS
from tests.kube import objects
from tests.support.autoscaler_metrics import sample
from tests.support.waiting import PATIENCE, eventually


class Outside(HttpFake):
    """The routers' page, and Ray's dashboard with both applications."""

    def __init__(self):
        self.parked = {"a": 0, "b": 0}
        self.replicas = {"moe-serving-a-default": 0, "moe-serving-b-default": 0}
        super().__init__()

    def answer(self, path, sent):
        if sent is not None:
            self.replicas[path.split("/")[4]] = sent["target_num_replicas"]
            return 200, {}
        if path == "/fleet":
            models = [
                {"name": name, "queued_requests": parked, "ready": False}
                for name, parked in self.parked.items()
            ]
            return 200, {"groups": [], "inflight_requests": 0, "models": models}
        applications = {
            app: {"deployments": {DEPLOYMENT: {"target_num_replicas": replicas, "replicas": []}}}
            for app, replicas in self.replicas.items()
        }
        return 200, {"applications": applications}


@pytest.fixture
def outside():
    made = Outside()
    yield made
    made.close()


@pytest.fixture
def settings(kube, outside, tmp_path, monkeypatch):
    monkeypatch.setenv("KUBECONFIG", str(kube.kubeconfig(tmp_path / "kubeconfig")))
    models = []
    for name, workers in (("a", 1), ("b", 2)):
        kube.create(objects.raycluster(f"moe-{name}-1", objects.worker_group("ranks", replicas=0)))
        group = objects.worker_group("ranks", replicas=0)
        kube.create(objects.rayservice(f"moe-{name}", group, active=f"moe-{name}-1"))
        kubernetes = {"service": f"moe-{name}", "workers_per_group": workers}
        pool = {"autoscaler": {"min_groups": 0, "kubernetes": kubernetes}}
        models.append({"name": name, "path": "/m", "pools": [pool]})
    shared = SETTINGS.model_copy(update={"cluster": "", "workers_per_group": 1})
    return load_settings(
        flags={
            "group": {"data_parallel": 2},
            "models": models,
            "autoscaler": {
                "kubernetes": shared.model_dump(),
                "routers": [outside.url],
                "dashboard_url": outside.url,
                "prometheus_url": "http://127.0.0.1:1",
                "max_groups": 3,
                "max_nodes": 2,
                "interval": 0.05,
                "router_timeout": PATIENCE,
                "ray_timeout": PATIENCE,
            },
        }
    )


def replicas(kube, name):
    """Pods of the worker group in the RayCluster and in the RayService."""
    cluster = kube.get("rayclusters", f"moe-{name}-1")["spec"]
    service = kube.get("rayservices", f"moe-{name}")["spec"]["rayClusterConfig"]
    return tuple(spec["workerGroupSpecs"][0]["replicas"] for spec in (cluster, service))


async def test_each_model_scales_its_own_worker_group_within_the_shared_limit(
    kube, outside, settings
):
    async with pools_app(settings, dry_run=False) as app:
        await eventually(app.is_leader)
        assert kube.get("leases", LEASE)["spec"]["holderIdentity"]
        await eventually(lambda: sample("watching", kind="nodes") == 1)
        outside.parked["b"] = 1
        cycle = await app.autoscaler.run_once()
        assert cycle.decisions["b/default"].target == 1
        # The change may take longer than one interval.
        await eventually(lambda: outside.replicas["moe-serving-b-default"] == 2)
        assert outside.replicas["moe-serving-a-default"] == 0
        assert replicas(kube, "b") == (2, 2)
        assert replicas(kube, "a") == (0, 0)
        outside.parked["a"] = 1
        cycle = await app.autoscaler.run_once()
        assert cycle.decisions["a/default"].reason.startswith("max_nodes 2; parked")
        assert replicas(kube, "a") == (0, 0)
    assert kube.get("leases", LEASE)["spec"]["holderIdentity"] == ""


async def test_a_dry_run_checks_every_worker_group_and_writes_nothing(kube, outside, settings):
    kube.delete("rayservices", "moe-b")
    outside.parked["a"] = 1
    async with pools_app(settings, dry_run=True) as app:
        assert app.is_leader()
        cycle = await app.autoscaler.run_once()
    assert cycle.decisions["a/default"].target == 1
    assert replicas(kube, "a") == (0, 0)
    assert outside.replicas["moe-serving-a-default"] == 0
    assert kube.get("leases", LEASE) is None
    assert [text for text in cycle.notices if text.startswith("pool b/default:")]
