"""Whether this machine can share memory between ranks; does not import torch."""

import os
import platform
import sys


def why_not_here() -> str:
    """Return why no process of this node can use the exchange; empty if it can."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"shared memory requires Linux x86_64, this is {sys.platform} {platform.machine()}"
    try:
        os.close(os.memfd_create("probe", os.MFD_CLOEXEC))
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:
        return f"this kernel or container forbids memfd or pidfd: {error}"
    return ""
