"""The fake KubeRay behaves like the recorded real one and its source code."""

import gzip
import json
from pathlib import Path

import pytest

from tests.kube import kuberay, objects
from tests.kube.api import Options, Place
from tests.kube.controllers import settle
from tests.kube.kubelet import Kubelet
from tests.kube.kuberay import KubeRay
from tests.kube.server import KubeServer

RECORDED = json.loads(
    gzip.decompress((Path(kuberay.__file__).parent / "recorded" / "kuberay.json.gz").read_bytes())
)
ROUTED = "applications: [{name: a, route_prefix: /a}]"


class World:
    """A server without HTTP, an operator and nodes."""

    def __init__(self):
        self.server = KubeServer()
        self.operator = KubeRay()
        self.kubelet = Kubelet(kuberay.proxy_health(self.server))

    def settle(self):
        settle(self.server, self.operator, self.kubelet)

    def start(self, config=ROUTED, **group):
        """Create the RayService ``moe`` with one worker group, and wait for its effects."""
        service = objects.rayservice("moe", objects.worker_group("ranks", **group))
        service["spec"]["serveConfigV2"] = config
        self.server.create(service)
        self.settle()

    def change(self, **group):
        """Change the RayService's worker group."""
        spec = self.service()["spec"]["rayClusterConfig"]
        spec["workerGroupSpecs"][0] |= group
        self.server.patch("rayservices", "moe", {"spec": {"rayClusterConfig": spec}})
        self.settle()

    def scale(self, **group):
        """Change the RayCluster's worker group, as an autoscaler does."""
        [cluster] = self.clusters()
        spec = cluster["spec"]["workerGroupSpecs"][0] | group
        patch = {"spec": {"workerGroupSpecs": [spec]}}
        self.server.patch("rayclusters", cluster["metadata"]["name"], patch)
        self.settle()

    def service(self):
        return self.server.get("rayservices", "moe")

    def clusters(self):
        return self.server.items("rayclusters")

    def workers(self):
        """Return the names of worker pods."""
        fits = {"ray.io/node-type": "worker"}.items()
        pods = self.server.items(
            "pods", where=lambda pod: fits <= pod["metadata"]["labels"].items()
        )
        return {pod["metadata"]["name"] for pod in pods}

    def condition(self, name):
        found = {c["type"]: c for c in self.service()["status"]["conditions"]}
        return found[name]["status"], found[name]["reason"]


@pytest.fixture
def world():
    return World()


# -- recordings -----------------------------------------------------------------------------------


def applied(server, recorded, spec):
    """Apply the recorded RayService with another ``spec`` as Helm 4 does."""
    metadata = recorded["rayservice"]["metadata"]
    config = {"apiVersion": "ray.io/v1", "kind": "RayService", "metadata": metadata, "spec": spec}
    place = Place(server.store.kinds.named("rayservices"), metadata["name"], "default")
    return server.api.apply(place, config, Options("helm"))[0]


def rendered_otherwise(spec):
    """Return the spec as written by a chart that does not use the operator's form."""
    spec = json.loads(json.dumps(spec))
    del spec["rayClusterConfig"]["workerGroupSpecs"][0]["scaleStrategy"]
    for port in spec["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"][0][
        "ports"
    ]:
        del port["protocol"]
    return spec


@pytest.mark.parametrize("preset", RECORDED)
def test_pods_and_cluster_are_the_recorded_ones(world, preset):
    recorded = RECORDED[preset]
    applied(world.server, recorded, recorded["rayservice"]["spec"])
    settle(world.server, world.operator)
    [cluster] = world.clusters()
    name = cluster["metadata"]["name"]
    assert cluster["spec"] == recorded["raycluster"]["spec"]
    assert cluster["metadata"]["labels"] == recorded["raycluster"]["metadata"]["labels"]
    changed = "ray.io/hash-without-replicas-and-workers-to-delete"
    theirs = recorded["raycluster"]["metadata"]["annotations"] | {changed: ""}
    assert cluster["metadata"]["annotations"] | {changed: ""} == theirs
    found = {}
    for pod in world.server.items("pods"):
        assert pod["metadata"]["ownerReferences"][0]["uid"] == cluster["metadata"]["uid"]
        labels = pod["metadata"]["labels"]
        index = labels.get("ray.io/worker-group-replica-index", "")
        pod = json.loads(json.dumps(pod).replace(name, "CLUSTER"))  # noqa: PLW2901
        pod["spec"].pop("restartPolicy")
        kept = {key: pod["metadata"].get(key) for key in ("labels", "annotations")}
        found[labels["ray.io/node-type"] + index] = (kept, pod["spec"])
    hashed = "ray.io/upgrade-strategy-recreate-hash"
    for key, pod in recorded["pods"].items():
        kept, spec = found.pop(key)
        metadata = {part: pod["metadata"].get(part) for part in ("labels", "annotations")}
        if hashed in (kept["annotations"] or {}):
            kept["annotations"][hashed] = metadata["annotations"][hashed]
        assert kept == metadata
        assert spec == pod["spec"]
    assert found == {}


@pytest.mark.parametrize("preset", RECORDED)
def test_the_finalizer_takes_over_what_is_spelled_otherwise(world, preset):
    recorded = RECORDED[preset]
    spec = rendered_otherwise(recorded["rayservice"]["spec"])
    applied(world.server, recorded, spec)
    settle(world.server, world.operator)
    [service] = world.server.items("rayservices")
    assert service["spec"] == recorded["rayservice"]["spec"]
    mine = {
        (e["manager"], e.get("subresource")): e["fieldsV1"]
        for e in service["metadata"]["managedFields"]
    }
    theirs = {
        (e["manager"], e.get("subresource")): e["fieldsV1"]
        for e in recorded["rayservice"]["managedFields"]
    }
    assert mine["helm", None] == theirs["helm", None]
    assert mine["kuberay-operator", None] == theirs["kuberay-operator", None]
    with pytest.raises(Exception, match="Apply failed with 1 conflict") as refused:
        applied(world.server, recorded, spec)
    assert refused.value.message == (
        'Apply failed with 1 conflict: conflict with "kuberay-operator" using ray.io/v1: '
        ".spec.rayClusterConfig.workerGroupSpecs"
    )
    applied(world.server, recorded, recorded["rayservice"]["spec"])


# -- readiness ------------------------------------------------------------------------------------


def test_a_service_is_ready_when_its_proxies_answer(world):
    world.start()
    [cluster] = world.clusters()
    status = world.service()["status"]
    assert status["activeServiceStatus"]["rayClusterName"] == cluster["metadata"]["name"]
    assert "rayClusterName" not in status["pendingServiceStatus"]
    assert status["numServeEndpoints"] == 2
    assert world.condition("Ready") == ("True", "NonZeroServeEndpoints")
    assert world.condition("UpgradeInProgress") == ("False", "NoPendingCluster")


def test_without_any_route_the_proxies_answer_503_for_ever(world):
    world.start("applications: [{name: a, route_prefix: null}]")
    assert world.condition("Ready")[0] == "False"
    assert len(world.workers()) == 2
    world.server.patch("rayservices", "moe", {"spec": {"serveConfigV2": ROUTED}})
    world.settle()
    assert world.condition("Ready")[0] == "True"


def test_a_cluster_whose_applications_do_not_run_stays_pending(world):
    world.operator.serves = lambda _: False
    world.start()
    status = world.service()["status"]
    assert "rayClusterName" not in status["activeServiceStatus"]
    assert status["pendingServiceStatus"]["rayClusterName"]
    assert world.condition("Ready") == ("False", "Initializing")


# -- numbers of workers ---------------------------------------------------------------------------


def test_a_patched_number_is_honoured_and_stays(world):
    world.start(maxReplicas=6)
    world.scale(replicas=4)
    assert len(world.workers()) == 4
    world.change(replicas=3)  # of the RayService: not compared, not copied
    assert len(world.workers()) == 4
    assert len(world.clusters()) == 1


def test_an_upgrade_of_the_operator_overwrites_the_number(world):
    world.start(maxReplicas=6)
    world.scale(replicas=4)
    [cluster] = world.clusters()
    name = cluster["metadata"]["name"]
    world.server.patch("rayclusters", name, {"metadata": {"annotations": {"mine": "1"}}})
    world.settle()
    world.operator.version = "v1.8.0"
    world.settle()
    [cluster] = world.clusters()
    assert cluster["metadata"]["name"] == name
    assert len(world.workers()) == 2
    assert cluster["metadata"]["annotations"]["ray.io/kuberay-version"] == "v1.8.0"
    assert "mine" not in cluster["metadata"]["annotations"]


def test_named_pods_go_first_and_their_names_stay(world):
    world.start(replicas=4, maxReplicas=6)
    before = world.workers()
    chosen = sorted(before)[1:3]
    world.scale(replicas=2, scaleStrategy={"workersToDelete": chosen})
    assert world.workers() == before - set(chosen)
    [cluster] = world.clusters()
    strategy = cluster["spec"]["workerGroupSpecs"][0]["scaleStrategy"]
    assert strategy == {"workersToDelete": chosen}
    world.scale(replicas=3)  # one more pod is added, and no listed name belongs to a pod
    assert len(world.workers()) == 3


def test_named_pods_go_whatever_the_number_says(world):
    world.start()
    before = world.workers()
    chosen = min(before)
    world.scale(scaleStrategy={"workersToDelete": [chosen]})
    assert chosen not in world.workers()
    assert len(world.workers()) == 2


def test_without_names_any_pods_go(world):
    world.start(replicas=4, maxReplicas=6)
    before = world.workers()
    world.scale(replicas=1)
    assert len(world.workers()) == 1
    assert world.workers() < before


def test_pods_that_are_going_count_until_they_are_gone(world):
    world.start(replicas=3, maxReplicas=6)
    world.kubelet.ends = lambda _: False
    world.scale(replicas=2)
    assert len(world.workers()) == 3  # one of them is being deleted
    world.scale(replicas=5)
    assert len(world.workers()) == 3  # the group is frozen
    world.kubelet.ends = lambda _: True
    world.settle()
    assert len(world.workers()) == 5


def test_a_restart_of_the_operator_frees_a_frozen_group(world):
    world.start(replicas=3, maxReplicas=6)
    world.kubelet.ends = lambda _: False
    world.scale(replicas=2)
    world.scale(replicas=5)
    assert len(world.workers()) == 3
    world.operator = KubeRay()
    world.settle()
    assert len(world.workers()) == 5  # the one that is being deleted counts


def test_the_number_is_held_between_its_bounds(world):
    world.start(replicas=1, minReplicas=2, maxReplicas=3)
    assert len(world.workers()) == 2
    world.scale(replicas=9)
    assert len(world.workers()) == 3


# -- another cluster ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "group",
    [
        pytest.param({"replicas": 5}, id="replicas"),
        pytest.param({"minReplicas": 1}, id="least"),
        pytest.param({"maxReplicas": 9}, id="most"),
        pytest.param({"scaleStrategy": {"workersToDelete": ["x"]}}, id="names"),
    ],
)
def test_numbers_bring_no_second_cluster(world, group):
    world.start()
    before = [one["metadata"]["name"] for one in world.clusters()]
    world.change(**group)
    assert [one["metadata"]["name"] for one in world.clusters()] == before


def test_anything_else_brings_a_second_cluster_that_takes_over(world):
    world.start()
    [old] = [one["metadata"]["name"] for one in world.clusters()]
    world.operator.serves = lambda cluster: cluster["metadata"]["name"] == old
    world.change(rayStartParams={"num-cpus": "2"})
    assert len(world.clusters()) == 2
    assert world.condition("UpgradeInProgress")[0] == "True"
    assert world.service()["status"]["activeServiceStatus"]["rayClusterName"] == old
    world.operator.version = "v1.8.0"  # does not affect an upgrade
    world.settle()
    versions = {
        one["metadata"]["annotations"]["ray.io/kuberay-version"] for one in world.clusters()
    }
    assert versions == {"v1.7.0"}
    world.operator.serves = lambda _: True
    world.settle()
    [new] = [one["metadata"]["name"] for one in world.clusters()]
    assert new != old
    assert world.condition("UpgradeInProgress") == ("False", "NoPendingCluster")
    assert len(world.workers()) == 2


def test_a_strategy_of_none_brings_no_second_cluster(world):
    world.start()
    world.server.patch("rayservices", "moe", {"spec": {"upgradeStrategy": {"type": "None"}}})
    world.change(rayStartParams={"num-cpus": "2"})
    assert len(world.clusters()) == 1


def test_an_appended_group_is_taken_over_in_place_with_all_numbers(world):
    world.start(maxReplicas=6)
    world.scale(replicas=4)
    [before] = [one["metadata"]["name"] for one in world.clusters()]
    spec = world.service()["spec"]["rayClusterConfig"]
    spec["workerGroupSpecs"].append(objects.worker_group("more", replicas=1))
    world.server.patch("rayservices", "moe", {"spec": {"rayClusterConfig": spec}})
    world.settle()
    [cluster] = world.clusters()
    assert cluster["metadata"]["name"] == before
    assert len(world.workers()) == 3


# -- the end --------------------------------------------------------------------------------------


def test_a_deleted_service_takes_everything_with_it(world):
    world.start()
    world.server.delete("rayservices", "moe")
    assert "deletionTimestamp" in world.service()["metadata"]
    world.settle()
    kinds = {item["kind"] for item in world.server.store.everything()}
    assert kinds == {"Namespace"}
