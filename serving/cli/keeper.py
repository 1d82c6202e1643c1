"""Ends what an ``up`` leaves when it is killed (-9) and cannot do it itself.

The kernel ends the router and Ray with the process that started them, but not what Ray starts:
its agents try to report the loss for a minute, holding memory and ports. So ``up`` starts this
module as a small process of its own. It holds the reading end of a pipe whose writing end only
``up`` has; when the pipe closes ``up`` is gone, and what the state file names is ended. After an
orderly stop there is no state file, and nothing to do.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

from serving.cli.local import supervisor
from serving.cli.local.state import StateFile

_OWN_TIME = 3.0
"""Seconds in which the parts may end by themselves: ranks remove shared memory when they do."""
_GRACE = 1.0
"""Seconds from SIGTERM to SIGKILL for those that have not."""
_PATIENCE = 3.0
_POLL = 0.1


class Keeper:
    """The side of ``up``: holds the pipe open for as long as it lives."""

    def __init__(self, folder: Path) -> None:
        """Watch over the run whose state file is in ``folder``; call before anything is started.

        Raises:
            OSError: the watching process cannot be started.
        """
        reader, self._writer = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "serving.cli.keeper", str(folder), str(os.getpid())],
                stdin=reader,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                # Ctrl-C in up's terminal must not take it away.
                start_new_session=True,
            )
        except OSError:
            os.close(self._writer)
            raise
        finally:
            os.close(reader)

    def close(self) -> None:
        """Let it end; call when the state file is gone, or what it names should go."""
        os.close(self._writer)
        try:
            self._process.wait(_OWN_TIME + _GRACE + _PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def main(folder: Path, up: int) -> None:
    """Wait until standard input closes, then end what is left of the run of process ``up``."""
    while os.read(0, 1):
        pass
    state = StateFile(folder).read()
    if state is None or state.up.pid != up:
        return
    deadline = time.monotonic() + _OWN_TIME
    others = [item for item in state.processes if item.pid != os.getpid()]
    while supervisor.living(others) and time.monotonic() < deadline:
        time.sleep(_POLL)
    supervisor.end(others, _GRACE)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
