"""Everything that ``up`` runs on this machine: a router, a private Ray, the groups on it.

    start   router process and Ray in parallel -> deploy -> wait until every group is ready
    watch   until the user stops it or Ray dies; a router that dies is started anew
    stop    router drains -> ranks stop -> Ray stops -> whatever is left is killed

All of it happens in the main thread: the kernel ties the life of the child processes to the
thread that starts them.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from serving.cli.keeper import Keeper
from serving.cli.local import supervisor
from serving.cli.local.handover import environment_without_settings, write_settings
from serving.cli.local.ports import url_host
from serving.cli.local.progress import Progress
from serving.cli.local.readiness import GroupNews, Readiness, ask_fleet
from serving.cli.local.restarts import Restarts
from serving.cli.local.state import ProcessRecord, RunState, StateFile, with_processes
from serving.client.credentials import SETTINGS_FILE, access_of
from serving.clock import Clock
from serving.engine.ray import cluster, deployment
from serving.engine.ray.deployment_watch import undeploy
from serving.engine.ray.placement import group_needs, require_room
from serving.errors import EngineError
from serving.settings import Settings

WATCH_SECONDS = 1.0
ROUTER_STOP = 6.0
"""For the router to finish its requests after Ctrl-C; its own drain time-out may be shorter."""
RANKS_STOP = 4.0
RAY_STOP = 3.0
"""Together under the 15 s in which Ctrl-C ends everything."""


@dataclass(frozen=True, slots=True)
class Urls:
    """Where clients go."""

    rest: str
    grpc: str


class Stack:
    """One private deployment."""

    def __init__(
        self, settings: Settings, state: StateFile, progress: Progress, clock: Clock
    ) -> None:
        self.settings = settings
        router = settings.router
        scheme = "http" if settings.security.tls_cert_file is None else "https"
        self.access = access_of(settings.security.model_dump())
        """How its own router is asked."""
        self.urls = Urls(
            rest=f"{scheme}://{url_host(router.host)}:{router.rest_port}",
            grpc=f"{url_host(router.host)}:{router.grpc_port}",
        )
        self._state_file = state
        self._progress = progress
        self._clock = clock
        self._router: subprocess.Popen[bytes] | None = None
        self._router_log = state.log_folder / "router.log"
        self._ray_logs = state.log_folder / "ray"
        self._ray: cluster.PrivateRay | None = None
        self._ray_processes: tuple[ProcessRecord, ...] = ()
        self._state: RunState | None = None
        self._keeper: Keeper | None = None
        self._news = GroupNews()
        self._restarts = Restarts()

    @property
    def log_folder(self) -> Path:
        """Where the logs of this run are."""
        return self._state_file.log_folder

    def start(self, after_ray: Callable[[], None]) -> None:
        """Start everything and return when all groups are ready.

        Args:
            after_ray: called when Ray has started; Ray replaces signal handlers, so this
                puts ours back.

        Raises:
            ServingError: something did not start; the message names what and where its
                log is.
        """
        progress = self._progress
        self._keeper = Keeper(self._state_file.folder)
        progress.set("router", "starting")
        self._router_log.write_bytes(b"")
        self._router = self._start_router()
        self._save()
        progress.set("ray", "starting")
        self._ray = self._start_ray()
        after_ray()
        mine = supervisor.descendants(self._own_pid())
        self._ray_processes = tuple(item for item in mine if item.name in {"gcs_server", "raylet"})
        self._save()
        self._require_alive()
        progress.set("ray", "deploying the groups")
        readiness = Readiness(self.settings, self.urls.rest, progress, self._clock, self.access)
        # No node will join a private Ray, so there is nothing to wait for.
        require_room(cluster.nodes(), group_needs(self.settings.group, self.settings.platform))
        if self.settings.group.count:
            deployment.deploy(self.settings)
        progress.set("ray", f"running at {self._ray.address}", done=True)
        readiness.wait(self._look)

    def mark_ready(self) -> None:
        """Write down that the user has been told."""
        self._save(ready=True)

    def watch(self, notice: Callable[[str], None]) -> None:
        """Return never: raise when a part dies, tell ``notice`` when a group changes.

        A router that dies is started anew: the ranks dial it again and lose nothing but the
        requests that it had.

        Raises:
            EngineError: Ray ended by itself, or the router too often.
        """
        while True:
            time.sleep(WATCH_SECONDS)
            if self._router_died() and self._restarts.allowed(time.monotonic()):
                notice(f"the router ended ({self._router_end()}): starting it anew")
                self._router = self._start_router()
                continue
            self._look()
            fleet = ask_fleet(self.urls.rest, self.access)
            for line in [] if fleet is None else self._news.look(fleet):
                notice(line)

    def stop(self, hurry: Callable[[], bool]) -> list[int]:
        """Stop everything; bounded in time, never raises.

        Args:
            hurry: whether the user asked a second time: then nothing is waited for.

        Returns:
            Ids of processes that could not be ended; empty when all is well.
        """
        self._save()
        self._stop_router(hurry)
        if self._ray is not None:
            if not hurry() and self._ray_lives():
                self._stop_ranks(hurry)
            self._save()
            _bounded(cluster.disconnect, RAY_STOP)
        known = () if self._state is None else self._state.processes
        leftover = supervisor.end(
            (*known, *supervisor.descendants(self._own_pid())), grace=0.0 if hurry() else 0.5
        )
        if not leftover:
            self._state_file.remove()
        if self._keeper is not None:
            self._keeper.close()
            self._keeper = None
        return leftover

    def clear_ray_files(self, *, keep_logs: bool) -> None:
        """Delete the session folder of the Ray that has stopped; its logs move to ours."""
        if self._ray is None:
            return
        if keep_logs:
            shutil.rmtree(self._ray_logs, ignore_errors=True)
            # Half of the logs is better than an error about logs.
            with contextlib.suppress(OSError, shutil.Error):
                shutil.copytree(self._ray.log_folder, self._ray_logs)
        cluster.forget(self._ray.folder)

    def logs_hint(self) -> str:
        """Return where to look after a failure."""
        ranks = "" if self._ray is None else f" and {self._ray_logs}"
        return f"logs: {self._router_log}{ranks}"

    # -- start ---------------------------------------------------------------------------

    def _start_router(self) -> subprocess.Popen[bytes]:
        config = self._state_file.folder / SETTINGS_FILE
        write_settings(self.settings, config)
        return supervisor.spawn(
            [sys.executable, "-m", "serving", "router", "--config", str(config)],
            log=self._router_log,
            environment=environment_without_settings(),
        )

    def _start_ray(self) -> cluster.PrivateRay:
        """Start Ray, twice if need be: it gives itself 30 s, which a busy machine may miss."""
        try:
            return cluster.start_private(self.settings)
        except cluster.RayNotStarted as error:
            self._require_alive()
            self._progress.set("ray", "starting again: it did not come up in its 30 s")
            router = None if self._router is None else self._router.pid
            mine = supervisor.descendants(os.getpid())
            supervisor.end((item for item in mine if item.pid != router), grace=0.0)
            cluster.disconnect()
            cluster.forget(error.folder)
        return cluster.start_private(self.settings)

    # -- watch ---------------------------------------------------------------------------

    def _look(self) -> None:
        """See that the parts live, and write down what they have started."""
        self._require_alive()
        self._save()

    def _require_alive(self) -> None:
        if self._router_died():
            if not self._is_ready():
                said = last_error(self._router_log)
                raise EngineError(f"the router did not start: {said}")
            raise EngineError(f"the router ended ({self._router_end()})")
        if self._ray is not None and not self._ray_lives():
            raise EngineError("Ray ended by itself")

    def _router_died(self) -> bool:
        return self._router is not None and self._router.poll() is not None

    def _router_end(self) -> str:
        assert self._router is not None
        return f"exit status {self._router.returncode}: {last_error(self._router_log)}"

    def _is_ready(self) -> bool:
        return self._state is not None and self._state.ready

    def _ray_lives(self) -> bool:
        return len(supervisor.living(self._ray_processes)) == len(self._ray_processes)

    # -- stop ----------------------------------------------------------------------------

    def _stop_router(self, hurry: Callable[[], bool]) -> None:
        router = self._router
        if router is None:
            return
        if router.poll() is None:
            router.terminate()
        limit = min(ROUTER_STOP, self.settings.router.drain_timeout + 1.0)
        _wait_for(lambda: router.poll() is not None or hurry(), limit)
        if router.poll() is None:
            router.kill()
            router.wait()

    def _stop_ranks(self, hurry: Callable[[], bool]) -> None:
        app = self.settings.ray.app_name
        raylets = [item.pid for item in self._ray_processes if item.name == "raylet"]

        def replicas() -> bool:
            return any(
                "ServeReplica" in item.name
                for pid in raylets
                for item in supervisor.descendants(pid)
            )

        if replicas() and _bounded(lambda: undeploy(app), 2.0):
            _wait_for(lambda: not replicas() or hurry(), RANKS_STOP)

    # -- state ---------------------------------------------------------------------------

    def _own_pid(self) -> int:
        return self._state.up.pid if self._state is not None else _me().pid

    def _save(self, *, ready: bool | None = None) -> None:
        """Write the state file if anything changed."""
        old = self._state
        ray = self._ray
        new = RunState(
            up=_me() if old is None else old.up,
            processes=() if old is None else supervisor.still_living(old.processes),
            rest_url=self.urls.rest,
            grpc_address=self.urls.grpc,
            join_address=",".join(self.settings.link.routers),
            groups=self.settings.group.count,
            ranks=self.settings.group.data_parallel,
            model=self.settings.model.name,
            started_at=self._clock.time() if old is None else old.started_at,
            log_folder=str(self.log_folder),
            ray_address="" if ray is None else ray.address,
            ray_token="" if ray is None else ray.token,
            ray_folder="" if ray is None else str(ray.folder),
            dashboard_url="" if ray is None else ray.dashboard_url or "",
            ready=(old is not None and old.ready) if ready is None else ready,
        )
        new = with_processes(new, supervisor.descendants(new.up.pid))
        if new != old:
            self._state_file.write(new)
            self._state = new


def last_error(log: Path) -> str:
    """Return the last error line of a process's log, or its last line, or where it is."""
    lines: list[str] = []
    with contextlib.suppress(OSError):
        lines = [line.strip() for line in log.read_text("utf-8", "replace").splitlines()]
    lines = [line for line in lines if line and not line.startswith("hint:")]
    errors = [line for line in lines if line.startswith("error:")]
    if errors:
        return errors[-1].removeprefix("error:").strip()
    return lines[-1] if lines else f"it said nothing in {log}"


def _me() -> ProcessRecord:
    me = supervisor.record(os.getpid())
    assert me is not None, "this process lives"
    return me


def _wait_for(done: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.05)
    return True


def _bounded(call: Callable[[], object], seconds: float) -> bool:
    """Run ``call`` in a thread and return whether it ended in time and well.

    Ray's client can wait for ever for a cluster that has died.
    """
    good = threading.Event()

    def run() -> None:
        with contextlib.suppress(Exception):
            call()
            good.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    return good.is_set()
