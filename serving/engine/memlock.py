"""Locked-memory limit (RLIMIT_MEMLOCK) and its check for RDMA."""

import re
import resource

from serving.engine.rdma import Host

NEEDED = 2**30
"""Required limit, bytes. NVSHMEM and NCCL register hundreds of MiB per GPU."""
_CAP_IPC_LOCK = 14


def limit() -> int | None:
    """Return this process's soft limit in bytes, or ``None`` if it is unlimited."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return None if soft == resource.RLIM_INFINITY else soft


def locks_freely(host: Host | None = None) -> bool:
    """Return whether CAP_IPC_LOCK is in effect for this process; it lifts the limit."""
    try:
        status = ((host or Host()).proc / "self" / "status").read_text("utf-8")
    except OSError:
        return False
    match = re.search(r"^CapEff:\s*([0-9a-fA-F]+)", status, re.MULTILINE)
    return bool(match and int(match.group(1), 16) >> _CAP_IPC_LOCK & 1)


def problem(most: int | None, *, free: bool) -> str | None:
    """Return why the limit is too low for RDMA, with the remedy, or ``None`` if it suffices.

    Args:
        most: Result of ``limit()``, bytes; ``None`` for unlimited.
        free: The result of ``locks_freely()``.
    """
    if free or most is None or most >= NEEDED:
        return None
    return (
        f"the locked-memory limit is {_size(most)}, while RDMA registers more than "
        f"{_size(NEEDED)}: raise it in the container runtime of the nodes "
        "(LimitMEMLOCK=infinity in containerd's systemd unit, then restart it), or run the pods "
        "as root with IPC_LOCK (the chart's pools[].rdma.memlock: root); the capability has no "
        "effect for other users"
    )


def text(most: int | None) -> str:
    """Format a limit for tables: ``1 GiB``, or ``unlimited`` for ``None``."""
    return "unlimited" if most is None else _size(most)


def _size(count: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:g} {unit}" if count % size == 0 else f"{count / size:.1f} {unit}"
    return f"{count} bytes"
