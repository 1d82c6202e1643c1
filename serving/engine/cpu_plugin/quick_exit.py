"""Lets vLLM's processes end in no time.

Tearing down an interpreter with torch in it takes seconds of processor time, many seconds
when several processes do it at once on few cores. vLLM then loses patience and kills, and
killed processes leave shared memory behind.
"""

import atexit
import multiprocessing
import os
import sys

_NAMES = ("EngineCore", "VllmWorker", "VLLM_DP_Coordinator")
"""How vLLM names the processes that it starts."""


def install() -> None:
    """In a process that vLLM started: when it is done, end it without a teardown."""
    if multiprocessing.current_process().name.startswith(_NAMES):
        # Handlers run last in, first out: everybody else's run before this one.
        atexit.register(_leave)


def _leave() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
