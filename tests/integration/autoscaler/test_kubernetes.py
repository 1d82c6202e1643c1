"""The worker group of a RayCluster against the fake API server, over real HTTP."""

import copy
import http

import pytest
from kubernetes.aio import client

from serving.autoscaler.actuators.actuator import ActuatorError
from serving.autoscaler.actuators.kubernetes import KubernetesActuator
from serving.autoscaler.actuators.kubernetes_errors import AccessDenied, Invalid
from tests.integration.autoscaler.kube import (
    BY_SERVICE,
    TARGET,
    Fleet,
    fail_once,
    group,
    named,
    numbers,
    put_cluster,
    put_pods,
    put_service,
    worker_spec,
    workers_of,
)
from tests.kube import objects, rbac
from tests.support.clock import ManualClock
from tests.support.fake_actuator import FakeActuator

JSON_PATCH = "application/json-patch+json"


async def test_whole_groups_of_workers(kube, connect):
    put_cluster(kube)
    workers = workers_of(connect())
    assert await workers.target() == 1
    await workers.scale(3)
    assert await workers.target() == 3
    assert numbers(worker_spec(kube)) == (6, 6, 6)
    await workers.scale(4)
    assert numbers(worker_spec(kube)) == (8, 8, 8)
    assert kube.get("rayclusters", "moe")["spec"]["workerGroupSpecs"][0]["replicas"] == 9


async def test_every_patch_says_that_it_is_a_json_patch(kube, connect):
    put_cluster(kube)
    await workers_of(connect()).scale(3)
    assert [seen.content_type for seen in kube.requests if seen.method == "PATCH"] == [JSON_PATCH]


async def test_what_is_so_already_is_not_written(kube, connect):
    put_cluster(kube, minReplicas=2)
    await workers_of(connect()).scale(1)
    assert [seen.method for seen in kube.requests] == ["GET"]


# -- scaling down ---------------------------------------------------------------------------------


async def test_only_pods_that_no_group_uses_are_let_go(kube, connect):
    put_cluster(kube, replicas=4)
    put_pods(kube, 4)
    fleet = Fleet([group("g0", "10.0.0.0", "10.0.0.2", "10.0.0.3")])
    workers = workers_of(connect(), fleet=fleet)
    await workers.scale(1)
    assert worker_spec(kube)["replicas"] == 3
    assert named(worker_spec(kube)) == ["w1"]
    fleet.living = [group("g0", "10.0.0.0", "10.0.0.2")]
    kube.delete("pods", "w1", grace=0)
    await workers.scale(1)
    assert worker_spec(kube)["replicas"] == 2
    assert "w3" in named(worker_spec(kube))


async def test_pods_of_a_group_that_is_being_placed_are_not_named(kube, connect):
    """Ranks that are still loading weights have joined no router."""
    put_cluster(kube, replicas=6)
    put_pods(kube, 6)
    fleet = Fleet([group("g0", "10.0.0.0", "10.0.0.1")], placed={"10.0.0.4", "10.0.0.5"})
    await workers_of(connect(), fleet=fleet).scale(1)
    assert sorted(named(worker_spec(kube))) == ["w2", "w3"]


@pytest.mark.parametrize(
    "unknown",
    [
        pytest.param({"unplaced": "a replica has no node yet"}, id="to-be-placed"),
        pytest.param({"silent": True}, id="no-router-answers"),
    ],
)
async def test_nothing_is_named_while_it_is_not_known_what_is_used(kube, connect, unknown):
    put_cluster(kube, replicas=4)
    put_pods(kube, 4)
    fleet = Fleet(**unknown)
    workers = workers_of(connect(), fleet=fleet)
    await workers.scale(1)
    assert (worker_spec(kube)["replicas"], named(worker_spec(kube))) == (4, [])
    fleet.unplaced, fleet.silent = "", False
    await workers.scale(1)
    assert worker_spec(kube)["replicas"] == 2


async def test_pods_that_end_or_never_ran_go_first(kube, connect):
    put_cluster(kube, replicas=4)
    put_pods(kube, 3)
    kube.create(objects.pod("w3", labels=objects.ray_labels("moe")))  # pending
    kube.delete("pods", "w1")  # evicted; gone when its grace period is over
    workers = workers_of(connect())
    await workers.scale(1)
    assert named(worker_spec(kube)) == ["w1", "w3"]


async def test_a_pod_that_still_ends_stays_named(kube, connect):
    """KubeRay still counts it: if it were not listed, another pod would be deleted."""
    put_cluster(kube, replicas=6)
    put_pods(kube, 6)
    clock = ManualClock()
    fleet = Fleet([group("g0", *(f"10.0.0.{number}" for number in range(4)))])
    workers = workers_of(connect(), fleet=fleet, clock=clock)
    await workers.scale(2)
    assert sorted(named(worker_spec(kube))) == ["w4", "w5"]
    kube.delete("pods", "w4")
    kube.delete("pods", "w5", grace=0)
    fleet.living = [group("g0", "10.0.0.0", "10.0.0.1")]
    await workers.scale(1)
    assert worker_spec(kube)["replicas"] == 2
    assert sorted(named(worker_spec(kube))) == ["w2", "w3", "w4", "w5"]
    for pod in ("w2", "w3", "w4"):
        kube.delete("pods", pod, grace=0)
    await workers.scale(1)
    clock.now += 61
    fleet.living = []
    await workers.scale(0)  # gone for long enough: their names are dropped
    assert sorted(named(worker_spec(kube))) == ["w0", "w1"]


async def test_both_addresses_of_a_pod_count(kube, connect):
    put_cluster(kube, replicas=1)
    pod = objects.pod("w0", "10.0.0.0", "n1", labels=objects.ray_labels("moe"))
    pod["status"]["podIPs"] = [{"ip": "10.0.0.0"}, {"ip": "fd00::1"}]
    kube.create(pod)
    await workers_of(connect(), fleet=Fleet([group("g0", "fd00::1")])).scale(0)
    assert named(worker_spec(kube)) == []


# -- which cluster --------------------------------------------------------------------------------


async def test_a_group_that_is_not_there_is_named(kube, connect):
    kube.create(objects.raycluster("moe", objects.worker_group("else")))
    with pytest.raises(ActuatorError, match="no worker group ranks"):
        await workers_of(connect()).target()


async def test_the_cluster_of_a_service_is_found(kube, connect):
    put_service(kube, active="moe")
    put_cluster(kube)
    workers = workers_of(connect(BY_SERVICE), BY_SERVICE)
    await workers.scale(3)
    assert await workers.target() == 3


@pytest.mark.parametrize(
    ("clusters", "expected"),
    [
        pytest.param({"active": "blue"}, "blue", id="running"),
        pytest.param({"pending": "blue"}, "blue", id="the-first"),
        pytest.param({"active": "blue", "pending": "green"}, "blue", id="not-switched-yet"),
        pytest.param({"active": "green"}, "green", id="switched"),
    ],
)
async def test_the_active_cluster_of_an_upgrade(kube, connect, clusters, expected):
    put_service(kube, **clusters)
    assert await workers_of(connect(BY_SERVICE), BY_SERVICE).cluster() == expected


async def test_the_name_is_asked_for_again_each_time(kube, connect):
    put_cluster(kube)
    put_cluster(kube, "green")
    put_service(kube, active="moe")
    workers = workers_of(connect(BY_SERVICE), BY_SERVICE)
    await workers.scale(3)
    status = {"activeServiceStatus": {"rayClusterName": "green"}}
    kube.patch("rayservices", "moe-service", {"status": status}, subresource="status")
    await workers.scale(4)
    assert worker_spec(kube)["replicas"] == 6
    assert worker_spec(kube, "green")["replicas"] == 8


async def test_a_service_without_a_cluster_is_named(kube, connect):
    put_service(kube)
    with pytest.raises(ActuatorError, match="moe-service has no RayCluster yet"):
        await workers_of(connect(BY_SERVICE), BY_SERVICE).target()


async def test_a_cluster_that_is_not_there_is_named(kube, connect):
    with pytest.raises(ActuatorError, match=r'rayclusters moe: 404 .*"moe" not found'):
        await workers_of(connect()).target()


# -- server responses -----------------------------------------------------------------------------


async def test_a_change_in_between_is_read_again(kube, connect):
    put_cluster(kube)
    workers = workers_of(connect())
    read, reads = workers._read, []

    async def read_then_lose(*args):
        found = copy.deepcopy(await read(*args))
        if not reads:
            put_cluster(kube, replicas=3)
        reads.append(found)
        return found

    workers._read = read_then_lose
    await workers.scale(2)
    assert len(reads) == 2
    assert worker_spec(kube)["replicas"] == 4


async def test_what_is_changed_all_the_time_is_an_error_with_the_servers_words(kube, connect):
    put_cluster(kube)
    kube.faults.add(TARGET, method="PATCH", status=409, message="the object has been modified")
    with pytest.raises(ActuatorError, match=r"changed during each attempt.*has been modified"):
        await workers_of(connect()).scale(2)


@pytest.mark.parametrize("status", [400, 415])
async def test_a_patch_that_the_server_cannot_read_is_no_success(kube, connect, status):
    put_cluster(kube)
    kube.faults.add(TARGET, method="PATCH", status=status, message="error decoding patch: no")
    with pytest.raises(Invalid, match=f"{status} error decoding patch: no"):
        await workers_of(connect()).scale(2)


async def test_an_invalid_object_is_told_in_the_servers_words(kube, connect):
    put_cluster(kube)
    api = connect()
    path = "/spec/workerGroupSpecs/1/replicas"
    with pytest.raises(Invalid, match=r'RayCluster.*"moe" is invalid: .*replicas'):
        await api.patch(
            "ray.io/v1", "rayclusters", "moe", [{"op": "add", "path": path, "value": "x"}]
        )


async def test_a_missing_right_names_who_lacks_it(kube, connect):
    put_cluster(kube)
    rule = {"apiGroups": ["ray.io"], "resources": ["rayclusters"], "verbs": ["get"]}
    for item in objects.service_account("scaler", "default", rule):
        kube.create(item)
    api = connect(token=rbac.service_account_token("default", "scaler"))
    groups = FakeActuator(3)
    both = KubernetesActuator(groups, workers_of(api))
    assert await both.target() == 3
    [notice] = both.notices()
    assert (
        'User "system:serviceaccount:default:scaler" cannot patch resource "rayclusters" in API '
        'group "ray.io" in the namespace "default"'
    ) in notice
    assert "helm upgrade" in notice
    with pytest.raises(AccessDenied):
        await both.scale(4)
    for item in objects.service_account("more", "default", rule | {"verbs": ["patch"]})[1:]:
        item.get("subjects", [{}])[0].update(name="scaler")
        kube.create(item)
    await both.target()
    assert both.notices() == ()


def api_error(status, **headers):
    error = client.exceptions.ApiException(status=status, reason=http.HTTPStatus(status).phrase)
    error.headers = headers
    return error


@pytest.mark.parametrize(
    ("errors", "waits"),
    [
        pytest.param([api_error(500), api_error(503)], [0.25, 0.5], id="500-503"),
        pytest.param([api_error(429, **{"Retry-After": "3"})], [3.0], id="429"),
        pytest.param([TimeoutError()], [0.25], id="time-out"),
        pytest.param([ConnectionResetError()], [0.25], id="connection-lost"),
    ],
)
async def test_backoff(kube, connect, monkeypatch, errors, waits):
    put_cluster(kube)
    api = connect()
    fail_once(monkeypatch, api, *errors)
    assert await workers_of(api).target() == 1
    assert connect.waits == waits


async def test_real_answers_of_500_end_in_an_error(kube, connect):
    kube.faults.add(TARGET, method="GET", status=500)
    with pytest.raises(ActuatorError, match="failed 4 times"):
        await workers_of(connect()).target()
    assert connect.waits == [0.25, 0.5, 1.0]
    assert len(kube.requests) == 4


async def test_a_refusal_is_not_tried_again(kube, connect):
    kube.faults.add(TARGET, method="GET", status=403)
    with pytest.raises(ActuatorError, match="403"):
        await workers_of(connect()).target()
    assert connect.waits == []
    assert len(kube.requests) == 1


async def test_nobody_listens(kube, connect):
    kube.stop()
    with pytest.raises(ActuatorError, match="failed 4 times"):
        await workers_of(connect()).target()


# -- workers and groups together ------------------------------------------------------------------


async def test_workers_come_first_and_go_last(kube, connect):
    put_cluster(kube)
    fleet = Fleet()
    groups = FakeActuator(1)
    both = KubernetesActuator(groups, workers_of(connect(), fleet=fleet))
    await both.scale(3)
    assert (groups.groups, worker_spec(kube)["replicas"]) == (3, 6)
    put_pods(kube, 6)
    fleet.living = [group("g0", *(f"10.0.0.{number}" for number in range(4)))]
    await both.scale(2)
    assert (groups.groups, worker_spec(kube)["replicas"]) == (2, 6)
    assert await both.target() == 2
    assert worker_spec(kube)["replicas"] == 4


async def test_without_workers_no_more_groups_are_asked_for(kube, connect):
    kube.stop()
    groups = FakeActuator(1)
    both = KubernetesActuator(groups, workers_of(connect()))
    with pytest.raises(ActuatorError):
        await both.scale(2)
    assert groups.asked == []
    assert await both.target() == 1  # API server errors do not hide the groups
