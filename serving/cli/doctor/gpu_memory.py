"""How much memory a model takes on each GPU of an expert-parallel group, from its public figures.

Pure arithmetic on the numbers of a model's config.json: nothing is loaded and no GPU is asked.
Weights and KV cache are exact up to a few small vectors; the reserve is an allowance. Sizes are
bytes, counts are parameters.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

GIB = 2**30

WIDE_BYTES = 2
"""Embeddings, head, norms and expert gates stay in bfloat16 in FP8 checkpoints
(DeepSeek-V3's README_WEIGHTS.md); where weights are wider than this, so are these."""
SCALE_BYTES = 4 / (128 * 128)
"""FP8 weights have one float32 scale for a block of 128 x 128 (DeepSeek-V3's config.json,
quantization_config.weight_block_size)."""
RUNTIME_BYTES = 3 * GIB
"""Allowance for the CUDA context, graphs, NCCL and all-to-all buffers of one GPU; not measured."""
PROCESS_BYTES = int(2.6 * GIB)
"""Of one CPU rank beside weights and KV cache: what serving.cli.doctor.machine measured for a rank
of pocket-r1, and Ray's agents in its pod."""
DEFAULT_GPU_SHARE = 0.92
"""vLLM's own gpu_memory_utilization (vllm/config/cache.py, 0.32)."""


@dataclass(frozen=True, slots=True)
class ModelFigures:
    """A model's numbers, by their names in config.json."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    moe_intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    n_routed_experts: int
    num_experts_per_tok: int
    weight_bytes: int
    """Bytes of one weight of the linear layers as served: 1 for FP8, 2 for bfloat16."""
    n_shared_experts: int = 0
    first_k_dense_replace: int = 0
    """Layers at the beginning that have a dense feed-forward part."""
    num_nextn_predict_layers: int = 0
    """Multi-token-prediction layers; loaded only if they draft."""
    head_dim: int = 0
    """Of a key-value head, with grouped-query attention."""
    q_lora_rank: int = 0
    kv_lora_rank: int = 0
    """Size of the latent that MLA caches; 0: grouped-query attention."""
    qk_nope_head_dim: int = 0
    qk_rope_head_dim: int = 0
    v_head_dim: int = 0
    source: str = ""

    @classmethod
    def from_mapping(cls, figures: Mapping[str, Any]) -> "ModelFigures":
        """Return the figures in ``figures``.

        Raises:
            ValueError: a key is missing or unknown.
        """
        unknown = set(figures) - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(f"unknown figures {', '.join(sorted(unknown))}")
        try:
            return cls(**figures)
        except TypeError as error:
            raise ValueError(str(error)) from error

    @property
    def moe_layers(self) -> int:
        """Layers with routed experts, without multi-token prediction's."""
        return self.num_hidden_layers - self.first_k_dense_replace

    @property
    def expert(self) -> int:
        """Parameters of one routed expert: gate, up and down projection."""
        return 3 * self.hidden_size * self.moe_intermediate_size

    @property
    def attention_split(self) -> int:
        """Parameters of one layer's attention that tensor parallelism divides by heads."""
        heads, hidden = self.num_attention_heads, self.hidden_size
        if not self.kv_lora_rank:
            return 2 * hidden * self.head_dim * (heads + self.num_key_value_heads)
        query = heads * (self.qk_nope_head_dim + self.qk_rope_head_dim)
        return (
            (self.q_lora_rank or hidden) * query
            + self.kv_lora_rank * heads * (self.qk_nope_head_dim + self.v_head_dim)
            + heads * self.v_head_dim * hidden
        )

    @property
    def attention_whole(self) -> int:
        """Parameters of one layer's attention that every worker holds: MLA's way down."""
        if not self.kv_lora_rank:
            return 2 * self.head_dim
        down = self.hidden_size * (self.q_lora_rank + self.kv_lora_rank + self.qk_rope_head_dim)
        return down + self.q_lora_rank + self.kv_lora_rank

    @property
    def attention(self) -> int:
        """Parameters of one layer's attention."""
        return self.attention_split + self.attention_whole

    @property
    def shared(self) -> int:
        """Parameters of one MoE layer's shared experts."""
        return self.n_shared_experts * self.expert

    @property
    def gate(self) -> int:
        """Parameters of one MoE layer's choice of experts."""
        return self.hidden_size * self.n_routed_experts

    @property
    def dense(self) -> int:
        """Parameters of one dense layer's feed-forward part."""
        return 3 * self.hidden_size * self.intermediate_size

    @property
    def embedding(self) -> int:
        """Parameters of the embedding, and of the head again."""
        return self.vocab_size * self.hidden_size

    @property
    def norms(self) -> int:
        """Parameters of all layers' norms and the last one."""
        return (2 * self.num_hidden_layers + 1) * self.hidden_size


def total_parameters(model: ModelFigures, *, prediction: bool = False) -> int:
    """Return the number of parameters.

    ``prediction`` adds the multi-token-prediction layers as they are published: each a MoE layer,
    a projection of two hidden states, and copies of embedding and head.
    """
    moe = model.n_routed_experts * model.expert + model.shared + model.gate
    total = (
        model.num_hidden_layers * model.attention
        + model.first_k_dense_replace * model.dense
        + model.moe_layers * moe
        + 2 * model.embedding
        + model.norms
    )
    if prediction:
        layer = model.attention + moe + _projection(model) + 2 * model.embedding
        total += model.num_nextn_predict_layers * layer
    return total


def active_parameters(model: ModelFigures) -> int:
    """Return the number of parameters that one token goes through, embedding and head included."""
    idle = model.n_routed_experts - model.num_experts_per_tok
    return total_parameters(model) - model.moe_layers * idle * model.expert


def published_bytes(model: ModelFigures) -> int:
    """Return the size of the published checkpoint, multi-token prediction included."""
    whole = total_parameters(model, prediction=True)
    layers = model.num_nextn_predict_layers
    wide = (
        2 * (1 + layers) * model.embedding + (model.moe_layers + layers) * model.gate + model.norms
    )
    return int((whole - wide) * _weight_bytes(model) + wide * _wide_bytes(model))


def kv_bytes_per_token(model: ModelFigures, *, tensor: int = 1, value_bytes: int = 2) -> int:
    """Return the KV cache of one token on one worker, over all layers.

    MLA keeps one latent and one rotary key for all heads (DeepSeek-V2, arXiv 2405.04434, section
    2.1): every worker of a rank has a copy. Grouped-query attention keeps a key and a value for
    each of its heads; ``tensor`` workers share them out until each has one.
    """
    if model.kv_lora_rank:
        values = model.kv_lora_rank + model.qk_rope_head_dim
    else:
        values = 2 * model.head_dim * -(-model.num_key_value_heads // tensor)
    return values * model.num_hidden_layers * value_bytes


@dataclass(frozen=True, slots=True)
class Demand:
    """How a model is to be served."""

    data: int
    """Ranks of a group."""
    tensor: int = 1
    """Workers of a rank."""
    max_model_len: int = 1
    """Longest prompt plus output, tokens."""
    max_num_seqs: int = 64
    """Sequences in one step of a rank."""
    max_num_batched_tokens: int = 8192
    """Tokens in one step of a rank."""
    prediction: bool = False
    """Whether multi-token prediction drafts."""


@dataclass(frozen=True, slots=True)
class WorkerMemory:
    """One worker's memory (one GPU, or one CPU process)."""

    capacity: int
    """What vLLM may take."""
    experts: int
    """Routed experts: the worker's share of every MoE layer."""
    replicated: int
    """Attention, dense layers and shared experts: whole in every rank, split over its workers."""
    embeddings: int
    prediction: int
    """Multi-token prediction beside its routed experts, which are among the experts."""
    reserve: int
    """Allowance for everything that is no weight and no cache."""
    kv_per_token: int
    kv_wanted: int
    """What the cache must have: room for one sequence of full length; on CPUs its fixed size."""

    @property
    def weights(self) -> int:
        """All weights."""
        return self.experts + self.replicated + self.embeddings + self.prediction

    @property
    def kv_room(self) -> int:
        """What is left for the KV cache; negative: not even the weights fit."""
        return self.capacity - self.weights - self.reserve

    @property
    def kv_tokens(self) -> int:
        """Tokens that the KV cache holds."""
        return max(0, self.kv_room) // self.kv_per_token

    @property
    def shortage(self) -> int:
        """What is missing to hold weights and cache; 0: it fits."""
        return max(0, self.kv_wanted - self.kv_room)


def gpu_memory(
    model: ModelFigures, demand: Demand, gpu_bytes: int, share: float = DEFAULT_GPU_SHARE
) -> WorkerMemory:
    """Return how one GPU of ``gpu_bytes`` is used, of which vLLM takes ``share``."""
    steps = demand.max_num_batched_tokens * model.hidden_size * WIDE_BYTES
    # A token, its copies on the way to its experts, and about as many intermediates.
    activations = steps * (model.num_experts_per_tok + 8)
    logits = demand.max_num_seqs * model.vocab_size * 4 * 2
    reserve = RUNTIME_BYTES + activations + logits
    return _worker(model, demand, int(gpu_bytes * share), reserve)


def cpu_memory(
    model: ModelFigures, demand: Demand, rank_bytes: int, kv_cache_bytes: int
) -> WorkerMemory:
    """Return how the memory of one CPU rank is used; its KV cache has a fixed size.

    Args:
        model: the model.
        demand: how it is served.
        rank_bytes: the rank's share of its pod's memory.
        kv_cache_bytes: the KV cache (engine.kv_cache_gib).
    """
    used = _worker(model, demand, rank_bytes, PROCESS_BYTES)
    # What the cache does not take is free, and no use to it.
    free = max(0, used.kv_room - kv_cache_bytes)
    used = _worker(model, demand, rank_bytes - free, PROCESS_BYTES)
    return replace(used, kv_wanted=max(used.kv_wanted, kv_cache_bytes))


def _worker(model: ModelFigures, demand: Demand, capacity: int, reserve: int) -> WorkerMemory:
    narrow, wide = _weight_bytes(model), _wide_bytes(model)
    workers, tensor = demand.data * demand.tensor, demand.tensor
    predicting = model.num_nextn_predict_layers if demand.prediction else 0
    # The worker with most experts decides where they do not divide.
    experts = -(-model.n_routed_experts // workers)
    in_rank = (
        model.num_hidden_layers * model.attention_split
        + model.first_k_dense_replace * model.dense
        + model.moe_layers * model.shared
    )
    whole = model.num_hidden_layers * model.attention_whole
    prediction = (
        (model.attention_split + model.shared) / tensor + model.attention_whole + _projection(model)
    ) * narrow + model.gate * wide
    per_token = kv_bytes_per_token(model, tensor=tensor, value_bytes=wide)
    return WorkerMemory(
        capacity=capacity,
        experts=int((model.moe_layers + predicting) * experts * model.expert * narrow),
        replicated=int(
            (in_rank / tensor + whole) * narrow
            + (model.moe_layers * model.gate + model.norms) * wide
        ),
        # The drafting layer shares embedding and head with the model.
        embeddings=int(2 * model.embedding / tensor * wide),
        prediction=int(predicting * prediction),
        reserve=reserve,
        kv_per_token=per_token,
        kv_wanted=per_token * demand.max_model_len,
    )


def _projection(model: ModelFigures) -> int:
    """Parameters with which multi-token prediction joins two hidden states."""
    return 2 * model.hidden_size**2


def _weight_bytes(model: ModelFigures) -> float:
    return model.weight_bytes + (SCALE_BYTES if model.weight_bytes == 1 else 0)


def _wide_bytes(model: ModelFigures) -> int:
    return max(WIDE_BYTES, model.weight_bytes)
