"""The deployment as given to Serve; tests/e2e test its effect."""

import logging
import logging.config
from logging.handlers import MemoryHandler, RotatingFileHandler
from pathlib import Path

import pytest
from ray.serve.config import GangPlacementStrategy

from serving.engine.ray import cluster, deployment
from serving.engine.ray.deployment import kept_handlers
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
    assert cluster.own_resources(settings(node_resource="pool-a")) == {"pool-a": 1.0}
    assert cluster.own_resources(settings()) == {}


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
    # A node's implicit resources would separate ranks too, but crash the raylet.
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


def test_a_local_deployment_has_no_proxies_and_no_route(monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve's proxies are for KubeRay only; they are not used on one machine."""
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


# Serve's log handlers outlive vLLM's set-up of logging.


@pytest.fixture
def serve_log(tmp_path):
    logger = logging.getLogger("like.ray.serve")
    logger.setLevel(logging.INFO)  # independent of earlier tests
    target = RotatingFileHandler(tmp_path / "replica.log")
    handler = MemoryHandler(100, target=target)
    logger.addHandler(handler)
    yield logger, handler, target
    logger.removeHandler(handler)
    handler.close()
    target.close()


def configure():
    logging.config.dictConfig({"version": 1, "disable_existing_loggers": False})


def test_configuring_takes_the_target_away(serve_log):
    _, handler, _ = serve_log
    configure()
    assert handler.target is None  # otherwise kept_handlers is no longer needed


def test_kept_handlers_have_their_target_and_it_writes(serve_log):
    logger, handler, target = serve_log
    with kept_handlers(logger):
        configure()
    assert handler.target is target
    logger.warning("still here")
    handler.flush()
    assert "still here" in Path(target.baseFilename).read_text(encoding="utf-8")
