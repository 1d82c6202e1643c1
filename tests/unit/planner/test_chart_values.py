"""Chart values generated from plans; tests/helm renders some of them."""

import dataclasses

import pytest

from serving.errors import InvalidRequest
from serving.planner.accelerators import ACCELERATORS
from serving.planner.chart_values import chart_values, deployable
from serving.planner.plans import Mode
from serving.planner.search import search
from serving.planner.shapes import Choices
from tests.support.planning import QWEN, question


def test_a_group_across_nodes() -> None:
    asked = question(gpu=ACCELERATORS["h100"], nodes=4, saturate=True, modes=(Mode.MIXED,),
                     choices=Choices(workers=24, tensor=1, drafts=(1,)))  # fmt: skip
    values = chart_values(asked, search(asked)[0])
    assert values["parallelism"] == {"data": 24, "tensor": 1, "experts": 24}
    assert values["engine"]["speculative"] == "mtp"
    assert values["engine"]["allToAll"] == "deepep_low_latency"
    # 256 experts are not divisible by 24: 8 copies make 264.
    assert values["engine"]["args"]["eplb_config"] == {"num_redundant_experts": 8}
    (pool,) = values["pools"]
    assert (pool["gpusPerNode"], pool["groups"], pool["rdma"]["count"]) == (8, 1, 8)
    assert values["model"]["attention"] == "mla"


def test_a_group_on_a_part_of_a_node() -> None:
    asked = question(model=QWEN, model_name="qwen", gpu=ACCELERATORS["mi300x"],
                     choices=Choices(workers=2, tensor=2))  # fmt: skip
    values = chart_values(asked, deployable(search(asked)))
    assert values["parallelism"] == {"data": 1, "tensor": 2, "experts": 2}
    (pool,) = values["pools"]
    assert (pool["gpusPerNode"], pool["gpuResource"]) == (2, "amd.com/gpu")
    assert "rdma" not in pool
    assert "eplb_config" not in values["engine"]["args"]
    assert "allToAll" not in values["engine"]


@pytest.mark.parametrize(
    ("name", "claim"),
    [
        pytest.param("DeepSeek-V2_Lite 16B", "deepseek-v2-lite-16b", id="directory"),
        pytest.param("qwen2.5", "qwen2-5", id="dot"),
        pytest.param("模型", "model", id="unicode"),
        pytest.param("m" * 62 + "-x", "m" * 62, id="long"),
    ],
)
def test_the_claim_has_a_name_that_kubernetes_accepts(name: str, claim: str) -> None:
    asked = question(model=QWEN, model_name=name, modes=(Mode.MIXED,),
                     choices=Choices(workers=2, tensor=2, drafts=(0,)))  # fmt: skip
    values = chart_values(asked, search(asked)[0])
    assert values["model"]["volume"]["claimName"] == claim


def test_the_chart_deploys_no_dense_models() -> None:
    layers = QWEN.num_hidden_layers
    dense = dataclasses.replace(QWEN, n_routed_experts=0, num_experts_per_tok=0,
                                moe_intermediate_size=0, first_k_dense_replace=layers)  # fmt: skip
    asked = question(model=dense, modes=(Mode.MIXED,), choices=Choices(workers=1, tensor=1))
    with pytest.raises(InvalidRequest, match="plan without --values"):
        chart_values(asked, search(asked)[0])


def test_copies_of_the_cache_are_allowed_where_they_are_planned() -> None:
    asked = question(choices=Choices(workers=8, tensor=4))
    assert chart_values(asked, deployable(search(asked)))["parallelism"]["replicateKv"]


def test_the_chart_deploys_no_prefill_groups() -> None:
    plans = search(question(modes=(Mode.DISAGGREGATED,)))
    with pytest.raises(InvalidRequest, match="allow --layout mixed"):
        deployable(plans)
