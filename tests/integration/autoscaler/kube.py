"""Shared parts of the Kubernetes actuator's tests: a fleet, objects, an API client."""

import copy
from dataclasses import dataclass, field

from serving.autoscaler.actuators.actuator import ActuatorError
from serving.autoscaler.actuators.worker_group import WorkerGroupActuator
from serving.autoscaler.routers import ObservedGroup
from serving.settings import KubernetesSettings
from tests.kube import objects
from tests.support.waiting import PATIENCE

SETTINGS = KubernetesSettings(
    enabled=True, cluster="moe", workers_per_group=2, api_timeout=PATIENCE
)
BY_SERVICE = SETTINGS.model_copy(update={"cluster": "", "service": "moe-service"})
LEASE = SETTINGS.lease
TARGET = "/apis/ray.io/v1/namespaces/default/rayclusters/moe"


@dataclass
class Fleet:
    """A fake of the routers and Ray Serve: the nodes of the ranks."""

    living: list = field(default_factory=list)
    placed: set = field(default_factory=set)
    """Addresses of nodes with a replica that is in no group."""
    unplaced: str = ""
    """Error of Ray Serve; empty: none."""
    silent: bool = False
    """No router responds."""

    async def groups(self):
        if self.silent:
            raise ActuatorError("no router responds")
        return tuple(self.living)

    async def occupied(self):
        if self.unplaced:
            raise ActuatorError(self.unplaced)
        return frozenset(self.placed)


def group(name, *nodes, ready=True):
    return ObservedGroup(name, 1.0, frozenset(nodes), ready)


def workers_of(api, settings=SETTINGS, fleet=None, clock=None):
    fleet = fleet or Fleet()
    return WorkerGroupActuator(api, settings, fleet, fleet, clock)


def put_cluster(server, name="moe", **spec):
    """Create the RayCluster, or change the number of its second worker group."""
    groups = (objects.worker_group("other", replicas=9), objects.worker_group("ranks", **spec))
    if server.get("rayclusters", name) is None:
        server.create(objects.raycluster(name, *groups))
        return
    made = objects.raycluster(name, *groups)["spec"]["workerGroupSpecs"]
    server.patch("rayclusters", name, {"spec": {"workerGroupSpecs": made}})


def put_pods(server, count, cluster="moe", first=0):
    """Create pods w0, w1, … at 10.0.0.0, 10.0.0.1, …"""
    for number in range(first, first + count):
        labels = objects.ray_labels(cluster)
        server.create(objects.pod(f"w{number}", f"10.0.0.{number}", "n1", labels=labels))


def put_service(server, active="", pending="", **spec):
    groups = (objects.worker_group("other", replicas=9), objects.worker_group("ranks", **spec))
    server.create(objects.rayservice("moe-service", *groups, active=active, pending=pending))


def worker_spec(server, name="moe"):
    return copy.deepcopy(server.get("rayclusters", name)["spec"]["workerGroupSpecs"][1])


def service_spec(server):
    config = server.get("rayservices", "moe-service")["spec"]["rayClusterConfig"]
    return copy.deepcopy(config["workerGroupSpecs"][1])


def numbers(spec):
    return spec["replicas"], spec["minReplicas"], spec["maxReplicas"]


def named(spec):
    return (spec.get("scaleStrategy") or {}).get("workersToDelete", [])


def writes(server):
    return [seen for seen in server.requests if seen.method not in {"GET", "HEAD"}]


def fail_once(monkeypatch, api, *errors):
    """Make the next calls of ``api`` raise these errors before they reach the server."""
    left, call = list(errors), api._client.call_api

    async def flaky(*args, **kwargs):
        if left:
            error = left.pop(0)
            raise error
        return await call(*args, **kwargs)

    monkeypatch.setattr(api._client, "call_api", flaky)
