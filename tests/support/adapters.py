"""LoRA adapters with random weights, in PEFT's format."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from serving.link import adapter_files
from serving.settings import BUNDLED_MODEL

ATTENTION = ("q_proj", "kv_a_proj_with_mqa", "o_proj")


def write_adapter(
    folder: Path,
    *,
    seed: int = 0,
    rank: int = 8,
    modules: tuple[str, ...] = ATTENTION,
    model: Path = BUNDLED_MODEL,
    scale: float = 0.3,
    **config: Any,
) -> Path:
    """Write an adapter for ``modules`` of the model's layers, and return its folder.

    Args:
        folder: New folder.
        seed: Seed of the weights.
        rank: The adapter's rank.
        modules: Last parts of the names of the modules.
        model: Folder of the base model.
        scale: Standard deviation of the weights.
        config: Fields of adapter_config.json that are added or replaced.
    """
    random = np.random.default_rng(seed)
    layers = json.loads((model / "config.json").read_text("utf-8"))["num_hidden_layers"]
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    for file in sorted(model.glob("*.safetensors")):
        for name, (shape, _) in adapter_files._tensors(file).items():
            module = name.removesuffix(".weight")
            words = module.split(".")
            if words[-1] not in modules or "experts" in words or int(words[2]) >= layers:
                continue
            out, inner = shape
            low = random.standard_normal((rank, inner)) * scale / inner**0.5
            high = random.standard_normal((out, rank)) * scale
            tensors[f"base_model.model.{module}.lora_A.weight"] = low
            tensors[f"base_model.model.{module}.lora_B.weight"] = high
    folder.mkdir(parents=True)
    write_safetensors(folder / adapter_files.WEIGHTS, tensors)
    content = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": list(modules),
        "bias": "none",
        "base_model_name_or_path": str(model),
        "task_type": "CAUSAL_LM",
    }
    (folder / adapter_files.CONFIG).write_text(json.dumps(content | config), "utf-8")
    return folder


def write_safetensors(file: Path, tensors: dict[str, Any]) -> None:
    """Write arrays as float32."""
    header, data = {}, b""
    for name, values in tensors.items():
        content = np.asarray(values, np.float32).tobytes()
        header[name] = {
            "dtype": "F32",
            "shape": list(np.shape(values)),
            "data_offsets": [len(data), len(data) + len(content)],
        }
        data += content
    described = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(described)) + described + data)
