"""Settings of the autoscaler for a pool: defaults, contradictions, and the shared limits."""

import pytest

from serving.errors import SettingsError
from serving.settings import gpus_per_group, load_settings, served_models


def pools_of(*scalings, **autoscaler):
    pools = [
        {"name": f"p{number}", "autoscaler": scaling, "group": {"data_parallel": 4}}
        for number, scaling in enumerate(scalings)
    ]
    settings = load_settings(
        flags={
            "models": [{"name": "m", "path": "/m", "pools": pools}],
            "autoscaler": autoscaler,
        }
    )
    return [pool.settings for pool in served_models(settings)[0].pools]


def test_null_is_the_setting_under_autoscaler():
    own, default = pools_of(
        {"min_groups": 0, "ttft_slo": 9.0, "schedule": [{"when": "* * * * *", "groups": 1}]},
        {},
        min_groups=1,
        max_groups=3,
        ttft_slo=1.0,
    )
    scaling = own.autoscaler
    assert (scaling.min_groups, scaling.max_groups, scaling.ttft_slo) == (0, 3, 9.0)
    assert scaling.schedule[0].groups == 1
    assert (default.autoscaler.min_groups, default.autoscaler.ttft_slo) == (1, 1.0)
    assert default.autoscaler.schedule == ()
    assert gpus_per_group(scaling, own.group) == 4.0


def test_a_pool_has_its_own_schedule_of_batches():
    always = {"when": "* * * * *", "groups": 2}
    own, default = pools_of(
        {"batch": {"schedule": [always]}},
        {},
        batch={"schedule": [always | {"groups": 1}], "max_hourly_cost": 40.0},
    )
    assert own.autoscaler.batch.schedule[0].groups == 2
    assert default.autoscaler.batch.schedule[0].groups == 1
    for pool in (own, default):
        assert pool.autoscaler.batch.max_hourly_cost == 40.0


def test_a_pool_has_its_own_worker_group():
    own, default = pools_of(
        {"kubernetes": {"service": "moe-p0", "workers_per_group": 2}},
        {},
        kubernetes={"enabled": True, "cluster": "moe", "worker_group": "ranks"},
    )
    kubernetes = own.autoscaler.kubernetes
    assert (kubernetes.service, kubernetes.cluster) == ("moe-p0", "")
    assert (kubernetes.worker_group, kubernetes.workers_per_group) == ("ranks", 2)
    assert default.autoscaler.kubernetes.cluster == "moe"


@pytest.mark.parametrize(
    ("scalings", "shared", "error"),
    [
        pytest.param(
            [{}, {"min_groups": 4}],
            {"max_groups": 2},
            "models[0].pools[1].autoscaler: min_groups must not be greater than max_groups",
            id="bounds",
        ),
        pytest.param(
            [{"kubernetes": {"cluster": "moe"}}, {}],
            {"kubernetes": {"enabled": True}},
            "models[0].pools[1].autoscaler: kubernetes.enabled requires",
            id="no-cluster",
        ),
        pytest.param(
            [{"min_groups": 1}, {"min_groups": 2, "max_groups": 2}],
            {"max_gpus": 11},
            "min_groups of all pools need 12 GPUs, but autoscaler.max_gpus is 11",
            id="gpus",
        ),
        pytest.param(
            [{"kubernetes": {"workers_per_group": 3}}, {}],
            {"max_nodes": 3},
            "min_groups of all pools need 4 worker pods, but autoscaler.max_nodes is 3",
            id="nodes",
        ),
        pytest.param([{"max_gpus": 3}], {}, "max_gpus", id="a-shared-limit-is-not-a-pools"),
    ],
)
def test_contradictions(scalings, shared, error):
    with pytest.raises(SettingsError) as caught:
        pools_of(*scalings, **shared)
    assert error in str(caught.value)


def test_the_short_form_is_checked_too():
    with pytest.raises(SettingsError, match="autoscaler: the min_groups of all pools need 4 GPUs"):
        load_settings(
            flags={
                "group": {"data_parallel": 4},
                "autoscaler": {"max_gpus": 3, "min_groups": 1},
            }
        )
