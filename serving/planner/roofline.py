"""Duration of an engine step by the roofline of each of its parts. Pure functions.

A part takes as long as its arithmetic or its memory traffic, whichever is longer (Williams et al.,
"Roofline", CACM 52(4), 2009). Parts add up; communication is partly hidden behind computation:

    busy = work + exchange - overlap * min(work, exchange)
    step = (busy + layers * layer_seconds) * engine + drafts * draft_seconds

Sizes refer to one worker (GPU) of a rank: tensor parallelism splits attention by heads, and expert
parallelism spreads the routed experts over all workers of the group.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

from serving.planner.accelerators import Accelerator
from serving.planner.all_to_all import (
    combine_bytes,
    direct_seconds,
    dispatch_bytes,
    forwarded_seconds,
)
from serving.planner.constants import (
    ATTENTION,
    EXCHANGE_LATENCY,
    INTRA_NODE,
    MEMORY,
    Constants,
)
from serving.planner.gpu_memory import ModelFigures, kv_bytes_per_token

_ACTIVATION = 2
"""Bytes of an activation: bfloat16."""


class Limit(StrEnum):
    """The part that takes most of a step, or the resource that limits its size."""

    COMPUTE = "compute"
    MEMORY = "memory bandwidth"
    EXCHANGE = "all-to-all"
    OVERHEAD = "step overhead"
    KV = "KV room"
    SEQUENCES = "limit of sequences"


@dataclass(frozen=True, slots=True)
class Batch:
    """The work of a rank in one step: one token of each sequence, and prompt tokens."""

    sequences: float = 0.0
    """Number of sequences that get a token."""
    context: float = 0.0
    """Mean current length of these sequences, tokens."""
    drafts: int = 0
    """Number of drafted tokens per sequence, which the step verifies."""
    prompt: float = 0.0
    """Number of prompt tokens."""
    attended: float = 0.0
    """Mean number of tokens that a prompt token attends to."""
    cached: float = 0.0
    """Number of tokens of the cached prefixes of these prompts."""
    mean_prompt: float | None = None
    """Number of prompt tokens of an average rank of the group; matters because experts are shared.
    If None, all ranks have ``prompt`` tokens."""

    @property
    def tokens(self) -> float:
        """Tokens that extend sequences, including drafted ones."""
        return self.sequences * (1 + self.drafts)


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a group."""

    seconds: float
    limit: Limit


@dataclass(frozen=True, slots=True)
class _Part:
    """Duration of the arithmetic and of the memory traffic of one part, seconds."""

    flops: float
    reads: float

    @property
    def seconds(self) -> float:
        return max(self.flops, self.reads)


@dataclass(frozen=True, slots=True)
class StepModel:
    """The steps of a group of ``data`` ranks of ``tensor`` workers each."""

    model: ModelFigures
    gpu: Accelerator
    data: int
    tensor: int
    constants: Constants

    @property
    def workers(self) -> int:
        """Number of GPUs of the group, i.e. the expert-parallel size."""
        return self.data * self.tensor

    @property
    def overhead(self) -> float:
        """Overhead of a step, seconds."""
        return self.constants.layer_seconds * self.model.num_hidden_layers * self.constants.engine

    def decode(self, sequences: float, context: float, drafts: int = 0) -> Step:
        """Return a step of ``sequences`` sequences per rank without prompts; see ``Batch``."""
        return self.step(Batch(sequences, context, drafts))

    def prefill(self, tokens: float, attended: float, cached: float = 0.0) -> Step:
        """Return a step with only prompt tokens, the same number on each rank; see ``Batch``."""
        return self.step(Batch(prompt=tokens, attended=attended, cached=cached))

    def step(self, batch: Batch) -> Step:
        """Return the step in which the busiest rank has ``batch``."""
        known = self.constants
        parts, exchange = self._work(batch)
        busy = self._busy(parts, exchange)
        # Each draft runs one more layer.
        more = known.decode * (1 + batch.drafts / self.model.num_hidden_layers)
        if batch.prompt and batch.sequences:
            alone = self._busy(*self._work(replace(batch, prompt=0.0, cached=0.0)))
            total = alone * more + (busy - alone) * known.prefill
        else:
            total = busy * (known.prefill if batch.prompt else more)
        seconds = total * known.engine + self.overhead + batch.drafts * known.draft_seconds
        shares = {
            Limit.COMPUTE: sum(part.seconds for part in parts if part.flops >= part.reads),
            Limit.MEMORY: sum(part.seconds for part in parts if part.flops < part.reads),
            Limit.EXCHANGE: exchange,
            Limit.OVERHEAD: known.layer_seconds * self.model.num_hidden_layers,
        }
        return Step(seconds, max(shares, key=lambda each: shares[each]))

    def _busy(self, parts: tuple[_Part, ...], exchange: float) -> float:
        work = sum(part.seconds for part in parts)
        return work + exchange - self.constants.overlap * min(work, exchange)

    def _work(self, batch: Batch) -> tuple[tuple[_Part, ...], float]:
        """Return the parts of the computation, and the duration of the communication in seconds."""
        experts = batch.prompt if batch.mean_prompt is None else batch.mean_prompt
        parts = (
            self._decoding(batch),
            self._prompts(batch),
            # Logits are computed for the tokens of sequences, and for the last one of a prompt.
            self._dense(batch.tokens + batch.prompt, batch.tokens + bool(batch.prompt)),
            self._experts((batch.tokens + experts) / self.tensor),
        )
        communication = (
            self._exchange(batch.tokens / self.tensor, direct_seconds)
            + self._exchange(batch.prompt / self.tensor, forwarded_seconds)
            + self._reduce(batch.tokens + batch.prompt)
        )
        return parts, communication

    def _decoding(self, batch: Batch) -> _Part:
        """Return the attention of sequences to their cache.

        MLA decodes with the projections absorbed: all heads attend to the latent itself
        (DeepSeek-V2, arXiv 2405.04434, section 2.1.3). A multiply-add counts as 2.
        """
        model = self.model
        if model.kv_lora_rank:
            pair = 2 * model.num_attention_heads * (2 * model.kv_lora_rank + model.qk_rope_head_dim)
        else:
            pair = 4 * model.num_attention_heads * model.head_dim
        flops = batch.tokens * batch.context * pair * model.num_hidden_layers / self.tensor
        return self._attention(flops, batch.sequences * batch.context)

    def _prompts(self, batch: Batch) -> _Part:
        """Return the attention of prompt tokens to all tokens before them.

        For prompts, MLA computes keys and values of all heads, to which it expands the latents of
        cached tokens (same section).
        """
        model = self.model
        if model.kv_lora_rank:
            widths = model.qk_nope_head_dim + model.qk_rope_head_dim + model.v_head_dim
            expand = 2 * model.kv_lora_rank * (model.qk_nope_head_dim + model.v_head_dim)
        else:
            widths, expand = 2 * model.head_dim, 0
        heads = model.num_attention_heads * model.num_hidden_layers / self.tensor
        flops = (2 * batch.prompt * batch.attended * widths + batch.cached * expand) * heads
        return self._attention(flops, batch.cached + batch.prompt)

    def _attention(self, flops: float, tokens: float) -> _Part:
        """Return attention that reads the cache of ``tokens`` tokens."""
        wide = max(_ACTIVATION, self.model.weight_bytes)
        each = kv_bytes_per_token(self.model, tensor=self.tensor, value_bytes=wide)
        gpu = self.gpu
        return _Part(flops / (gpu.bf16 * ATTENTION), tokens * each / (gpu.bandwidth * MEMORY))

    def _dense(self, tokens: float, logits: float) -> _Part:
        """Return the linear layers of every rank: projections, dense layers and the head."""
        model = self.model
        weights = (
            model.num_hidden_layers * (model.attention_split / self.tensor + model.attention_whole)
            + model.first_k_dense_replace * model.dense / self.tensor
        )
        head = model.embedding / self.tensor
        size = weights * model.weight_bytes + head * max(_ACTIVATION, model.weight_bytes)
        return self._matmul(tokens * weights + logits * head, size)

    def _experts(self, tokens: float) -> _Part:
        """Return the MoE layers of a worker, with ``tokens`` tokens from each worker."""
        model = self.model
        used = model.num_experts_per_tok * model.expert + model.shared + model.gate
        held = -(-model.n_routed_experts // self.workers)
        # An expert is read if any of the group's tokens chose it.
        chosen = min(1.0, model.num_experts_per_tok / max(model.n_routed_experts, 1))
        active = held * (1 - (1 - chosen) ** (tokens * self.workers))
        size = active * model.expert + model.shared / self.tensor + model.gate
        layers = model.moe_layers
        return self._matmul(tokens * used * layers, size * model.weight_bytes * layers)

    def _matmul(self, products: float, size: float) -> _Part:
        """Return ``products`` multiply-adds with ``size`` bytes of weights."""
        gpu = self.gpu
        peak = gpu.fp8 if self.model.weight_bytes == 1 else gpu.bf16
        flops = 2 * products / (peak * self.constants.matmul)
        return _Part(flops, size / (gpu.bandwidth * MEMORY))

    def _exchange(self, tokens: float, one_way: Callable[..., float]) -> float:
        """Return the duration of all dispatches and combines of a step, seconds."""
        model = self.model
        if not tokens:
            return 0.0
        both = sum(
            one_way(self.gpu, self.workers, tokens, model.num_experts_per_tok, size)
            for size in (dispatch_bytes(model.hidden_size), combine_bytes(model.hidden_size))
        )
        return both * model.moe_layers

    def _reduce(self, tokens: float) -> float:
        """Return the duration of the all-reduces after attention (ring, within a node), seconds."""
        if self.tensor == 1:
            return 0.0
        share = 2 * (self.tensor - 1) / self.tensor
        size = tokens * self.model.hidden_size * _ACTIVATION
        each = share * size / (self.gpu.intra_node * INTRA_NODE) + EXCHANGE_LATENCY
        return each * self.model.num_hidden_layers
