"""Builds the planner's question from flags, presets, a model's config.json and traces."""

import json
import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from serving.cli.doctor.presets import presets_folder, sizing
from serving.errors import InvalidRequest
from serving.flags.messages import FlagError
from serving.planner.accelerators import ACCELERATORS, Accelerator, accelerator
from serving.planner.gpu_memory import ModelFigures
from serving.planner.workload import Workload, of_lengths, spread_of
from serving.yaml_text import read_yaml

_CUSTOM = "custom"
_LARGEST = 10**9
"""Upper bound on every figure of a model."""
_LARGEST_FILE = 2**20
"""Maximum size of a config.json, bytes."""
_ALIASES = {
    "n_routed_experts": ("num_experts", "num_local_experts"),
    "num_experts_per_tok": ("num_experts_per_token", "moe_topk"),
    "num_key_value_heads": ("num_attention_heads",),
    "moe_intermediate_size": ("intermediate_size",),
}
"""Alternative names of figures in config.json, tried in this order."""
_REQUIRED = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads",
)  # fmt: skip
_OPTIONAL = (
    "n_shared_experts", "first_k_dense_replace", "num_nextn_predict_layers", "q_lora_rank",
    "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim",
)  # fmt: skip
_LATENT = ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def model_named(name: str) -> tuple[str, ModelFigures]:
    """Return the name and figures of a preset's model, or of a config.json or its directory.

    Raises:
        InvalidRequest: The model or file does not exist, or lacks a figure.
    """
    known = sizing(presets_folder())["models"]
    if name in known:
        return name, ModelFigures.from_mapping(known[name])
    path = Path(name)
    # Path.exists would raise for names that are too long.
    if not name or not os.path.exists(path):  # noqa: PTH110
        raise InvalidRequest(
            f"no model {name}: known models are {', '.join(known)}; others are given as the path "
            "of their config.json"
        )
    file = path / "config.json" if path.is_dir() else path
    config = _json_of(file)
    if not isinstance(config, Mapping):
        raise InvalidRequest(f"the model {file} is not a JSON object")
    called = path.resolve().name if path.is_dir() else path.resolve().parent.name
    return called.lower(), figures_of(config, str(file))


def _json_of(file: Path) -> Any:
    """Return the content of a config.json.

    Raises:
        InvalidRequest: The file is not a regular file, is too large, or is not JSON.
    """
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise InvalidRequest(f"cannot read the model {file}: it is not a regular file")
        with file.open("rb") as content:
            text = content.read(_LARGEST_FILE + 1)
        if len(text) > _LARGEST_FILE:
            raise InvalidRequest(
                f"cannot read the model {file}: it has more than {_LARGEST_FILE:,} bytes, which no "
                "config.json has"
            )
        return json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"it is not JSON: {error}"
        raise InvalidRequest(f"cannot read the model {file}: {reason}") from error


def figures_of(config: Mapping[str, Any], source: str) -> ModelFigures:
    """Return the figures of a config.json in transformers' format.

    All layers of a model without experts count as dense.

    Raises:
        InvalidRequest: A figure is missing or out of range.
    """
    nested = config.get("text_config")
    config = nested if isinstance(nested, Mapping) else config
    found = {name: _figure(config, name, source) for name in _REQUIRED}
    found |= {name: _figure(config, name, source, missing=0) for name in _OPTIONAL}
    found["n_routed_experts"] = _figure(config, "n_routed_experts", source, missing=0)
    if found["n_routed_experts"]:
        found["num_experts_per_tok"] = _figure(config, "num_experts_per_tok", source)
        found["moe_intermediate_size"] = _figure(config, "moe_intermediate_size", source)
    else:
        found |= {"num_experts_per_tok": 0, "moe_intermediate_size": 0}
        found["first_k_dense_replace"] = found["num_hidden_layers"]
    if not found["kv_lora_rank"]:
        width = found["hidden_size"] // found["num_attention_heads"]
        found["head_dim"] = _figure(config, "head_dim", source, missing=width)
        if not found["head_dim"]:
            raise InvalidRequest(f"the model {source} has a head_dim of 0")
        if found["num_key_value_heads"] > found["num_attention_heads"]:
            raise InvalidRequest(f"the model {source} has more key-value heads than heads")
    elif absent := [name for name in _LATENT if not found[name]]:
        raise InvalidRequest(
            f"the model {source} has no {absent[0]}, which latent attention (kv_lora_rank) needs"
        )
    if found["num_experts_per_tok"] > found["n_routed_experts"]:
        raise InvalidRequest(f"the model {source} uses more experts per token than it has")
    if found["first_k_dense_replace"] > found["num_hidden_layers"]:
        raise InvalidRequest(f"the model {source} has more dense layers than layers")
    return ModelFigures(**found, weight_bytes=_weight_bytes(config), source=source)


def _figure(config: Mapping[str, Any], name: str, source: str, missing: int | None = None) -> int:
    names = (name, *_ALIASES.get(name, ()))
    value = next((config[one] for one in names if config.get(one) is not None), missing)
    if value is None:
        raise InvalidRequest(f"the model {source} has no {name}")
    least = 1 if missing is None else 0
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or not least <= value <= _LARGEST:
        raise InvalidRequest(
            f"the model {source}: {name} is {value!r}, must be a whole number from {least} to "
            f"{_LARGEST}"
        )
    return int(value)


def _weight_bytes(config: Mapping[str, Any]) -> int:
    quantized = config.get("quantization_config")
    method = quantized.get("quant_method") if isinstance(quantized, Mapping) else None
    if method is not None:
        if method != "fp8":
            raise InvalidRequest(f"weights quantized with {method} cannot be planned, only fp8")
        return 1
    return _BYTES.get(str(config.get("torch_dtype", config.get("dtype", "bfloat16"))), 2)


def hardware(name: str, figures: Mapping[str, float | None], price: float | None) -> Accelerator:
    """Return a GPU of the table, with the figures given by flags replaced.

    Args:
        name: Name of the GPU, or "custom".
        figures: Values of the flags by the names in ``_FIGURES``; None if not given.
        price: Dollars per GPU-hour. None means the price in the table.

    Raises:
        InvalidRequest: There is no such GPU.
        FlagError: A figure of a custom GPU is missing.
    """
    given = {key: value for key, value in figures.items() if value is not None}
    if name.lower() == _CUSTOM:
        missing = [_FIGURES[key] for key in ("memory", "tflops", "bandwidth") if key not in given]
        if missing:
            raise FlagError(f"--gpu custom needs {', '.join(missing)}")
        gpu = replace(ACCELERATORS["h100"], name=_CUSTOM, product="", source="given by flags")
    else:
        gpu = accelerator(name)
    changes: dict[str, Any] = {}
    if "memory" in given:
        changes["memory"] = int(given["memory"] * 1e9)
    if "tflops" in given:
        changes |= {"fp8": given["tflops"] * 1e12, "bf16": given["tflops"] * 1e12}
    for key, field in (("bandwidth", "bandwidth"), ("link", "intra_node"), ("network", "network")):
        if key in given:
            changes[field] = given[key] * 1e9
    if "per_node" in given:
        changes["per_node"] = int(given["per_node"])
    if price is not None:
        changes |= {"price": price, "price_source": "given by --gpu-price"}
    return replace(gpu, **changes)


_FIGURES = {
    "memory": "--gpu-memory-gb",
    "tflops": "--gpu-tflops",
    "bandwidth": "--gpu-bandwidth-gbs",
}


def workload(
    rate: float | None,
    prompt: tuple[float, float],
    output: tuple[float, float],
    cached: float,
    trace: Path | None,
) -> Workload:
    """Return the load given by the flags, or the lengths, cacheable share and rate of a trace.

    Raises:
        InvalidRequest: The trace is invalid, or a length is out of range.
    """
    if trace is None:
        spreads = spread_of(*prompt), spread_of(*output)
        return Workload(rate or 1.0, prompt[0], output[0], cached, *spreads)
    from loadtest.trace import TRACE_BLOCK, cacheable_share, load_trace

    requests = load_trace(trace)
    lengths = [(one.prompt_tokens, one.output_tokens) for one in requests]
    seconds = requests[-1].at - requests[0].at
    if rate is None and seconds <= 0:
        raise InvalidRequest(
            f"all requests of {trace} have the same time, so it has no rate: set it with --rate"
        )
    mean = rate or (len(requests) - 1) / seconds
    return of_lengths(mean, lengths, min(cacheable_share(requests, TRACE_BLOCK), 0.999))


def preset_model_values(name: str) -> dict[str, Any] | None:
    """Return the section ``model`` of a model's first preset, or None if it has no preset."""
    folder = presets_folder()
    for preset, entry in sizing(folder)["presets"].items():
        if entry.get("model") == name:
            values = read_yaml((folder / f"{preset}.yaml").read_text("utf-8"))
            return dict(values["model"])
    return None


def write_text(file: Path, text: str) -> None:
    """Write the file named by a flag; a regular file is replaced atomically.

    Devices, pipes and targets of symbolic links are written in place, so /dev/stdout works.

    Raises:
        InvalidRequest: The file cannot be written.
    """
    part: Path | None = None
    try:
        if file.exists() and not file.is_file():
            file.write_text(text, "utf-8")
            return
        target = file.resolve()
        part = target.with_name(f".plan.{os.getpid()}")
        part.write_text(text, "utf-8")
        part.replace(target)
    except OSError as error:
        if part is not None:
            with suppress(OSError):
                part.unlink()
        raise InvalidRequest(f"cannot write {str(file)!r}: {error.strerror}") from error
