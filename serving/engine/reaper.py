"""Kills what a rank leaves behind when it dies without being able to clean up.

vLLM's engine core does not notice that the process that started it was killed (-9): it and
its workers would live on, holding memory, ports and the group's collectives. PR_SET_PDEATHSIG
is no cure: it follows the *thread* that started the child, and threads come and go.

So a rank starts this module as a small process of its own. It holds the reading end of a
pipe whose writing end only the rank has; when the pipe closes the rank is gone, and what the
rank's engine had started is killed and the files that killed processes leave are removed.

It is no child of the rank: Ray kills those of a worker together with it, and then nobody was
left to remove the files.
"""

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

_LOOK_EVERY = 1.0
"""Seconds between two looks at the rank's descendants while its engine comes up."""

_STARTED = b"s"
"""What the rank writes when its engine is up."""

_PATIENCE = 30.0
"""Seconds for it to start and for each of its answers: fractions of one, on a machine that runs."""

_ANSWER_LIMIT = 64
"""Bytes of the answer, its process id in a line; also given once in the beginning."""


class Reaper:
    """The rank's side."""

    def __init__(self) -> None:
        """Start the watching process.

        Raises:
            OSError: it cannot be started.
        """
        self.folder = tempfile.mkdtemp(prefix="moe-serving-")
        """For the engine's sockets; removed in the end."""
        reader, self._writer = os.pipe()
        self._answers = -1
        self._pid = 0
        command = [sys.executable, "-m", "serving.engine.reaper"]
        answers, theirs = os.pipe()
        try:
            subprocess.run(
                [*command, str(os.getpid()), str(reader), self.folder],
                pass_fds=(reader,),
                stdin=subprocess.DEVNULL,
                stdout=theirs,
                # Ctrl-C in the rank's terminal must not take it away before its time.
                start_new_session=True,
                env=os.environ | {"LD_PRELOAD": ""},
                check=False,
                timeout=_PATIENCE,
            )
            self._answers = answers
        except (OSError, subprocess.TimeoutExpired) as error:
            os.close(answers)
            self.close()
            shutil.rmtree(self.folder, ignore_errors=True)
            raise OSError(f"nobody watches over the engine's processes: {error}") from error
        finally:
            os.close(reader)
            os.close(theirs)

    @property
    def pid(self) -> int:
        """Id of the watching process."""
        return self._pid

    def wait_watching(self) -> None:
        """Return when it has seen which processes were there before the engine's.

        Raises:
            OSError: it ended instead, or did not answer in time.
        """
        ready, _, _ = select.select([self._answers], [], [], _PATIENCE)
        if not ready:
            raise OSError(
                "the process that watches over the engine's processes did not answer within "
                f"{_PATIENCE:g} s: this machine is out of memory or processor time"
            )
        answer = os.read(self._answers, _ANSWER_LIMIT)
        if not answer:
            raise OSError("the process that watches over the engine's processes ended early")
        self._pid = int(answer)

    def started(self) -> None:
        """Say that the engine's processes are all there; return when it has seen them.

        Raises:
            OSError: it ended instead, or did not answer in time.
        """
        os.write(self._writer, _STARTED)
        self.wait_watching()

    def close(self, timeout: float = 10.0) -> None:
        """Let it kill what is left of the engine's processes, and end. Safe to call twice."""
        if self._writer < 0:
            return
        os.close(self._writer)
        self._writer = -1
        if self._answers < 0:
            return
        if not self._ended(time.monotonic() + timeout) and self._pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
        os.close(self._answers)
        self._answers = -1

    def _ended(self, deadline: float) -> bool:
        """Wait for the end of the pipe, which ends with it; an answer may still be in there."""
        while True:
            patience = max(deadline - time.monotonic(), 0)
            ready, _, _ = select.select([self._answers], [], [], patience)
            if not ready or not os.read(self._answers, _ANSWER_LIMIT):
                return bool(ready)


def main(parent_pid: int, reader: int, folder: str) -> None:
    """Watch ``parent_pid`` until the pipe ``reader`` closes, then clean up after its engine."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if os.fork():
        return
    try:
        _end(_watch(parent_pid, reader))
        if not _lives(parent_pid):
            _remove_openmp_file(parent_pid)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _watch(parent_pid: int, reader: int) -> set[psutil.Process]:
    """Return the processes of the parent's engine when the pipe closes."""
    engine: set[psutil.Process] = set()
    try:
        parent = psutil.Process(parent_pid)
        # What the rank had before belongs to somebody else.
        others = set(parent.children(recursive=True)) | {psutil.Process()}
    except psutil.NoSuchProcess:
        return engine
    _answer()
    starting = True
    while True:
        ready, _, _ = select.select([reader], [], [], _LOOK_EVERY if starting else None)
        if starting:
            with contextlib.suppress(psutil.NoSuchProcess):
                engine |= set(parent.children(recursive=True)) - others
        if ready:
            if not os.read(reader, 1):
                return engine
            # From here on new children of the rank are not the engine's.
            starting = False
            _answer()


def _answer() -> None:
    os.write(sys.stdout.fileno(), f"{os.getpid()}\n".encode())


def _end(engine: set[psutil.Process]) -> None:
    """Kill ``engine`` and what it has started since."""
    for process in list(engine):
        with contextlib.suppress(psutil.NoSuchProcess):
            engine |= set(process.children(recursive=True))
    trackers = {process for process in engine if _is_tracker(process)}
    # psutil compares start times, so a pid that was given to another is left alone.
    for process in engine - trackers:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    # The trackers end by themselves when nobody uses them any more, and remove shared memory
    # before that. A rank that lives on needs its own: that one is not waited for.
    for process in engine:
        _remove_openmp_file(process.pid)


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _is_tracker(process: psutil.Process) -> bool:
    try:
        return any("multiprocessing.resource_tracker" in part for part in process.cmdline())
    except psutil.Error:
        return False


def _remove_openmp_file(pid: int) -> None:
    """Remove what Intel OpenMP leaves in shared memory when its process is killed."""
    for file in Path("/dev/shm").glob(f"__KMP_REGISTERED_LIB_{pid}_*"):  # noqa: S108
        file.unlink(missing_ok=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
