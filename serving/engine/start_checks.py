"""Checks of a rank's image and node before weights are loaded.

Without them, a missing DeepEP wheel, a wrong device name or a low locked-memory limit causes an
error only after all weights are loaded, which takes 15 minutes for DeepSeek-R1.
"""

import importlib
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

from serving.engine import memlock as lockable
from serving.engine import rdma
from serving.engine.all_to_all import require
from serving.errors import SettingsError
from serving.settings import Settings

_log = logging.getLogger(__name__)


def fabric_environment(
    settings: Settings,
    environment: Mapping[str, str] = os.environ,
    *,
    host: rdma.Host | None = None,
    memlock: Callable[[], int | None] = lockable.limit,
    import_module: Callable[[str], object] = importlib.import_module,
) -> dict[str, str]:
    """Check the all-to-all requirements; return the variables to set before importing vLLM.

    Reads a few files. Imports a package only if ``all2all_backend`` requires one.

    Args:
        settings: All settings.
        environment: This process's variables.
        host: Locations of the kernel's file systems.
        memlock: Returns the locked-memory limit in bytes, or ``None`` for unlimited.
        import_module: Function that imports a module by name.

    Returns:
        Variables that select the RDMA devices; empty for a fake engine.

    Raises:
        SettingsError: The image lacks a requirement of ``all2all_backend``, a selected RDMA device
            does not exist, or the locked-memory limit is too low. The message states the remedy.
    """
    if settings.engine.kind != "vllm":
        return {}
    host = host or rdma.Host()
    name = _all_to_all(settings.engine.args)
    # A group of one rank does not use these backends: its workers share an engine.
    kind = require(name, import_module) if name and settings.group.data_parallel > 1 else None
    variables = rdma.hca_environment(environment, host)
    if rdma.usable(host):
        problem = lockable.problem(memlock(), free=lockable.locks_freely(host))
        if problem is not None and kind is not None and kind.rdma:
            raise SettingsError(f"engine.args.all2all_backend: {name} uses RDMA, but {problem}")
        if problem is not None:
            _log.warning("RDMA devices are present, but %s", problem)
    return variables


def _all_to_all(args: Mapping[str, Any]) -> str:
    """Return the configured ``all2all_backend``; empty for vLLM's default."""
    for key in ("all2all_backend", "all2all-backend"):
        if args.get(key):
            return str(args[key])
    return ""
