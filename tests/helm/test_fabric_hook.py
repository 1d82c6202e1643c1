"""Real Helm runs the fabric check before a release's other objects exist; a failure stops Helm.

The API server, the Job controller and KubeRay are fakes (tests/kube); no container runs.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helm.lifecycle import NAMESPACE, Cluster, Refused
from tests.kube.kubelet import write_status
from tests.kube.server import KubeServer

ON: dict[str, Any] = {"fabricCheck": {"enabled": True}}
JOB = "serve-moe-serving-fabric-cpu"
OWN = {f"Job {JOB}", f"Service {JOB}", "NetworkPolicy serve-moe-serving-fabric-check"}


class Fabric:
    """A controller that records each check, and fails it if the network is ``broken``."""

    def __init__(self) -> None:
        self.broken = False
        self.beside: list[set[str]] = []
        """Objects that existed at the start of a check, by check."""
        self._seen: set[str] = set()

    def __call__(self, server: KubeServer) -> None:
        for job in server.items("jobs", NAMESPACE):
            if job["metadata"]["name"] != JOB:
                continue
            if job["metadata"]["uid"] not in self._seen:
                self._seen.add(job["metadata"]["uid"])
                self.beside.append(
                    {
                        f"{item['kind']} {item['metadata']['name']}"
                        for item in server.store.everything()
                        if item["kind"] not in {"Namespace", "Secret", "Pod"}
                    }
                )
            if self.broken and not (job.get("status") or {}).get("conditions"):
                failed = {"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"}
                write_status(server, job, {"failed": 1, "conditions": [failed]}, "controllers")


@pytest.fixture(params=["3", "4"])
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Cluster, Fabric]]:
    made, fabric = Cluster(request.param, tmp_path), Fabric()
    made.controllers = (fabric, *made.controllers)  # type: ignore[assignment]
    with made.up():
        yield made, fabric


def test_it_comes_before_everything_else(cluster: tuple[Cluster, Fabric]) -> None:
    there, fabric = cluster
    there.helm("install", "serve", **ON)
    # Its Service and policy existed, and nothing that would load weights.
    assert fabric.beside == [OWN]
    assert "RayService serve-moe-serving" in there.names()
    assert not OWN & there.names()


def test_nothing_is_installed_on_a_network_that_does_not_work(
    cluster: tuple[Cluster, Fabric],
) -> None:
    there, fabric = cluster
    fabric.broken = True
    with pytest.raises(Refused, match="pre-install"):
        there.helm("install", "serve", **ON)
    kinds = {name.partition(" ")[0] for name in there.names()}
    assert not kinds & {"RayService", "Deployment", "ConfigMap", "PodDisruptionBudget"}
    # A failed check can be examined, and does not block the next attempt.
    assert f"Job {JOB}" in there.names()
    fabric.broken = False
    there.helm("uninstall", "serve")
    there.helm("install", "serve", **ON)
    assert len(fabric.beside) == 2
    assert not OWN & there.names()


def test_an_upgrade_does_not_wait_for_nodes_that_are_in_use(
    cluster: tuple[Cluster, Fabric],
) -> None:
    there, fabric = cluster
    there.helm("install", "serve", **ON)
    there.helm("upgrade", "serve", router={"replicas": 3}, **ON)
    assert len(fabric.beside) == 1
    there.helm("upgrade", "serve", fabricCheck={"enabled": True, "hooks": ["pre-upgrade", "test"]})
    assert len(fabric.beside) == 2
    there.helm("test", "serve")
    assert len(fabric.beside) == 3
    there.helm("test", "serve", "--filter", f"!name={JOB}")
    assert len(fabric.beside) == 3
    assert not OWN & there.names()


def test_a_check_that_fails_does_not_touch_what_runs(cluster: tuple[Cluster, Fabric]) -> None:
    there, fabric = cluster
    there.helm("install", "serve")
    there.settle()
    before = there.manifest("serve")
    fabric.broken = True
    on = {"fabricCheck": {"enabled": True, "hooks": ["pre-upgrade"]}}
    with pytest.raises(Refused, match="pre-upgrade"):
        there.helm("upgrade", "serve", engine={"maxNumSeqs": 8}, **on)
    there.settle()
    assert there.manifest("serve") == before
