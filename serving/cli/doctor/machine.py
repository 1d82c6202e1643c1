"""Resources of this machine, and requirements of ranks. Sizes are in bytes."""

import os
import socket
from pathlib import Path

import psutil

GIB = 2**30
RANK_BYTES = int(2.4 * GIB)
"""Memory of one CPU rank of the bundled model: 1.7 GiB for the engine core and the process that it
forks from (after hours of load), 0.6 GiB for the replica, and a little for vLLM's coordinator."""
BASE_BYTES = 2 * GIB
"""Memory of Ray's processes and the router."""
DISK_BYTES = GIB
"""Disk space for logs and Ray's session files."""


def memory_for(ranks: int) -> int:
    """Return the memory that ``ranks`` ranks, Ray and a router need."""
    return BASE_BYTES + ranks * RANK_BYTES


def memory_available() -> int:
    """Return the memory that new processes can use, within the container's limit."""
    available = int(psutil.virtual_memory().available)
    limit = container_headroom()
    return available if limit is None else min(available, limit)


def memory_shortage(needed: int) -> int:
    """Return how much of ``needed`` is not available; 0 if all of it is."""
    return max(0, needed - memory_available())


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def listen_problem(host: str, port: int) -> str | None:
    """Return why ``host:port`` cannot be bound, or None if it can."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            # As servers do, so that lingering connections of an earlier server do not block the
            # port.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            probe.listen(1)
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return None


def container_headroom() -> int | None:
    """Return the memory left in the control group (version 2), or None if it is unlimited."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text("ascii").strip()
        if limit == "max":
            return None
        return max(0, int(limit) - int((group / "memory.current").read_text("ascii")))
    except (OSError, ValueError):
        return None
