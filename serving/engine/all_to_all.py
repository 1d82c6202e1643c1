"""Package requirements of vLLM's all-to-all backends, checked before weights are loaded."""

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

from serving.errors import SettingsError

DEFAULT = "allgather_reducescatter"
"""Built-in backend of vLLM; it requires no package."""
WHEELS = "deploy/images/engine-gpu.Dockerfile"
"""Dockerfile that builds the packages into the image."""


@dataclass(frozen=True, slots=True)
class Kind:
    """Requirements of one value of vLLM's ``all2all_backend``."""

    module: str = ""
    """Python module that must be importable; empty if the backend requires none."""
    package: str = ""
    """Name of the package in error messages."""
    attribute: str = ""
    """Attribute that the module must have; older releases lack it."""
    rdma: bool = False
    """Whether traffic between pods requires RDMA."""


_DEEPEP = Kind("deep_ep", "DeepEP", rdma=True)
_MORI = Kind("mori", "MoRI", rdma=True)
_FLASHINFER = Kind("flashinfer", "FlashInfer")
KINDS: dict[str, Kind] = {
    "naive": Kind(),
    "pplx": Kind(),
    DEFAULT: Kind(),
    "passthrough": Kind(),
    "deepep_high_throughput": _DEEPEP,
    "deepep_low_latency": _DEEPEP,
    "deepep_v2": Kind("deep_ep", "DeepEP", "ElasticBuffer", rdma=True),
    "mori_high_throughput": _MORI,
    "mori_low_latency": _MORI,
    "moonep": Kind("moonep", "MoonEP"),
    "nixl_ep": Kind("nixl_ep", "NIXL EP", rdma=True),
    "flashinfer_all2allv": _FLASHINFER,
    "flashinfer_nvlink_two_sided": _FLASHINFER,
    "flashinfer_nvlink_one_sided": _FLASHINFER,
}
"""Backends of vLLM 0.32 by name. Other names are passed to vLLM unchecked."""


def why_not_importable(
    kind: Kind, import_module: Callable[[str], object] = importlib.import_module
) -> str | None:
    """Return why the kind's module cannot be used, or ``None`` if it can.

    Imports the module, because a wheel built for another CUDA or torch version is found but fails
    to load.
    """
    if not kind.module:
        return None
    try:
        module = import_module(kind.module)
    except ModuleNotFoundError as error:
        if error.name == kind.module:
            return "not installed"
        return f"import failed: {error}"
    except Exception as error:  # noqa: BLE001  extension modules raise many kinds
        first = (str(error).splitlines() or [""])[0]
        return f"import failed: {type(error).__name__}: {first}"
    if kind.attribute and not hasattr(module, kind.attribute):
        return f"the installed release is too old: it lacks {kind.attribute}"
    return None


def require(
    name: str, import_module: Callable[[str], object] = importlib.import_module
) -> Kind | None:
    """Check the requirements of an all-to-all kind; return it, or ``None`` if it is unknown.

    Args:
        name: Value of ``all2all_backend``.
        import_module: Function that imports a module by name.

    Raises:
        SettingsError: The kind's package is missing or does not load. The message names the build
            option or another kind to choose.
    """
    kind = KINDS.get(name)
    if kind is None:
        return None
    reason = why_not_importable(kind, import_module)
    if reason is not None:
        raise SettingsError(
            f"engine.args.all2all_backend: {name} needs {kind.package} (Python module "
            f"{kind.module}) in the image: {reason}. {_remedy(kind)}, or choose {DEFAULT}, which "
            "requires no package"
        )
    return kind


def _remedy(kind: Kind) -> str:
    if kind.module == "deep_ep":
        return f"Build {WHEELS} with --build-arg DEEPEP=build"
    return f"Add its wheel to deploy/images/wheels and build {WHEELS}"
