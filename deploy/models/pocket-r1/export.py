"""Writes a model directory in DeepSeek-V3's checkpoint layout, for transformers and vLLM."""

import json
from pathlib import Path

import tokenizer
import torch
from model import PocketR1, Shape
from safetensors.torch import load_file, save_file
from torch import Tensor

HERE = Path(__file__).resolve().parent


def config(shape: Shape) -> dict[str, object]:
    """Return the content of config.json."""
    fields = shape.as_dict()
    theta = fields.pop("rope_theta")
    return {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        **fields,
        "num_key_value_heads": shape.num_attention_heads,
        "q_lora_rank": None,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "norm_topk_prob": True,
        # vLLM requires the next two; transformers 5 ignores them
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "moe_layer_freq": 1,
        "rope_theta": theta,
        "rope_interleave": True,
        "tie_word_embeddings": False,
        "initializer_range": 0.02,
        "bos_token_id": tokenizer.SPECIALS[tokenizer.BOS],
        "eos_token_id": tokenizer.SPECIALS[tokenizer.EOS],
        "pad_token_id": tokenizer.SPECIALS[tokenizer.PAD],
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }


def generation_config(temperature: float, top_p: float) -> dict[str, object]:
    """Return the content of generation_config.json, vLLM's default sampling parameters."""
    return {
        "bos_token_id": tokenizer.SPECIALS[tokenizer.BOS],
        "eos_token_id": tokenizer.SPECIALS[tokenizer.EOS],
        "pad_token_id": tokenizer.SPECIALS[tokenizer.PAD],
        "do_sample": True,
        "temperature": temperature,
        "top_p": top_p,
    }


def _names(name: str, layers: int) -> str:
    """Return the checkpoint's name of a parameter; stacked experts are split elsewhere."""
    mtp = f"model.layers.{layers}"
    if name.startswith("mtp.block."):
        return f"{mtp}.{name.removeprefix('mtp.block.')}"
    if name == "mtp.norm.weight":
        return f"{mtp}.shared_head.norm.weight"
    if name.startswith("mtp."):
        return f"{mtp}.{name.removeprefix('mtp.')}"
    return name if name.startswith("lm_head.") else f"model.{name}"


def state(model: PocketR1, dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    """Return the checkpoint's tensors; the routers' bias stays float32, as readers expect."""
    layers = model.shape.num_hidden_layers
    out: dict[str, Tensor] = {}
    for ours, tensor in model.state_dict().items():
        name = _names(ours, layers)
        if name.endswith("e_score_correction_bias"):
            out[name] = tensor.float().clone()
        elif name.endswith("experts.gate_up_proj"):
            base = name.removesuffix("gate_up_proj")
            for index, pair in enumerate(tensor):
                gate, up = pair.chunk(2)
                out[f"{base}{index}.gate_proj.weight"] = gate.to(dtype).clone()
                out[f"{base}{index}.up_proj.weight"] = up.to(dtype).clone()
        elif name.endswith("experts.down_proj"):
            base = name.removesuffix("down_proj")
            for index, down in enumerate(tensor):
                out[f"{base}{index}.down_proj.weight"] = down.to(dtype).clone()
        else:
            out[name] = tensor.to(dtype).clone()
    # the MTP layer shares the model's embedding and head; the layout has copies of them
    out[f"model.layers.{layers}.embed_tokens.weight"] = out["model.embed_tokens.weight"].clone()
    out[f"model.layers.{layers}.shared_head.head.weight"] = out["lm_head.weight"].clone()
    return out


def load(folder: Path = HERE) -> PocketR1:
    """Return the model of a directory that ``write`` wrote, in float32."""
    fields = json.loads((folder / "config.json").read_text())
    shape = Shape(**{key: fields[key] for key in Shape().as_dict()})
    tensors = load_file(folder / "model.safetensors")
    model = PocketR1(shape)
    for ours, target in model.state_dict().items():
        name = _names(ours, shape.num_hidden_layers)
        if name.endswith("experts.gate_up_proj"):
            base = name.removesuffix("gate_up_proj")
            pairs = [
                torch.cat([tensors[f"{base}{i}.{part}_proj.weight"] for part in ("gate", "up")])
                for i in range(shape.n_routed_experts)
            ]
            target.copy_(torch.stack(pairs))
        elif name.endswith("experts.down_proj"):
            base = name.removesuffix("down_proj")
            downs = [tensors[f"{base}{i}.down_proj.weight"] for i in range(shape.n_routed_experts)]
            target.copy_(torch.stack(downs))
        else:
            target.copy_(tensors[name])
    return model.eval()


def write(
    model: PocketR1,
    folder: Path,
    temperature: float = 0.2,
    top_p: float = 0.95,
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Write weights, configuration and tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.write(folder)
    template = tokenizer.CHAT_TEMPLATE.read_text(encoding="utf-8")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    fields = config(model.shape) | {"torch_dtype": str(dtype).removeprefix("torch.")}
    sampling = generation_config(temperature, top_p)
    for name, value in (("config.json", fields), ("generation_config.json", sampling)):
        (folder / name).write_text(json.dumps(value, indent=2) + "\n")
    # rename after writing: readers never see a partial file
    partial = folder / "model.safetensors.tmp"
    save_file(state(model, dtype), partial, metadata={"format": "pt"})
    partial.chmod(0o644)  # safetensors creates a private file
    partial.replace(folder / "model.safetensors")
