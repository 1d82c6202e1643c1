"""Plans meet their objectives, and more hardware or a smaller load is never worse."""

import dataclasses
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.errors import InvalidRequest
from serving.planner.accelerators import ACCELERATORS, accelerator
from serving.planner.cost import cost_of
from serving.planner.gpu_memory import Deployment, gpu_memory
from serving.planner.group import Objective, Role
from serving.planner.plans import MOST_GROUPS, Mode, Question
from serving.planner.search import search
from serving.planner.shapes import GPU_SHARE, Choices
from serving.planner.workload import Workload
from serving.settings import AutoscalerSettings
from tests.support.planning import LOAD, MODELS, QWEN, R1, question

H100 = ACCELERATORS["h100"]
questions = st.builds(
    lambda model, gpu, rate, prompt, output, cached: question(
        model=model,
        model_name="one",
        gpu=gpu,
        load=Workload(rate, prompt, output, cached),
        objective=Objective(10.0, 0.2),
        choices=Choices(tensor=1, drafts=(0,)),
    ),
    st.sampled_from([R1, QWEN, MODELS["deepseek-v2-lite"]]),
    st.sampled_from([ACCELERATORS["h200"], ACCELERATORS["b200"]]),
    st.floats(0.1, 40),
    st.floats(50, 4000),
    st.floats(10, 500),
    st.floats(0, 0.9),
)


def best(asked: Question) -> float:
    """Return the number of GPUs of the cheapest plan, or the highest rate of all plans."""
    plan = search(asked)[0]
    return plan.rate if asked.saturate else plan.gpus


@settings(max_examples=5)
@given(questions)
def test_every_plan_meets_the_objectives_and_fits(asked: Question) -> None:
    plans = search(asked)
    assert [plan.gpus for plan in plans] == sorted(plan.gpus for plan in plans)
    for plan in plans:
        assert plan.rate == asked.load.rate <= plan.capacity
        assert plan.ttft <= plan.ttft_p90 <= asked.objective.ttft
        assert 0 < plan.itl <= plan.itl_p90 <= asked.objective.itl * 1.001
        for pool in plan.pools:
            assert pool.variant.memory.shortage == 0
            assert pool.served.sequences_p90 <= pool.group.most_sequences
            context = pool.served.sequences * asked.load.context
            assert context <= pool.variant.memory.kv_tokens


@settings(max_examples=2)
@given(questions, st.floats(1.2, 2))
def test_a_larger_load_never_needs_fewer_gpus(asked: Question, factor: float) -> None:
    for name in ("rate", "prompt", "output"):
        value = getattr(asked.load, name) * factor
        more = dataclasses.replace(asked.load, **{name: value})
        assert best(dataclasses.replace(asked, load=more)) >= best(asked), name


@settings(max_examples=4)
@given(questions, st.integers(2, 3))
def test_more_nodes_never_serve_less(asked: Question, nodes: int) -> None:
    few = dataclasses.replace(asked, nodes=nodes, saturate=True)
    many = dataclasses.replace(few, nodes=nodes + 1)
    assert best(many) >= best(few) * 0.99


@settings(max_examples=4)
@given(questions)
def test_looser_objectives_never_cost_more(asked: Question) -> None:
    loose = dataclasses.replace(asked, objective=Objective(20.0, 0.4))
    assert best(loose) <= best(asked)


def test_deepseeks_own_layout_decodes_what_deepseek_published() -> None:
    # vLLM's constants; 18 nodes of 144 GPUs at 14,800 tokens/s per node are DeepSeek's.
    asked = question(
        gpu=ACCELERATORS["h800"],
        load=Workload(1.0, 4380, 1210, 0.563),
        nodes=22,
        saturate=True,
        modes=(Mode.DISAGGREGATED,),
        choices=Choices(workers=144, prefill_workers=32, drafts=(0,)),
    )
    (plan,) = search(asked)
    prefill, decode = plan.pools
    assert (prefill.group.role, prefill.count) == (Role.PREFILL, 1)
    assert (decode.count, decode.gpus, plan.gpus) == (1, 144, 176)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"gpu": H100, "nodes": 1}, "even 8 h100 need 119 GB each", id="too large"),
        pytest.param({"objective": Objective(itl=0.001)}, "ITL 19 ms at best: raise", id="itl"),
        pytest.param({"objective": Objective(ttft=0.001)}, "get TTFT 0.1", id="ttft"),
        pytest.param(
            {"objective": Objective(price=0.001)}, "at $0.001 per million output", id="too cheap"
        ),
        pytest.param({"nodes": 1, "load": dataclasses.replace(LOAD, rate=100.0)},
                     "on 1 nodes of 8 h200 at 100 requests/s", id="too few nodes"),
        pytest.param({"choices": Choices(workers=7)}, "a group of 7 h200 is not planned: sizes for "
                     "deepseek-r1 are 1, 2,", id="size"),
        pytest.param({"choices": Choices(tensor=3)}, "(128 heads) are 1, 2, 4, 8 GPUs", id="rank"),
        pytest.param(
            {"model": QWEN, "choices": Choices(drafts=(1,))}, "no multi-token-prediction", id="mtp"
        ),
    ],
)  # fmt: skip
def test_why_there_is_no_plan(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        search(question(**changes))
    assert message in str(refused.value)


def test_the_memory_that_is_named_suffices() -> None:
    with pytest.raises(InvalidRequest) as refused:
        search(question(gpu=H100, nodes=1))
    needed = int(str(refused.value).split(" need ")[1].split(" GB")[0])
    layout = Deployment(8, max_model_len=32_768, max_num_batched_tokens=2048)
    assert gpu_memory(R1, layout, (needed + 1) * 10**9, GPU_SHARE).shortage == 0
    assert gpu_memory(R1, layout, (needed - 1) * 10**9, GPU_SHARE).shortage > 0


@pytest.mark.parametrize("mode", Mode)
def test_a_pool_has_at_most_the_groups_of_an_autoscaler(mode: Mode) -> None:
    choices = Choices(workers=1, prefill_workers=1, tensor=1, drafts=(0,))
    lite = MODELS["deepseek-v2-lite"]
    asked = question(model=lite, modes=(mode,), nodes=4096, saturate=True, choices=choices)
    counts = [pool.count for pool in search(asked)[0].pools]
    assert max(counts) == MOST_GROUPS
    assert AutoscalerSettings(max_groups=MOST_GROUPS).max_groups == max(counts)


def test_sizes_are_restricted_to_those_that_are_asked_for() -> None:
    for plan in search(question(choices=Choices(workers=16, prefill_workers=8, tensor=2))):
        for pool in plan.pools:
            assert pool.variant.workers == (8 if pool.group.role is Role.PREFILL else 16)
            assert pool.group.steps.tensor == 2


def test_unknown_gpus_are_answered_with_the_known_ones() -> None:
    assert accelerator("H200").name == "h200"
    with pytest.raises(InvalidRequest, match=r"unknown GPU h20; did you mean h200\? \(known: h800"):
        accelerator("h20")


@settings(max_examples=4)
@given(questions, st.floats(0.1, 10))
def test_prices_are_linear_and_add_up(asked: Question, price: float) -> None:
    load = asked.load
    for plan in search(asked)[:6]:
        cost, twice = (cost_of(plan, load, each) for each in (price, 2 * price))
        assert twice.request == pytest.approx(2 * cost.request)
        assert twice.output == pytest.approx(2 * cost.output)
        tokens = cost.input * load.computed + cost.output * load.output
        tokens += (cost.cached or 0.0) * load.reused
        assert tokens / 1e6 == pytest.approx(cost.request)
        assert cost.hour == pytest.approx(plan.gpus * price)
        assert min(cost.input, cost.output, cost.cached or 0.0) >= 0
        assert (cost.cached is None) is (load.reused == 0)
        assert math.isfinite(cost.request)


def test_cached_tokens_are_cheaper_than_computed_ones() -> None:
    load = Workload(10.0, 4000, 500, 0.5)
    asked = question(load=load, choices=Choices(tensor=1, workers=16))
    cost = cost_of(search(asked)[0], load, 2.0)
    assert cost.cached is not None
    assert cost.cached < cost.input / 5
