"""How much this machine has, and how much ranks need. Sizes are bytes."""

import os
import socket
from pathlib import Path

import psutil

GIB = 2**30
RANK_BYTES = int(2.4 * GIB)
"""One CPU rank of the bundled model: engine core and what it is forked from 1.7 (after much work),
replica 0.6 GiB, and a little for vLLM's coordinator."""
BASE_BYTES = 2 * GIB
"""Ray's own processes and the router."""
DISK_BYTES = GIB
"""For logs and Ray's session files."""


def memory_for(ranks: int) -> int:
    """Return what ``ranks`` ranks, Ray and a router take in all."""
    return BASE_BYTES + ranks * RANK_BYTES


def memory_available() -> int:
    """Return what new processes may take, within the container's limit if there is one."""
    available = int(psutil.virtual_memory().available)
    limit = _container_headroom()
    return available if limit is None else min(available, limit)


def memory_shortage(needed: int) -> int:
    """Return how much of ``needed`` is missing now (0 if it is all there)."""
    return max(0, needed - memory_available())


def cores() -> int:
    """Return the cores that this process may run on."""
    return len(os.sched_getaffinity(0))


def listen_problem(host: str, port: int) -> str | None:
    """Return why nothing can listen on ``host:port``, or ``None`` if it is free."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            # As servers do: connections of an earlier server that linger are no obstacle.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            probe.listen(1)
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return None


def _container_headroom() -> int | None:
    """Return what the control group (version 2) leaves, or ``None`` without a limit."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text("ascii").strip()
        if limit == "max":
            return None
        return max(0, int(limit) - int((group / "memory.current").read_text("ascii")))
    except (OSError, ValueError):
        return None
