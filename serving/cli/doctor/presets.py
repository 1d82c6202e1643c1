"""``moe-serving doctor --preset``: whether a preset of the chart fits the memory of its GPUs.

A preset is a values file of the chart. sizing.yaml in the same directory contains the model and the
GPU of each preset, with the published figures of both.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.cli.doctor.checks import Check, Verdict
from serving.errors import SettingsError
from serving.planner import gpu_memory
from serving.settings import EngineSettings
from serving.yaml_text import read_yaml

_SIZING = "sizing.yaml"
_UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "k": 10**3, "M": 10**6, "G": 10**9}
_GB = 10**9


def presets_folder() -> Path:
    """Return the directory of the presets: in an installed wheel, or in this checkout."""
    package = Path(__file__).resolve().parents[2]
    installed = package / "bundled" / "presets"
    return installed if installed.is_dir() else package.parent / "deploy" / "presets"


@dataclass(frozen=True, slots=True)
class Sizing:
    """One pool of a preset and its memory."""

    pool: str
    model_name: str
    model: gpu_memory.ModelFigures
    deployment: gpu_memory.Deployment
    device: str
    """Description of a worker's device."""
    used: gpu_memory.WorkerMemory


def sizing(folder: Path) -> dict[str, Any]:
    """Return the content of sizing.yaml: models, GPUs, and which of them each preset uses.

    Raises:
        SettingsError: The file cannot be read.
    """
    return _read(folder / _SIZING)


def preset_names(folder: Path) -> list[str]:
    """Return the names of the presets in ``folder``."""
    return sorted(sizing(folder)["presets"])


def preset_sizes(name: str, folder: Path) -> list[Sizing]:
    """Return the sizing of each pool of a preset.

    Raises:
        SettingsError: The preset does not exist, or its files are invalid.
    """
    known = preset_names(folder)
    if name not in known:
        raise SettingsError(f"unknown preset {name}; known presets: {', '.join(known)}")
    table = sizing(folder)
    entry = table["presets"][name]
    values = _read(folder / f"{name}.yaml")
    if "models" not in values:
        return _model_sizes(values, entry["model"], entry.get("gpu"), table, folder)
    return [
        size
        for model in values["models"]
        for size in _model_sizes(
            _of_model(values, model), model["name"], entry["models"][model["name"]], table, folder
        )
    ]


def _model_sizes(
    values: Mapping[str, Any],
    name: str,
    gpu: str | None,
    table: Mapping[str, Any],
    folder: Path,
) -> list[Sizing]:
    """Return the sizing of each pool of one model, from the values of a release with this model."""
    try:
        model = gpu_memory.ModelFigures.from_mapping(table["models"][name])
    except (KeyError, ValueError) as error:
        raise SettingsError(f"{folder / _SIZING}: model {name}: {error}") from error
    device = None if gpu is None else table["gpus"][gpu]
    return [_pool_size(values, pool, model, name, (gpu, device)) for pool in values["pools"]]


def _of_model(values: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a release that serves only one of several models."""
    merged = {
        group: {**values.get(group, {}), **model.get(group, {})}
        for group in ("engine", "parallelism")
    }
    return {**values, "model": model, "pools": model["pools"], **merged}


def size_checks(size: Sizing) -> Iterator[Check]:
    """Yield checks of a pool: the memory use of each worker, and whether it fits."""
    model, deployment, used = size.model, size.deployment, size.used
    workers = deployment.data * deployment.tensor
    yield Check(
        Verdict.OK,
        "model",
        f"{size.model_name}: {_count(gpu_memory.total_parameters(model))} parameters, "
        f"{_count(gpu_memory.active_parameters(model))} active per token, checkpoint "
        f"{_gigabytes(gpu_memory.published_bytes(model))} ({model.source})",
    )
    yield Check(
        Verdict.OK,
        "group",
        f"pool {size.pool}: {deployment.data} ranks x {deployment.tensor} = {workers} workers "
        f"(EP{workers}), each with {size.device}",
    )
    parts = [
        (f"routed experts, {-(-model.n_routed_experts // workers)} per layer", used.experts),
        ("attention, dense and shared", used.replicated),
        ("embedding and head", used.embeddings),
        ("multi-token prediction", used.prediction),
        ("reserve (allowance)", used.reserve),
    ]
    text = ", ".join(f"{what} {_gigabytes(size)}" for what, size in parts if size)
    yield Check(Verdict.OK, "per worker", f"{text}; limit {_gigabytes(used.capacity)}")
    tokens = (
        f"one token {used.kv_per_token:,} bytes, one sequence {deployment.max_model_len:,} tokens"
    )
    if used.shortage:
        yield Check(
            Verdict.FAIL,
            "kv cache",
            f"{tokens}: {_gigabytes(used.shortage)} too little memory",
            "use more workers (parallelism.data), GPUs or pods with more memory, or a lower "
            "model.maxModelLen",
        )
        return
    yield Check(
        Verdict.OK,
        "kv cache",
        f"{_gigabytes(used.kv_room)} left for {used.kv_tokens:,} tokens per rank; {tokens}",
    )


def _pool_size(
    values: Mapping[str, Any],
    pool: Mapping[str, Any],
    model: gpu_memory.ModelFigures,
    model_name: str,
    gpu: tuple[str | None, Mapping[str, Any] | None],
) -> Sizing:
    split = {**values.get("parallelism", {}), **pool.get("parallelism", {})}
    engine = values.get("engine", {})
    args = engine.get("args", {})
    length = values.get("model", {}).get("maxModelLen")
    deployment = gpu_memory.Deployment(
        data=split["data"],
        tensor=split.get("tensor", 1),
        max_model_len=length or 1,
        max_num_seqs=engine.get("maxNumSeqs", EngineSettings().max_num_seqs),
        max_num_batched_tokens=args.get("max_num_batched_tokens", 8192),
        prediction=engine.get("speculative", "none") == "mtp",
    )
    name, figures = gpu
    if figures is None:
        ranks = split.get("ranksPerPod") or 1
        share = quantity(pool["resources"]["memory"]) // ranks
        cache = int(engine.get("kvCacheGib", EngineSettings().kv_cache_gib) * gpu_memory.GIB)
        used = gpu_memory.cpu_memory(model, deployment, share, cache)
        device = f"{_gigabytes(share)} of its pod"
    else:
        part = args.get("gpu_memory_utilization", gpu_memory.DEFAULT_GPU_SHARE)
        used = gpu_memory.gpu_memory(model, deployment, figures["memory"], part)
        device = f"one {name} of {_gigabytes(figures['memory'])}, of which vLLM takes {part:.0%}"
    return Sizing(pool["name"], model_name, model, deployment, device, used)


def quantity(text: str | float) -> int:
    """Return a Kubernetes quantity of memory as bytes.

    Raises:
        SettingsError: The text is not a quantity.
    """
    word = str(text)
    unit = next((unit for unit in _UNITS if word.endswith(unit)), "")
    try:
        return int(float(word.removesuffix(unit)) * _UNITS.get(unit, 1))
    except ValueError as error:
        raise SettingsError(f"{text} is not a memory quantity") from error


def _read(file: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = read_yaml(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"cannot read {file}: {error}") from error
    return content


def _gigabytes(size: int) -> str:
    return f"{size / _GB:.1f} GB"


def _count(number: int) -> str:
    return f"{number / _GB:.1f} B" if number >= _GB else f"{number / 10**6:.1f} M"
