"""The assembled autoscaler on Kubernetes, against the fake API server."""

import os
from pathlib import Path

import pytest

from serving.autoscaler.app import autoscaler_app
from serving.cli.ops.autoscaler import explain_once
from serving.errors import NotReady, SettingsError
from serving.settings import Settings
from tests.integration.autoscaler.kube import (
    BY_SERVICE,
    LEASE,
    SETTINGS,
    put_cluster,
    put_service,
    writes,
)
from tests.kube import objects, rbac
from tests.support.waiting import eventually


@pytest.fixture
def settings(kube, tmp_path, monkeypatch):
    monkeypatch.setenv("KUBECONFIG", str(kube.kubeconfig(tmp_path / "kubeconfig")))
    scaling = {
        "kubernetes": SETTINGS.model_dump(),
        "routers": ["http://127.0.0.1:1"],
        "dashboard_url": "http://127.0.0.1:1",
        "interval": 0.05,
    }
    return Settings(autoscaler=scaling)


async def test_it_leads_and_lets_go(kube, settings):
    async with autoscaler_app(settings, dry_run=False) as app:
        await eventually(app.is_leader)
        assert kube.get("leases", LEASE)["spec"]["holderIdentity"]
        # Ray's dashboard does not respond: the cycle holds.
        assert await app.autoscaler.run_once() is None
    assert kube.get("leases", LEASE)["spec"]["holderIdentity"] == ""


async def test_a_dry_run_asks_for_no_lease_and_writes_nothing(kube, settings):
    async with autoscaler_app(settings, dry_run=True) as app:
        assert app.is_leader()
        await app.autoscaler.run_once()
    assert kube.get("leases", LEASE) is None
    assert [seen.path for seen in writes(kube) if "accessreviews" not in seen.path] == []


async def test_no_cluster_is_a_settings_error(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(SettingsError, match="no cluster is configured"):
        async with autoscaler_app(settings, dry_run=True):
            pass


async def test_explain_tells_what_keeps_it_from_working(kube, settings, capsys):
    """A pending second cluster, a missing permission, and equal bounds."""
    put_service(kube, active="moe", pending="moe-green")
    put_cluster(kube)
    rules = [
        {"apiGroups": ["ray.io"], "resources": ["rayclusters"], "verbs": ["get", "patch"]},
        {"apiGroups": ["ray.io"], "resources": ["rayservices"], "verbs": ["get"]},
    ]
    for item in objects.service_account("scaler", "default", *rules):
        kube.create(item)
    kube.kubeconfig(
        Path(os.environ["KUBECONFIG"]), token=rbac.service_account_token("default", "scaler")
    )
    scaling = settings.autoscaler.model_copy(
        update={"kubernetes": BY_SERVICE, "min_groups": 2, "max_groups": 2}
    )
    with pytest.raises(NotReady):  # from Ray's dashboard; the others are shown
        await explain_once(settings.model_copy(update={"autoscaler": scaling}))
    # The log goes to the same place here; the last heading is the command's own.
    output = " ".join(capsys.readouterr().out.split()).rpartition("notices - ")[2]
    assert output.startswith("min_groups and max_groups are both 2")
    assert "lacks permission to patch rayservices.ray.io moe-service, " in output
    assert "list nodes" in output
    assert "second, pending RayCluster moe-green" in output
    assert [seen.path for seen in writes(kube) if "accessreviews" not in seen.path] == []
