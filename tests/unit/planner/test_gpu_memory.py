"""The memory calculator: published figures, and properties of every layout."""

import dataclasses
import json
import math
import struct

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from serving.cli.doctor.presets import presets_folder
from serving.planner.gpu_memory import (
    Deployment,
    ModelFigures,
    active_parameters,
    cpu_memory,
    gpu_memory,
    kv_bytes_per_token,
    published_bytes,
    total_parameters,
)
from serving.settings import BUNDLED_MODEL

MODELS = {
    name: ModelFigures.from_mapping(figures)
    for name, figures in yaml.safe_load((presets_folder() / "sizing.yaml").read_text("utf-8"))[
        "models"
    ].items()
}
R1 = MODELS["deepseek-r1"]

QWEN_72B = ModelFigures(
    vocab_size=152064,
    hidden_size=8192,
    intermediate_size=29568,
    moe_intermediate_size=0,
    num_hidden_layers=80,
    num_attention_heads=64,
    num_key_value_heads=8,
    head_dim=128,
    n_routed_experts=0,
    num_experts_per_tok=0,
    first_k_dense_replace=80,
    weight_bytes=2,
)
"""Qwen2.5-72B, https://huggingface.co/Qwen/Qwen2.5-72B/blob/main/config.json: dense, GQA."""
LLAMA_405B = dataclasses.replace(
    QWEN_72B,
    vocab_size=128256,
    hidden_size=16384,
    intermediate_size=53248,
    num_hidden_layers=126,
    num_attention_heads=128,
    first_k_dense_replace=126,
)
"""Llama 3.1 405B, arXiv 2407.21783, table 3."""


@pytest.mark.parametrize(
    ("model", "published"),
    [
        # DeepSeek-V3, arXiv 2412.19437, abstract: 671B parameters, 37B activated.
        pytest.param("deepseek-r1", (671e9, 37e9), id="deepseek-r1"),
        # The model card: 30.5B in total, 3.3B activated.
        pytest.param("qwen3-30b-a3b", (30.5e9, 3.3e9), id="qwen3-30b-a3b"),
    ],
)
def test_published_numbers_of_parameters(model: str, published: tuple[float, float]) -> None:
    assert total_parameters(MODELS[model]) == pytest.approx(published[0], rel=2e-3)
    assert active_parameters(MODELS[model]) == pytest.approx(published[1], rel=2e-2)


def test_deepseek_v2_lite_is_published_without_its_embedding() -> None:
    # DeepSeek-V2, arXiv 2405.04434, appendix B: 15.7B parameters, 2.4B activated.
    model = MODELS["deepseek-v2-lite"]
    assert total_parameters(model) == pytest.approx(15.7e9, rel=1e-3)
    assert active_parameters(model) - model.embedding == pytest.approx(2.4e9, rel=3e-2)


def test_deepseek_r1_with_multi_token_prediction() -> None:
    # https://huggingface.co/deepseek-ai/DeepSeek-R1 counts 684.53B in its safetensors, the scales
    # of FP8 blocks among them; DeepSeek-V3's README: 671B and 14B for prediction.
    published = total_parameters(R1, prediction=True) * (1 + 1 / 128**2)
    assert published == pytest.approx(684.53e9, rel=1e-4)
    extra = total_parameters(R1, prediction=True) - total_parameters(R1)
    assert extra == pytest.approx(14e9, rel=0.05)


def test_the_checkpoint_is_a_byte_a_weight_and_a_little_more() -> None:
    assert total_parameters(R1, prediction=True) < published_bytes(R1) < 690e9
    lite = MODELS["deepseek-v2-lite"]
    assert published_bytes(lite) == 2 * total_parameters(lite)


def test_the_bundled_model_has_as_many_parameters_as_computed() -> None:
    with (BUNDLED_MODEL / "model.safetensors").open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    real = sum(math.prod(tensor["shape"]) for tensor in header.values())
    # The difference is norms and biases.
    assert total_parameters(MODELS["pocket-r1"], prediction=True) == pytest.approx(real, rel=1e-3)


def test_the_bundled_models_figures_are_its_config() -> None:
    config = json.loads((BUNDLED_MODEL / "config.json").read_text("utf-8"))
    for field in dataclasses.fields(ModelFigures):
        value = getattr(MODELS["pocket-r1"], field.name)
        if field.name in config and config[field.name] is not None:
            assert value == config[field.name], field.name


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        # arXiv 2505.09343 (DeepSeek-V3 hardware), table 1: 70.272, 327.680 and 516.096 KB.
        pytest.param(R1, 70_272, id="deepseek-v3-mla"),
        pytest.param(QWEN_72B, 327_680, id="qwen2.5-72b-gqa"),
        pytest.param(LLAMA_405B, 516_096, id="llama-3.1-405b-gqa"),
    ],
)
def test_published_cache_sizes(model: ModelFigures, expected: int) -> None:
    assert kv_bytes_per_token(model) == expected


@pytest.mark.parametrize(
    ("model", "tensor", "expected"),
    [
        pytest.param(R1, 8, 70_272, id="mla-is-copied"),
        pytest.param(QWEN_72B, 4, 81_920, id="gqa-is-shared-out"),
        pytest.param(QWEN_72B, 16, 40_960, id="gqa-until-each-has-a-head"),
    ],
)
def test_tensor_parallelism_and_the_cache(model: ModelFigures, tensor: int, expected: int) -> None:
    assert kv_bytes_per_token(model, tensor=tensor) == expected


def test_dense_models_are_counted_too() -> None:
    # The model cards: 72.7B, 405B.
    assert total_parameters(QWEN_72B) == pytest.approx(72.7e9, rel=2e-3)
    assert total_parameters(LLAMA_405B) == pytest.approx(405e9, rel=3e-3)


def test_deepseek_r1_needs_more_than_eight_h100() -> None:
    deployment = Deployment(data=8, max_model_len=32768)
    assert gpu_memory(R1, deployment, 80_000_000_000, 0.9).shortage > 0
    assert (
        gpu_memory(R1, dataclasses.replace(deployment, data=16), 141_000_000_000, 0.9).shortage == 0
    )


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
@given(
    data=st.integers(1, 64),
    tensor=st.sampled_from([1, 2, 4]),
    prediction=st.booleans(),
)
def test_all_workers_together_hold_the_whole_model(
    model: ModelFigures, data: int, tensor: int, prediction: bool
) -> None:
    deployment = Deployment(data, tensor, prediction=prediction)
    used = gpu_memory(model, deployment, 10**11)
    workers = data * tensor
    layers = model.moe_layers + (model.num_nextn_predict_layers if prediction else 0)
    # No expert is missing, and no worker has more than one expert more than another.
    assert used.experts * workers >= int(
        layers * model.n_routed_experts * model.expert * model.weight_bytes
    )
    assert used.weights * workers >= total_parameters(model) * model.weight_bytes
    assert used.kv_room == used.capacity - used.weights - used.reserve
    assert (used.shortage == 0) == (used.kv_tokens >= deployment.max_model_len)


@given(data=st.integers(1, 128))
def test_more_ranks_never_take_more_memory_of_each(data: int) -> None:
    less, more = (gpu_memory(R1, Deployment(ranks), 10**11) for ranks in (data, data + 1))
    assert more.weights <= less.weights
    assert more.replicated == less.replicated


@pytest.mark.parametrize(
    ("gib", "fits"), [pytest.param(4, True, id="fits"), pytest.param(3, False, id="too-little")]
)
def test_a_cpu_rank_needs_its_process_and_its_cache(gib: int, fits: bool) -> None:
    deployment = Deployment(data=2, max_model_len=2048)
    used = cpu_memory(MODELS["pocket-r1"], deployment, gib * 2**30, 2**30)
    assert used.kv_room <= 2**30
    assert (used.shortage == 0) is fits


def test_a_cpu_cache_must_hold_a_sequence() -> None:
    deployment = Deployment(data=2, max_model_len=2048)
    assert cpu_memory(MODELS["pocket-r1"], deployment, 2**33, 2**20).shortage > 0


@pytest.mark.parametrize(
    ("figures", "part"),
    [
        pytest.param({"heads": 3}, "unknown figures heads", id="unknown"),
        pytest.param({"vocab_size": 3}, "missing", id="missing"),
    ],
)
def test_figures_that_are_none(figures: dict[str, int], part: str) -> None:
    with pytest.raises(ValueError, match=part):
        ModelFigures.from_mapping(figures)
