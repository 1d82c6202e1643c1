"""The number of pods in the RayService, and the ownership of the fields written."""

import copy

import pytest

from serving.autoscaler.actuators.kubernetes import KubernetesActuator, KubernetesObserver
from serving.autoscaler.actuators.rbac import missing_access
from tests.integration.autoscaler.kube import (
    BY_SERVICE,
    SETTINGS,
    Fleet,
    group,
    named,
    numbers,
    put_cluster,
    put_pods,
    put_service,
    service_spec,
    worker_spec,
    workers_of,
    writes,
)
from tests.kube import objects, rbac
from tests.kube.api import Options, Place
from tests.kube.errors import ApiError
from tests.support.fake_actuator import FakeActuator

US = "moe-serving-autoscaler"
SERVICE = "/rayservices/moe-service$"


def setup(kube, replicas=2, service=None):
    """Create a RayService and its cluster with the same number."""
    put_service(kube, active="moe", replicas=service or replicas, minReplicas=service or replicas)
    put_cluster(kube, replicas=replicas, minReplicas=replicas)


def patched(kube):
    """Return the patched kinds in order."""
    return [seen.path.rsplit("/", 2)[1] for seen in writes(kube)]


def managers(kube):
    live = kube.get("rayservices", "moe-service")
    return {entry["manager"] for entry in live["metadata"]["managedFields"]}


def applied(kube, manager="helm", **spec):
    """Apply the RayService as Helm 4 does, with another number."""
    groups = (objects.worker_group("other", replicas=9), objects.worker_group("ranks", **spec))
    config = objects.rayservice("moe-service", *groups)
    del config["status"]
    place = Place(kube.store.kinds.named("rayservices"), "moe-service", "default")
    options = Options(manager=manager)
    return kube.api.apply(place, config, options)


async def test_on_the_way_up_the_service_holds_the_number_first(kube, connect):
    setup(kube)
    await workers_of(connect(), BY_SERVICE).scale(4)
    assert numbers(service_spec(kube)) == numbers(worker_spec(kube)) == (8, 8, 8)
    assert patched(kube) == ["rayservices", "rayclusters"]


async def test_on_the_way_down_it_holds_what_exists_until_it_is_gone(kube, connect):
    setup(kube, 6)
    put_pods(kube, 6)
    fleet = Fleet([group("g0", *(f"10.0.0.{number}" for number in range(4)))])
    workers = workers_of(connect(), BY_SERVICE, fleet)
    await workers.scale(2)
    assert (worker_spec(kube)["replicas"], service_spec(kube)["replicas"]) == (4, 6)
    kube.delete("pods", "w4")  # KubeRay: they terminate within their grace period
    kube.delete("pods", "w5")
    await workers.scale(2)
    assert service_spec(kube)["replicas"] == 6
    kube.delete("pods", "w5", grace=0)
    await workers.scale(2)
    assert service_spec(kube)["replicas"] == 5
    kube.delete("pods", "w4", grace=0)
    await workers.scale(2)
    assert service_spec(kube)["replicas"] == 4
    assert named(service_spec(kube)) == []


async def test_what_a_release_puts_back_is_written_again(kube, connect):
    setup(kube, 6, service=2)
    put_pods(kube, 6)
    used = frozenset(f"10.0.0.{number}" for number in range(6))
    workers = workers_of(connect(), BY_SERVICE, Fleet([group("g0", *used)]))
    await workers.scale(3)
    assert service_spec(kube)["replicas"] == 6
    assert patched(kube) == ["rayservices"]  # the running cluster is not changed


async def test_nothing_is_written_while_nothing_changes(kube, connect):
    setup(kube)
    workers = workers_of(connect(), BY_SERVICE)
    for _ in range(3):
        await workers.scale(1)
    assert writes(kube) == []


# -- ownership ------------------------------------------------------------------------------------


async def test_the_next_apply_of_a_release_meets_no_conflict(kube, connect):
    applied(kube, replicas=2, minReplicas=2)
    kube.patch(
        "rayservices",
        "moe-service",
        {"status": {"activeServiceStatus": {"rayClusterName": "moe"}}},
        subresource="status",
    )
    put_cluster(kube, replicas=2, minReplicas=2)
    await workers_of(connect(), BY_SERVICE).scale(3)
    assert service_spec(kube)["replicas"] == 6
    assert US not in managers(kube)
    applied(kube, replicas=2, minReplicas=2, rayStartParams={"num-cpus": "3"})
    assert service_spec(kube)["replicas"] == 2
    await workers_of(connect(), BY_SERVICE).scale(3)
    assert service_spec(kube)["replicas"] == 6
    assert service_spec(kube)["rayStartParams"] == {"num-cpus": "3"}
    applied(kube, replicas=4, minReplicas=2)


async def test_without_the_second_patch_it_would_be_one(kube, connect):
    """Checks that the fake rejects it as a real server does."""
    applied(kube, replicas=2, minReplicas=2)
    spec = copy.deepcopy(kube.get("rayservices", "moe-service")["spec"])
    spec["rayClusterConfig"]["workerGroupSpecs"][1]["replicas"] = 6
    kube.patch("rayservices", "moe-service", {"spec": spec}, manager=US)
    with pytest.raises(ApiError, match=f'conflict with "{US}"'):
        applied(kube, replicas=4)


async def test_what_was_not_given_up_is_at_the_next_turn(kube, connect):
    applied(kube, replicas=2, minReplicas=2)
    kube.patch(
        "rayservices",
        "moe-service",
        {"status": {"activeServiceStatus": {"rayClusterName": "moe"}}},
        subresource="status",
    )
    put_cluster(kube, replicas=2, minReplicas=2)
    spec = copy.deepcopy(kube.get("rayservices", "moe-service")["spec"])
    spec["rayClusterConfig"]["workerGroupSpecs"][1].update(replicas=6, minReplicas=6)
    kube.patch("rayservices", "moe-service", {"spec": spec}, manager=US)  # and killed here
    assert US in managers(kube)
    workers = workers_of(connect(), BY_SERVICE)
    await workers.scale(3)
    assert US not in managers(kube)
    before = len(writes(kube))
    await workers.scale(3)
    assert len(writes(kube)) == before


async def test_where_nobody_applies_there_is_one_patch(kube, connect):
    """Helm 3 and KubeRay update rather than apply, which causes no conflicts."""
    setup(kube)
    await workers_of(connect(), BY_SERVICE).scale(2)
    assert patched(kube) == ["rayservices", "rayclusters"]


# -- notices for operators ------------------------------------------------------------------------


async def test_a_service_that_may_not_be_written_stops_nobody_and_is_told(kube, connect):
    setup(kube)
    rules = [
        {"apiGroups": ["ray.io"], "resources": ["rayclusters"], "verbs": ["get", "patch"]},
        {"apiGroups": ["ray.io"], "resources": ["rayservices"], "verbs": ["get"]},
    ]
    for item in objects.service_account("scaler", "default", *rules):
        kube.create(item)
    api = connect(token=rbac.service_account_token("default", "scaler"))
    both = KubernetesActuator(FakeActuator(3), workers_of(api, BY_SERVICE))
    await both.target()
    assert worker_spec(kube)["replicas"] == 6
    [notice] = both.notices()
    assert "still has 2 replicas of worker group ranks instead of 6" in notice
    assert 'cannot patch resource "rayservices"' in notice


async def test_a_second_cluster_that_is_pending_is_told(kube, connect):
    put_service(kube, active="moe", pending="moe-green")
    put_cluster(kube)
    both = KubernetesActuator(FakeActuator(1), workers_of(connect(), BY_SERVICE))
    await both.target()
    [notice] = both.notices()
    assert "second, pending RayCluster moe-green" in notice


async def test_a_first_cluster_that_is_pending_is_no_second_one(kube, connect):
    put_service(kube, pending="moe")
    put_cluster(kube)
    both = KubernetesActuator(FakeActuator(1), workers_of(connect(), BY_SERVICE))
    await both.target()
    assert both.notices() == ()


async def test_an_observer_tells_the_same_and_writes_nothing(kube, connect):
    put_service(kube, active="moe", pending="moe-green", replicas=2)
    put_cluster(kube)
    before = {plural: kube.items(plural) for plural in ("rayservices", "rayclusters")}
    api = connect()
    observer = KubernetesObserver(
        FakeActuator(3),
        workers_of(api, BY_SERVICE),
        lambda name: missing_access(api, BY_SERVICE, name),
    )
    assert await observer.target() == 3
    assert any("moe-green" in notice for notice in observer.notices())
    assert before == {plural: kube.items(plural) for plural in before}


async def test_missing_rights_are_listed(kube, connect):
    rules = [
        {"apiGroups": ["ray.io"], "resources": ["rayclusters"], "verbs": ["get"]},
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]},
        {
            "apiGroups": ["coordination.k8s.io"],
            "resources": ["leases"],
            "resourceNames": [SETTINGS.lease],
            "verbs": ["get", "patch"],
        },
    ]
    for item in objects.service_account("scaler", "default", *rules):
        kube.create(item)
    api = connect(token=rbac.service_account_token("default", "scaler"))
    assert await missing_access(api, SETTINGS, "") == [
        "patch rayclusters.ray.io moe",
        "list nodes",
        "watch nodes",
    ]
    assert await missing_access(connect(), SETTINGS, "") == []
