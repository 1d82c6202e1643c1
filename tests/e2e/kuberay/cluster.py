"""A rendered RayService on this machine: Ray nodes instead of pods, and Ray Serve's REST API.

    router 10.77.0.1 ── bridge ──┬── head   10.77.0.2: headGroupSpec
                                 ├── node b 10.77.0.3: a pod of workerGroupSpecs[0]
                                 └── node c 10.77.0.4: another

The process that starts it moves permanently into a separate network. Therefore, ``observing`` runs
in a separate process, and ``test_serve_proxies`` asserts on its output.

Differences from a cluster: pods are network namespaces with processes of root; the settings in
``CHANGES``; Ray's session files and home folder are in a folder of the run.
"""

import contextlib
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from serving.cli.local.handover import environment_without_settings, write_settings
from serving.cli.local.local_secrets import with_local_secrets
from serving.cli.options import settings_from
from serving.engine.processes import descendants, end
from tests.e2e.kuberay import pods
from tests.rig import netns
from tests.rig.ray_nodes import Paths, came_up, start_router

ROUTER, HEAD, WORKERS = "10.77.0.1", "10.77.0.2", ("10.77.0.3", "10.77.0.4")
GCS_PORT, DASHBOARD_PORT = 6379, 8265
CLUSTER_NAME = "serve-moe-serving-abcde"
START = 600.0
"""Timeout for a node's Ray, and again for the application, seconds."""
_STARTS = 5
"""Maximum number of starts of a node's Ray."""
POLL = 0.5


@dataclass(frozen=True, slots=True)
class Change:
    """A setting of the rendered Serve configuration that must differ on this machine."""

    path: tuple[str, ...]
    value: Any
    reason: str


def changes(join_token: str) -> tuple[Change, ...]:
    """Return all differences between the submitted and the rendered Serve configuration."""
    return (
        Change(("engine", "kind"), "fake", "an engine without weights starts in seconds"),
        Change(("link", "routers"), [f"{ROUTER}:50052"], "no cluster DNS"),
        Change(("link", "token_file"), join_token, "the Secret is a file of this run"),
    )


def submitted(config: Mapping[str, Any], join_token: str) -> dict[str, Any]:
    """Return the rendered Serve configuration with ``changes`` in every application."""
    result = deepcopy(dict(config))
    for app in result["applications"]:
        for change in changes(join_token):
            *parents, last = change.path
            place = app["args"]["settings"]
            for name in parents:
                place = place[name]
            place[last] = change.value
    return result


@dataclass(slots=True)
class Pod:
    """A node in place of a pod."""

    node: netns.Node
    environment: dict[str, str]

    @property
    def address(self) -> str:
        """The address of the node."""
        return self.node.address

    def execute(self, command: tuple[str, ...], timeout: float) -> tuple[int, str]:
        """Run a command in the pod as the kubelet runs an exec probe; return code and output."""
        done = subprocess.run(
            self.node.command(command),
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )
        return done.returncode, done.stdout + done.stderr


class Dashboard:
    """The head's dashboard, accessed as the operator accesses it."""

    def __init__(self, token: str) -> None:
        self._client = httpx.Client(
            base_url=f"http://{HEAD}:{DASHBOARD_PORT}",
            headers={"x-ray-authorization": f"Bearer {token}"},
            timeout=90,
            trust_env=False,
        )

    def put(self, config: Mapping[str, Any]) -> tuple[int, str]:
        """Submit a Serve configuration; return status and body."""
        answer = self._client.put(
            "/api/serve/applications/",
            content=json.dumps(config),
            headers={"content-type": "application/json"},
        )
        return answer.status_code, answer.text

    def applications(self) -> dict[str, Any]:
        """Return the applications by name, as Serve describes them."""
        answer = self._client.get("/api/serve/applications/", params={"api_type": "declarative"})
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()["applications"]
        return found


def until(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """Return the condition's first true value.

    Raises:
        TimeoutError: None in time; the message contains ``what``.
    """
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(httpx.HTTPError):
            if value := condition():
                return value
        if time.monotonic() >= deadline:
            raise TimeoutError(f"{what}: not after {seconds:.0f} s")
        time.sleep(POLL)


@contextlib.contextmanager
def running(spec: Mapping[str, Any], folder: Path) -> Iterator[tuple[dict[str, Pod], str, Any]]:
    """Start router and Ray nodes of a RayService's ``spec``; yield pods, Ray token, settings.

    This process moves permanently to the router's network; it must have no threads.
    """
    paths = Paths.under(folder)
    settings = settings_from(
        None, ["engine.kind=fake", "router.host=127.0.0.1", f"router.join_host={ROUTER}"]
    )
    settings = with_local_secrets(settings, folder)
    write_settings(settings, paths.config)
    token = secrets.token_hex(32)
    group = spec["rayClusterConfig"]["workerGroupSpecs"][0]
    with contextlib.ExitStack() as stack:
        networks = netns.Networks(netns.find_iproute(), ROUTER)
        # Last in, first out: removing a pod ends its processes; the router is stopped afterwards.
        stack.callback(_end_all)
        stack.callback(networks.close)
        start_router(paths)
        head = _start(networks, paths, spec["rayClusterConfig"]["headGroupSpec"], HEAD, token)
        started = {HEAD: head}
        for address in WORKERS[: group["replicas"]]:
            started[address] = _start(networks, paths, group, address, token)
        yield started, token, settings


def _start(
    networks: netns.Networks, paths: Paths, pod: Mapping[str, Any], address: str, token: str
) -> Pod:
    """Create a node for a pod and start Ray on it with the operator's command."""
    node = networks.add_node(f"n{address.rpartition('.')[2]}", address)
    command = pods.start_command(pod, head=None if address == HEAD else f"{HEAD}:{GCS_PORT}")
    temporary = paths.folder / node.name
    environment = {
        **environment_without_settings(),
        **pods.environment(pod, token, CLUSTER_NAME),
        "HOME": str(paths.folder),
        "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
        "PYTHONUNBUFFERED": "1",
    }
    log = paths.ray_log(node)
    # Kubernetes restarts the container of a Ray that ends.
    for _ in range(_STARTS):
        offset = log.stat().st_size if log.exists() else 0
        process = node.spawn(
            ["/bin/bash", "-c", "--", f"{command} --temp-dir={temporary}"], log, environment
        )
        if came_up(node, process, paths, START, offset):
            return Pod(node, environment)
        node.clear()
    raise TimeoutError(f"Ray on {address} did not start: {log.read_text('utf-8')[-2000:]}")


def _end_all() -> None:
    end(descendants(os.getpid()), grace=3.0)
