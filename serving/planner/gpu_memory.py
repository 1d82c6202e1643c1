"""Memory of a model on each GPU of an expert-parallel group, from the model's public figures.

Pure arithmetic on the numbers in config.json; needs neither weights nor a GPU. The sizes of weights
and KV cache are exact except for a few small vectors; the reserve is an estimate. Sizes are in
bytes, counts in parameters.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

GIB = 2**30

WIDE_BYTES = 2
"""Bytes of a weight in embeddings, head, norms and expert gates: bfloat16 in FP8 checkpoints
(DeepSeek-V3's README_WEIGHTS.md), and as wide as the other weights if those are wider."""
SCALE_BYTES = 4 / (128 * 128)
"""Bytes of scales per FP8 weight: one float32 for a block of 128 x 128 (DeepSeek-V3's config.json,
quantization_config.weight_block_size)."""
RUNTIME_BYTES = 3 * GIB
"""Allowance for the CUDA context, graphs, NCCL and all-to-all buffers of one GPU; not measured."""
PROCESS_BYTES = int(2.6 * GIB)
"""Memory of a CPU rank in addition to weights and KV cache: as for a rank of pocket-r1
(serving.cli.doctor.machine), plus Ray's agents in its pod."""
DEFAULT_GPU_SHARE = 0.92
"""Default of vLLM's gpu_memory_utilization (vllm/config/cache.py, 0.32)."""


@dataclass(frozen=True, slots=True)
class ModelFigures:
    """A model's dimensions, by their names in config.json."""

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
    """Bytes per weight of the linear layers as served: 1 for FP8, 2 for bfloat16."""
    n_shared_experts: int = 0
    first_k_dense_replace: int = 0
    """Number of leading layers with a dense feed-forward part."""
    num_nextn_predict_layers: int = 0
    """Number of multi-token-prediction layers; loaded only for speculative decoding."""
    head_dim: int = 0
    """Size of a key-value head, with grouped-query attention."""
    q_lora_rank: int = 0
    kv_lora_rank: int = 0
    """Size of the latent that MLA caches; 0 for grouped-query attention."""
    qk_nope_head_dim: int = 0
    qk_rope_head_dim: int = 0
    v_head_dim: int = 0
    source: str = ""

    @classmethod
    def from_mapping(cls, figures: Mapping[str, Any]) -> "ModelFigures":
        """Create the figures from a mapping.

        Raises:
            ValueError: A key is missing or unknown.
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
        """Number of layers with routed experts, without multi-token prediction."""
        return self.num_hidden_layers - self.first_k_dense_replace

    @property
    def expert(self) -> int:
        """Parameters of one routed expert: gate, up and down projection."""
        return 3 * self.hidden_size * self.moe_intermediate_size

    @property
    def attention_split(self) -> int:
        """Parameters of a layer's attention that tensor parallelism splits by heads."""
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
        """Parameters of a layer's attention that every worker holds: MLA's down projections."""
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
        """Parameters of an MoE layer's gate."""
        return self.hidden_size * self.n_routed_experts

    @property
    def dense(self) -> int:
        """Parameters of one dense layer's feed-forward part."""
        return 3 * self.hidden_size * self.intermediate_size

    @property
    def embedding(self) -> int:
        """Parameters of the embedding; the head has as many."""
        return self.vocab_size * self.hidden_size

    @property
    def norms(self) -> int:
        """Parameters of the norms of all layers and of the final norm."""
        return (2 * self.num_hidden_layers + 1) * self.hidden_size


def total_parameters(model: ModelFigures, *, prediction: bool = False) -> int:
    """Return the number of parameters.

    Args:
        model: The model.
        prediction: Whether to include the multi-token-prediction layers as published: each has an
            MoE layer, a projection of two hidden states, and copies of embedding and head.
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
    """Return the number of parameters that a token uses, including embedding and head."""
    idle = model.n_routed_experts - model.num_experts_per_tok
    return total_parameters(model) - model.moe_layers * idle * model.expert


def published_bytes(model: ModelFigures) -> int:
    """Return the size of the published checkpoint, including multi-token prediction."""
    whole = total_parameters(model, prediction=True)
    layers = model.num_nextn_predict_layers
    wide = (
        2 * (1 + layers) * model.embedding + (model.moe_layers + layers) * model.gate + model.norms
    )
    return int((whole - wide) * _weight_bytes(model) + wide * _wide_bytes(model))


def kv_bytes_per_token(model: ModelFigures, *, tensor: int = 1, value_bytes: int = 2) -> int:
    """Return the KV cache of one token on one worker, over all layers.

    MLA caches one latent and one rotary key for all heads (DeepSeek-V2, arXiv 2405.04434, section
    2.1), and every worker of a rank has a copy. Grouped-query attention caches a key and a value
    for each key-value head; ``tensor`` workers split the heads, with at least one each.
    """
    if model.kv_lora_rank:
        values = model.kv_lora_rank + model.qk_rope_head_dim
    else:
        values = 2 * model.head_dim * -(-model.num_key_value_heads // tensor)
    return values * model.num_hidden_layers * value_bytes


@dataclass(frozen=True, slots=True)
class Deployment:
    """Sizes and limits of a deployment."""

    data: int
    """Number of ranks per group."""
    tensor: int = 1
    """Number of workers per rank."""
    max_model_len: int = 1
    """Maximum length of prompt plus output, tokens."""
    max_num_seqs: int = 64
    """Maximum number of sequences in a step of a rank."""
    max_num_batched_tokens: int = 8192
    """Maximum number of tokens in a step of a rank."""
    prediction: bool = False
    """Whether multi-token prediction drafts tokens."""


@dataclass(frozen=True, slots=True)
class WorkerMemory:
    """One worker's memory (one GPU, or one CPU process)."""

    capacity: int
    """Memory that vLLM may use."""
    experts: int
    """Memory of the routed experts of this worker in all MoE layers."""
    replicated: int
    """Attention, dense layers and shared experts: complete in each rank, split over its workers."""
    embeddings: int
    prediction: int
    """Weights for multi-token prediction, except routed experts, which ``experts`` includes."""
    reserve: int
    """Allowance for everything but weights and KV cache."""
    kv_per_token: int
    kv_wanted: int
    """Minimum KV cache: one sequence of full length; on CPU at least the configured size."""

    @property
    def weights(self) -> int:
        """Size of all weights."""
        return self.experts + self.replicated + self.embeddings + self.prediction

    @property
    def kv_room(self) -> int:
        """Memory left for the KV cache; negative if the weights alone do not fit."""
        return self.capacity - self.weights - self.reserve

    @property
    def kv_tokens(self) -> int:
        """Number of tokens in the KV cache."""
        return max(0, self.kv_room) // self.kv_per_token

    @property
    def shortage(self) -> int:
        """Memory missing for weights and KV cache; 0 if they fit."""
        return max(0, self.kv_wanted - self.kv_room)


def gpu_memory(
    model: ModelFigures, deployment: Deployment, gpu_bytes: int, share: float = DEFAULT_GPU_SHARE
) -> WorkerMemory:
    """Return the memory use of a GPU with ``gpu_bytes``, of which vLLM may use ``share``."""
    steps = deployment.max_num_batched_tokens * model.hidden_size * WIDE_BYTES
    # A token, one copy for each of its experts, and about as many intermediate values.
    activations = steps * (model.num_experts_per_tok + 8)
    logits = deployment.max_num_seqs * model.vocab_size * 4 * 2
    reserve = RUNTIME_BYTES + activations + logits
    return _worker(model, deployment, int(gpu_bytes * share), reserve)


def cpu_memory(
    model: ModelFigures, deployment: Deployment, rank_bytes: int, kv_cache_bytes: int
) -> WorkerMemory:
    """Return the memory use of a CPU rank, whose KV cache has a configured size.

    Args:
        model: The model.
        deployment: Sizes and limits of the deployment.
        rank_bytes: The rank's share of its pod's memory.
        kv_cache_bytes: Size of the KV cache (engine.kv_cache_gib).
    """
    used = _worker(model, deployment, rank_bytes, PROCESS_BYTES)
    # Memory beyond the configured cache stays unused.
    free = max(0, used.kv_room - kv_cache_bytes)
    used = _worker(model, deployment, rank_bytes - free, PROCESS_BYTES)
    return replace(used, kv_wanted=max(used.kv_wanted, kv_cache_bytes))


def _worker(
    model: ModelFigures, deployment: Deployment, capacity: int, reserve: int
) -> WorkerMemory:
    narrow, wide = _weight_bytes(model), _wide_bytes(model)
    workers, tensor = deployment.data * deployment.tensor, deployment.tensor
    predicting = model.num_nextn_predict_layers if deployment.prediction else 0
    # Rounded up: the worker with the most experts needs the most memory.
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
        # The drafting layer shares the model's embedding and head.
        embeddings=int(2 * model.embedding / tensor * wide),
        prediction=int(predicting * prediction),
        reserve=reserve,
        kv_per_token=per_token,
        kv_wanted=per_token * deployment.max_model_len,
    )


def _projection(model: ModelFigures) -> int:
    """Return the parameters of the projection that joins two hidden states for drafting."""
    return 2 * model.hidden_size**2


def _weight_bytes(model: ModelFigures) -> float:
    return model.weight_bytes + (SCALE_BYTES if model.weight_bytes == 1 else 0)


def _wide_bytes(model: ModelFigures) -> int:
    return max(WIDE_BYTES, model.weight_bytes)
