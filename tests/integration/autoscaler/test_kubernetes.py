"""The Kubernetes actuator against a real HTTP API server that keeps objects (kmock)."""

import asyncio
import copy
import http
import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from kubernetes.aio import client

from serving.autoscaler.actuators.actuator import ActuatorError
from serving.autoscaler.actuators.fake import FakeActuator
from serving.autoscaler.actuators.kubernetes import KubernetesActuator
from serving.autoscaler.actuators.kubernetes_api import KubernetesApi
from serving.autoscaler.actuators.lease import LeaseElection
from serving.autoscaler.actuators.worker_group import WorkerGroupActuator
from serving.autoscaler.assembly import assembled
from serving.autoscaler.routers import GroupSeen
from serving.errors import SettingsError
from serving.settings import KubernetesSettings, Settings

ROOT = Path(__file__).resolve().parents[3]
CANDIDATE = Path(__file__).with_name("candidate.py")
CLUSTER = ("ray.io/v1/rayclusters", "default", "moe")
LEASE = ("coordination.k8s.io/v1/leases", "default", "moe-serving-autoscaler")
SETTINGS = KubernetesSettings(enabled=True, cluster="moe", workers_per_group=2, api_timeout=5.0)


@dataclass
class Fleet:
    living: list = field(default_factory=list)

    async def groups(self):
        return tuple(self.living)


class Clock:
    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now

    def time(self):
        return self.now


@pytest.fixture
async def connect(kmock):
    made, waits = [], []

    async def pause(seconds):
        waits.append(seconds)

    def api(settings=SETTINGS):
        configuration = client.Configuration(host=str(kmock.url).rstrip("/"))
        made.append(KubernetesApi(settings, configuration, pause=pause, chance=lambda: 1.0))
        return made[-1]

    api.waits = waits
    yield api
    for one in made:
        await one.close()


def put_cluster(kmock, name="moe", **group):
    spec = {"groupName": "ranks", "replicas": 2, "minReplicas": 0, "maxReplicas": 6} | group
    kmock.objects[(*CLUSTER[:-1], name)] = {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"workerGroupSpecs": [{"groupName": "other", "replicas": 9}, spec]},
    }


def put_pod(kmock, name, ip, node="n1", **status):
    kmock.objects["v1/pods", "default", name] = {
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"nodeName": node, "containers": [{"name": "ray"}]},
        "status": {"podIP": ip, **status},
    }


def worker_spec(kmock, name="moe"):
    return copy.deepcopy(kmock.objects[(*CLUSTER[:-1], name)]["spec"]["workerGroupSpecs"][1])


def fail_once(monkeypatch, api, *errors):
    """Let the next calls end so, before they reach the server."""
    left, call = list(errors), api._client.call_api

    async def flaky(*args, **kwargs):
        if left:
            error = left.pop(0)
            raise error
        return await call(*args, **kwargs)

    monkeypatch.setattr(api._client, "call_api", flaky)


# -- the worker group -----------------------------------------------------------------------------


async def test_whole_groups_of_workers(kmock, connect):
    put_cluster(kmock)
    workers = WorkerGroupActuator(connect(), SETTINGS, Fleet())
    assert await workers.target() == 1
    await workers.scale(3)
    assert await workers.target() == 3
    spec = worker_spec(kmock)
    assert (spec["replicas"], spec["minReplicas"], spec["maxReplicas"]) == (6, 6, 6)
    await workers.scale(4)
    assert worker_spec(kmock)["maxReplicas"] == 8
    assert kmock.objects[CLUSTER]["spec"]["workerGroupSpecs"][0] == {
        "groupName": "other",
        "replicas": 9,
    }


async def test_what_is_so_already_is_not_written(kmock, connect):
    put_cluster(kmock, minReplicas=2)
    await WorkerGroupActuator(connect(), SETTINGS, Fleet()).scale(1)
    assert [request.method for request in kmock._requests] == ["GET"]


async def test_only_pods_that_no_group_uses_are_let_go(kmock, connect):
    put_cluster(kmock, replicas=4)
    for number in range(4):
        put_pod(kmock, f"w{number}", f"10.0.0.{number}")
    fleet = Fleet([GroupSeen("g0", 1.0, frozenset({"10.0.0.0", "10.0.0.2", "10.0.0.3"}), True)])
    workers = WorkerGroupActuator(connect(), SETTINGS, fleet)
    await workers.scale(1)
    assert worker_spec(kmock)["replicas"] == 3
    assert worker_spec(kmock)["scaleStrategy"] == {"workersToDelete": ["w1"]}
    fleet.living = [GroupSeen("g0", 1.0, frozenset({"10.0.0.0", "10.0.0.2"}), True)]
    del kmock.objects["v1/pods", "default", "w1"]
    await workers.scale(1)
    assert worker_spec(kmock)["replicas"] == 2
    assert worker_spec(kmock)["scaleStrategy"] == {"workersToDelete": ["w3"]}


async def test_a_group_that_is_not_there_is_named(kmock, connect):
    put_cluster(kmock, groupName="else")
    with pytest.raises(ActuatorError, match="no worker group ranks"):
        await WorkerGroupActuator(connect(), SETTINGS, Fleet()).target()


def put_service(kmock, **status):
    kmock.objects["ray.io/v1/rayservices", "default", "moe-service"] = {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {"name": "moe-service", "namespace": "default"},
        "spec": {},
        "status": status,
    }


BY_SERVICE = SETTINGS.model_copy(update={"cluster": "", "service": "moe-service"})


async def test_the_cluster_of_a_service_is_found(kmock, connect):
    put_service(kmock, activeServiceStatus={"rayClusterName": "moe"})
    put_cluster(kmock)
    workers = WorkerGroupActuator(connect(BY_SERVICE), BY_SERVICE, Fleet())
    await workers.scale(3)
    assert await workers.target() == 3


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        pytest.param({"activeServiceStatus": {"rayClusterName": "blue"}}, "blue", id="running"),
        pytest.param({"pendingServiceStatus": {"rayClusterName": "blue"}}, "blue", id="the-first"),
        pytest.param(
            {
                "activeServiceStatus": {"rayClusterName": "blue"},
                "pendingServiceStatus": {"rayClusterName": "green"},
            },
            "blue",
            id="an-upgrade-that-has-not-switched",
        ),
        pytest.param(
            {"activeServiceStatus": {"rayClusterName": "green"}, "pendingServiceStatus": {}},
            "green",
            id="it-has",
        ),
    ],
)
async def test_the_active_cluster_of_an_upgrade(kmock, connect, status, expected):
    put_service(kmock, **status)
    workers = WorkerGroupActuator(connect(BY_SERVICE), BY_SERVICE, Fleet())
    assert await workers.cluster() == expected


async def test_the_name_is_asked_for_again_each_time(kmock, connect):
    put_cluster(kmock)
    put_cluster(kmock, "green")
    put_service(kmock, activeServiceStatus={"rayClusterName": "moe"})
    workers = WorkerGroupActuator(connect(BY_SERVICE), BY_SERVICE, Fleet())
    await workers.scale(3)
    put_service(kmock, activeServiceStatus={"rayClusterName": "green"})
    await workers.scale(4)
    assert worker_spec(kmock)["replicas"] == 6
    assert worker_spec(kmock, "green")["replicas"] == 8


async def test_a_service_without_a_cluster_is_named(kmock, connect):
    put_service(kmock)
    with pytest.raises(ActuatorError, match="moe-service has no RayCluster yet"):
        await WorkerGroupActuator(connect(BY_SERVICE), BY_SERVICE, Fleet()).target()


async def test_a_cluster_that_is_not_there_is_named(kmock, connect):
    with pytest.raises(ActuatorError, match="rayclusters moe: not found"):
        await WorkerGroupActuator(connect(), SETTINGS, Fleet()).target()


async def test_a_change_in_between_is_read_again(kmock, connect):
    put_cluster(kmock)
    api = connect()
    workers = WorkerGroupActuator(api, SETTINGS, Fleet())
    read, reads = workers._read, []

    async def read_then_lose(*args):
        found = await read(*args)
        if not reads:
            put_cluster(kmock, replicas=3)
        reads.append(found)
        return found

    workers._read = read_then_lose
    await workers.scale(2)
    assert len(reads) == 2
    assert worker_spec(kmock)["replicas"] == 4


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
async def test_backoff(kmock, connect, monkeypatch, errors, waits):
    put_cluster(kmock)
    api = connect()
    fail_once(monkeypatch, api, *errors)
    assert await WorkerGroupActuator(api, SETTINGS, Fleet()).target() == 1
    assert connect.waits == waits


async def test_real_answers_of_500_end_in_an_error(kmock, connect):
    kmock["get /apis/ray.io/v1/namespaces/default/rayclusters/moe"] << 500
    with pytest.raises(ActuatorError, match="failed 4 times"):
        await WorkerGroupActuator(connect(), SETTINGS, Fleet()).target()
    assert len(kmock._requests) == 4


async def test_a_refusal_is_not_tried_again(kmock, connect):
    kmock["get /apis/ray.io/v1/namespaces/default/rayclusters/moe"] << 403
    with pytest.raises(ActuatorError, match="403"):
        await WorkerGroupActuator(connect(), SETTINGS, Fleet()).target()
    assert len(kmock._requests) == 1


async def test_nobody_listens(connect, kmock):
    configuration = client.Configuration(host="http://127.0.0.1:1")
    api = connect()
    api._client.configuration.host = configuration.host
    with pytest.raises(ActuatorError, match="failed 4 times"):
        await WorkerGroupActuator(api, SETTINGS, Fleet()).target()


# -- workers and groups together ------------------------------------------------------------------


async def test_workers_come_first_and_go_last(kmock, connect):
    put_cluster(kmock)
    workers = WorkerGroupActuator(connect(), SETTINGS, fleet := Fleet())
    groups = FakeActuator(1)
    both = KubernetesActuator(groups, workers)
    await both.scale(3)
    assert (groups.groups, worker_spec(kmock)["replicas"]) == (3, 6)
    for number in range(6):
        put_pod(kmock, f"w{number}", f"10.0.0.{number}")
    nodes = frozenset(f"10.0.0.{number}" for number in range(4))
    fleet.living = [GroupSeen("g0", 1.0, nodes, True)]
    await both.scale(2)
    assert (groups.groups, worker_spec(kmock)["replicas"]) == (2, 6)
    assert await both.target() == 2
    assert worker_spec(kmock)["replicas"] == 4


async def test_without_workers_no_more_groups_are_asked_for(kmock, connect):
    groups = FakeActuator(1)
    both = KubernetesActuator(groups, WorkerGroupActuator(connect(), SETTINGS, Fleet()))
    with pytest.raises(ActuatorError):
        await both.scale(2)
    assert groups.asked == []
    assert await both.target() == 1  # the API server's trouble does not hide the groups


# -- leader election ------------------------------------------------------------------------------


async def test_one_of_two_leads_and_the_other_takes_over(kmock, connect):
    clock = Clock()
    first, second = (LeaseElection(connect(), SETTINGS, name, clock) for name in ("a", "b"))
    await first.try_once()
    await second.try_once()
    assert (first.leading, second.leading) == (True, False)
    for _ in range(4):  # renewed: the other waits
        clock.now += 8.0
        await first.try_once()
        await second.try_once()
        assert (first.leading, second.leading) == (True, False)
    clock.now += 10.5  # the first is cut off: it stops before the other may start
    assert not first.leading
    await second.try_once()
    assert not second.leading
    clock.now += 5.0
    await second.try_once()
    assert second.leading
    await first.try_once()
    assert not first.leading
    lease = kmock.objects[LEASE]["spec"]
    assert (lease["holderIdentity"], lease["leaseTransitions"]) == ("b", 1)


async def test_a_released_lease_is_taken_at_once(kmock, connect):
    clock = Clock()
    first, second = (LeaseElection(connect(), SETTINGS, name, clock) for name in ("a", "b"))
    await first.try_once()
    await first.release()
    assert not first.leading
    await second.try_once()
    assert second.leading


async def test_two_that_want_a_dead_lease_do_not_both_get_it(kmock, connect):
    clock = Clock()
    dead, one, two = (LeaseElection(connect(), SETTINGS, name, clock) for name in "abc")
    await dead.try_once()
    await one.try_once()
    await two.try_once()
    clock.now += 16.0
    get = two._api.get

    async def get_then_lose(*args):
        found = copy.deepcopy(await get(*args))
        await one.try_once()
        return found

    two._api.get = get_then_lose
    await two.try_once()
    assert (one.leading, two.leading) == (True, False)


async def test_a_killed_process_is_followed_by_the_other(kmock):
    """Two processes, one lease: the leader is killed (-9), the other leads."""
    url = str(kmock.url).rstrip("/")

    async def start(name):
        return await asyncio.create_subprocess_exec(
            sys.executable,
            CANDIDATE,
            url,
            name,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    async def says(process, word):
        async with asyncio.timeout(60):
            while (line := await process.stdout.readline()).strip().decode() != word:
                assert line, f"the process ended before it was {word}"

    first = await start("first")
    second = None
    try:
        await says(first, "leading")
        second = await start("second")
        await says(second, "waiting")
        assert kmock.objects[LEASE]["spec"]["holderIdentity"] == "first"
        first.kill()
        await says(second, "leading")
        assert kmock.objects[LEASE]["spec"]["holderIdentity"] == "second"
        assert kmock.objects[LEASE]["spec"]["leaseTransitions"] == 1
    finally:
        for process in filter(None, (first, second)):
            if process.returncode is None:
                process.kill()
            await process.wait()


async def test_a_server_that_is_away_ends_leading_in_time(kmock, connect, monkeypatch):
    clock = Clock()
    api = connect()
    election = LeaseElection(api, SETTINGS, "a", clock)
    await election.try_once()
    fail_once(monkeypatch, api, *[api_error(500)] * 8)
    clock.now += 5.0
    await election.try_once()
    assert election.leading  # its lease holds still
    clock.now += 5.0
    await election.try_once()
    assert not election.leading


# -- wired ----------------------------------------------------------------------------------------


def kubeconfig(tmp_path, url: str) -> str:
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "users": [{"name": "u", "user": {}}],
    }
    file = tmp_path / "kubeconfig"
    file.write_text(json.dumps(content))
    return str(file)


async def test_the_assembled_autoscaler_leads_and_lets_go(kmock, tmp_path, monkeypatch):
    monkeypatch.setenv("KUBECONFIG", kubeconfig(tmp_path, str(kmock.url).rstrip("/")))
    settings = Settings(
        autoscaler={
            "kubernetes": SETTINGS.model_dump(),
            "routers": ["http://127.0.0.1:1"],
            "interval": 0.05,
        }
    )
    async with assembled(settings, dry_run=False) as parts:
        async with asyncio.timeout(20):
            while not parts.leading():  # noqa: ASYNC110  bounded above
                await asyncio.sleep(0.02)
        assert kmock.objects[LEASE]["spec"]["holderIdentity"]
        # Ray's dashboard is away: a turn holds.
        assert await parts.autoscaler.turn() is None
    assert kmock.objects[LEASE]["spec"]["holderIdentity"] == ""


async def test_a_dry_run_asks_for_no_lease(kmock, tmp_path, monkeypatch):
    monkeypatch.setenv("KUBECONFIG", kubeconfig(tmp_path, str(kmock.url).rstrip("/")))
    settings = Settings(autoscaler={"kubernetes": SETTINGS.model_dump()})
    async with assembled(settings, dry_run=True) as parts:
        assert parts.leading()
    assert list(kmock._requests) == []


async def test_no_cluster_is_a_settings_error(tmp_path, monkeypatch):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    settings = Settings(autoscaler={"kubernetes": SETTINGS.model_dump()})
    with pytest.raises(SettingsError, match="no cluster is configured"):
        async with assembled(settings, dry_run=True):
            pass
