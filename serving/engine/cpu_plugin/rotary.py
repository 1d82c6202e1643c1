"""Rotary embedding on CPU; vLLM 0.32 supports only contiguous 2-D input.

MLA passes the query as ``[tokens, heads, rope]`` and the key as a strided slice. The C++ kernel
treats both as contiguous ``[tokens, heads * rope]`` and rotates the wrong values. No error is
raised; the model's output is wrong.
"""

import functools
from typing import Any

import torch
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding

from serving.engine.cpu_plugin.patch import Patch

_TOLERANCE = 1e-4
"""Rounding differences between kernel and native code are about 1e-6; wrong values are off by
about 1."""


def probe_module(*, is_neox_style: bool) -> Any:
    """Return a rotary embedding without a vLLM configuration: 8 positions, 16 dimensions."""
    module: Any = RotaryEmbedding.__new__(RotaryEmbedding)
    torch.nn.Module.__init__(module)
    module.head_size = module.rotary_dim = 16
    module.max_position_embeddings = 8
    module.base = 10000.0
    module.is_neox_style = is_neox_style
    module.dtype = torch.float32
    module.use_flashinfer = module.use_aiter = False
    module.register_buffer("cos_sin_cache", module._compute_cos_sin_cache(), persistent=False)
    return module


def is_right() -> bool:
    """Return whether MLA's 3-D query and strided key are rotated as by native code."""
    generator = torch.Generator().manual_seed(0)
    positions = torch.arange(1, 6)
    for is_neox_style in (False, True):
        module = probe_module(is_neox_style=is_neox_style)
        query = torch.randn(5, 3, 40, generator=generator)[..., 24:]
        key = torch.randn(5, 48, generator=generator)[:, None, 32:]
        want = module.forward_native(positions, query.clone(), key.clone())
        try:
            got = RotaryEmbedding.forward_cpu(module, positions, query, key)
        except Exception:  # noqa: BLE001  any error fails the probe
            return False
        for one, other in zip(got, want, strict=True):
            if one is None or one.shape != other.shape:
                return False
            if not torch.allclose(one, other, atol=_TOLERANCE, rtol=0):
                return False
    return True


def apply() -> None:
    """Pass contiguous 2-D tensors to the kernel and restore the caller's shape."""
    original = RotaryEmbedding.forward_cpu

    @functools.wraps(original)
    def forward_cpu(
        self: RotaryEmbedding,
        positions: torch.Tensor,
        query: torch.Tensor,
        key: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Rotate query and key, ``[tokens, heads * size]`` or ``[tokens, heads, size]`` each."""
        positions = positions.flatten()
        tokens = positions.shape[0]
        # reshape copies only where necessary; callers use the returned tensors.
        flat_key = None if key is None else key.reshape(tokens, -1).contiguous()
        rotated, rotated_key = original(
            self,
            positions,
            query.reshape(tokens, -1).contiguous(),
            flat_key,
        )
        return (
            rotated.view(query.shape),
            None if key is None or rotated_key is None else rotated_key.view(key.shape),
        )

    RotaryEmbedding.forward_cpu = forward_cpu


PATCH = Patch("rotary embedding of 3-D and strided input", is_right, apply)
