"""A small mixture-of-experts model with random weights and grouped-query attention.

vLLM disables prefix caching for MLA on CPU, so the bundled model cannot show its effect; this one
(Qwen3-MoE) can. Its answers are meaningless.
"""

import json
import shutil
from pathlib import Path

from serving.settings import BUNDLED_MODEL

NAME = "tiny-moe"
"""Id of the served model."""
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def make_tiny_moe(folder: Path, *, layers: int = 4, hidden: int = 256, context: int = 8192) -> Path:
    """Write the model and the bundled model's tokenizer into a directory unless they exist.

    Args:
        folder: Directory; created if missing.
        layers: Number of layers; more make prefill slower, as with a real model.
        hidden: Hidden size, a multiple of 64.
        context: Maximum length of prompt plus answer, tokens.

    Returns:
        The directory.
    """
    import torch
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    bundled = Path(BUNDLED_MODEL)
    if (folder / "model.safetensors").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = json.loads((bundled / "config.json").read_text("utf-8"))["vocab_size"]
    torch.manual_seed(0)
    model = Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            vocab_size=vocabulary,
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            moe_intermediate_size=hidden // 2,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 64,
            num_key_value_heads=max(hidden // 128, 1),
            head_dim=64,
            num_experts=8,
            num_experts_per_tok=2,
            norm_topk_prob=True,
            max_position_embeddings=context,
            tie_word_embeddings=False,
        )
    )
    model.save_pretrained(folder)
    for name in _TOKENIZER:
        if (bundled / name).is_file():
            shutil.copy(bundled / name, folder / name)
    return folder
