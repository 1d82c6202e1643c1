"""Checks of a LoRA adapter's files, the same on routers and ranks.

vLLM loads some adapters without an error and then ignores a part of their weights, and a request
that names an adapter with unreadable files ends its engine. Adapters are therefore checked before
an engine sees them: format, rank, base model, and for each weight its module and its shape.
"""

import hashlib
import json
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from serving.settings import ModelSettings

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

MODULES = frozenset(
    {"q_proj", "k_proj", "v_proj", "o_proj", "kv_a_proj_with_mqa"}
    | {"gate_proj", "up_proj", "down_proj"}
)
"""Modules to which vLLM applies adapters correctly. It ignores weights of experts without an error,
and those of ``kv_b_proj`` where multi-head latent attention absorbs it."""

_MAX_CONFIG = 2**20
_MAX_HEADER = 2**26
_PREFIX = "base_model.model."
_DTYPES = {"F32": 4, "F16": 2, "BF16": 2}
"""Bytes per value of the permitted types."""
_COMPARED = frozenset({*_DTYPES, "F64", "F8_E4M3", "F8_E5M2"})
"""Types of the model's weights whose shapes are compared; others may be packed."""
_REFUSED = (
    "modules_to_save", "use_dora", "lora_bias", "alora_invocation_tokens", "layer_replication",
    "use_bdlora", "use_qalora", "rank_pattern", "alpha_pattern",
)  # fmt: skip
"""Options of PEFT that must not be set: vLLM does not implement them, or not for all modules."""
_CHUNK = 2**20
_MALFORMED = (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)


class AdapterError(ValueError):
    """The files are not an adapter that the model's ranks can run; the message says why."""


@dataclass(frozen=True, slots=True)
class AdapterBase:
    """The model that an adapter must fit."""

    names: frozenset[str]
    """Names under which the adapter's files may name the model."""
    path: str
    """The model's folder. If it is none, such as a model hub's id, shapes are not compared."""
    max_rank: int

    @classmethod
    def of(cls, model: ModelSettings) -> "AdapterBase":
        """Return what adapters of a served model must fit."""
        names = frozenset({model.name, *model.aliases, *model.lora.base_names})
        return cls(names, model.path, model.lora.max_rank)


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """A checked adapter."""

    folder: Path
    digest: str
    """Digest of configuration and weights: equal ones are the same adapter."""
    rank: int


def check_adapter(folder: Path, base: AdapterBase) -> AdapterFiles:
    """Check an adapter, and read it once completely. Blocks.

    Args:
        folder: The adapter's folder.
        base: The model that it must fit.

    Raises:
        AdapterError: The adapter cannot run on the model.
    """
    try:
        rank = _check_config(folder, base)
        _check_weights(folder, rank, base)
        return AdapterFiles(folder, _digest(folder), rank)
    except OSError as error:
        raise AdapterError(f"{folder}: cannot be read: {error.strerror or error}") from error


def copy_adapter(folder: Path, target: Path) -> None:
    """Copy an adapter's files to a new folder, private to the process's user. Blocks.

    Raises:
        AdapterError: The files cannot be read or written.
    """
    try:
        target.mkdir(mode=0o700, parents=True)
        for name in (CONFIG, WEIGHTS):
            with (folder / name).open("rb") as source, (target / name).open("xb") as written:
                while chunk := source.read(_CHUNK):
                    written.write(chunk)
    except OSError as error:
        raise AdapterError(f"{folder}: cannot be copied: {error.strerror or error}") from error


def folder_inside(root: str, path: str) -> str:
    """Return a folder's path relative to the folder that must contain it.

    Args:
        root: The folder of adapters.
        path: Relative to ``root``, or absolute.

    Raises:
        AdapterError: The path leads out of ``root``, also by a symbolic link, or to ``root``.
    """
    if "\0" in path:
        raise AdapterError("the path contains a null character")
    base = os.path.realpath(root)
    found = os.path.realpath(os.path.join(base, path))  # noqa: PTH118  an absolute path replaces it
    if os.path.commonpath([base, found]) != base or found == base:
        raise AdapterError(f"{path!r} is not a folder inside {root}")
    return os.path.relpath(found, base)


def _check_config(folder: Path, base: AdapterBase) -> int:
    """Check adapter_config.json and return the rank."""
    file = folder / CONFIG
    with file.open("rb") as opened:
        content = opened.read(_MAX_CONFIG + 1)
    if len(content) > _MAX_CONFIG:
        raise AdapterError(f"{file}: is larger than {_MAX_CONFIG} bytes")
    try:
        config = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{file}: is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise AdapterError(f"{file}: is not a JSON object")
    if config.get("peft_type") != "LORA":
        raise AdapterError(f"{file}: peft_type is {config.get('peft_type')!r}, must be 'LORA'")
    if config.get("bias", "none") != "none":
        raise AdapterError(f"{file}: bias must be 'none'")
    if used := [name for name in _REFUSED if config.get(name)]:
        raise AdapterError(f"{file}: {', '.join(used)} not supported")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise AdapterError(f"{file}: r is {rank!r}, must be a positive integer")
    if rank > base.max_rank:
        raise AdapterError(
            f"{file}: rank {rank} is above {base.max_rank}, the highest rank of the model's "
            "adapters: raise lora.max_rank of the model"
        )
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not math.isfinite(alpha):
        raise AdapterError(f"{file}: lora_alpha is {alpha!r}, must be a number")
    _check_base(file, config.get("base_model_name_or_path"), base)
    return rank


def _check_base(file: Path, named: Any, base: AdapterBase) -> None:
    if not named:
        return
    known = {base.path, *base.names}
    endings = {name.rstrip("/").rpartition("/")[2].lower() for name in known}
    if not isinstance(named, str) or (
        named not in known and named.rstrip("/").rpartition("/")[2].lower() not in endings
    ):
        raise AdapterError(
            f"{file}: the adapter was made for {named!r}, not for {', '.join(sorted(base.names))}: "
            "if that is another name of the model, add it to lora.base_names of the model"
        )


def _check_weights(folder: Path, rank: int, base: AdapterBase) -> None:
    file = folder / WEIGHTS
    if not file.is_file():
        raise AdapterError(f"{file}: does not exist; other formats of weights are not supported")
    tensors = _tensors(file)
    halves: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, (shape, dtype) in tensors.items():
        module, _, half = name.removesuffix(".weight").rpartition(".lora_")
        module = module.removeprefix(_PREFIX)
        known = name == f"{_PREFIX}{module}.lora_{half}.weight" and half in {"A", "B"}
        if not known or not module:
            raise AdapterError(f"{file}: unexpected tensor {name!r}")
        if dtype not in _DTYPES:
            raise AdapterError(
                f"{file}: {name} has the type {dtype}, must be one of F32, F16, BF16"
            )
        halves.setdefault(module, {})[half] = shape
    if not halves:
        raise AdapterError(f"{file}: contains no weights")
    model = _base_shapes(base.path)
    for module, shapes in halves.items():
        _check_module(file, module, model)
        _check_shapes(file, module, shapes, rank, model)


def _check_module(file: Path, module: str, model: "_BaseShapes | None") -> None:
    last = module.rpartition(".")[2]
    if ".experts." in f".{module}." or last not in MODULES:
        raise AdapterError(
            f"{file}: {module} cannot be adapted; adapters may change "
            f"{', '.join(sorted(MODULES))}, but no routed experts"
        )
    if model is not None and model.unused(module):
        raise AdapterError(f"{file}: {module} belongs to a layer that only drafts tokens")


def _check_shapes(
    file: Path,
    module: str,
    shapes: Mapping[str, tuple[int, ...]],
    rank: int,
    model: "_BaseShapes | None",
) -> None:
    low, high = shapes.get("A"), shapes.get("B")
    if low is None or high is None:
        missing = "A" if low is None else "B"
        raise AdapterError(f"{file}: {module} has no lora_{missing}")
    if len(low) != 2 or len(high) != 2 or low[0] != rank or high[1] != rank:  # noqa: PLR2004
        raise AdapterError(
            f"{file}: {module} has the shapes {list(low)} and {list(high)}, "
            f"must be [{rank}, in] and [out, {rank}]"
        )
    if model is None:
        return
    weight = model.shapes.get(f"{module}.weight")
    if weight is None and module in model.modules:
        return
    if weight is None:
        raise AdapterError(f"{file}: the model has no module {module}: is it the right base model?")
    if (high[0], low[1]) != weight:
        raise AdapterError(
            f"{file}: {module} changes weights of shape {[high[0], low[1]]}, the model's have "
            f"{list(weight)}: is it the right base model?"
        )


@dataclass(frozen=True, slots=True)
class _BaseShapes:
    layers: int
    """Number of layers, without those that only draft tokens; 0: unknown."""
    modules: frozenset[str]
    """Names of all modules with weights."""
    shapes: Mapping[str, tuple[int, ...]]
    """Shapes of weights that are not packed, by name."""

    def unused(self, module: str) -> bool:
        """Return whether a module belongs to a layer behind the model's last one."""
        words = module.split(".")
        number = words[words.index("layers") + 1] if "layers" in words[:-1] else ""
        return bool(self.layers) and number.isdecimal() and int(number) >= self.layers


@lru_cache(maxsize=64)
def _base_shapes(path: str) -> _BaseShapes | None:
    """Return the shapes of a model's weights, or None if they are not in a local folder."""
    folder = Path(path)
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    if not files:
        return None
    tensors = {name: found for file in files for name, found in _tensors(file).items()}
    shapes = {name: shape for name, (shape, dtype) in tensors.items() if dtype in _COMPARED}
    modules = frozenset(name.rpartition(".")[0] for name in tensors)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    layers = config.get("num_hidden_layers")
    return _BaseShapes(layers if isinstance(layers, int) else 0, modules, shapes)


def _tensors(file: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return shape and type of each tensor in a safetensors file.

    Raises:
        AdapterError: The file is corrupt.
    """
    size = file.stat().st_size
    with file.open("rb") as opened:
        start = opened.read(8)
        (length,) = struct.unpack("<Q", start) if len(start) == 8 else (0,)  # noqa: PLR2004
        if not 0 < length <= min(_MAX_HEADER, size - 8):
            raise AdapterError(f"{file}: is corrupt: the header's length is wrong")
        header = opened.read(length)
    try:
        entries = json.loads(header)
        entries.pop("__metadata__", None)
        found = {
            name: (tuple(map(int, entry["shape"])), str(entry["dtype"]))
            for name, entry in entries.items()
        }
        ranges = sorted(tuple(map(int, entry["data_offsets"])) for entry in entries.values())
    except _MALFORMED as error:
        raise AdapterError(f"{file}: is corrupt: the header is not readable") from error
    end = 0
    for first, last in ranges:
        if first != end or last < first:
            raise AdapterError(f"{file}: is corrupt: its tensors overlap or leave gaps")
        end = last
    if 8 + length + end != size:
        raise AdapterError(f"{file}: is corrupt: {size} bytes instead of {8 + length + end}")
    return found


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in (CONFIG, WEIGHTS):
        with (folder / name).open("rb") as opened:
            digest.update(f"{name}\0".encode())
            while chunk := opened.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()[:16]
