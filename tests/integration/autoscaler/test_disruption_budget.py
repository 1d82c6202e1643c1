"""The PodDisruptionBudget of the worker group follows the groups."""

import pytest

from serving.autoscaler.actuators.disruption_budget import DisruptionBudget, min_available
from serving.autoscaler.actuators.kubernetes import KubernetesActuator
from tests.integration.autoscaler.kube import SETTINGS, put_cluster, put_pods, workers_of, writes
from tests.kube.api import Options, Place
from tests.support.fake_actuator import FakeActuator

NAME = "moe-ranks"
WITH = SETTINGS.model_copy(update={"disruption_budget": NAME})


def budget(**spec):
    selector = {"matchLabels": {"moe-serving/pool": "ranks"}}
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": NAME, "namespace": "default"},
        "spec": {"selector": selector} | spec,
    }


def least(kube):
    return kube.get("poddisruptionbudgets", NAME)["spec"].get("minAvailable")


def follower(connect, groups):
    api = connect(WITH)
    return KubernetesActuator(groups, workers_of(api, WITH), DisruptionBudget(api, WITH))


@pytest.mark.parametrize(("groups", "expected"), [(0, 0), (1, 4), (2, 7), (5, 19)])
def test_the_charts_rule(groups, expected):
    assert min_available(groups, 4) == expected


async def test_it_follows_up_and_down(kube, connect):
    put_cluster(kube, replicas=2)
    put_pods(kube, 2)
    kube.create(budget())
    groups = FakeActuator(1)
    both = follower(connect, groups)
    await both.target()
    assert least(kube) == 2
    groups.groups = 3
    await both.target()
    assert least(kube) == 2  # the new pods do not exist yet
    put_pods(kube, 4, first=2)
    await both.target()
    assert least(kube) == 5
    groups.groups = 0
    await both.target()
    assert least(kube) == 0


async def test_what_is_kept_stays_while_pods_are_away(kube, connect):
    put_cluster(kube, replicas=6)
    put_pods(kube, 4)
    kube.create(budget(minAvailable=5))
    await follower(connect, FakeActuator(3)).target()
    assert least(kube) == 5


async def test_nothing_may_be_evicted_before_the_first_group_is_ready(kube, connect):
    put_cluster(kube, replicas=2, minReplicas=2)
    kube.create(budget())
    await follower(connect, FakeActuator(1)).target()
    assert least(kube) is None
    assert writes(kube) == []


async def test_nothing_is_written_while_nothing_changes(kube, connect):
    put_cluster(kube, replicas=2, minReplicas=2)
    put_pods(kube, 2)
    kube.create(budget(minAvailable=2))
    both = follower(connect, FakeActuator(1))
    for _ in range(3):
        await both.target()
    assert writes(kube) == []


async def test_a_release_that_sets_it_again_meets_no_conflict(kube, connect):
    put_cluster(kube, replicas=4)
    put_pods(kube, 4)
    place = Place(kube.store.kinds.named("poddisruptionbudgets"), NAME, "default")

    def applied(**spec):
        kube.api.apply(place, budget(**spec), Options(manager="helm"))

    applied()
    await follower(connect, FakeActuator(2)).target()
    assert least(kube) == 3
    applied()  # another upgrade with the autoscaler enabled does not change it
    assert least(kube) == 3
    applied(minAvailable=4)  # it is disabled
    assert least(kube) == 4


async def test_a_budget_that_is_not_there_is_no_reason_to_stop(kube, connect):
    put_cluster(kube)
    both = follower(connect, FakeActuator(3))
    assert await both.target() == 3
    assert kube.get("rayclusters", "moe")["spec"]["workerGroupSpecs"][1]["replicas"] == 6
