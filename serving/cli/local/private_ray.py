"""The private Ray of ``up``, on which the ranks run."""

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

from serving.cli.local.progress import Progress
from serving.engine.processes import ProcessRecord, descendants, end, living
from serving.engine.ray import cluster
from serving.engine.ray.watch import undeploy
from serving.settings import Settings, served_models

_RANKS_STOP = 4.0
"""Time for the ranks to stop after their application is deleted, seconds."""
_UNDEPLOY_TIMEOUT = 2.0
_RAY_STOP = 3.0
"""Time for Ray to stop, seconds; the caller kills processes that remain."""
_POLL_SECONDS = 0.05
_STARTS = 4
"""Maximum number of attempts to start Ray."""


class RayProcesses:
    """Starts, watches and stops a private Ray, and removes its files."""

    def __init__(self, settings: Settings, progress: Progress, logs: Path) -> None:
        """Prepare a private Ray; ``start`` starts it.

        Args:
            settings: All settings.
            progress: Shows further attempts to start.
            logs: Folder that Ray's logs are moved to after a failure.
        """
        self.logs = logs
        self.ray: cluster.PrivateRay | None = None
        """Address and folder of the running Ray. None if it has not been started."""
        self._settings = settings
        self._progress = progress
        self._processes: tuple[ProcessRecord, ...] = ()

    def start(self, require_alive: Callable[[], None], keep: int | None) -> cluster.PrivateRay:
        """Start Ray; try several times, because on a busy machine it can exceed its limit of 30 s.

        Args:
            require_alive: Raises if the rest of the stack has ended in the meantime.
            keep: Id of a child process that does not belong to Ray and is not ended.

        Raises:
            EngineError: Ray did not start; the message contains the path of the logs.
        """
        left = _STARTS
        while self.ray is None:
            left -= 1
            try:
                self.ray = cluster.start_private(self._settings)
            except cluster.RayNotStarted as error:
                require_alive()
                if not left:
                    raise
                self._progress.set("ray", "not up after 30 s; starting it again")
                end((item for item in descendants(os.getpid()) if item.pid != keep), grace=0.0)
                cluster.disconnect()
                cluster.forget(error.folder)
        self._processes = tuple(
            item for item in descendants(os.getpid()) if item.name in {"gcs_server", "raylet"}
        )
        return self.ray

    def alive(self) -> bool:
        """Return whether all of Ray's main processes are alive."""
        return len(living(self._processes)) == len(self._processes)

    def stop_ranks(self, hurry: Callable[[], bool]) -> None:
        """Delete the applications and wait, with a time limit, until their replicas have ended.

        Args:
            hurry: Returns whether to stop waiting.
        """
        apps = [
            pool.settings.ray.app_name
            for model in served_models(self._settings)
            for pool in model.pools
        ]

        def undeploy_all() -> None:
            for app in apps:
                undeploy(app)

        if self._replicas() and call_within(undeploy_all, _UNDEPLOY_TIMEOUT):
            deadline = time.monotonic() + _RANKS_STOP
            while self._replicas() and not hurry() and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)

    def disconnect(self) -> None:
        """Stop Ray, with a time limit."""
        call_within(cluster.disconnect, _RAY_STOP)

    def remove_files(self, *, keep_logs: bool) -> None:
        """Delete the session folder of the stopped Ray; with ``keep_logs``, copy its logs first."""
        if self.ray is None:
            return
        if keep_logs:
            shutil.rmtree(self.logs, ignore_errors=True)
            # Incomplete logs are better than an error.
            with contextlib.suppress(OSError, shutil.Error):
                shutil.copytree(self.ray.log_folder, self.logs)
        cluster.forget(self.ray.folder)

    def _replicas(self) -> bool:
        raylets = [item.pid for item in self._processes if item.name == "raylet"]
        return any("ServeReplica" in item.name for pid in raylets for item in descendants(pid))


def call_within(call: Callable[[], object], timeout: float) -> bool:
    """Run a function in a thread and return whether it succeeded within ``timeout`` seconds.

    Ray's client can block forever when its cluster has died.
    """
    succeeded = threading.Event()

    def run() -> None:
        with contextlib.suppress(Exception):
            call()
            succeeded.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(timeout)
    return succeeded.is_set()
