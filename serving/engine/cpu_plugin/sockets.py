"""Sharing of gloo devices (sockets and thread) between all process groups of a process.

vLLM creates two gloo groups for each kind of parallelism, even with one rank: 16 in an engine with
data and expert parallelism. torch creates a device per group, whose thread (``gloo_tcp_loop``)
wakes up 100 times a second when idle. gloo's devices can be shared.
"""

import functools
import os
from datetime import timedelta
from typing import Any

from torch.distributed import ProcessGroupGloo, Store

_DEFAULT_TIMEOUT = timedelta(minutes=30)
"""torch's default, ``default_pg_timeout``."""


@functools.cache
def _devices(interfaces: str) -> list[Any]:
    """Return the process's shared devices; the same that torch creates for each group.

    Args:
        interfaces: Comma-separated network interfaces; empty for torch's default.
    """
    if not interfaces:
        return [ProcessGroupGloo.create_default_device()]
    return [ProcessGroupGloo.create_device(interface=name) for name in interfaces.split(",")]


def install() -> None:
    """Make new groups use the process's shared devices. Safe to call twice."""
    original = ProcessGroupGloo.__init__
    if hasattr(original, "__wrapped__") or not hasattr(ProcessGroupGloo._Options, "_devices"):
        return

    @functools.wraps(original)
    def init(
        self: ProcessGroupGloo, store: Store, rank: int, size: int, timeout: Any = _DEFAULT_TIMEOUT
    ) -> None:
        options = timeout
        if isinstance(timeout, timedelta):  # otherwise options that already contain devices
            options = ProcessGroupGloo._Options()
            options._devices = _devices(os.environ.get("GLOO_SOCKET_IFNAME", ""))
            options._timeout = timeout
            options._threads = 2 * len(options._devices)  # as in torch
        original(self, store, rank, size, options)

    ProcessGroupGloo.__init__ = init
