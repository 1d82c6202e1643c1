"""Sampling parameters of draft tokens on CPU: temperature, top-k and top-p.

With speculative decoding, vLLM expands them from one value per request to one per draft token. In
vLLM 0.32 the wrapper of the C++ kernel fills an int64 copy of the output, so the actual output
stays uninitialized memory. If any request of a batch uses sampling, the logits of all requests in
the batch, including greedy ones, are divided by these values.
"""

import functools

import torch
from vllm.v1.sample import rejection_sampler

from serving.engine.cpu_plugin.patch import Patch


def expand_batch_to_tokens(
    x: torch.Tensor,
    cu_num_tokens: torch.Tensor,
    num_tokens: int,
    replace_from: int = 0,
    replace_to: int = 0,
) -> torch.Tensor:
    """Repeat each request's value for each of its tokens.

    Args:
        x: ``[requests]``, any dtype.
        cu_num_tokens: ``[requests]``, cumulative sum of the tokens of each request.
        num_tokens: Last element of ``cu_num_tokens``.
        replace_from: Value of ``x`` to replace.
        replace_to: Replacement for ``replace_from``.

    Returns:
        ``[num_tokens]``, dtype of ``x``.
    """
    counts = torch.diff(cu_num_tokens, prepend=cu_num_tokens.new_zeros(1))
    values = torch.where(x == replace_from, torch.full_like(x, replace_to), x)
    return torch.repeat_interleave(values, counts, output_size=num_tokens)


def is_right() -> bool:
    """Return whether a temperature and a top-k are expanded correctly into used memory."""
    counts = torch.tensor([1, 1, 4], dtype=torch.int32)
    for values, replace_to in (
        (torch.tensor([0.0, 0.5, 0.7]), 1),
        (torch.tensor([3, 5, 7], dtype=torch.int32), 0),
    ):
        want = expand_batch_to_tokens(values, counts, 4, 0, replace_to)
        stale = torch.full((4,), 9, dtype=values.dtype)
        del stale
        try:
            got = rejection_sampler.expand_batch_to_tokens(values, counts, 4, 0, replace_to)
        except Exception:  # noqa: BLE001  any error fails the probe
            return False
        if got.dtype != want.dtype or not torch.equal(got, want):
            return False
    return True


def apply() -> None:
    """Replace the kernel with PyTorch operations."""
    original = rejection_sampler.expand_batch_to_tokens
    expand = functools.partial(expand_batch_to_tokens)
    rejection_sampler.expand_batch_to_tokens = functools.update_wrapper(expand, original)


PATCH = Patch("sampling parameters of draft tokens", is_right, apply)
