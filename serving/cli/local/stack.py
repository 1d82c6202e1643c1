"""Everything that ``up`` runs on this machine: a router, a private Ray, and the groups on it.

    start   router and Ray -> deploy -> wait until every group is ready
    watch   until the user stops it or Ray dies; a router that exits is restarted
    stop    router drains -> ranks stop -> Ray stops -> remaining processes are killed

Everything runs in the main thread: the kernel ends a child process together with the thread that
started it.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from serving.cli.keeper import start_orphan_reaper
from serving.cli.local.ports import url_host
from serving.cli.local.private_ray import RayProcesses
from serving.cli.local.progress import Progress
from serving.cli.local.readiness import GroupNews, Readiness, ask_fleet
from serving.cli.local.router_process import RouterProcess
from serving.cli.local.state import RunState, StateFile, with_processes
from serving.client.credentials import SETTINGS_FILE, access_of
from serving.clock import Clock
from serving.engine.orphan_reaper import OrphanReaper
from serving.engine.processes import ProcessRecord, descendants, end, record, still_living
from serving.engine.ray import cluster, deployment
from serving.engine.ray.placement import group_needs, require_room
from serving.errors import EngineError
from serving.settings import Settings, served_models

WATCH_SECONDS = 1.0
"""Time between two checks of a running stack, seconds."""
_KILL_GRACE = 0.5
"""Time from SIGTERM to SIGKILL for processes left after an orderly stop, seconds. Together with the
limits of the router and Ray, the whole stop takes less than 15 s."""


@dataclass(frozen=True, slots=True)
class Urls:
    """Addresses for clients."""

    rest: str
    grpc: str


class Stack:
    """One private deployment."""

    def __init__(
        self, settings: Settings, state: StateFile, progress: Progress, clock: Clock
    ) -> None:
        """Prepare the stack; ``start`` starts it.

        Args:
            settings: All settings, with chosen ports.
            state: State file of the run; the caller holds its lock.
            progress: Shows the progress of the start.
            clock: Source of time.
        """
        self.settings = settings
        self._pools = [pool.settings for model in served_models(settings) for pool in model.pools]
        router = settings.router
        scheme = "http" if settings.security.tls_cert_file is None else "https"
        self.access = access_of(settings.security.model_dump())
        """Credentials for the stack's router."""
        self.urls = Urls(
            rest=f"{scheme}://{url_host(router.host)}:{router.rest_port}",
            grpc=f"{url_host(router.host)}:{router.grpc_port}",
        )
        self._state_file = state
        self._progress = progress
        self._clock = clock
        self._router = RouterProcess(
            settings, state.folder / SETTINGS_FILE, state.log_folder / "router.log"
        )
        self._ray = RayProcesses(settings, progress, state.log_folder / "ray")
        self._state: RunState | None = None
        self._reaper: OrphanReaper | None = None
        self._news = GroupNews()

    @property
    def log_folder(self) -> Path:
        """Folder of this run's logs."""
        return self._state_file.log_folder

    def start(self, after_ray: Callable[[], None]) -> None:
        """Start everything and wait until all groups are ready.

        Args:
            after_ray: Called when Ray has started, to restore the signal handlers that Ray
                replaces.

        Raises:
            ServingError: A part did not start; the message names the part and its log.
        """
        progress = self._progress
        self._reaper = start_orphan_reaper(self._state_file.folder)
        progress.set("router", "starting")
        self._router.start()
        self._save()
        progress.set("ray", "starting")
        ray = self._ray.start(self._require_alive, keep=self._router.pid)
        after_ray()
        self._save()
        self._require_alive()
        progress.set("ray", "deploying the groups")
        waits = [
            Readiness(pool, self.urls.rest, progress, self._clock, self.access)
            for pool in self._pools
        ]
        for pool in self._pools:
            # No node will join a private Ray, so missing resources are reported immediately.
            require_room(cluster.nodes(), group_needs(pool.group, pool.platform))
        for pool in self._pools:
            if pool.group.count:
                deployment.deploy(pool)
        progress.set("ray", f"running at {ray.address}", done=True)
        for readiness in waits:
            readiness.wait(self._check)

    def mark_ready(self) -> None:
        """Record that the READY line has been printed."""
        self._save(ready=True)

    def watch(self, notice: Callable[[str], None]) -> None:
        """Watch the parts forever; call ``notice`` with a line when something changes.

        A router that exits is restarted: the ranks reconnect, and only the requests on that router
        are lost.

        Raises:
            EngineError: Ray exited unexpectedly, or the router exited too often.
        """
        while True:
            time.sleep(WATCH_SECONDS)
            restarted = self._router.restart(time.monotonic())
            if restarted is not None:
                notice(restarted)
                continue
            self._check()
            fleet = ask_fleet(self.urls.rest, self.access)
            for line in [] if fleet is None else self._news.look(fleet):
                notice(line)

    def stop(self, hurry: Callable[[], bool]) -> list[int]:
        """Stop everything within a time limit; never raises an exception.

        Args:
            hurry: Returns whether to stop without waiting, e.g. after a second Ctrl-C.

        Returns:
            Ids of processes that could not be ended; empty on success.
        """
        self._save()
        self._router.stop(hurry)
        if self._ray.ray is not None:
            if not hurry() and self._ray.alive():
                self._ray.stop_ranks(hurry)
            self._save()
            self._ray.disconnect()
        known = () if self._state is None else self._state.processes
        left = end((*known, *descendants(self._own_pid())), grace=0.0 if hurry() else _KILL_GRACE)
        if not left:
            self._state_file.remove()
        if self._reaper is not None:
            self._reaper.close()
            self._reaper = None
        return left

    def clear_ray_files(self, *, keep_logs: bool) -> None:
        """Delete the session folder of the stopped Ray; with ``keep_logs``, copy its logs first."""
        self._ray.remove_files(keep_logs=keep_logs)

    def logs_hint(self) -> str:
        """Return the paths of the logs, for error messages."""
        ranks = "" if self._ray.ray is None else f" and {self._ray.logs}"
        return f"logs: {self._router.log}{ranks}"

    def _check(self) -> None:
        """Check that router and Ray are alive, and record their child processes."""
        self._require_alive()
        self._save()

    def _require_alive(self) -> None:
        self._router.require_alive(ready=self._state is not None and self._state.ready)
        if not self._ray.alive():
            raise EngineError("Ray exited unexpectedly")

    def _own_pid(self) -> int:
        return self._state.up.pid if self._state is not None else os.getpid()

    def _save(self, *, ready: bool | None = None) -> None:
        """Write the state file if anything has changed."""
        old = self._state
        ray = self._ray.ray
        new = RunState(
            up=_own_record() if old is None else old.up,
            processes=() if old is None else still_living(old.processes),
            rest_url=self.urls.rest,
            grpc_address=self.urls.grpc,
            join_address=",".join(self.settings.link.routers),
            groups=sum(pool.group.count for pool in self._pools),
            ranks=self._pools[0].group.data_parallel,
            model=self._pools[0].model.name,
            started_at=self._clock.time() if old is None else old.started_at,
            log_folder=str(self.log_folder),
            ray_address="" if ray is None else ray.address,
            ray_token="" if ray is None else ray.token,
            ray_folder="" if ray is None else str(ray.folder),
            dashboard_url="" if ray is None else ray.dashboard_url or "",
            ready=(old is not None and old.ready) if ready is None else ready,
        )
        new = with_processes(new, descendants(new.up.pid))
        if new != old:
            self._state_file.write(new)
            self._state = new


def _own_record() -> ProcessRecord:
    found = record(os.getpid())
    assert found is not None, "this process is alive"
    return found
