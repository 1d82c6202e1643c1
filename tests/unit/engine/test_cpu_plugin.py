"""The CPU plugin: its probes detect the bugs of this vLLM, and its patches fix them."""

import functools
import inspect
import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch.distributed import ProcessGroupGloo
from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator
from vllm.lora.ops.torch_ops import lora_ops
from vllm.lora.punica_wrapper import punica_cpu
from vllm.model_executor.layers.fused_moe import unquantized_fused_moe_method
from vllm.model_executor.layers.fused_moe.experts import cpu_moe
from vllm.model_executor.layers.fused_moe.oracle import unquantized
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding
from vllm.model_executor.models.deepseek_v2 import DeepseekV2DecoderLayer
from vllm.v1.sample import rejection_sampler
from vllm.v1.worker import dp_utils

from serving.engine import cpu_plugin
from serving.engine.cpu_plugin import (
    collectives,
    expert_load,
    experts,
    lora,
    quiet,
    rotary,
    sampling,
    sequence_parallel,
)
from serving.engine.cpu_plugin.node_exchange import groups
from serving.engine.cpu_plugin.patch import Patch, apply_if_needed
from tests.support.waiting import PATIENCE

SIZE, INNER = 32, 64


@pytest.fixture(autouse=True)
def untouched_vllm(monkeypatch):
    """vLLM as installed, undoing earlier patches of this process; restored afterwards."""
    monkeypatch.setattr(cpu_plugin, "_done", {})
    for owner, names in (
        (RotaryEmbedding, ("forward_cpu",)),
        (DeepseekV2DecoderLayer, ("forward",)),
        (cpu_moe.CPUUnquantizedExperts, ("apply", "process_weights_after_loading")),
        (CpuCommunicator, ("__init__",)),
        (rejection_sampler, ("expand_batch_to_tokens",)),
        (ProcessGroupGloo, ("__init__",)),
        (lora_ops, ("bgmv_shrink",)),
        (punica_cpu, ("bgmv_shrink",)),
        (unquantized, ("select_unquantized_moe_backend",)),
        (unquantized_fused_moe_method, ("select_unquantized_moe_backend",)),
        *((cls, ("__init__",)) for cls in quantized_classes()),
    ):
        for name in names:
            monkeypatch.setattr(owner, name, inspect.unwrap(getattr(owner, name)))
    for name in ("all_gatherv", "reduce_scatterv"):
        inherited = inspect.unwrap(getattr(CpuCommunicator.__base__, name))
        monkeypatch.setattr(CpuCommunicator, name, inherited)
    monkeypatch.setattr(expert_load, "_layers", {})
    monkeypatch.setattr(dp_utils, "dist", torch.distributed)


def quantized_classes():
    return [
        cpu_moe.CPUExpertsFp8,
        cpu_moe.CPUExpertsMxfp4,
        cpu_moe.CPUExpertsInt4,
        cpu_moe.CPUExpertsInt8,
    ]


class Messages(logging.Handler):
    def __init__(self):
        super().__init__()
        self.said = []

    def emit(self, record):
        self.said.append(record.getMessage())


@pytest.fixture
def plugin_log():
    # vLLM may or may not let its loggers propagate: caplog cannot be relied on.
    logger, messages = logging.getLogger("vllm.moe_serving.cpu_plugin"), Messages()
    logger.addHandler(messages)
    level, logger.level = logger.level, logging.INFO
    yield messages
    logger.removeHandler(messages)
    logger.level = level


PATCHES = [
    *(each.PATCH for each in (collectives, experts, rotary, sampling, sequence_parallel)),
    lora.SHRINK,
    lora.EXPERTS,
]


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.name.replace(" ", "-"))
def test_the_probe_finds_what_this_vllm_has_wrong_and_the_patch_cures_it(patch):
    assert not patch.is_right()
    patch.apply()
    assert patch.is_right()


def adapt_apply(self, **kwargs):
    kwargs["topk_ids"], kwargs["topk_weights"] = experts.to_local(
        kwargs["topk_ids"],
        kwargs["topk_weights"],
        kwargs.pop("expert_map"),
    )
    ORIGINAL_APPLY(self, expert_map=None, **kwargs)


ORIGINAL_APPLY = inspect.unwrap(cpu_moe.CPUUnquantizedExperts.apply)


def test_a_vllm_that_is_right_is_left_alone_and_the_log_says_so(monkeypatch, plugin_log):
    native = RotaryEmbedding.forward_native
    monkeypatch.setattr(RotaryEmbedding, "forward_cpu", native)
    monkeypatch.setattr(cpu_moe.CPUUnquantizedExperts, "apply", adapt_apply)
    gather, scatter = lambda *a, **k: None, lambda *a, **k: None
    monkeypatch.setattr(CpuCommunicator, "all_gatherv", gather)
    monkeypatch.setattr(CpuCommunicator, "reduce_scatterv", scatter)
    right = functools.partial(sampling.expand_batch_to_tokens)
    monkeypatch.setattr(rejection_sampler, "expand_batch_to_tokens", right)
    lora.apply_shrink()
    lora.apply_experts()
    shrink = punica_cpu.bgmv_shrink
    sequence_parallel.apply()
    patched = DeepseekV2DecoderLayer.forward

    cpu_plugin.register()

    for patch in PATCHES:
        assert f"patch not needed: {patch.name}" in plugin_log.said
    assert RotaryEmbedding.forward_cpu is native
    assert CpuCommunicator.all_gatherv is gather
    assert rejection_sampler.expand_batch_to_tokens is right
    assert CpuCommunicator.reduce_scatterv is scatter
    assert DeepseekV2DecoderLayer.forward is patched
    assert punica_cpu.bgmv_shrink is shrink


def test_registering_says_what_it_patched_and_a_second_time_does_nothing(plugin_log):
    cpu_plugin.register()
    first = RotaryEmbedding.forward_cpu, cpu_moe.CPUUnquantizedExperts.apply
    cpu_plugin.register()

    assert plugin_log.said == [f"patched: {patch.name}" for patch in PATCHES]
    assert (RotaryEmbedding.forward_cpu, cpu_moe.CPUUnquantizedExperts.apply) == first


def test_another_platform_is_not_touched(monkeypatch):
    before = RotaryEmbedding.forward_cpu, cpu_moe.CPUUnquantizedExperts.apply
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("vllm.platforms.current_platform", SimpleNamespace(is_cpu=lambda: False))
        cpu_plugin.register()
    assert (RotaryEmbedding.forward_cpu, cpu_moe.CPUUnquantizedExperts.apply) == before
    cpu_plugin.register()
    assert RotaryEmbedding.forward_cpu is not before[0], "the call before counted as the one"


def test_rows_without_an_adapter_stay_zero_beside_rows_with_one():
    lora.apply_shrink()
    inputs, weights = torch.randn(5, 8), torch.randn(3, 1, 4, 8)
    indices = torch.tensor([2, -1, 0, -1, 1])
    output = torch.full((5, 4), 7.0)
    punica_cpu.bgmv_shrink(inputs, weights, output, indices, 0.5)
    want = 0.5 * torch.einsum("bi,boi->bo", inputs, weights[indices, 0])
    want[[1, 3]] = 0.0
    assert torch.allclose(output, want, atol=1e-6)


def test_a_patch_that_does_not_cure_stops_the_process():
    with pytest.raises(RuntimeError, match="does not fix it"):
        apply_if_needed(Patch("something", is_right=lambda: False, apply=lambda: None))


# ---------------------------------------------------------------------------- sampling


@hypothesis_settings(max_examples=60)
@given(
    requests=st.lists(
        st.tuples(st.sampled_from([0.0, 0.5, 0.7, 1.0]), st.integers(0, 4)), min_size=1, max_size=6
    ),
    dtype=st.sampled_from([torch.float32, torch.int32, torch.int64]),
    replace_to=st.integers(0, 1),
)
def test_each_draft_token_has_its_requests_parameters(requests, dtype, replace_to):
    values = torch.tensor([value for value, _ in requests]).to(dtype)
    counts = torch.tensor([count for _, count in requests], dtype=torch.int32).cumsum(0)
    sampling.apply()
    got = rejection_sampler.expand_batch_to_tokens(
        values, counts, int(counts[-1]), replace_from=0, replace_to=replace_to
    )
    want = [
        replace_to if value == 0 else value
        for value, (_, count) in zip(values.tolist(), requests, strict=True)
        for _ in range(count)
    ]
    assert got.dtype == dtype
    assert got.tolist() == want


def test_a_sampled_request_does_not_change_the_greedy_ones_beside_it():
    sampling.apply()
    logits = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
    metadata = SimpleNamespace(
        all_greedy=False, temperature=torch.tensor([0.0, 0.7, 0.0]), top_k=None, top_p=None
    )
    drafts = torch.tensor([2, 4, 6], dtype=torch.int32)
    got = rejection_sampler.apply_sampling_constraints(logits.clone(), drafts, metadata)
    assert torch.equal(got[[0, 1, 4, 5]], logits[[0, 1, 4, 5]])
    assert torch.allclose(got[2:4], logits[2:4] / 0.7)


# ------------------------------------------------------------------------------ rotary

QUERY_SHAPES = st.sampled_from(["flat", "heads", "strided heads", "strided flat"])


@hypothesis_settings(max_examples=60)
@given(
    tokens=st.integers(1, 7),
    heads=st.integers(1, 5),
    shape=QUERY_SHAPES,
    key=st.sampled_from(["none", "flat", "heads", "strided"]),
    is_neox_style=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_rotary_equals_native_for_every_layout(tokens, heads, shape, key, is_neox_style, seed):
    forward = patched_rotary()
    module = rotary.probe_module(is_neox_style=is_neox_style)
    generator = torch.Generator().manual_seed(seed)
    positions = torch.randint(0, 8, (tokens,), generator=generator)
    query_tensor = layout(shape, tokens, heads, generator)
    key_tensor = (
        None
        if key == "none"
        else layout(
            {"flat": "flat", "heads": "heads", "strided": "strided heads"}[key],
            tokens,
            1,
            generator,
        )
    )
    want, want_key = module.forward_native(
        positions,
        query_tensor.contiguous(),
        None if key_tensor is None else key_tensor.contiguous(),
    )
    got, got_key = forward(module, positions, query_tensor, key_tensor)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)
    if key_tensor is None:
        assert got_key is None
    else:
        torch.testing.assert_close(got_key, want_key, atol=1e-5, rtol=0)


@functools.cache
def patched_rotary():
    before = RotaryEmbedding.forward_cpu
    rotary.apply()
    patched, RotaryEmbedding.forward_cpu = RotaryEmbedding.forward_cpu, before
    return patched


def layout(shape, tokens, heads, generator):
    match shape:
        case "flat":
            return torch.randn(tokens, heads * 16, generator=generator)
        case "heads":
            return torch.randn(tokens, heads, 16, generator=generator)
        case "strided heads":
            return torch.randn(tokens, heads, 40, generator=generator)[..., 24:]
        case _:
            return torch.randn(tokens, heads * 16 + 8, generator=generator)[:, 8:]


# ----------------------------------------------------------------------------- experts


@st.composite
def expert_maps(draw):
    """``[global experts]``: the local ones, at least one, numbered in any order."""
    total = draw(st.integers(1, 12))
    local = draw(st.permutations(range(total)))[: draw(st.integers(1, total))]
    expert_map = torch.full((total,), -1, dtype=torch.int32)
    for index, expert in enumerate(local):
        expert_map[expert] = index
    return expert_map


def dense(hidden, w1, w2, weights, ids, expert_map):
    """A reference implementation of the mixture."""
    result = torch.zeros_like(hidden)
    for token, row in enumerate(hidden):
        for weight, expert in zip(weights[token], ids[token], strict=True):
            local = int(expert_map[expert])
            if local >= 0:
                gate, up = (w1[local] @ row).chunk(2)
                result[token] += weight * (w2[local] @ (torch.nn.functional.silu(gate) * up))
    return result


@functools.cache
def patched_apply():
    before = cpu_moe.CPUUnquantizedExperts.apply
    experts.apply()
    patched = cpu_moe.CPUUnquantizedExperts.apply
    cpu_moe.CPUUnquantizedExperts.apply = before
    return patched


@hypothesis_settings(max_examples=60)
@given(expert_map=expert_maps(), data=st.data())
def test_experts_equal_a_dense_mixture_for_every_map(expert_map, data):
    total, local = len(expert_map), int((expert_map >= 0).sum())
    tokens = data.draw(st.integers(1, 9))
    k = data.draw(st.integers(1, min(4, total)))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**16)))
    ids = torch.stack([torch.randperm(total, generator=generator)[:k] for _ in range(tokens)])
    weights = torch.rand(tokens, k, generator=generator)
    w1 = torch.randn(local, 2 * INNER, SIZE, generator=generator) / SIZE**0.5
    w2 = torch.randn(local, SIZE, INNER, generator=generator) / INNER**0.5
    hidden = torch.randn(tokens, SIZE, generator=generator)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu_moe.CPUUnquantizedExperts, "apply", patched_apply())
        got = experts.compute(hidden, w1, w2, weights, ids.int(), expert_map)

    want = dense(hidden, w1, w2, weights, ids, expert_map)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


@given(expert_map=expert_maps(), seed=st.integers(0, 2**16))
def test_shares_of_all_ranks_add_up_to_the_whole(expert_map, seed):
    generator = torch.Generator().manual_seed(seed)
    total = len(expert_map)
    ids = torch.randint(0, total, (5, 3), generator=generator, dtype=torch.int32)
    weights = torch.rand(5, 3, generator=generator)
    here = experts.to_local(ids, weights, expert_map)[1]
    elsewhere_map = torch.where(expert_map >= 0, -1, 0).int()
    there = experts.to_local(ids, weights, elsewhere_map)[1]
    torch.testing.assert_close(here + there, weights)


@given(
    ids=st.lists(st.lists(st.integers(-1, 5), min_size=2, max_size=2), min_size=1, max_size=20),
)
def test_counts_are_those_of_local_experts(ids):
    load = expert_load.ExpertLoad("layer", [3, 5, 7, 9, 11, 13])
    load.add(torch.tensor(ids))
    load.add(torch.tensor(ids))
    flat = [one for row in ids for one in row]
    assert load.tokens.tolist() == [2 * flat.count(index) for index in range(6)]


def test_experts_are_counted_where_they_run_with_and_without_a_map():
    experts.install_counting()
    generator = torch.Generator().manual_seed(0)
    module = cpu_moe.CPUUnquantizedExperts.__new__(cpu_moe.CPUUnquantizedExperts)
    module.moe_serving_load = expert_load.track("one", [4, 6])
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu_moe, "cpu_fused_moe", lambda *args: seen.append(args))
        module._use_zentorch = False
        module.quant_config = experts.FusedMoEQuantConfig.make()
        ids = torch.tensor([[4, 5], [6, 4]], dtype=torch.int32)
        expert_map = torch.tensor([-1, -1, -1, -1, 0, -1, 1, -1], dtype=torch.int32)
        hidden, weights = torch.randn(2, 32, generator=generator), torch.rand(2, 2)
        for given_ids, given_map in ((ids, expert_map), (torch.tensor([[0, 1]]), None)):
            module.apply(
                hidden,
                hidden,
                hidden,
                hidden,
                weights,
                given_ids,
                experts.MoEActivation.SILU,
                8,
                given_map,
                None,
                None,
                hidden,
                hidden,
                None,
                False,
            )
    assert expert_load.layers()[0].tokens.tolist() == [3, 2]
    expert_load.reset()
    assert expert_load.layers()[0].tokens.tolist() == [0, 0]
    assert len(seen) == 2


def test_a_layer_that_is_loaded_again_keeps_its_counts_unless_its_experts_changed():
    load = expert_load.track("one", [0, 1])
    load.add(torch.tensor([0]))
    assert expert_load.track("one", [0, 1]) is load
    assert expert_load.track("one", [2, 3]).tokens.tolist() == [0, 0]


@pytest.mark.parametrize("cls", quantized_classes(), ids=lambda cls: cls.__name__)
def test_quantized_experts_refuse_expert_parallelism(cls):
    experts.reject_quantized_expert_parallel()
    config = SimpleNamespace(moe_parallel_config=SimpleNamespace(use_ep=True))
    with pytest.raises(NotImplementedError, match=r"group\.data_parallel=1"):
        cls(config, None)


@pytest.mark.parametrize(
    ("apply_on_input", "zentorch", "message"),
    [(True, False, "router weights"), (False, True, "uninstall zentorch")],
    ids=["weights-on-input", "zentorch"],
)
def test_layers_that_would_go_wrong_are_refused(apply_on_input, zentorch, message):
    layer = SimpleNamespace(
        layer_name="model.layers.1.mlp.experts",
        apply_router_weight_on_input=apply_on_input,
        expert_map_manager=SimpleNamespace(expert_map=torch.tensor([0, -1])),
    )
    module = SimpleNamespace(_use_zentorch=zentorch)
    with pytest.raises(NotImplementedError, match=message):
        experts.reject_unsupported(module, layer)
    layer.expert_map_manager.expert_map = None
    experts.reject_unsupported(module, layer)


# ------------------------------------------------------------------------- collectives


def test_collectives_are_right_over_gloo_and_through_shared_memory(tmp_path):
    """Two real processes; the script fails if any result is wrong."""
    script = Path(__file__).with_name("gloo_rank.py")
    done = subprocess.run(
        [sys.executable, script, tmp_path / "store"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("40 rounds") == 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        pytest.param(
            lambda group: collectives.all_gatherv(group, torch.ones(3, 2), sizes=[2, 3]),
            "rank 0 has",
            id="gather-rows",
        ),
        pytest.param(
            lambda group: collectives.reduce_scatterv(group, torch.ones(3, 2), 0, sizes=[2, 3]),
            "3 rows",
            id="scatter-rows",
        ),
        pytest.param(
            lambda group: collectives.all_gatherv(group, torch.ones(3, 2), dim=1),
            "dimension 1",
            id="gather-dimension",
        ),
        pytest.param(
            lambda group: collectives.reduce_scatterv(group, torch.ones(3, 2), dim=1),
            "dimension 1",
            id="scatter-dimension",
        ),
    ],
)
def test_collectives_refuse_what_does_not_fit(call, message):
    group = SimpleNamespace(world_size=2, rank_in_group=0, device_group=None)
    with pytest.raises((ValueError, NotImplementedError), match=message):
        call(group)


def test_token_counts_are_summed_by_the_exchange_of_their_group(monkeypatch):
    """vLLM sums them with ``dp_utils.dist.all_reduce(tensor, group=group)``."""
    group, summed = object(), []

    def add(tensor):
        summed.append(tensor.clone())
        return tensor * 2

    monkeypatch.setattr(groups, "_exchanges", {group: SimpleNamespace(sum=add)})
    monkeypatch.setattr(
        dp_utils,
        "get_dp_group",
        lambda: SimpleNamespace(device=torch.device("cpu"), device_group=group, cpu_group=group),
    )
    groups.install_sums()
    config = SimpleNamespace(
        data_parallel_size=2, data_parallel_rank=1, disable_nccl_for_dp_synchronization=True
    )
    counts = dp_utils._run_ar(
        should_ubatch=False,
        orig_num_tokens_per_ubatch=3,
        padded_num_tokens_per_ubatch=4,
        cudagraph_mode=0,
        parallel_config=config,
    )
    assert counts.tolist() == [[0, 6], [0, 8], [0, 0], [0, 0]]
    assert len(summed) == 1


def test_the_self_check_notices_wrong_sums():
    good = SimpleNamespace(
        world_size=1,
        rank_in_group=0,
        unique_name="ep:0",
        all_gatherv=lambda tensors, **_: tensors,
        reduce_scatterv=lambda rows, **_: rows,
    )
    collectives.self_check(good)
    good.reduce_scatterv = lambda rows, **_: rows * 0.5
    with pytest.raises(RuntimeError, match="wrong sums"):
        collectives.self_check(good)
    good.all_gatherv = lambda tensors, **_: [tensors[0] + 1, tensors[1]]
    with pytest.raises(RuntimeError, match="wrong rows"):
        collectives.self_check(good)


# ------------------------------------------------------------------------------- quiet


@pytest.mark.parametrize(
    ("message", "arguments", "shown"),
    [
        ("Triton is not installed. triton-cpu is expected on x86 CPUs.", (), False),
        ("%s is not found in LD_PRELOAD. For best", ("libtcmalloc",), False),
        ("Something new", (), True),
    ],
    ids=["expected", "with-arguments", "news"],
)
@pytest.mark.parametrize("level", [logging.WARNING, logging.INFO], ids=["warning", "info"])
def test_only_expected_warnings_are_hidden_unless_vllm_is_asked_for_more(
    message, arguments, shown, level, monkeypatch
):
    logger, messages = logging.getLogger("vllm"), Messages()
    monkeypatch.setattr(logger, "handlers", [messages])
    monkeypatch.setattr(logger, "level", level)
    quiet.install()
    quiet.install()
    logging.getLogger("vllm.somewhere").warning(message, *arguments)
    assert bool(messages.said) is (shown or level == logging.INFO)
