"""Exit of vLLM's processes without interpreter teardown.

The teardown of an interpreter that has loaded torch takes seconds of CPU time, and longer when
several processes exit at the same time on few cores. vLLM then times out and kills the processes,
which leave shared memory behind.
"""

import atexit
import multiprocessing
import os
import sys

_NAMES = ("EngineCore", "VllmWorker", "VLLM_DP_Coordinator")
"""Name prefixes of the processes that vLLM starts."""


def install() -> None:
    """Skip the teardown at exit if vLLM has started this process; otherwise do nothing."""
    if multiprocessing.current_process().name.startswith(_NAMES):
        # Exit handlers run in reverse order: those registered later run before this one.
        atexit.register(_leave)


def _leave() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
