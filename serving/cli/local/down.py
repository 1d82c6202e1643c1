"""``moe-serving down``: stops the processes of ``up`` on this machine, including leftovers."""

import contextlib
import time

import psutil

from serving.cli.local.background import clean_up_after_crash, remove_ray_folder
from serving.cli.local.state import RunState, StateFile, state_folder
from serving.engine.processes import end, find, living
from serving.errors import ServingError

STOP_TIMEOUT = 15.0
"""Time for ``up`` to stop after SIGTERM before it is killed, seconds."""


def down_command() -> None:
    """Stop everything that "moe-serving up" started on this machine, detached or not.

    Running requests get a few seconds to finish. It is not an error if nothing is running.
    """
    state = StateFile(state_folder())
    try:
        found = state.read()
    except ServingError:
        if state.held():
            raise
        found = None
    if found is None and not state.held():
        print("nothing is running")
        return
    if found is None:
        raise ServingError("moe-serving up is starting or stopping; try again in a moment")
    began = time.monotonic()
    if state.held():
        stop_running(found)
    if living((found.up, *found.processes)):
        # After a crash, or if up did not stop in time.
        left = end((found.up, *found.processes), grace=1.0)
        if left:
            raise ServingError(f"could not stop these processes: {', '.join(map(str, left))}")
    with state.hold():
        clean_up_after_crash(state)
    remove_ray_folder(found.ray_folder)
    print(f"stopped in {time.monotonic() - began:.1f} s")


def stop_running(found: RunState, timeout: float = STOP_TIMEOUT) -> bool:
    """Send SIGTERM to an ``up`` and wait up to ``timeout`` seconds; return whether it has ended."""
    process = find(found.up)
    if process is None:
        return True
    with contextlib.suppress(psutil.Error):
        process.terminate()
        process.wait(timeout)
    return find(found.up) is None
