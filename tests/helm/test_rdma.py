"""RDMA: names of devices, and a capability only where it takes effect."""

from typing import Any

import pytest

from tests.helm.chart import PRESETS, Refused, pod_specs, render, workers
from tests.helm.gpu import environment, gpu

ALL = ["default", *PRESETS]


def ranks_environment(**rdma: Any) -> dict[str, str]:
    values = gpu({"rdma": {"resource": "rdma/ib"} | rdma})
    return environment(workers(render(**values))["h200"]["template"]["spec"]["containers"][0])


def test_exact_names_reach_both_libraries() -> None:
    found = ranks_environment(hca=["mlx5_0", "mlx5_1:1"])
    # NVSHMEM compares names exactly; NCCL accepts prefixes unless the list begins with "=".
    assert found["NVSHMEM_HCA_LIST"] == "mlx5_0,mlx5_1:1"
    assert found["NCCL_IB_HCA"] == "=mlx5_0,mlx5_1:1"
    assert "MOE_SERVING_RDMA_HCA" not in found


@pytest.mark.parametrize("text", ["mlx5_0:1,mlx5_1:1", "=mlx5_0,mlx5_1", "=mlx5_0"])
def test_a_text_that_can_only_mean_names_is_names(text: str) -> None:
    found = ranks_environment(hca=text)
    names = text.removeprefix("=")
    assert (found["NCCL_IB_HCA"], found["NVSHMEM_HCA_LIST"]) == (f"={names}", names)


@pytest.mark.parametrize("prefix", ["mlx5", "mlx5_0", "mlx5_0,mlx5_1", "mlx5,bnxt_re"])
def test_a_text_is_a_prefix_and_never_a_name_for_nvshmem(prefix: str) -> None:
    found = ranks_environment(hca=prefix)
    assert found["NCCL_IB_HCA"] == prefix
    assert found["MOE_SERVING_RDMA_HCA"] == f"auto:{prefix}"
    assert "NVSHMEM_HCA_LIST" not in found


def test_without_names_the_pod_looks_for_itself() -> None:
    found = ranks_environment()
    assert found["MOE_SERVING_RDMA_HCA"] == "auto"
    assert not {"NCCL_IB_HCA", "NVSHMEM_HCA_LIST"} & set(found)


def test_variables_of_the_pool_win_and_are_there_once() -> None:
    own = {"NVSHMEM_HCA_LIST": "mlx5_7", "NCCL_IB_HCA": "=mlx5_7"}
    values = gpu({"rdma": {"resource": "rdma/ib", "hca": ["mlx5_0"]}, "env": own})
    container = workers(render(**values))["h200"]["template"]["spec"]["containers"][0]
    assert own.items() <= environment(container).items()


@pytest.mark.parametrize("name", ["HOME", "RAY_worker_niceness", "HF_HUB_OFFLINE"])
def test_what_the_chart_sets_can_be_replaced_in_the_check_as_well(name: str) -> None:
    objects = render(**gpu({"env": {name: "7"}}), fabricCheck={"enabled": True})
    for spec in ("pool h200", "serve-moe-serving-fabric-h200"):
        assert environment(pod_specs(objects)[spec]["containers"][0])[name] == "7"


def test_without_rdma_nothing_of_it_is_there() -> None:
    (container,) = workers(render(**gpu()))["h200"]["template"]["spec"]["containers"]
    assert not [name for name in environment(container) if "HCA" in name or "NVSHMEM" in name]


@pytest.mark.parametrize("preset", ALL)
def test_no_variable_is_there_twice(preset: str) -> None:
    for spec in pod_specs(render(preset)).values():
        for container in [*spec["containers"], *spec.get("initContainers", ())]:
            environment(container)


VARIANTS = [
    pytest.param(preset, {}, id=preset) for preset in ALL
] + [
    pytest.param("default", gpu({"rdma": {"resource": "rdma/ib", "memlock": mode}}), id=mode)
    for mode in ("runtime", "root")
] + [
    pytest.param(
        "default",
        gpu({"rdma": {"resource": "rdma/ib", "memlock": "root"}}, fabricCheck={"enabled": True}),
        id="root-with-check",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("preset", "values"), VARIANTS)
def test_a_capability_is_added_only_where_it_takes_effect(
    preset: str, values: dict[str, Any]
) -> None:
    """Kubernetes sets no ambient capabilities: an added one only affects user 0."""
    for name, spec in pod_specs(render(preset, **values)).items():
        for container in [*spec["containers"], *spec.get("initContainers", ())]:
            security = {**spec["securityContext"], **container["securityContext"]}
            if security["capabilities"].get("add"):
                assert security["runAsUser"] == 0, f"{name}: {container['name']}"
                assert security["runAsNonRoot"] is False


def test_by_default_the_container_runtime_decides() -> None:
    spec = workers(render("deepseek-r1-2x8-h200"))["h200"]["template"]["spec"]
    assert spec["securityContext"]["runAsUser"] == 1000
    assert "add" not in spec["containers"][0]["securityContext"]["capabilities"]


def test_root_locks_memory_and_keeps_its_group() -> None:
    values = gpu({"rdma": {"resource": "rdma/ib", "memlock": "root"}})
    objects = render(**values, fabricCheck={"enabled": True})
    check = "serve-moe-serving-fabric-h200"
    specs = pod_specs(objects)
    for spec in (specs["pool h200"], specs[check]):
        assert spec["securityContext"]["runAsUser"] == 0
        # Files of Secrets and volumes belong to the group.
        assert spec["securityContext"]["runAsGroup"] == spec["securityContext"]["fsGroup"] == 1000
        security = spec["containers"][0]["securityContext"]
        assert security["capabilities"] == {"drop": ["ALL"], "add": ["IPC_LOCK"]}
        assert security["allowPrivilegeEscalation"] is False
    # No other container runs as root.
    for name, spec in specs.items():
        if name not in {"pool h200", check}:
            assert spec["securityContext"]["runAsUser"] == 1000


@pytest.mark.parametrize("preset", ["deepseek-r1-2x8-h200", "deepseek-r1-4x8-h100"])
def test_presets_name_no_devices_that_a_cluster_may_not_have(preset: str) -> None:
    (group,) = workers(render(preset)).values()
    found = environment(group["template"]["spec"]["containers"][0])
    assert found["MOE_SERVING_RDMA_HCA"] == "auto"
    assert found["NVSHMEM_IB_ENABLE_IBGDA"] == "1"
    assert "NVSHMEM_HCA_LIST" not in found


@pytest.mark.parametrize(
    "hca", [[], ["mlx5 0"], ["mlx5_0", "mlx5_0"], "^mlx5", "mlx5 ", "mlx5,", 5]
)
def test_what_is_no_name_is_refused(hca: Any) -> None:
    with pytest.raises(Refused, match="hca"):
        ranks_environment(hca=hca)
