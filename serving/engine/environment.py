"""Environment variables that vLLM and its libraries read; set before they are imported."""

import os
import sys
from pathlib import Path

import psutil

from serving.settings import Platform, Settings

_PRELOADS = ("libiomp5.so", "libtcmalloc_minimal.so.4")
"""vLLM's CPU build wants Intel OpenMP and tcmalloc in front of everything else."""

_LIBRARY_FOLDERS = (
    Path(sys.prefix) / "lib",
    Path("/usr/lib/x86_64-linux-gnu"),
    Path("/usr/lib/aarch64-linux-gnu"),
    Path("/usr/lib64"),
)


def engine_environment(settings: Settings, *, host: str = "127.0.0.1") -> dict[str, str]:
    """Return the variables for a process that holds a rank.

    Args:
        settings: all settings.
        host: this node's address, over which ranks talk to each other.

    The dynamic loader reads LD_PRELOAD when a process starts: set in a process that runs
    already it still reaches vLLM's own processes, which is where it matters.

    """
    level = settings.telemetry.log_level
    environment = {
        # What vLLM calls info is noise to somebody who serves; its warnings are not.
        "VLLM_LOGGING_LEVEL": {"debug": "DEBUG", "error": "ERROR"}.get(level, "WARNING"),
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_HOST_IP": host,
    }
    if settings.telemetry.otlp_endpoint is not None:
        environment |= {
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": settings.telemetry.otlp_protocol,
            "OTEL_SERVICE_NAME": "moe-serving-rank",
        }
    interface = _interface_of(host)
    if interface is not None:
        environment["GLOO_SOCKET_IFNAME"] = interface
    if settings.platform is Platform.CPU:
        environment |= {
            # Binding to cores is for whole machines; ranks here share cores.
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(settings.engine.threads_per_rank),
            # Ranks run eagerly; what is left of torch.compile in the sampler would call a C++
            # compiler, for ten seconds or where there is none in vain, at the first request
            # for log-probabilities.
            "TORCHDYNAMO_DISABLE": "1",
            # torch's and vLLM's notes to each other's developers, from every process.
            "TORCH_CPP_LOG_LEVEL": "ERROR",
            "PYTHONWARNINGS": "ignore::FutureWarning",
        }
        preload = _preload()
        if preload:
            environment["LD_PRELOAD"] = preload
    return environment


def apply_environment(environment: dict[str, str]) -> None:
    """Set what is not set yet: what a user exported wins. LD_PRELOAD is added to."""
    for key, value in environment.items():
        if key == "LD_PRELOAD":
            present = os.environ.get(key, "").replace(":", " ").split()
            wanted = [path for path in value.split(":") if path not in present]
            os.environ[key] = ":".join(present + wanted)
        else:
            os.environ.setdefault(key, value)


def _interface_of(host: str) -> str | None:
    """Name the network interface that has the address ``host``."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address == host for address in addresses):
            return name
    return None


def _preload() -> str:
    found = (
        next((folder / name for folder in _LIBRARY_FOLDERS if (folder / name).is_file()), None)
        for name in _PRELOADS
    )
    return ":".join(str(path) for path in found if path is not None)
