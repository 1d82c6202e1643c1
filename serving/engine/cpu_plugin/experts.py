"""CPU experts: apply the expert map, count tokens, reject unsupported layers.

With expert parallelism, a process holds some of the experts and receives the tokens of all ranks.
``CPUUnquantizedExperts.apply`` of vLLM 0.32 ignores ``expert_map``: it indexes local weights with
global ids, which reads memory out of bounds or crashes.
"""

import functools
from typing import Any

import torch
from vllm.model_executor.layers.fused_moe.activation import MoEActivation
from vllm.model_executor.layers.fused_moe.config import FusedMoEQuantConfig
from vllm.model_executor.layers.fused_moe.experts import cpu_moe

from serving.engine.cpu_plugin import expert_load
from serving.engine.cpu_plugin.patch import Patch

_Experts = cpu_moe.CPUUnquantizedExperts
_LOAD = "moe_serving_load"
"""Attribute of an experts object that holds its layer's counter."""


def to_local(
    topk_ids: torch.Tensor,
    topk_weights: torch.Tensor,
    expert_map: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Translate global expert ids to local ids.

    Args:
        topk_ids: ``[tokens, k]``, global ids.
        topk_weights: ``[tokens, k]``, routing weights.
        expert_map: ``[global experts]``, local id, or -1 for an expert of another process.

    Returns:
        Ids and weights for the kernel, ``[tokens, k]`` each. Experts of other processes become
        expert 0 with weight 0, which contributes nothing.
    """
    local = expert_map[topk_ids.long()].long()
    here = local >= 0
    return (
        torch.where(here, local, 0).to(topk_ids.dtype),
        torch.where(here, topk_weights, 0),
    )


def is_right() -> bool:
    """Return whether four tiny experts, two of them in the map, compute two tokens correctly.

    All four experts have weights, so code that ignores the map stays within bounds; the probe
    detects that it computes the wrong experts.
    """
    size, experts = 32, 4
    generator = torch.Generator().manual_seed(0)
    w1 = torch.randn(experts, 2 * size, size, generator=generator) / size**0.5
    w2 = torch.randn(experts, size, size, generator=generator) / size**0.5
    hidden = torch.randn(2, size, generator=generator)
    ids = torch.tensor([[0, 3], [2, 1]], dtype=torch.int32)
    weights = torch.tensor([[0.75, 0.25], [0.5, 0.5]])
    expert_map = torch.tensor([2, 3, -1, -1], dtype=torch.int32)

    want = torch.zeros(2, size)
    for token in range(2):
        for place in range(2):
            local = int(expert_map[ids[token, place]])
            if local >= 0:
                gate, up = (w1[local] @ hidden[token]).chunk(2)
                want[token] += weights[token, place] * (
                    w2[local] @ (torch.nn.functional.silu(gate) * up)
                )

    try:
        got = compute(hidden, w1, w2, weights, ids, expert_map)
    except Exception:  # noqa: BLE001  any error fails the probe
        return False
    return bool(torch.allclose(got, want, atol=1e-4, rtol=0))


def compute(
    hidden: torch.Tensor,
    w1: torch.Tensor,
    w2: torch.Tensor,
    weights: torch.Tensor,
    ids: torch.Tensor,
    expert_map: torch.Tensor | None,
) -> torch.Tensor:
    """Run the process's current ``CPUUnquantizedExperts.apply``, for the probe and for tests.

    Args:
        hidden: ``[tokens, size]``.
        w1: Gate and up projections, ``[local experts, 2 * inner, size]``, not packed.
        w2: Down projections, ``[local experts, size, inner]``, not packed.
        weights: ``[tokens, k]``.
        ids: ``[tokens, k]``, global.
        expert_map: ``[global experts]`` or ``None``.

    Returns:
        ``[tokens, size]``.
    """
    module: Any = _Experts.__new__(_Experts)
    module.moe_config = None
    module.quant_config = FusedMoEQuantConfig.make()
    module._use_zentorch = False
    output = torch.empty_like(hidden)
    empty = torch.empty(0)
    _Experts.apply(
        module,
        output=output,
        hidden_states=hidden,
        w1=cpu_moe.cpu_prepack_moe_weight(w1, _Experts.isa),
        w2=cpu_moe.cpu_prepack_moe_weight(w2, _Experts.isa),
        topk_weights=weights,
        topk_ids=ids,
        activation=MoEActivation.SILU,
        global_num_experts=len(w1) if expert_map is None else len(expert_map),
        expert_map=expert_map,
        a1q_scale=None,
        a2_scale=None,
        workspace13=empty,
        workspace2=empty,
        expert_tokens_meta=None,
        apply_router_weight_on_input=False,
    )
    return output


def apply() -> None:
    """Make ``CPUUnquantizedExperts.apply`` translate global expert ids first."""
    original = _Experts.apply

    @functools.wraps(original)
    def patched(
        self: Any,
        output: torch.Tensor,
        hidden_states: torch.Tensor,
        w1: torch.Tensor,
        w2: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        activation: MoEActivation,
        global_num_experts: int,
        expert_map: torch.Tensor | None,
        *rest: Any,
        **more: Any,
    ) -> None:
        if expert_map is not None:
            topk_ids, topk_weights = to_local(topk_ids, topk_weights, expert_map)
        original(
            self,
            output,
            hidden_states,
            w1,
            w2,
            topk_weights,
            topk_ids,
            activation,
            global_num_experts,
            None,
            *rest,
            **more,
        )

    _Experts.apply = patched


PATCH = Patch("expert map of unquantized experts", is_right, apply)


def install_counting() -> None:
    """Count the tokens of each local expert, whether or not the patch is applied."""
    load_weights, run = _Experts.process_weights_after_loading, _Experts.apply

    @functools.wraps(load_weights)
    def process_weights_after_loading(self: Any, layer: Any) -> None:
        load_weights(self, layer)
        reject_unsupported(self, layer)
        local_ids = layer.expert_map_manager.get_local_expert_ids()
        setattr(self, _LOAD, expert_load.track(layer.layer_name, local_ids))

    @functools.wraps(run)
    def apply(
        self: Any,
        output: torch.Tensor,
        hidden_states: torch.Tensor,
        w1: torch.Tensor,
        w2: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        activation: MoEActivation,
        global_num_experts: int,
        expert_map: torch.Tensor | None,
        *rest: Any,
        **more: Any,
    ) -> None:
        load: expert_load.ExpertLoad | None = getattr(self, _LOAD, None)
        if load is not None:
            ids = topk_ids.long()
            load.add(ids if expert_map is None else expert_map[ids].long())
        run(
            self,
            output,
            hidden_states,
            w1,
            w2,
            topk_weights,
            topk_ids,
            activation,
            global_num_experts,
            expert_map,
            *rest,
            **more,
        )

    _Experts.process_weights_after_loading = process_weights_after_loading
    _Experts.apply = apply


def reject_unsupported(module: Any, layer: Any) -> None:
    """Reject a layer that expert parallelism on CPU computes incorrectly.

    Raises:
        NotImplementedError: The layer is unsupported; the message states reason and remedy.
    """
    if layer.expert_map_manager.expert_map is None:
        return
    if layer.apply_router_weight_on_input:
        # The kernel would ignore the weights, including the zeros of other processes' experts.
        raise NotImplementedError(
            f"{layer.layer_name} applies router weights to its input, which expert "
            "parallelism on CPU does not support: set group.data_parallel=1",
        )
    if module._use_zentorch:
        raise NotImplementedError(
            f"{layer.layer_name} would use zentorch, which ignores the expert map: "
            "uninstall zentorch, or set group.data_parallel=1",
        )


def reject_quantized_expert_parallel() -> None:
    """Make quantized CPU experts reject expert parallelism.

    Their kernels also ignore the expert map and would read memory out of bounds. They are not
    patched, because a patch cannot be tested without a CPU with AMX.
    """
    for cls in vars(cpu_moe).values():
        if (
            isinstance(cls, type)
            and cls.__module__ == cpu_moe.__name__
            and issubclass(cls, cpu_moe.mk.FusedMoEExperts)
            and not issubclass(cls, _Experts)
        ):
            _reject_expert_parallel(cls)


def _reject_expert_parallel(cls: Any) -> None:
    original = cls.__init__

    @functools.wraps(original)
    def init(self: Any, moe_config: Any, *args: Any, **kwargs: Any) -> None:
        if moe_config.moe_parallel_config.use_ep:
            raise NotImplementedError(
                f"expert parallelism on CPU with quantized experts ({cls.__name__}) is not "
                "supported: use an unquantized model, or set group.data_parallel=1 and "
                "group.tensor_parallel=1",
            )
        original(self, moe_config, *args, **kwargs)

    cls.__init__ = init
