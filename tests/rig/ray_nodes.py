"""Ray on the nodes of ``netns``: a head, workers, and groups deployed by ``moe-serving group``.

Ray on a node is one process that ends when any of Ray's own processes ends, as in a container.
Callers restart it if necessary.
"""

import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.cli.local.handover import environment_without_settings
from serving.cli.local.progress import Progress
from serving.cli.local.router_process import last_error
from serving.client.credentials import Access
from serving.client.rest import RestClient
from serving.engine.processes import spawn
from serving.engine.ray import cluster
from serving.errors import EngineError, NotReady, ServingError
from serving.settings import Settings
from tests.rig import netns

GCS_PORT = 6379
RAY_STARTS = (45.0, 90.0, 180.0, 300.0)
"""Timeout of each attempt, seconds. In 2 of 20 starts, a joining Ray hung in its first call to the
head; the second attempt succeeded."""
OBJECT_STORE_BYTES = 80 * 2**20
STARTED = "Ray runtime started"
"""What ``ray start`` prints when the node has joined the cluster."""
_TOO_SLOW = b"timed out during startup"
"""In the log of a ``ray start`` that exceeded Ray's own limit of 30 s."""
_HTTP_OK = 200
_POLL_SECONDS = 0.5
_PROGRESS_LINE = re.compile(r"\[ *\d+\.\ds\] (?P<part>group[^:]*): (?P<text>.*)")
"""A line of ``progress.LineProgress``."""


_KEPT_PREFIX = "moe-nodes-logs-"
_KEPT = 5
"""Number of log folders to keep, including the current one."""


def _changed_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0  # another process has removed it


@dataclass(frozen=True, slots=True)
class Paths:
    """The files of a run."""

    folder: Path
    config: Path
    logs: Path

    @classmethod
    def under(cls, folder: Path) -> "Paths":
        """Return the paths in ``folder``, with an existing log folder."""
        paths = cls(folder, folder / "settings.yaml", folder / "logs")
        paths.logs.mkdir()
        return paths

    def ray_log(self, node: netns.Node) -> Path:
        """Return the folder for the Ray files of a node."""
        return self.logs / f"ray-{node.name}.log"

    def keep_logs(self) -> Path:
        """Copy the logs to a permanent folder, keep the last few, and return its path."""
        kept = Path(tempfile.mkdtemp(prefix=_KEPT_PREFIX))
        shutil.copytree(self.logs, kept, dirs_exist_ok=True)
        kept.touch()  # copytree copies the source's time
        earlier = [path for path in kept.parent.glob(f"{_KEPT_PREFIX}*") if path != kept]
        for path in sorted(earlier, key=_changed_at, reverse=True)[_KEPT - 1 :]:
            shutil.rmtree(path, ignore_errors=True)
        return kept


@dataclass(frozen=True, slots=True)
class RayPlan:
    """Parameters for starting a node's Ray."""

    head: str
    """Address of the cluster's head node."""
    cpus: int
    """CPUs that the node offers to Ray."""


def node_environment(token: str) -> dict[str, str]:
    """Return the environment of the Ray processes and of ``moe-serving group``."""
    return {
        **environment_without_settings(),
        **cluster.ray_environment(token),
        "PYTHONUNBUFFERED": "1",
    }


def spawn_ray(
    node: netns.Node, paths: Paths, environment: Mapping[str, str], plan: RayPlan
) -> "subprocess.Popen[bytes]":
    """Start Ray on ``node`` and return at once; it runs until one of its processes ends."""
    if plan.head == node.address:
        role = ["--head", f"--port={GCS_PORT}", "--include-dashboard=false"]
    else:
        role = [f"--address={plan.head}:{GCS_PORT}"]
    return node.spawn(
        [
            sys.executable, "-m", "ray.scripts.scripts", "start", *role,
            f"--node-ip-address={node.address}", f"--num-cpus={plan.cpus}", "--block",
            # Ray puts its sockets there: one folder per node, with a short path.
            f"--temp-dir={paths.folder / node.name}",
            f"--object-store-memory={OBJECT_STORE_BYTES}",
            "--disable-usage-stats",
        ],
        paths.ray_log(node),
        environment,
    )  # fmt: skip


def came_up(
    node: netns.Node, process: "subprocess.Popen[bytes]", paths: Paths, seconds: float, logged: int
) -> bool:
    """Wait until the node's Ray has joined the cluster; return False if it needs another start.

    That is after ``seconds``, or if Ray ended because its own limit of 30 s had passed.

    Args:
        node: the node.
        process: its ``ray start``.
        paths: the files of the run.
        seconds: timeout.
        logged: size of its log before the start, bytes.

    Raises:
        EngineError: Ray ended.
    """
    log = paths.ray_log(node)
    deadline = time.monotonic() + seconds
    while STARTED.encode() not in log.read_bytes()[logged:]:
        if process.poll() is not None:
            if _TOO_SLOW in log.read_bytes()[logged:]:
                return False
            raise EngineError(f"Ray on node {node.name} ended: {last_error(log)}")
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def start_ray(
    node: netns.Node,
    paths: Paths,
    environment: Mapping[str, str],
    plan: RayPlan,
    progress: Progress,
) -> "subprocess.Popen[bytes]":
    """Start Ray on ``node`` and wait until it has joined the cluster.

    Raises:
        EngineError: Ray ended, or did not start in time.
    """
    part = f"node {node.name} ({node.address})"
    log = paths.ray_log(node)
    progress.set(part, "starting Ray")
    for seconds in RAY_STARTS:
        offset = log.stat().st_size if log.exists() else 0
        process = spawn_ray(node, paths, environment, plan)
        if came_up(node, process, paths, seconds, offset):
            progress.set(part, "Ray runs", done=True)
            return process
        progress.set(part, f"restarting Ray: not up after {seconds:.0f} s")
        node.clear()
    raise EngineError(f"Ray on node {node.name} did not start: {last_error(log)}")


def start_router(paths: Paths) -> "subprocess.Popen[bytes]":
    """Start a router in this process's network, with the settings in ``paths.config``."""
    return spawn(
        [sys.executable, "-m", "serving", "router", "--config", str(paths.config)],
        log=paths.logs / "router.log",
        environment=environment_without_settings(),
    )


def group_command(paths: Paths, action: str, head: str) -> list[str]:
    """Return the command ``moe-serving group ACTION`` for the cluster at address ``head``."""
    return [
        sys.executable, "-m", "serving", "group", action, "--config", str(paths.config),
        "--address", f"{head}:{GCS_PORT}",
    ]  # fmt: skip


def deploy(
    head: netns.Node, paths: Paths, environment: Mapping[str, str], progress: Progress
) -> None:
    """Deploy the groups from the head's network, as an operator would.

    Raises:
        ServingError: the command failed; has its last error.
    """
    log = paths.logs / "deploy.log"
    process = head.spawn(group_command(paths, "deploy", head.address), log, environment)
    shown = 0
    while True:
        code = process.poll()
        lines = log.read_text("utf-8", "replace").splitlines()
        for line in lines[shown:]:
            match = _PROGRESS_LINE.match(line)
            if match is not None:
                progress.set(match["part"], match["text"])
        shown = len(lines)
        if code == 0:
            return
        if code is not None:
            raise ServingError(last_error(log))
        time.sleep(_POLL_SECONDS)


def wait_ready(
    settings: Settings,
    url: str,
    router: "subprocess.Popen[bytes]",
    paths: Paths,
    access: Access,
) -> Mapping[str, Any]:
    """Return /fleet once a group is ready.

    Raises:
        EngineError: the router ended, or no group is ready within group.start_timeout.
    """
    deadline = time.monotonic() + settings.group.start_timeout
    while True:
        if router.poll() is not None:
            raise EngineError(f"the router ended: {last_error(paths.logs / 'router.log')}")
        try:
            status, _ = RestClient(url, access).get_json("/readyz")
        except NotReady:
            status = 0
        if status == _HTTP_OK:
            _, fleet = RestClient(url, access).get_json("/fleet")
            ready: Mapping[str, Any] = fleet
            return ready
        if time.monotonic() >= deadline:
            raise EngineError("the ranks run, but the router reports no group as ready")
        time.sleep(_POLL_SECONDS)
