"""Sampling parameters of draft tokens on CPU: temperature, top-k and top-p of each draft's request.

With speculative decoding vLLM expands them from one value a request to one a draft token. The
wrapper of its C++ kernel converts the output to int64 and fills that copy (vLLM 0.32), so that
the values used are whatever the memory held. As soon as one request of a batch samples, the
logits of all requests in it, greedy ones included, are divided by such values.
"""

import functools

import torch
from vllm.v1.sample import rejection_sampler

from serving.engine.cpu_plugin.mend import Mend


def expand_batch_to_tokens(
    x: torch.Tensor,
    cu_num_tokens: torch.Tensor,
    num_tokens: int,
    replace_from: int = 0,
    replace_to: int = 0,
) -> torch.Tensor:
    """Repeat each request's value for its tokens.

    Args:
        x: [requests], any dtype.
        cu_num_tokens: [requests], running sum of the tokens of each request.
        num_tokens: the last of ``cu_num_tokens``.
        replace_from: value of ``x`` that is replaced.
        replace_to: what it is replaced by.

    Returns:
        [num_tokens], dtype of ``x``.

    """
    counts = torch.diff(cu_num_tokens, prepend=cu_num_tokens.new_zeros(1))
    values = torch.where(x == replace_from, torch.full_like(x, replace_to), x)
    return torch.repeat_interleave(values, counts, output_size=num_tokens)


def is_right() -> bool:
    """Expand a temperature and a top-k; the memory that is handed out first holds other values."""
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
        except Exception:  # noqa: BLE001  whatever it raises, it is not right
            return False
        if got.dtype != want.dtype or not torch.equal(got, want):
            return False
    return True


def apply() -> None:
    """Expand with PyTorch instead of the kernel."""
    original = rejection_sampler.expand_batch_to_tokens
    expand = functools.partial(expand_batch_to_tokens)
    rejection_sampler.expand_batch_to_tokens = functools.update_wrapper(expand, original)


MEND = Mend("sampling parameters of draft tokens", is_right, apply)
