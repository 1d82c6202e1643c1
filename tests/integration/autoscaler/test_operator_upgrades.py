"""No pod with a rank is deleted, regardless of the numbers set by the operator and a release.

The actuator runs against the fake API server with a fake KubeRay and a fake kubelet; this module
places ranks as Ray Serve does.
"""

import random

import pytest

from serving.autoscaler.actuators.kubernetes import KubernetesActuator
from tests.helm.operator_form import operator_form
from tests.integration.autoscaler.kube import BY_SERVICE, Fleet, group, workers_of
from tests.kube import objects
from tests.kube.api import Options, Place
from tests.kube.controllers import settle
from tests.kube.kubelet import Kubelet
from tests.kube.kuberay import KubeRay
from tests.support.fake_actuator import FakeActuator

EACH = BY_SERVICE.workers_per_group


class World:
    """A release with one pool, its operator, its nodes, and Ray Serve's groups on them."""

    def __init__(self, kube, api):
        self.kube = kube
        self.operator, self.kubelet = KubeRay(), Kubelet()
        self.fleet = Fleet()
        self.serve = FakeActuator(1)
        self.ranks = {}
        """Group: the names of its pods."""
        self.upgrades = 0
        self.release()
        self.settle()
        self.autoscaler = KubernetesActuator(self.serve, workers_of(api, BY_SERVICE, self.fleet))
        self.place()

    def release(self, pods=EACH):
        """Apply a RayService in the operator's form, as Helm 4 does at each upgrade."""
        spec = objects.worker_group(
            "ranks", replicas=pods, minReplicas=pods, maxReplicas=12, scaleStrategy={}
        )
        config = objects.rayservice("moe-service", spec)
        del config["status"]
        config["spec"] = operator_form(config["spec"])
        place = Place(self.kube.store.kinds.named("rayservices"), "moe-service", "default")
        self.kube.api.apply(place, config, Options("helm"))

    def settle(self):
        settle(self.kube, self.operator, self.kubelet)
        lost = {name for names in self.ranks.values() for name in names} - self.alive().keys()
        assert not lost, f"pods with ranks went: {lost}"

    def alive(self):
        """Return name and address of the worker pods that are not being deleted."""
        return {
            pod["metadata"]["name"]: pod["status"].get("podIP")
            for pod in self.kube.items("pods")
            if pod["metadata"]["labels"]["ray.io/node-type"] == "worker"
            and "deletionTimestamp" not in pod["metadata"]
        }

    def place(self):
        """Let Ray Serve stop its newest groups, or place missing ones on free pods."""
        while len(self.ranks) > self.serve.groups:
            self.ranks.popitem()
        taken = {name for names in self.ranks.values() for name in names}
        free = [name for name, address in self.alive().items() if address and name not in taken]
        while len(self.ranks) < self.serve.groups and len(free) >= EACH:
            self.ranks[f"g{random.randrange(10**9)}"] = [free.pop() for _ in range(EACH)]
        missing = self.serve.groups - len(self.ranks)
        self.fleet.unplaced = f"{missing} groups are to be placed" if missing else ""
        self.fleet.placed = {self.alive()[name] for names in self.ranks.values() for name in names}
        # Every second one is still loading and unknown to the routers.
        joined = list(self.ranks.items())[::2]
        self.fleet.living = [group(one, *map(self.alive().get, names)) for one, names in joined]

    async def run_once(self):
        await self.autoscaler.target()
        self.settle()
        self.place()

    async def scale(self, groups):
        await self.autoscaler.scale(groups)
        self.settle()
        self.place()

    def upgrade_operator(self):
        self.upgrades += 1
        self.operator.version = f"v1.8.{self.upgrades}"
        self.settle()
        [cluster] = self.kube.items("rayclusters")
        assert cluster["metadata"]["annotations"]["ray.io/kuberay-version"] == self.operator.version

    def pods(self):
        [cluster] = self.kube.items("rayclusters")
        return cluster["spec"]["workerGroupSpecs"][0]["replicas"]


@pytest.fixture
def world(kube, connect):
    return World(kube, connect(BY_SERVICE))


async def test_an_upgrade_of_the_operator_takes_no_rank(world):
    await world.scale(3)
    assert len(world.ranks) == 3
    world.upgrade_operator()
    assert world.pods() == 3 * EACH
    await world.run_once()
    assert len(world.alive()) == 3 * EACH


async def test_an_upgrade_while_pods_still_end_takes_no_rank(world):
    """KubeRay counts terminating pods; an upgrade loses its list of pods to delete."""
    await world.scale(3)
    world.kubelet.ends = lambda pod: False
    await world.scale(2)
    await world.run_once()
    assert len(world.alive()) == 2 * EACH
    world.upgrade_operator()
    await world.run_once()
    world.kubelet.ends = lambda pod: True
    for _ in range(3):
        await world.run_once()
    assert len(world.alive()) == world.pods() == 2 * EACH


async def test_a_release_puts_its_number_back_and_an_upgrade_follows(world):
    await world.scale(3)
    world.release()
    world.settle()
    await world.run_once()
    world.upgrade_operator()
    assert world.pods() == 3 * EACH


async def test_scaling_in_two_steps_while_pods_still_end_takes_no_rank(world):
    await world.scale(4)
    world.kubelet.ends = lambda pod: False
    for groups in (3, 2, 1):
        await world.scale(groups)
        await world.run_once()
    # The operator does not change the worker group while a pod that it deleted is terminating.
    assert len(world.alive()) == 3 * EACH
    world.kubelet.ends = lambda pod: True
    for _ in range(3):
        await world.run_once()
    assert len(world.alive()) == world.pods() == EACH


@pytest.mark.parametrize("seed", range(12))
async def test_whatever_comes_in_whatever_order(world, seed):
    dice = random.Random(seed)
    for _ in range(25):
        match dice.choice(("scale", "scale", "turn", "upgrade", "release", "ends", "evicted")):
            case "scale":
                await world.scale(dice.randrange(5))
            case "turn":
                await world.run_once()
            case "upgrade":
                world.upgrade_operator()
            case "release":
                world.release(dice.randrange(1, 4) * EACH)
                await world.run_once()
            case "ends":
                ends = dice.random() < 0.5
                world.kubelet.ends = lambda pod, ends=ends: ends
                world.settle()
            case "evicted":
                taken = {name for names in world.ranks.values() for name in names}
                if idle := sorted(world.alive().keys() - taken):
                    world.kube.delete("pods", dice.choice(idle))
                    world.settle()
    world.kubelet.ends = lambda pod: True
    for _ in range(6):
        await world.run_once()
    assert len(world.ranks) == world.serve.groups
    assert len(world.alive()) == world.pods() == world.serve.groups * EACH
