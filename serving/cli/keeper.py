"""Orphan reaper of ``moe-serving up``: ends the processes in the state file if ``up`` is killed.

The kernel ends the router and Ray together with ``up``, but not Ray's children. Ray's agents try to
report the loss for a minute and hold memory and ports until they exit. An orderly stop removes the
state file, so that nothing is left to do.
"""

import os
import sys
from pathlib import Path

from serving.cli.local.state import StateFile
from serving.engine import processes
from serving.engine.orphan_reaper import OrphanReaper, detach, wait_for_owner

_OWN_TIME = 3.0
"""Time for the processes to exit on their own, seconds; ranks then remove their shared memory."""

_GRACE = 1.0
"""Time from SIGTERM to SIGKILL for processes that have not exited on their own, seconds."""


def start_orphan_reaper(folder: Path) -> OrphanReaper:
    """Start a reaper for this ``up``; call before starting any other process.

    Args:
        folder: Folder of the state file.

    Raises:
        OSError: The reaper did not start.
    """
    reaper = OrphanReaper(str(folder), str(os.getpid()), module="serving.cli.keeper")
    reaper.wait_watching()
    return reaper


def main(folder: Path, up: int) -> None:
    """Wait until process ``up`` has ended, then end the remaining processes of its run."""
    detach()
    owner = processes.record(up)
    wait_for_owner()
    state = StateFile(folder).read()
    if state is None or owner is None or not processes.same(state.up, owner):
        return
    left = processes.wait_gone(state.processes, _OWN_TIME)
    processes.end(left, grace=_GRACE)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
