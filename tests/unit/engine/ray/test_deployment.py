"""What Serve is asked for; that Serve does it is for tests/e2e."""

import socket
import subprocess
import sys

import psutil
import pytest
from ray.serve.config import GangPlacementStrategy

from serving.engine.ray import cluster, deployment
from serving.engine.ray.node_network import free_port, interface_of, network_environment
from serving.engine.ray.rendezvous import GangMember, Meeting
from serving.errors import EngineError
from serving.settings import Settings


def settings(**group: object) -> Settings:
    return Settings(
        group=group,
        engine={"kind": "fake"},
        platform=group.pop("platform", "cpu"),
    )


def test_a_gang_a_group_and_a_replica_a_rank() -> None:
    options = deployment.deployment_options(settings(count=3, data_parallel=4))
    assert options["num_replicas"] == 12
    assert options["gang_scheduling_config"].gang_size == 4
    assert options["gang_scheduling_config"].runtime_failure_policy == "RESTART_GANG"
    assert options["ray_actor_options"]["num_cpus"] == 2.0
    assert options["ray_actor_options"]["num_gpus"] == 0


def test_a_private_cluster_is_the_pool_that_its_groups_ask_for() -> None:
    assert cluster._own_resources(settings(node_resource="pool-a")) == {"pool-a": 1.0}
    assert cluster._own_resources(settings()) == {}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        pytest.param({}, "blue", id="alone"),
        pytest.param({"RAY_CLUSTER_NAME": "r1-abcde"}, "r1-abcde/blue", id="kuberay"),
    ],
)
def test_a_group_says_what_deployed_it(environment: dict[str, str], expected: str) -> None:
    assert deployment.origin("blue", environment) == expected


def test_ranks_ask_for_the_resource_of_their_pool() -> None:
    options = deployment.deployment_options(settings(node_resource="pool-a"))
    assert options["ray_actor_options"]["resources"] == {"pool-a": 0.001}
    assert "resources" not in deployment.deployment_options(settings())["ray_actor_options"]


def test_on_gpus_a_rank_holds_those_of_its_workers() -> None:
    options = deployment.deployment_options(
        settings(platform="gpu", data_parallel=2, tensor_parallel=8)
    )
    assert options["ray_actor_options"]["num_gpus"] == 8
    assert "placement_group_bundles" not in options


@pytest.mark.parametrize(
    ("placement", "strategy"),
    [
        ("pack", GangPlacementStrategy.PACK),
        ("spread", GangPlacementStrategy.SPREAD),
        ("strict_spread", GangPlacementStrategy.SPREAD),
    ],
)
def test_placement(placement: str, strategy: GangPlacementStrategy) -> None:
    options = deployment.deployment_options(settings(placement=placement))
    assert options["gang_scheduling_config"].gang_placement_strategy == strategy
    # A node's implicit resources would keep ranks apart too, and crash the raylet.
    assert "resources" not in options["ray_actor_options"]


@pytest.mark.parametrize(
    ("group", "num_cpus", "expected"),
    [
        ({}, None, 4),
        ({"count": 3, "data_parallel": 2, "cpus_per_rank": 0.5}, None, 9),
        ({"count": 0}, None, 1),
        ({}, 7.0, 7),
    ],
)
def test_a_private_ray_has_room_for_the_groups(
    group: dict[str, object], num_cpus: float | None, expected: int
) -> None:
    wanted = settings(**group).model_copy(
        update={"ray": Settings().ray.model_copy(update={"num_cpus": num_cpus})}
    )
    assert cluster.needed_cpus(wanted) == expected


def test_a_private_ray_is_closed_and_on_loopback() -> None:
    environment = cluster.private_environment("word")
    assert environment["RAY_AUTH_MODE"] == "token"
    assert environment["RAY_AUTH_TOKEN"] == "word"
    assert environment["RAY_USAGE_STATS_ENABLED"] == "0"


def test_loopback_has_an_interface() -> None:
    interface = interface_of("127.0.0.1")
    assert network_environment("127.0.0.1") == {
        "VLLM_HOST_IP": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": interface,
        "NCCL_SOCKET_IFNAME": f"={interface}",
    }


def test_a_foreign_address_is_an_error_that_names_it() -> None:
    with pytest.raises(EngineError, match=r"192\.0\.2\.77"):
        interface_of("192.0.2.77")


def test_a_free_port_can_be_bound() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", free_port("127.0.0.1")))


def test_no_child_outlives_the_rank() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", "import signal; signal.pause()"], start_new_session=True
    ) as child:
        process = psutil.Process(child.pid)
        deployment.end_children(0.1, keep=set(psutil.Process().children()) - {process})
        assert not process.is_running()


def test_routers_are_told_where_the_ranks_own_metrics_are() -> None:
    here = settings(data_parallel=1)
    member = GangMember("app", "g0", 0, 1, ("replica",))
    meeting = Meeting("127.0.0.1", 1, "e1", 12.5)
    engine = deployment.make_engine(here, member, meeting)
    server = deployment.make_server(
        engine, here, member, meeting, "127.0.0.1", metrics_address="127.0.0.1:9400"
    )
    assert server._hello().metrics_address == "127.0.0.1:9400"
    assert server._hello().epoch_started_unix_seconds == 12.5


def test_a_local_deployment_has_no_proxies_and_no_route(monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve's proxies listen for KubeRay alone; on this machine nobody asks them."""
    from ray import serve
    from ray.serve import api

    started, targets = [], []
    monkeypatch.setattr(serve, "start", lambda **options: started.append(options))
    monkeypatch.setattr(serve, "run_many", lambda found, **_: targets.extend(found))
    deployment.deploy(settings())
    assert started == [{"proxy_location": "Disabled"}]
    (target,) = targets
    assert isinstance(target, api.RunTarget)
    assert target.route_prefix is None
