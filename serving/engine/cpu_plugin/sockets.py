"""Lets all process groups of a process share one set of sockets and the thread that minds them.

vLLM makes two gloo groups for every kind of parallelism, also for those with one rank: 16 in
an engine with data and expert parallelism. torch gives each a device of its own, whose thread
(``gloo_tcp_loop``) wakes up a hundred times a second though nothing happens. gloo's devices are
made to be shared.
"""

import functools
import os
from datetime import timedelta
from typing import Any

from torch.distributed import ProcessGroupGloo, Store

_DEFAULT_TIMEOUT = timedelta(minutes=30)
"""torch's own, ``default_pg_timeout``."""


@functools.cache
def _devices(interfaces: str) -> list[Any]:
    """Return devices as torch would make them for each group."""
    if not interfaces:
        return [ProcessGroupGloo.create_default_device()]
    return [ProcessGroupGloo.create_device(interface=name) for name in interfaces.split(",")]


def install() -> None:
    """Give the process's devices to all groups that are made from now on."""
    original = ProcessGroupGloo.__init__
    if hasattr(original, "__wrapped__") or not hasattr(ProcessGroupGloo._Options, "_devices"):
        return

    @functools.wraps(original)
    def init(
        self: ProcessGroupGloo, store: Store, rank: int, size: int, timeout: Any = _DEFAULT_TIMEOUT
    ) -> None:
        options = timeout
        if isinstance(timeout, timedelta):  # else torch's other way, with devices of the caller's
            options = ProcessGroupGloo._Options()
            options._devices = _devices(os.environ.get("GLOO_SOCKET_IFNAME", ""))
            options._timeout = timeout
            options._threads = 2 * len(options._devices)  # as torch has it
        original(self, store, rank, size, options)

    ProcessGroupGloo.__init__ = init
