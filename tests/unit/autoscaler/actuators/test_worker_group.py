"""Which pods are listed for deletion: a property over the states of Ray Serve and routers."""

import asyncio
import random
from types import SimpleNamespace

import pytest

from serving.autoscaler.actuators.actuator import ActuatorError
from serving.autoscaler.actuators.ray_serve import occupied_nodes
from serving.autoscaler.actuators.worker_group import WorkerGroupActuator
from serving.autoscaler.routers import ObservedGroup
from serving.settings import KubernetesSettings

STATES = (
    "STARTING", "UPDATING", "RECOVERING", "RUNNING", "STOPPING", "STOPPED", "PENDING_MIGRATION",
)  # fmt: skip
LEAVING = {"STOPPING", "STOPPED"}


def replica(node, state="RUNNING"):
    return {"replica_id": "r", "state": state, "node_ip": node, "node_id": None}


def page(*replicas, target=None, status="RUNNING"):
    count = sum(one["state"] not in LEAVING for one in replicas) if target is None else target
    ranks = {"target_num_replicas": count, "replicas": [*replicas]}
    return {"applications": {"moe-serving": {"status": status, "deployments": {"ranks": ranks}}}}


@pytest.mark.parametrize("state", STATES)
def test_a_replica_holds_its_node_in_every_state(state):
    assert occupied_nodes(page(replica("10.0.0.1", state))) == {"10.0.0.1"}


@pytest.mark.parametrize("state", sorted(set(STATES) - LEAVING))
@pytest.mark.parametrize("node", [None, ""])
def test_a_replica_without_a_node_could_get_any(state, node):
    with pytest.raises(ActuatorError, match=f"{state} and has no node yet"):
        occupied_nodes(page(replica("10.0.0.1"), replica(node, state)))


def test_a_gang_that_is_not_listed_yet_could_get_any():
    with pytest.raises(ActuatorError, match="2 of 4 replicas are not placed yet"):
        occupied_nodes(page(replica("10.0.0.1"), replica("10.0.0.2"), target=4))


def test_replicas_that_stop_are_no_part_of_the_number():
    stopping = [replica(f"10.0.0.{number}", "STOPPING") for number in range(2)]
    with pytest.raises(ActuatorError, match="2 of 2 replicas are not placed yet"):
        occupied_nodes(page(*stopping, target=2))


@pytest.mark.parametrize("status", ["DEPLOYING", "NOT_STARTED"])
def test_an_application_that_comes_could_get_any(status):
    with pytest.raises(ActuatorError, match="is being deployed"):
        occupied_nodes({"applications": {"moe": {"status": status, "deployments": {}}}})


def test_replicas_of_other_applications_hold_nodes_too():
    both = page(replica("10.0.0.1"))
    both["applications"]["other"] = page(replica("10.0.0.2"))["applications"]["moe-serving"]
    assert occupied_nodes(both) == {"10.0.0.1", "10.0.0.2"}


@pytest.mark.parametrize(
    "unreadable",
    [
        {},
        {"applications": None},
        {"applications": {"a": {"deployments": {"ranks": {"target_num_replicas": 2}}}}},
        {"applications": {"a": {"deployments": {"ranks": {"replicas": [{}]}}}}},
    ],
)
def test_a_page_that_cannot_be_read_says_nothing(unreadable):
    with pytest.raises(ActuatorError):
        occupied_nodes(unreadable)


# -- the property ---------------------------------------------------------------------------------


class Api:
    """A worker group with pods, and the patches that it received."""

    def __init__(self, pods, replicas):
        self.listed = pods
        self.spec = {"groupName": "ranks", "replicas": replicas, "minReplicas": replicas}
        self.patches = []

    async def get(self, *_):
        return {"spec": {"workerGroupSpecs": [self.spec]}}

    async def pods(self, _):
        return self.listed

    async def patch(self, _group, _plural, _name, patch):
        self.patches.append(patch)


def pod(name, address, *, deleted):
    status = SimpleNamespace(pod_ip=address, pod_ips=None)
    metadata = SimpleNamespace(name=name, deletion_timestamp="now" if deleted else None)
    return SimpleNamespace(metadata=metadata, status=status)


class Sources:
    def __init__(self, groups, serve):
        self._groups, self._serve = groups, serve

    async def groups(self):
        if self._groups is None:
            raise ActuatorError("no router responds")
        return self._groups

    async def occupied(self):
        if self._serve is None:
            raise ActuatorError("Ray does not answer")
        return occupied_nodes(self._serve)


def named(api):
    changes = [change for patch in api.patches for change in patch]
    found = [c["value"]["workersToDelete"] for c in changes if c["path"].endswith("scaleStrategy")]
    return found[0] if found else []


@pytest.mark.parametrize("seed", range(400))
def test_no_pod_is_named_that_a_rank_is_on_or_may_come_to(seed):
    dice = random.Random(seed)
    count = dice.randrange(1, 9)
    addresses = [f"10.0.0.{number}" for number in range(count)]
    pods = [
        pod(f"w{number}", address if dice.random() < 0.9 else None, deleted=dice.random() < 0.15)
        for number, address in enumerate(addresses)
    ]
    groups = [
        ObservedGroup(f"g{number}", 1.0, frozenset(dice.sample(addresses, 1)), dice.random() < 0.7)
        for number in range(dice.randrange(3))
    ]
    replicas = [
        replica(dice.choice(addresses) if dice.random() < 0.9 else None, dice.choice(STATES))
        for _ in range(dice.randrange(5))
    ]
    staying = [one for one in replicas if one["state"] not in LEAVING]
    target = len(staying) + (dice.random() < 0.15)
    serve = page(*replicas, target=target) if dice.random() < 0.9 else None
    seen = groups if dice.random() < 0.9 else None
    api = Api(pods, replicas=count)
    settings = KubernetesSettings(enabled=True, cluster="moe")
    sources = Sources(seen, serve)
    wanted = dice.randrange(count)
    asyncio.run(WorkerGroupActuator(api, settings, sources, sources).scale(wanted))

    listed = set(named(api))
    unknown = (
        serve is None
        or seen is None
        or target > len(staying)
        or any(one["node_ip"] is None for one in staying)
    )
    if unknown:
        assert listed == set()
    held = {node for one in seen or () for node in one.nodes}
    held |= {one["node_ip"] for one in replicas}
    address_of = {one.metadata.name: one.status.pod_ip for one in pods}
    assert not {address_of[name] for name in listed} - {None} & held
    free = [name for name, address in address_of.items() if address is None or address not in held]
    if not unknown:
        assert len(listed) == min(count - wanted, len(free))
