"""Workaround for DeepSeek layers with one token, where vLLM 0.32 mistakes a share for all rows.

With data, tensor and expert parallelism, each worker of a rank holds a share of the tokens between
two MoE layers (``use_sequence_parallel_moe``), padded to equal shares. ``DeepseekV2DecoderLayer``
distinguishes a share from all rows by the number of rows, which is ambiguous with one token: one
worker has one row, the other one row of padding. The layer then continues without gathering, and
every decode step of a single request is wrong on any platform with eager execution
(vllm-project/vllm issue 50154, pull request 50691).

With the patch, a layer returns all rows if there is one token, which makes the number of rows
unambiguous.
"""

import functools
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from vllm.model_executor.models import deepseek_v2
from vllm.model_executor.models.deepseek_v2 import DeepseekV2DecoderLayer

from serving.engine.cpu_plugin.patch import Patch

_PADDING = -1.0


def is_right() -> bool:
    """Return whether the worker with padding attends to the right rows of one token in two layers.

    The layers are stubs without weights; the collectives simulate two workers.
    """
    attended: list[float] = []

    def attend(_positions: torch.Tensor, rows: torch.Tensor, *_: Any) -> torch.Tensor:
        attended.extend(rows[:, 0].tolist())
        return rows

    def norm(rows: torch.Tensor, residual: torch.Tensor | None = None) -> Any:
        return rows if residual is None else (rows, residual)

    layer = SimpleNamespace(
        use_sequence_parallel_moe=True,
        use_mha=False,
        input_layernorm=norm,
        post_attention_layernorm=norm,
        self_attn=attend,
        mlp=lambda rows, **_: rows,
    )

    def second_half(rows: torch.Tensor, *_: Any) -> torch.Tensor:
        return torch.full_like(rows[:1], _PADDING)

    def both_halves(rows: torch.Tensor, *_: Any) -> torch.Tensor:
        return torch.cat([torch.ones_like(rows), rows])

    with mock.patch.multiple(
        deepseek_v2,
        get_tensor_model_parallel_world_size=lambda: 2,
        tensor_model_parallel_reduce_scatter=second_half,
        sequence_parallel_chunk=second_half,
        tensor_model_parallel_all_gather=both_halves,
    ):
        rows, residual = torch.ones(1, 4), None
        try:
            for _ in range(2):
                rows, residual = DeepseekV2DecoderLayer.forward(
                    layer, torch.zeros(1, dtype=torch.int64), rows, residual
                )
        except Exception:  # noqa: BLE001  any error fails the probe
            return False
    return attended == [1.0, 1.0]


def apply() -> None:
    """Make a layer return all rows if there is one token."""
    original = DeepseekV2DecoderLayer.forward

    @functools.wraps(original)
    def forward(
        self: Any,
        positions: torch.Tensor,
        hidden_states: torch.Tensor,
        residual: torch.Tensor | None,
        *others: Any,
        **named: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the layer on ``[tokens, hidden]`` rows or a worker's share of them."""
        rows, left = original(self, positions, hidden_states, residual, *others, **named)
        if not (self.use_sequence_parallel_moe and positions.shape[0] == 1):
            return rows, left
        both = torch.cat([rows, left], dim=-1)
        both = deepseek_v2.tensor_model_parallel_all_gather(both, 0)[:1]
        width = rows.shape[-1]
        return both[:, :width], both[:, width:]

    DeepseekV2DecoderLayer.forward = forward


PATCH = Patch("sequence parallelism of a single token", is_right, apply)
