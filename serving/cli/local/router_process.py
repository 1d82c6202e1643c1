"""The router process of ``up``: start, restart if it exits, and stop."""

import contextlib
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from serving.cli.local.handover import environment_without_settings, write_settings
from serving.engine.processes import spawn
from serving.errors import EngineError
from serving.settings import Settings

_STOP_TIMEOUT = 6.0
"""Maximum time for the router to finish its requests when ``up`` stops, seconds."""
_MAX_RESTARTS = 3
_RESTART_PERIOD = 60.0
"""Period for ``_MAX_RESTARTS``, seconds; a router that exits more often is not restarted."""
_POLL_SECONDS = 0.05


class Restarts:
    """Limits how often a process is restarted."""

    def __init__(self, most: int = _MAX_RESTARTS, period: float = _RESTART_PERIOD) -> None:
        """Allow ``most`` restarts within any ``period`` seconds."""
        self._most = most
        self._period = period
        self._at: deque[float] = deque()

    def allowed(self, now: float) -> bool:
        """Return whether another restart is allowed; if so, count it.

        Args:
            now: Time of a monotonic clock, seconds.
        """
        while self._at and self._at[0] <= now - self._period:
            self._at.popleft()
        if len(self._at) >= self._most:
            return False
        self._at.append(now)
        return True


class RouterProcess:
    """A router in a child process."""

    def __init__(self, settings: Settings, config: Path, log: Path) -> None:
        """Prepare the router; ``start`` starts it.

        Args:
            settings: All settings.
            config: File that passes the settings to the router; written at each start.
            log: File for the router's output.
        """
        self.log = log
        self._settings = settings
        self._config = config
        self._process: subprocess.Popen[bytes] | None = None
        self._restarts = Restarts()

    @property
    def pid(self) -> int | None:
        """Process id, or ``None`` before the first start."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the router with an empty log."""
        self.log.write_bytes(b"")
        self._process = self._spawn()

    def ended(self) -> bool:
        """Return whether the router was started and has exited."""
        return self._process is not None and self._process.poll() is not None

    def require_alive(self, *, ready: bool) -> None:
        """Check that the router has not exited.

        Args:
            ready: Whether the whole stack was ready before.

        Raises:
            EngineError: The router has exited; the message contains its last error.
        """
        if self.ended():
            if not ready:
                raise EngineError(f"the router did not start: {last_error(self.log)}")
            raise EngineError(f"the router exited ({self._end()})")

    def restart(self, now: float) -> str | None:
        """Restart a router that has exited, unless it exits too often.

        Args:
            now: Time of a monotonic clock, seconds.

        Returns:
            A notice for the user, or ``None`` if the router was not restarted.
        """
        if not self.ended() or not self._restarts.allowed(now):
            return None
        notice = f"the router exited ({self._end()}): restarting it"
        self._process = self._spawn()
        return notice

    def stop(self, hurry: Callable[[], bool]) -> None:
        """Let requests finish for up to ``router.drain_timeout``, then kill the router.

        Args:
            hurry: Returns whether to stop waiting.
        """
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.terminate()
        limit = min(_STOP_TIMEOUT, self._settings.router.drain_timeout + 1.0)
        deadline = time.monotonic() + limit
        while process.poll() is None and not hurry() and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        if process.poll() is None:
            process.kill()
            process.wait()

    def _spawn(self) -> "subprocess.Popen[bytes]":
        write_settings(self._settings, self._config)
        return spawn(
            [sys.executable, "-m", "serving", "router", "--config", str(self._config)],
            log=self.log,
            environment=environment_without_settings(),
        )

    def _end(self) -> str:
        assert self._process is not None
        return f"exit status {self._process.returncode}: {last_error(self.log)}"


def last_error(log: Path) -> str:
    """Return the last error line of a log, or its last line, or a note that it is empty."""
    lines: list[str] = []
    with contextlib.suppress(OSError):
        lines = [line.strip() for line in log.read_text("utf-8", "replace").splitlines()]
    lines = [line for line in lines if line and not line.startswith("hint:")]
    errors = [line for line in lines if line.startswith("error:")]
    if errors:
        return errors[-1].removeprefix("error:").strip()
    return lines[-1] if lines else f"no output in {log}"
