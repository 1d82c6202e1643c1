"""Steps: monotone in their work, and limited by the expected resource."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.planner.accelerators import ACCELERATORS
from serving.planner.constants import PEERS, VLLM
from serving.planner.gpu_memory import active_parameters
from serving.planner.roofline import Batch, Limit, StepModel
from tests.support.planning import MODELS, R1, gpus, models

batches = st.builds(
    Batch, st.floats(1, 256), st.floats(1, 30_000), st.sampled_from([0, 1, 3]),
    st.floats(1, 16_384), st.floats(1, 30_000), st.floats(0, 30_000),
)  # fmt: skip
steps = st.builds(
    StepModel, models, gpus, st.sampled_from([1, 4, 16, 64]), st.sampled_from([1, 2]),
    st.just(VLLM),
)  # fmt: skip


@settings(max_examples=60)
@given(steps, batches, st.sampled_from(["sequences", "context", "prompt", "attended", "cached"]))
def test_more_work_never_takes_less_time(group: StepModel, batch: Batch, what: str) -> None:
    more = dataclasses.replace(batch, **{what: getattr(batch, what) * 1.3})
    assert group.step(more).seconds >= group.step(batch).seconds * (1 - 1e-9)


@settings(max_examples=60)
@given(steps, batches, st.sampled_from(["fp8", "bf16", "bandwidth", "intra_node", "network"]))
def test_faster_hardware_is_never_slower(group: StepModel, batch: Batch, what: str) -> None:
    gpu = dataclasses.replace(group.gpu, **{what: getattr(group.gpu, what) * 2})
    faster = dataclasses.replace(group, gpu=gpu)
    assert faster.step(batch).seconds <= group.step(batch).seconds * (1 + 1e-9)


@settings(max_examples=40)
@given(steps, st.floats(1, 200), st.floats(1, 30_000))
def test_a_larger_batch_has_a_higher_throughput(
    group: StepModel, sequences: float, context: float
) -> None:
    small, large = (group.decode(n, context).seconds / n for n in (sequences, sequences * 1.2))
    assert large <= small


def test_the_overhead_is_what_remains_without_work() -> None:
    group = StepModel(R1, ACCELERATORS["h200"], 16, 1, VLLM)
    assert group.overhead == pytest.approx(61 * VLLM.layer_seconds * VLLM.engine)
    assert group.decode(1, 1).seconds > group.overhead


def test_prompts_of_one_gpu_take_two_operations_per_active_parameter() -> None:
    # Without communication, overhead and long-prompt attention, the roofline is the peak rate.
    model, gpu = MODELS["deepseek-v2-lite"], ACCELERATORS["h100"]
    known = dataclasses.replace(PEERS, layer_seconds=0.0, matmul=1.0)
    tokens = 8192
    seconds = StepModel(model, gpu, 1, 1, known).prefill(tokens, 1).seconds
    products = (active_parameters(model) - 2 * model.embedding) * tokens
    assert seconds == pytest.approx(2 * products / gpu.bf16, rel=0.02)


@pytest.mark.parametrize(
    ("batch", "limit"),
    [
        pytest.param(Batch(1, 100), Limit.OVERHEAD, id="one sequence"),
        pytest.param(
            Batch(200, 60_000), Limit.COMPUTE, id="long contexts: MLA is bound by compute"
        ),
        pytest.param(Batch(256, 200), Limit.EXCHANGE, id="many short sequences"),
    ],
)
def test_limits_of_r1_on_64_h100(batch: Batch, limit: Limit) -> None:
    assert StepModel(R1, ACCELERATORS["h100"], 64, 1, VLLM).step(batch).limit is limit


def test_a_slow_memory_limits_grouped_query_attention() -> None:
    gpu = dataclasses.replace(ACCELERATORS["h100"], bandwidth=0.5e12)
    group = StepModel(MODELS["qwen3-30b-a3b"], gpu, 2, 1, VLLM)
    assert group.decode(64, 8000).limit is Limit.MEMORY


def test_a_prompt_on_one_rank_is_cheaper_than_one_on_each() -> None:
    group = StepModel(R1, ACCELERATORS["h200"], 16, 1, VLLM)
    every = Batch(8, 1000, prompt=2048, attended=1024)
    one = dataclasses.replace(every, mean_prompt=2048 / 16)
    assert group.step(one).seconds < group.step(every).seconds
