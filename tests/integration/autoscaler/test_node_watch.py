"""Groups on disrupted nodes and pods are drained immediately.

The interval is an hour here, so only a watch can trigger a drain.
"""

import asyncio
import contextlib

import pytest
import structlog

from serving.autoscaler.actuators.kubernetes_api import KubernetesApi
from serving.autoscaler.actuators.kubernetes_watch import Informer
from serving.autoscaler.actuators.node_watch import NodeWatch
from serving.autoscaler.actuators.worker_group import WorkerGroupActuator
from serving.autoscaler.routers import ObservedGroup
from serving.settings import AutoscalerSettings, KubernetesSettings
from tests.kube import objects, rbac
from tests.kube.server import KubeServer
from tests.support.autoscaler_metrics import sample
from tests.support.waiting import PATIENCE, eventually

NODES, PODS = "/api/v1/nodes", "/api/v1/namespaces/default/pods"
SETTINGS = KubernetesSettings(
    enabled=True, cluster="moe", api_timeout=PATIENCE, attempts=1, watch_timeout=PATIENCE
)
SPOT = {"key": "aws-node-termination-handler/spot-itn", "effect": "NoSchedule"}


class Fleet:
    """Two groups at three addresses, and the recorded calls for them."""

    def __init__(self):
        self.living = [
            ObservedGroup("g0", 1.0, frozenset({"10.0.0.0", "10.0.0.1"}), True),
            ObservedGroup("g1", 2.0, frozenset({"10.0.0.2"}), True),
        ]
        self.calls = []
        self.stuck = set()
        """Groups whose drain never ends."""
        self.unwell = 0
        """Number of first drains that a router does not finish."""

    async def groups(self):
        return tuple(self.living)

    async def drain(self, group_id, reason):
        self.calls.append(("drain", group_id, reason))
        if group_id in self.stuck:
            await asyncio.Event().wait()
        self.unwell -= 1
        return self.unwell < 0

    async def restore(self, group_id):
        self.calls.append(("restore", group_id))

    async def asked(self, *calls):
        """Wait until exactly these calls were made."""
        with contextlib.suppress(TimeoutError):
            await eventually(lambda: self.calls == list(calls))
        assert self.calls == list(calls)


def watching(kind):
    return sample("watching", kind=kind)


def failures():
    return sample("failures_total", stage="nodes")


class Cluster:
    """Three nodes with a worker each, in an API server."""

    def __init__(self, server):
        self.server = server
        for number in range(3):
            server.create(objects.node(f"n{number}"))
            self.pod(f"w{number}", f"10.0.0.{number}", f"n{number}")

    def node(self, name, **spec):
        """Update the spec of a node: cordoned, tainted, or neither."""
        self.server.patch("nodes", name, {"spec": {"unschedulable": None, "taints": None} | spec})

    def pod(self, name, ip, node, *, cluster="moe", finalizers=(), **status):
        made = objects.pod(name, ip, node, labels=objects.ray_labels(cluster), **status)
        made["metadata"]["finalizers"] = [*finalizers]
        self.server.create(made)

    def watches(self, path):
        """Return the query of each watch request."""
        return [seen.query for seen in self.server.requests if seen.watch and seen.path == path]

    def lists(self, path):
        return sum(not seen.watch and seen.path == path for seen in self.server.requests)

    async def watched(self, path, times=1):
        """Wait for this number of watch requests."""
        await eventually(lambda: len(self.watches(path)) >= times)


@pytest.fixture
async def connect(cluster):
    made = []

    def api(settings=SETTINGS, token=rbac.ADMIN_TOKEN):
        made.append(KubernetesApi(settings, cluster.server.configuration(token)))
        return made[-1]

    yield api
    for one in made:
        await one.close()


@pytest.fixture
def cluster():
    with KubeServer() as server:
        yield Cluster(server)


@pytest.fixture
async def start(cluster, connect):
    """Return a function that starts a watch over ``cluster`` and returns its fleet."""
    tasks = []

    async def started(
        settings=SETTINGS, interval=3600.0, leading=lambda: True, token=rbac.ADMIN_TOKEN
    ):
        api, fleet = connect(settings, token), Fleet()
        scaling = AutoscalerSettings(kubernetes=settings, interval=interval)
        watch = NodeWatch(
            api, WorkerGroupActuator(api, settings, fleet, fleet), fleet, fleet, scaling
        )
        tasks.append(asyncio.create_task(watch.run(leading)))
        return fleet

    with structlog.testing.capture_logs() as logs:
        yield started
        for task in tasks:
            assert not task.done()
            task.cancel()
            await asyncio.wait([task])
    assert [entry for entry in logs if entry["log_level"] == "error"] == []  # tracebacks


@pytest.fixture
async def fleet(cluster, start):
    """A fleet whose cluster is watched."""
    found = await start()
    await cluster.watched(NODES)
    await cluster.watched(PODS)
    return found


# -- removed nodes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        pytest.param({"unschedulable": True}, "node n1 is cordoned", id="cordoned"),
        pytest.param({"taints": [SPOT]}, f"node n1: {SPOT['key']}", id="spot"),
        pytest.param(
            {"taints": [{"key": "karpenter.sh/disrupted", "effect": "NoSchedule"}]},
            "node n1: karpenter.sh/disrupted",
            id="karpenter",
        ),
    ],
)
async def test_a_taint_hands_the_group_over_and_its_end_gives_it_work_again(
    cluster, fleet, spec, why
):
    assert fleet.calls == []
    cluster.node("n1", **spec)
    await fleet.asked(("drain", "g0", why))
    cluster.node("n0", **spec)  # the same group again
    cluster.node("n1")
    cluster.node("n0")
    await fleet.asked(("drain", "g0", why), ("restore", "g0"))


async def test_what_goes_already_is_seen_in_the_first_list(cluster, start):
    cluster.node("n2", unschedulable=True)
    fleet = await start()
    await fleet.asked(("drain", "g1", "node n2 is cordoned"))


async def test_other_taints_mean_nothing(cluster, fleet):
    taints = [
        {"key": "nvidia.com/gpu", "effect": "NoSchedule"},
        {"key": "DeletionCandidateOfClusterAutoscaler", "effect": "PreferNoSchedule"},
    ]
    cluster.node("n1", taints=taints)
    cluster.node("n2", taints=[SPOT])  # and this one is detected after it
    await fleet.asked(("drain", "g1", f"node n2: {SPOT['key']}"))


@pytest.mark.parametrize(
    ("conditions", "why"),
    [
        pytest.param(
            [{"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}],
            "pod w2: PreemptionByScheduler",
            id="preempted",
        ),
        pytest.param([], "pod w2 is being deleted", id="deleted"),
    ],
)
async def test_a_pod_that_goes_hands_its_group_over(cluster, fleet, conditions, why):
    if conditions:
        status = {"status": {"conditions": conditions}}
        cluster.server.patch("pods", "w2", status, subresource="status")
    else:
        cluster.server.delete("pods", "w2")
    await fleet.asked(("drain", "g1", why))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"phase": "Failed"}, id="ended-and-its-address-is-anothers"),
        pytest.param({"cluster": "else"}, id="another-cluster"),
    ],
)
async def test_pods_of_no_concern(cluster, fleet, change):
    cluster.pod("old", "10.0.0.1", "n1", finalizers=["example.com/kept"], **change)
    cluster.server.delete("pods", "old")
    assert "deletionTimestamp" in cluster.server.get("pods", "old")["metadata"]
    cluster.node("n2", unschedulable=True)
    await fleet.asked(("drain", "g1", "node n2 is cordoned"))
    cluster.pod("last", "10.0.0.0", "n0")
    cluster.server.delete("pods", "last")
    await fleet.asked(fleet.calls[0], ("drain", "g0", "pod last is being deleted"))


async def test_a_node_that_is_gone_gives_its_group_no_work_again(cluster, fleet):
    cluster.node("n1", unschedulable=True)
    await fleet.asked(why := ("drain", "g0", "node n1 is cordoned"))
    cluster.server.delete("nodes", "n1")
    cluster.node("n2", unschedulable=True)
    await fleet.asked(why, ("drain", "g1", "node n2 is cordoned"))


async def test_a_long_drain_keeps_no_other_group_waiting(cluster, fleet):
    fleet.stuck = {"g0"}
    cluster.node("n1", unschedulable=True)
    await eventually(lambda: len(fleet.calls) == 1)
    cluster.node("n2", unschedulable=True)
    await eventually(lambda: len(fleet.calls) == 2)
    cluster.node("n1")  # restored, although its drain has not ended
    await eventually(lambda: fleet.calls[2:] == [("restore", "g0")])


async def test_a_drain_that_not_all_routers_finished_is_asked_for_again(cluster, start):
    fleet = await start(interval=0.05)
    fleet.unwell = 2
    before = sample("node_handovers_total")
    cluster.node("n1", unschedulable=True)
    await eventually(lambda: len(fleet.calls) == 3)
    cluster.node("n2", unschedulable=True)
    await eventually(lambda: len(fleet.calls) == 4)
    assert [group for _, group, _ in fleet.calls] == ["g0", "g0", "g0", "g1"]
    assert sample("node_handovers_total") == before + 2  # groups, not attempts


async def test_who_waits_for_the_lease_watches_and_hands_nothing_over(cluster, start):
    leads, turns = False, 0

    def leading():
        nonlocal turns
        turns += 1
        return leads

    cluster.node("n1", unschedulable=True)
    fleet = await start(interval=0.05, leading=leading)
    await cluster.watched(NODES)
    seen = turns
    await eventually(lambda: turns > seen + 3)
    assert fleet.calls == []
    leads = True
    await fleet.asked(("drain", "g0", "node n1 is cordoned"))


# -- failures ------------------------------------------------------------------------------------


async def test_a_dropped_connection_goes_on_where_it_was(cluster, fleet):
    cluster.node("n2", unschedulable=True)
    await fleet.asked(other := ("drain", "g1", "node n2 is cordoned"))
    seen = cluster.server.store.revision
    cluster.server.drop()
    cluster.node("n1", unschedulable=True)
    await fleet.asked(other, ("drain", "g0", "node n1 is cordoned"))
    assert cluster.lists(NODES) == 1
    first, second = cluster.watches(NODES)
    assert first["allowWatchBookmarks"] == "true"
    assert int(first["resourceVersion"]) < seen == int(second["resourceVersion"])
    await eventually(lambda: watching("nodes") == 1)


async def test_a_bookmark_moves_the_version_on(cluster, fleet):
    mark = cluster.server.store.bookmark("nodes")
    cluster.node("n2", taints=[SPOT])
    await eventually(lambda: len(fleet.calls) == 1)  # so the bookmark was read too
    cluster.server.store.oldest = mark
    cluster.server.drop()
    await cluster.watched(NODES, 2)
    cluster.node("n1", unschedulable=True)
    await eventually(lambda: len(fleet.calls) == 2)
    assert cluster.lists(NODES) == 1
    assert int(cluster.watches(NODES)[1]["resourceVersion"]) >= mark


@pytest.mark.parametrize("way", ["event", "status"])
async def test_a_version_that_is_too_old_is_listed_anew(cluster, fleet, way):
    cluster.server.watches.gone = way
    cluster.server.drop()
    cluster.node("n1", unschedulable=True)
    cluster.server.store.compact()
    await fleet.asked(("drain", "g0", "node n1 is cordoned"))
    assert cluster.lists(NODES) == 2
    await eventually(lambda: watching("nodes") == 1)
    assert int(cluster.watches(NODES)[-1]["resourceVersion"]) == cluster.server.store.revision
    cluster.node("n2", unschedulable=True)
    await eventually(lambda: len(fleet.calls) == 2)


async def test_what_went_unseen_is_given_up_after_a_new_list(cluster, fleet):
    cluster.node("n1", unschedulable=True)
    await fleet.asked(drained := ("drain", "g0", "node n1 is cordoned"))
    cluster.server.drop()
    cluster.node("n1")
    cluster.server.store.compact()
    await fleet.asked(drained, ("restore", "g0"))


async def test_without_the_right_to_watch_it_says_so_and_lists(cluster, start):
    both = {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]}
    nodes = {"apiGroups": [""], "resources": ["nodes"], "verbs": ["list"]}
    for item in objects.service_account("sa", "default", both, nodes, cluster=True):
        cluster.server.create(item)
    words = (
        'nodes is forbidden: User "system:serviceaccount:default:sa" cannot watch resource "nodes" '
        'in API group "" at the cluster scope'
    )
    with structlog.testing.capture_logs() as logs:
        fleet = await start(token=rbac.service_account_token("default", "sa"))
        await cluster.watched(NODES, 3)
        cluster.node("n1", unschedulable=True)
        await fleet.asked(("drain", "g0", "node n1 is cordoned"))
        assert watching("nodes") == 0
        assert watching("pods") == 1
        rules = [both, nodes | {"verbs": ["list", "watch"]}]
        cluster.server.patch("clusterroles", "sa", {"rules": rules})
        await eventually(lambda: watching("nodes") == 1)
    output = [entry["error"] for entry in logs if entry["event"].startswith("watch lost")]
    assert output == [f"Kubernetes: watch nodes: 403 {words}"]


async def test_a_server_that_is_away_is_said_once_and_found_again(cluster, fleet):
    await eventually(lambda: watching("nodes") == watching("pods") == 1)
    before = failures()
    with structlog.testing.capture_logs() as logs:
        cluster.server.stop()
        await eventually(lambda: failures() >= before + 6)
        assert watching("nodes") == watching("pods") == 0
        cluster.server.start()
        cluster.node("n1", unschedulable=True)
        await fleet.asked(("drain", "g0", "node n1 is cordoned"))
        await eventually(lambda: watching("nodes") == watching("pods") == 1)
    output = [entry["error"] for entry in logs if entry["event"].startswith("watch lost")]
    # Disconnected, then rejected: each once for nodes and once for pods.
    assert len(output) == len(set(output)) == 4
    assert [e["event"] for e in logs if e["event"] == "watch restored"] == ["watch restored"] * 2


async def test_a_server_that_is_away_from_the_beginning(cluster, start):
    cluster.server.stop()
    fleet = await start()
    before = failures()
    await eventually(lambda: failures() >= before + 2)
    assert watching("nodes") == 0
    cluster.node("n1", unschedulable=True)
    cluster.server.start()
    await fleet.asked(("drain", "g0", "node n1 is cordoned"))


async def test_a_connection_that_died_without_a_sign_is_given_up(cluster, start):
    mute = cluster.server.faults.add(NODES, watch=True, hang=True)
    settings = SETTINGS.model_copy(update={"watch_timeout": 0.3, "api_timeout": 0.3})
    fleet = await start(settings)
    await cluster.watched(NODES)
    cluster.node("n1", unschedulable=True)
    await cluster.watched(NODES, 2)
    assert fleet.calls == []
    cluster.server.faults.remove(mute)
    await fleet.asked(("drain", "g0", "node n1 is cordoned"))


# -- one mirror -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "lists"),
    [
        pytest.param([], 1, id="ends-at-once"),
        pytest.param([b"<html>no</html>\n"], 6, id="not-json"),
        pytest.param([b'{"reason": "odd"}\n'], 6, id="no-event"),
        pytest.param([b'{"kind": "Status", "code": 500, "reason": "x"}\n'], 6, id="status"),
    ],
)
async def test_it_waits_longer_each_time(cluster, connect, answer, lists):
    cluster.server.faults.add(NODES, watch=True, lines=answer)
    waits = []

    async def pause(seconds):
        waits.append(seconds)
        if len(waits) == 6:
            raise asyncio.CancelledError

    mirror = Informer(
        connect(), SETTINGS, "nodes", lambda _: "", list, pause=pause, chance=lambda: 1.0
    )
    with pytest.raises(asyncio.CancelledError):
        await mirror.run()
    assert waits == [0.25, 0.5, 1.0, 2.0, 4.0, 5.0]
    assert cluster.lists(NODES) == lists
    assert set(mirror.items) == {"n0", "n1", "n2"}  # known objects are kept


async def test_the_wait_is_jittered_and_short_again_after_an_event(cluster, connect):
    fault = cluster.server.faults.add(NODES, watch=True, lines=[])
    chances = iter([0.0, 1.0, 0.5, 0.5])
    waits = []

    async def pause(seconds):
        waits.append(seconds)
        if len(waits) == 2:
            event = b'{"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "900"}}}\n'
            fault.lines = [event]
        if len(waits) == 3:
            raise asyncio.CancelledError

    mirror = Informer(
        connect(), SETTINGS, "nodes", lambda _: "", list, pause=pause, chance=lambda: next(chances)
    )
    with pytest.raises(asyncio.CancelledError):
        await mirror.run()
    assert waits == [0.125, 0.5, 0.1875]
