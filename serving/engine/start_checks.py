"""What a rank checks of its image and its node before it reads any weights.

A missing DeepEP wheel, a wrong device name or too little lockable memory otherwise shows after all
weights are loaded, which takes a quarter of an hour for DeepSeek-R1.
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
    """Check what all-to-all takes; return the variables to set before vLLM is imported.

    Costs some file reads; a package is imported only if the settings name an all-to-all kind that
    takes one.

    Args:
        settings: all settings.
        environment: this process's variables.
        host: where the kernel's files are.
        memlock: returns the bytes this process may lock, or ``None`` without limit.
        import_module: imports a package in earnest.

    Raises:
        SettingsError: the image lacks what ``all2all_backend`` takes, a named RDMA device is not
            there, or RDMA cannot lock memory; the message says what to do.
    """
    if settings.engine.kind != "vllm":
        return {}
    host = host or rdma.Host()
    name = _all_to_all(settings.engine.args)
    # Ranks that are alone, or whose workers share one engine, exchange no tokens this way.
    kind = require(name, import_module) if name and settings.group.data_parallel > 1 else None
    variables = rdma.hca_environment(environment, host)
    if rdma.usable(host):
        problem = lockable.problem(memlock(), free=lockable.locks_freely(host))
        if problem is not None and kind is not None and kind.rdma:
            raise SettingsError(
                f"engine.args.all2all_backend: {name} sends over RDMA, but {problem}"
            )
        if problem is not None:
            _log.warning("RDMA devices are there, but %s", problem)
    return variables


def _all_to_all(args: Mapping[str, Any]) -> str:
    """Return the configured kind; empty: vLLM's own default."""
    for key in ("all2all_backend", "all2all-backend"):
        if args.get(key):
            return str(args[key])
    return ""
