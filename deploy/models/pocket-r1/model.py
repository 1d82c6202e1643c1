"""A small DeepSeek-V3 for training on CPU: latent attention, routed experts, one MTP layer.

Numerically equal to transformers' ``DeepseekV3ForCausalLM`` (a unit test compares the logits).
Formulas: DeepSeek-V3 technical report (arXiv 2412.19437), sections 2.1 and 2.2.

Activations are flat, ``[tokens, hidden]``. A batch is a list of groups ``(rows, length)`` of samples
of similar length, one after another; only attention uses the groups. This keeps padding small, and
each matrix product spans the whole batch.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Groups = list[tuple[int, int]]


@dataclass(frozen=True)
class Shape:
    """Dimensions of the architecture, with the names of config.json."""

    vocab_size: int = 288
    hidden_size: int = 128
    intermediate_size: int = 512
    moe_intermediate_size: int = 64
    num_hidden_layers: int = 3
    num_attention_heads: int = 4
    n_routed_experts: int = 16
    n_shared_experts: int = 1
    num_experts_per_tok: int = 4
    n_group: int = 4
    topk_group: int = 2
    routed_scaling_factor: float = 2.5
    first_k_dense_replace: int = 1
    kv_lora_rank: int = 512  # vLLM's CPU kernels for latent attention support only this value ...
    qk_rope_head_dim: int = 64  # ... and this one
    qk_nope_head_dim: int = 32
    v_head_dim: int = 32
    num_nextn_predict_layers: int = 1
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    max_position_embeddings: int = 2048

    def as_dict(self) -> dict[str, Any]:
        """Return the fields of config.json."""
        return asdict(self)


def _linear(inputs: int, outputs: int, scale: float = 1.0) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(layer.weight, std=scale / math.sqrt(inputs))
    return layer


class _RmsNorm(torch.autograd.Function):
    """RMSNorm with an explicit gradient; PyTorch's has no fused CPU kernel and takes 5 times as long."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        size = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        scale = torch.rsqrt(size.square_().div_(x.shape[-1]).add_(eps)).to(x.dtype)
        unit = x * scale
        ctx.save_for_backward(unit, scale, weight.to(x.dtype))
        return unit * weight.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        unit, scale, weight = ctx.saved_tensors
        grad = grads[0].to(unit.dtype)
        part = grad * unit
        along = (part @ weight).div_(unit.shape[-1])[:, None]
        back = torch.addcmul(grad * weight, unit, along, value=-1).mul_(scale)
        return back, part.sum(0, dtype=torch.float32), None


class _Spread(torch.autograd.Function):
    """Copies rows into the order of their experts; the gradient gathers them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, back: Tensor, top_k: int) -> Tensor:
        ctx.save_for_backward(back)
        ctx.top_k = top_k
        return x[order // top_k]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (back,) = ctx.saved_tensors
        return grads[0][back].view(-1, ctx.top_k, grads[0].shape[-1]).sum(1), None, None, None


class _Permute(torch.autograd.Function):
    """Permutes rows; the gradient uses the inverse permutation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(order)
        return x[back]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (order,) = ctx.saved_tensors
        return grads[0][order], None, None


class Norm(nn.Module):
    """RMSNorm over the last dimension."""

    def __init__(self, size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[tokens, size]`` to the same shape."""
        out: Tensor = _RmsNorm.apply(x, self.weight, self.eps)  # type: ignore[no-untyped-call]
        # cast once, not in each following matrix product
        return out.to(torch.bfloat16) if torch.is_autocast_enabled("cpu") else out


def rotary(length: int, dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Return cosine and sine of position times frequency, each ``[length, dim / 2]``."""
    frequency = 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    angle = torch.arange(length, dtype=torch.float32)[:, None] * frequency
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate interleaved pairs (x0, x1), (x2, x3), ... of ``[tokens, heads, dim]``.

    The result has all first components, then all second ones, as in transformers. Query and key have
    the same layout, so their product does not depend on it.
    """
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Attention(nn.Module):
    """Multi-head latent attention with uncompressed queries; keys and values from one latent."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = s = shape
        heads = s.num_attention_heads
        self.scale = 1 / math.sqrt(s.qk_nope_head_dim + s.qk_rope_head_dim)
        self.q_proj = _linear(s.hidden_size, heads * (s.qk_nope_head_dim + s.qk_rope_head_dim))
        self.kv_a_proj_with_mqa = _linear(s.hidden_size, s.kv_lora_rank + s.qk_rope_head_dim)
        self.kv_a_layernorm = Norm(s.kv_lora_rank)
        self.kv_b_proj = _linear(s.kv_lora_rank, heads * (s.qk_nope_head_dim + s.v_head_dim))
        depth = s.num_hidden_layers + s.num_nextn_predict_layers
        self.o_proj = _linear(heads * s.v_head_dim, s.hidden_size, 1 / math.sqrt(2 * depth))

    def forward(self, x: Tensor, groups: Groups, cos: Tensor, sin: Tensor) -> Tensor:
        """Map ``[tokens, hidden]`` to the same shape, causal within each row of each group.

        ``cos`` and ``sin`` are ``[tokens, 1, rope / 2]``. Slices use ``split``, whose gradient is one
        concatenation; indexing would fill and add a full tensor for each slice.
        """
        s = self.shape
        heads = s.num_attention_heads
        q = self.q_proj(x).view(-1, heads, s.qk_nope_head_dim + s.qk_rope_head_dim)
        latent, k_rope = self.kv_a_proj_with_mqa(x).split((s.kv_lora_rank, s.qk_rope_head_dim), -1)
        kv = self.kv_b_proj(self.kv_a_layernorm(latent)).view(
            -1, heads, s.qk_nope_head_dim + s.v_head_dim
        )
        cos, sin = cos.to(q.dtype), sin.to(q.dtype)
        q_nope, q_rope = q.split((s.qk_nope_head_dim, s.qk_rope_head_dim), -1)
        k_nope, values = kv.split((s.qk_nope_head_dim, s.v_head_dim), -1)
        queries = torch.cat((q_nope, rotate(q_rope, cos, sin)), -1)
        keys = torch.cat((k_nope, rotate(k_rope[:, None], cos, sin).expand(-1, heads, -1)), -1)
        sizes = [rows * length for rows, length in groups]
        out = []
        for (rows, length), *parts in zip(
            groups, queries.split(sizes), keys.split(sizes), values.split(sizes), strict=True
        ):
            query, key, value = (
                p.view(rows, length, heads, -1).transpose(1, 2).flatten(0, 1) for p in parts
            )
            # explicit: at these sizes 4 times as fast as PyTorch's fused kernel on CPU
            mask = torch.full((length, length), float("-inf"), dtype=q.dtype).triu(1)
            weights = torch.baddbmm(mask, query, key.mT, alpha=self.scale).softmax(-1)
            mixed = torch.bmm(weights.to(value.dtype), value)
            out.append(
                mixed.view(rows, heads, length, -1).transpose(1, 2).reshape(rows * length, -1)
            )
        return self.o_proj(torch.cat(out))


class Mlp(nn.Module):
    """A SwiGLU feed-forward layer."""

    def __init__(self, shape: Shape, size: int) -> None:
        super().__init__()
        depth = shape.num_hidden_layers + shape.num_nextn_predict_layers
        self.gate_proj = _linear(shape.hidden_size, size)
        self.up_proj = _linear(shape.hidden_size, size)
        self.down_proj = _linear(size, shape.hidden_size, 1 / math.sqrt(2 * depth))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[tokens, hidden]`` to the same shape."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Gate(nn.Module):
    """Sigmoid router with group-limited top-k and a bias for balance ("noaux_tc").

    The bias affects which experts are chosen but not their weights, and has no gradient. ``load``
    counts the choices since it was last reset.
    """

    e_score_correction_bias: Tensor
    load: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.weight = nn.Parameter(torch.empty(shape.n_routed_experts, shape.hidden_size))
        nn.init.normal_(self.weight, std=1 / math.sqrt(shape.hidden_size))
        self.register_buffer("e_score_correction_bias", torch.zeros(shape.n_routed_experts))
        self.register_buffer("load", torch.zeros(shape.n_routed_experts), persistent=False)

    def forward(self, x: Tensor, real: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return weights and expert ids, both ``[tokens, top_k]``, for ``[tokens, hidden]``."""
        s = self.shape
        with torch.autocast("cpu", enabled=False):
            scores = F.linear(x.float(), self.weight).sigmoid()
        with torch.no_grad():
            choice = scores + self.e_score_correction_bias
            grouped = choice.view(-1, s.n_group, s.n_routed_experts // s.n_group)
            best = (
                grouped.topk(2, dim=-1)
                .values.sum(-1)
                .topk(s.topk_group, dim=-1, sorted=False)
                .indices
            )
            kept = torch.zeros(grouped.shape[:2], dtype=torch.bool).scatter_(1, best, True)
            masked = grouped.masked_fill(~kept[..., None], float("-inf")).flatten(1)
            chosen = masked.topk(s.num_experts_per_tok, dim=-1, sorted=False).indices
            if self.training:
                counted = chosen if real is None else chosen[real]
                self.load += torch.bincount(counted.flatten(), minlength=s.n_routed_experts)
        weights = scores.gather(1, chosen)
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return weights * s.routed_scaling_factor, chosen


class Experts(nn.Module):
    """The routed experts: gate_up ``[experts, 2 * size, hidden]``, down ``[experts, hidden, size]``."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        size, hidden, count = shape.moe_intermediate_size, shape.hidden_size, shape.n_routed_experts
        depth = shape.num_hidden_layers + shape.num_nextn_predict_layers
        self.gate_up_proj = nn.Parameter(torch.empty(count, 2 * size, hidden))
        self.down_proj = nn.Parameter(torch.empty(count, hidden, size))
        nn.init.normal_(self.gate_up_proj, std=1 / math.sqrt(hidden))
        nn.init.normal_(self.down_proj, std=1 / math.sqrt(2 * depth * size))

    def forward(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """Sort (token, expert) pairs by expert, apply each expert, and sum for each token."""
        top_k = chosen.shape[1]
        order = chosen.flatten().argsort(stable=True)
        counts = torch.bincount(chosen.flatten(), minlength=self.down_proj.shape[0]).tolist()
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order))
        inputs = _Spread.apply(x, order, back, top_k)  # type: ignore[no-untyped-call]
        out = []
        gate_up_proj, down_proj = self.gate_up_proj.to(x.dtype), self.down_proj.to(x.dtype)
        for rows, first, second in zip(
            inputs.split(counts), gate_up_proj.unbind(0), down_proj.unbind(0), strict=True
        ):
            gate, up = F.linear(rows, first).chunk(2, dim=-1)
            out.append(F.linear(F.silu(gate) * up, second))
        per_choice = _Permute.apply(torch.cat(out), order, back).view(-1, top_k, x.shape[-1])  # type: ignore[no-untyped-call]
        return (per_choice * weights[..., None].to(per_choice.dtype)).sum(1)


class Moe(nn.Module):
    """Routed experts and the shared expert."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate = Gate(shape)
        self.experts = Experts(shape)
        self.shared_experts = Mlp(shape, shape.moe_intermediate_size * shape.n_shared_experts)

    def forward(self, x: Tensor, real: Tensor | None) -> Tensor:
        """Map ``[tokens, hidden]`` to the same shape."""
        weights, chosen = self.gate(x, real)
        return self.experts(x, weights, chosen) + self.shared_experts(x)


class Block(nn.Module):
    """A pre-norm decoder layer, dense or MoE depending on its ``index``."""

    def __init__(self, shape: Shape, index: int) -> None:
        super().__init__()
        self.self_attn = Attention(shape)
        dense = index < shape.first_k_dense_replace
        self.mlp: Mlp | Moe = Mlp(shape, shape.intermediate_size) if dense else Moe(shape)
        self.input_layernorm = Norm(shape.hidden_size, shape.rms_norm_eps)
        self.post_attention_layernorm = Norm(shape.hidden_size, shape.rms_norm_eps)

    def forward(
        self, x: Tensor, groups: Groups, cos: Tensor, sin: Tensor, real: Tensor | None
    ) -> Tensor:
        """Map ``[tokens, hidden]`` to the same shape."""
        x = x + self.self_attn(self.input_layernorm(x), groups, cos, sin)
        y = self.post_attention_layernorm(x)
        return x + (self.mlp(y, real) if isinstance(self.mlp, Moe) else self.mlp(y))


class Mtp(nn.Module):
    """Multi-token prediction: predicts token t+2 from the hidden state at t and token t+1.

    As in vLLM's ``deepseek_mtp.py``, the hidden state is taken after the model's final norm, the order
    is [embedding, hidden], and the embedding at position 0 is zero.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.enorm = Norm(shape.hidden_size, shape.rms_norm_eps)
        self.hnorm = Norm(shape.hidden_size, shape.rms_norm_eps)
        self.eh_proj = _linear(2 * shape.hidden_size, shape.hidden_size)
        self.block = Block(shape, shape.num_hidden_layers)
        self.norm = Norm(shape.hidden_size, shape.rms_norm_eps)

    def forward(
        self,
        hidden: Tensor,
        following: Tensor,
        groups: Groups,
        cos: Tensor,
        sin: Tensor,
        real: Tensor | None,
    ) -> Tensor:
        """Map hidden states and the next tokens' embeddings, both ``[tokens, hidden]``."""
        x = self.eh_proj(torch.cat((self.enorm(following), self.hnorm(hidden)), -1))
        return self.norm(self.block(x, groups, cos, sin, real))


class PocketR1(nn.Module):
    """The model; ``forward`` returns hidden states, which ``lm_head`` maps to logits."""

    cos: Tensor
    sin: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        nn.init.normal_(self.embed_tokens.weight, std=0.5)
        self.layers = nn.ModuleList(Block(shape, i) for i in range(shape.num_hidden_layers))
        self.norm = Norm(shape.hidden_size, shape.rms_norm_eps)
        self.lm_head = _linear(shape.hidden_size, shape.vocab_size)
        self.mtp = Mtp(shape)
        cos, sin = rotary(shape.max_position_embeddings, shape.qk_rope_head_dim, shape.rope_theta)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, ids: Tensor, groups: Groups, real: Tensor | None = None) -> Tensor:
        """Return hidden states ``[tokens, hidden]`` of ``ids``; ``real`` excludes padding from loads."""
        x = self.embed_tokens(ids)
        cos, sin = self._angles(groups)
        for layer in self.layers:
            x = layer(x, groups, cos, sin, real)
        out: Tensor = self.norm(x)
        return out

    def _angles(self, groups: Groups) -> tuple[Tensor, Tensor]:
        """Return cosine and sine at each token's position, ``[tokens, 1, rope / 2]``."""
        at = torch.cat([torch.arange(length).repeat(rows) for rows, length in groups])
        return self.cos[at][:, None], self.sin[at][:, None]

    def predict_after_next(
        self, hidden: Tensor, ids: Tensor, groups: Groups, real: Tensor | None = None
    ) -> Tensor:
        """Return hidden states of the MTP layer; position t of each row predicts token t+2."""
        shifted, first = [], []
        start = 0
        for rows, length in groups:
            part = ids[start : start + rows * length].view(rows, length)
            start += rows * length
            # the last column wraps around; it has no loss
            shifted.append(part.roll(-1, 1).flatten())
            first.append(torch.arange(length).expand(rows, length).flatten() == 0)
        following = self.embed_tokens(torch.cat(shifted)).masked_fill(
            torch.cat(first)[:, None], 0.0
        )
        out: Tensor = self.mtp(hidden, following, groups, *self._angles(groups), real)
        return out

    def gates(self) -> dict[str, Gate]:
        """Return the routers by layer name, the MTP layer's last."""
        return {name: m for name, m in self.named_modules() if isinstance(m, Gate)}
