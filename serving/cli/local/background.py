"""``up --detach``, and the clean-up after an ``up`` that was killed."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

from serving.cli.local import ports
from serving.cli.local.handover import environment_without_settings, write_settings
from serving.cli.local.state import StateFile
from serving.engine.processes import end
from serving.errors import ServingError
from serving.settings import Settings

_POLL_SECONDS = 0.1
_SLACK_SECONDS = 120.0
"""Time added to group.start_timeout for Ray, the router and the sample question, seconds."""


def up_in_background(settings: Settings, state: StateFile, *, sample: bool) -> int:
    """Run ``up`` in a new session; wait until it is ready or has failed.

    Its output is copied to the terminal, and stored in logs/up.log of the state folder.

    Args:
        settings: All settings, with chosen ports.
        state: State file of the run.
        sample: Whether to ask the sample question.

    Returns:
        Exit code.

    Raises:
        ServingError: ``up`` is already running, a port is in use, or the start timed out.
    """
    with state.hold():
        # Acquired only to report errors before the child starts, which acquires the lock itself.
        ports.require_free(settings)
    config = state.folder / "detached.yaml"
    write_settings(settings, config)
    log = state.log_folder / "up.log"
    log.write_bytes(b"")
    command = [sys.executable, "-m", "serving", "up", "--config", str(config)]
    if not sample:
        command.append("--no-sample")
    with log.open("ab") as out:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment_without_settings(),
        )
    try:
        return _follow(child, log, state, settings.group.start_timeout + _SLACK_SECONDS)
    except BaseException:
        # Ctrl-C while waiting cancels the start.
        child.terminate()
        raise


def clean_up_after_crash(state: StateFile) -> None:
    """Stop the processes of an ``up`` that was killed, and remove its files.

    The caller must hold the lock.

    Raises:
        ServingError: A process cannot be stopped.
    """
    old = state.read()
    if old is None:
        return
    left = end(old.processes, grace=2.0)
    if left:
        raise ServingError(
            f"could not stop processes of an earlier run: {', '.join(map(str, left))}"
        )
    remove_ray_folder(old.ray_folder)
    state.remove()


def remove_ray_folder(folder: str) -> None:
    """Delete a session folder of a private Ray; ignore other folders."""
    path = Path(folder)
    if folder and path.name.startswith("moe-") and path.is_dir():
        shutil.rmtree(path, ignore_errors=True)


def _follow(child: subprocess.Popen[bytes], log: Path, state: StateFile, limit: float) -> int:
    """Copy the log to the terminal until the child is ready or has ended; return the exit code."""
    deadline = time.monotonic() + limit
    with log.open("r", encoding="utf-8", errors="replace") as lines:
        while True:
            code = child.poll()
            ready = _settled(state, child.pid)
            text = lines.read()
            sys.stdout.write(text)
            sys.stdout.flush()
            if code is not None:
                return code or 1
            if ready:
                print(
                    f"running in the background as process {child.pid}; moe-serving down stops it"
                )
                return 0
            if time.monotonic() >= deadline:
                raise ServingError(f"not ready after {limit:.0f} s; log: {log}")
            time.sleep(_POLL_SECONDS)


def _settled(state: StateFile, pid: int) -> bool:
    """Return whether the child has printed READY and the answer to the sample question."""
    try:
        found = state.read()
    except ServingError:
        return False
    return found is not None and found.up.pid == pid and found.ready
