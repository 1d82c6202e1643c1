"""Environment variables for vLLM and its libraries; set them before the first import."""

import os
import socket
import sys
from pathlib import Path

import psutil

from serving.errors import EngineError
from serving.settings import Platform, Settings

_PRELOADS = ("libiomp5.so", "libtcmalloc_minimal.so.4")
"""Libraries that vLLM's CPU build requires to be preloaded: Intel OpenMP and tcmalloc."""

EXCHANGE, EXCHANGE_SPIN_US = "MOE_EXCHANGE", "MOE_EXCHANGE_SPIN_US"
"""Variables that pass ``engine.exchange`` and ``engine.exchange_spin_us`` to the CPU plugin."""

_LIBRARY_FOLDERS = (
    Path(sys.prefix) / "lib",
    Path("/usr/lib/x86_64-linux-gnu"),
    Path("/usr/lib/aarch64-linux-gnu"),
    Path("/usr/lib64"),
)


def engine_environment(settings: Settings, *, host: str = "127.0.0.1") -> dict[str, str]:
    """Return the variables for a process that holds a rank.

    The dynamic loader reads LD_PRELOAD when a process starts. In a process that already runs, the
    variable takes effect only in the processes that vLLM starts, which are the ones that need it.

    Args:
        settings: All settings.
        host: Address of this node for communication between ranks.
    """
    level = settings.telemetry.log_level
    environment = {
        # vLLM's info messages are noise in production; its warnings are not.
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
            # Binding threads to cores requires exclusive cores; ranks here share them.
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(settings.engine.threads_per_rank),
            EXCHANGE: settings.engine.exchange,
            EXCHANGE_SPIN_US: str(settings.engine.exchange_spin_us),
            # Ranks run eagerly, but the sampler still uses torch.compile: the first request for
            # log-probabilities would run a C++ compiler for ten seconds, or fail where none is
            # installed.
            "TORCHDYNAMO_DISABLE": "1",
            # Silence the deprecation warnings that torch and vLLM print in every process.
            "TORCH_CPP_LOG_LEVEL": "ERROR",
            "PYTHONWARNINGS": "ignore::FutureWarning",
        }
        preload = _preload()
        if preload:
            environment["LD_PRELOAD"] = preload
    return environment


def apply_environment(environment: dict[str, str]) -> None:
    """Set the variables that this process does not have yet; append to LD_PRELOAD."""
    for key, value in environment.items():
        if key == "LD_PRELOAD":
            present = os.environ.get(key, "").replace(":", " ").split()
            wanted = [path for path in value.split(":") if path not in present]
            os.environ[key] = ":".join(present + wanted)
        else:
            os.environ.setdefault(key, value)


def network_environment(address: str) -> dict[str, str]:
    """Return the variables that make vLLM and torch's collectives use ``address``.

    By default both derive an address from the default route, which is wrong on loopback-only
    machines and on nodes with several networks.

    Raises:
        EngineError: No network interface of this node has the address.
    """
    interface = interface_of(address)
    return {
        "VLLM_HOST_IP": address,
        "GLOO_SOCKET_IFNAME": interface,
        "NCCL_SOCKET_IFNAME": f"={interface}",
    }


def interface_of(address: str) -> str:
    """Return the name of the network interface that has the IPv4 or IPv6 address.

    Raises:
        EngineError: No interface of this node has the address.
    """
    interface = _interface_of(address)
    if interface is None:
        raise EngineError(
            f"no network interface of this node has the address {address} assigned by Ray; "
            "start Ray with --node-ip-address set to an address of this node"
        )
    return interface


def _interface_of(address: str) -> str | None:
    for name, entries in psutil.net_if_addrs().items():
        for entry in entries:
            if (
                entry.family in {socket.AF_INET, socket.AF_INET6}
                and entry.address.partition("%")[0] == address
            ):
                return name
    return None


def _preload() -> str:
    """Return the value of LD_PRELOAD: the installed libraries of ``_PRELOADS``."""
    found = (
        next((folder / name for folder in _LIBRARY_FOLDERS if (folder / name).is_file()), None)
        for name in _PRELOADS
    )
    return ":".join(str(path) for path in found if path is not None)
