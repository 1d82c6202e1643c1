"""Duration of the exchange of tokens between the experts of a group (all-to-all). Pure functions.

Dispatch sends a token's hidden state in FP8 (one byte per value, one float32 scale per 128 values),
combine returns it in bfloat16, as in DeepEP. Byte counts refer to the busiest link; traffic within
and between nodes flows concurrently.
"""

from serving.planner.accelerators import Accelerator
from serving.planner.constants import EXCHANGE_LATENCY, INTRA_NODE, NETWORK

_DISPATCH = 1 + 4 / 128
"""Bytes of a dispatched value."""
_COMBINE = 2
"""Bytes of a combined value."""


def dispatch_bytes(hidden: int) -> float:
    """Return the bytes of one dispatched token of ``hidden`` values."""
    return hidden * _DISPATCH


def combine_bytes(hidden: int) -> float:
    """Return the bytes of one combined token of ``hidden`` values."""
    return hidden * _COMBINE


def direct_seconds(
    gpu: Accelerator, workers: int, tokens: float, experts: int, token_bytes: float
) -> float:
    """Return the seconds of one exchange that sends each token to each of its experts.

    Models DeepEP's low-latency kernels, used for decoding, which send a separate copy to each
    expert.

    Args:
        gpu: The hardware.
        workers: Number of GPUs of the group.
        tokens: Number of tokens that each GPU sends.
        experts: Number of routed experts of a token.
        token_bytes: Size of one token, bytes.
    """
    if workers == 1:
        return 0.0
    copies = tokens * experts * token_bytes
    local = min(workers, gpu.per_node)
    between = copies * (workers - local) / workers / (gpu.network * NETWORK)
    within = copies * (local - 1) / workers / (gpu.intra_node * INTRA_NODE)
    return max(between, within) + EXCHANGE_LATENCY


def forwarded_seconds(
    gpu: Accelerator, workers: int, tokens: float, experts: int, token_bytes: float
) -> float:
    """Return the seconds of one exchange that sends each token once to each node.

    Models DeepEP's normal kernels, used for prefill: the receiving node forwards the token to its
    experts' GPUs. The expected number of nodes assumes evenly distributed experts; the node limit
    of DeepSeek-V3's gate (4 nodes) is not modelled; it only matters with more than 4 nodes.
    """
    if workers == 1:
        return 0.0
    nodes = -(-workers // gpu.per_node)
    local = min(workers, gpu.per_node)
    reached = nodes * (1 - (1 - 1 / nodes) ** experts)
    between = tokens * token_bytes * reached * (nodes - 1) / nodes / (gpu.network * NETWORK)
    within = tokens * token_bytes * experts * (local - 1) / local / (gpu.intra_node * INTRA_NODE)
    return max(between, within) + EXCHANGE_LATENCY
