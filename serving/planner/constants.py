"""The constants of the performance model: six are fitted to measurements, the rest are published.

``anchors`` contains the measurements; deploy/docs/planner.md contains the table of errors.
"""

from dataclasses import dataclass, replace

ATTENTION = 660 / 989
"""Attained share of the bfloat16 peak in attention: FlashMLA, compute-bound on H800."""
MEMORY = 3000 / 3350
"""Attained share of the memory bandwidth: FlashMLA, memory-bound on H800."""
NETWORK = 43 / 50
"""Attained share of the network's bandwidth: DeepEP's low-latency dispatch, EP64 on H800."""
INTRA_NODE = 160 / 200
"""Attained share of the bandwidth within a node: DeepEP's figure for H800."""
EXCHANGE_LATENCY = 20e-6
"""Fixed time of an exchange, seconds: DeepEP's low-latency table, EP16 to EP256."""
ACCEPTANCE = 0.85
"""Share of the first drafted tokens that are accepted: DeepSeek-V3 (arXiv 2412.19437, section
5.4.3), 85 to 90 %."""


@dataclass(frozen=True, slots=True)
class Constants:
    """Fitted constants. The defaults apply to vLLM on GPUs; ``calibration`` replaces them."""

    matmul: float = 0.325
    """Attained share of the peak in matrix multiplications, including the imbalance of experts and
    small kernels. Fitted with ``overlap`` and ``layer_seconds`` to three figures of SGLang:
    prefill and decode on 96 H100, and decode of two sequences per GPU on 16 H200."""
    overlap: float = 0.58
    """Share of the shorter of computation and communication that is hidden behind the longer."""
    layer_seconds: float = 304e-6
    """Overhead per layer and step, seconds, regardless of the work."""
    draft_seconds: float = 4.75e-3
    """Overhead per step and drafted token, seconds, in addition to the drafting layer's work.
    Fitted to SGLang's figure with two drafted tokens."""
    engine: float = 1.33
    """Factor on the whole step. Fitted to vLLM's 2,200 tokens/s per H200; no figure for prefill is
    published, so the same factor is assumed."""
    utilisation: float = 0.705
    """Maximum planned utilization of prefill: the share of its capacity that DeepSeek's fleet used
    on average over a day, while it was scaled with the load. Fitted to its prefill figure."""
    decode: float = 1.0
    """Factor on the work of decoding; 1 unless calibrated."""
    prefill: float = 1.0
    """Factor on the work of prefill; 1 unless calibrated."""
    first_token_seconds: float = 0.02
    """Time that client and router add to the first token, seconds; estimated unless calibrated."""
    first_token_per_sequence: float = 0.0
    """Time added to the first token per sequence of the group, seconds, if router and ranks share
    cores; 0 unless calibrated."""


VLLM = Constants()
"""The constants of vLLM, which the planner uses unless it is calibrated."""
PEERS = replace(VLLM, engine=1.0)
"""The constants of SGLang and DeepSeek's engine."""
