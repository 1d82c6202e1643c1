"""LoRA on CPU; vLLM 0.32 computes rows without an adapter wrongly, and chooses GPU kernels.

The index of a row without an adapter is -1, which the CPU's ``bgmv_shrink`` takes for the last
slot: requests for the base model that share a batch with others are computed with another request's
adapter. No error is raised.

With LoRA enabled, mixture-of-experts layers get Triton kernels, which fail on a CPU with the first
token. Experts take no adapters here (``lora_target_modules``), so the kernels of a model without
LoRA are right.
"""

import functools
from typing import Any

import torch
from vllm.lora.ops.torch_ops import lora_ops
from vllm.lora.punica_wrapper import punica_cpu
from vllm.model_executor.layers.fused_moe import unquantized_fused_moe_method
from vllm.model_executor.layers.fused_moe.activation import MoEActivation
from vllm.model_executor.layers.fused_moe.config import (
    FusedMoEConfig,
    FusedMoEParallelConfig,
    RoutingMethodType,
)
from vllm.model_executor.layers.fused_moe.oracle import unquantized

from serving.engine.cpu_plugin.patch import Patch


def shrink_is_right() -> bool:
    """Multiply a row with adapter 0 and one without an adapter; the second must be zero."""
    inputs = torch.ones(2, 4)
    weights = torch.ones(2, 1, 3, 4)
    output = torch.zeros(2, 3)
    punica_cpu.bgmv_shrink(inputs, weights, output, torch.tensor([0, -1]), 1.0)
    return bool((output[0] == 4.0).all() and (output[1] == 0.0).all())  # noqa: PLR2004


def apply_shrink() -> None:
    """Set the rows without an adapter to zero."""
    original = lora_ops.bgmv_shrink

    @functools.wraps(original)
    def bgmv_shrink(
        inputs: torch.Tensor,
        lora_b_weights: torch.Tensor,
        output_tensor: torch.Tensor,
        lora_indices_tensor: torch.Tensor,
        scaling: float = 1.0,
    ) -> None:
        """Multiply each row, ``[rows, hidden]``, with its adapter: ``[rows, rank]``."""
        original(inputs, lora_b_weights, output_tensor, lora_indices_tensor, scaling)
        output_tensor.masked_fill_((lora_indices_tensor < 0).view(-1, 1), 0)

    lora_ops.bgmv_shrink = punica_cpu.bgmv_shrink = bgmv_shrink


def experts_are_right() -> bool:
    """Choose the kernels of experts with and without LoRA; they must be the same."""
    chosen = []
    for enabled in (False, True):
        try:
            chosen.append(
                unquantized.select_unquantized_moe_backend(_probe_config(lora=enabled))[0]
            )
        except Exception:  # noqa: BLE001  any error fails the probe
            return False
    return bool(chosen[0] == chosen[1])


def _probe_config(*, lora: bool) -> FusedMoEConfig:
    """Return the configuration of a small layer of four experts in one process."""
    alone = FusedMoEParallelConfig(
        tp_size=1, pcp_size=1, dp_size=1, ep_size=1, tp_rank=0, pcp_rank=0, dp_rank=0, ep_rank=0,
        sp_size=1, use_ep=False, all2all_backend="allgather_reducescatter", enable_eplb=False,
    )  # fmt: skip
    return FusedMoEConfig(
        num_experts=4,
        experts_per_token=2,
        hidden_dim=32,
        intermediate_size=32,
        num_local_experts=4,
        num_logical_experts=4,
        activation=MoEActivation.SILU,
        device="cpu",
        routing_method=RoutingMethodType.Default,
        moe_parallel_config=alone,
        in_dtype=torch.float32,
        is_lora_enabled=lora,
    )


def apply_experts() -> None:
    """Choose as without LoRA."""
    original = unquantized.select_unquantized_moe_backend

    @functools.wraps(original)
    def select(moe_config: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the kernels for a layer of experts."""
        enabled, moe_config.is_lora_enabled = moe_config.is_lora_enabled, False
        try:
            return original(moe_config, *args, **kwargs)
        finally:
            moe_config.is_lora_enabled = enabled

    for module in (unquantized, unquantized_fused_moe_method):
        if getattr(module, "select_unquantized_moe_backend", None) is original:
            module.select_unquantized_moe_backend = select


SHRINK = Patch("LoRA rows without an adapter", shrink_is_right, apply_shrink)
EXPERTS = Patch("experts of a model with LoRA", experts_are_right, apply_experts)
