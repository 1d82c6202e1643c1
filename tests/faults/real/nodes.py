"""A real system on three Ray nodes, each with its own network and process namespace.

    router 10.77.0.1 ── bridge ──┬── head   10.77.0.2: Ray's head, no ranks
    Redis                        ├── node b 10.77.0.3: a group of ranks
                                 └── node c 10.77.0.4: another

A node acts as a pod with one container: when its Ray ends, all its processes end and its Ray is
restarted.
"""

import asyncio
import contextlib
import math
import os
import secrets
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from serving.cli.local.handover import write_settings
from serving.cli.local.local_secrets import with_local_secrets
from serving.cli.local.progress import make_progress
from serving.cli.options import settings_from
from serving.client.credentials import access_of
from serving.engine.processes import descendants, end, spawn
from serving.errors import EngineError
from tests.faults.real.system import RankProcess, System
from tests.rig import netns
from tests.rig.ray_nodes import (
    STARTED,
    Paths,
    RayPlan,
    deploy,
    group_command,
    node_environment,
    spawn_ray,
    start_router,
    wait_ready,
)

ROUTER, HEAD = "10.77.0.1", "10.77.0.2"
_FIRST_WORKER = 3
_REDIS_PORT = 6380
REDIS = netns.TOOLS / "redis" / "redis-server"
RECONNECT = 600
"""Seconds that nodes wait for a lost head, as KubeRay sets it."""
_LOOK = 0.5
_START = 600.0
_COMMAND_TIMEOUT = 300.0
_CPUS_PER_RANK = 2


def why_not() -> str | None:
    """Return why this machine cannot have the nodes, or ``None`` if it can."""
    return netns.why_not()


@dataclass(slots=True)
class RayNode:
    """A node whose Ray is restarted when it ends or does not come up, as a kubelet does."""

    node: netns.Node
    start: "Callable[[], subprocess.Popen[bytes]]"
    log: Path
    """Log of its Ray."""
    pause: float = 5.0
    """Minimum time between two starts, seconds."""
    patience: float = 120.0
    """Timeout of a start of Ray, seconds."""
    starts: int = 0
    process: "subprocess.Popen[bytes] | None" = None
    _started_at: float = -math.inf
    _said_before: int = 0

    def up(self) -> bool:
        """Return whether the current Ray process has joined the cluster."""
        text = self.log.read_bytes()[self._said_before :] if self.log.exists() else b""
        return STARTED.encode() in text

    def look(self, now: float) -> None:
        """Start Ray if it does not run; ``now`` is monotonic time, seconds."""
        if self.process is not None:
            late = now >= self._started_at + self.patience
            if self.process.poll() is None and not (late and not self.up()):
                return
            self.process = None
            self.node.clear()
        if now >= self._started_at + self.pause:
            self._started_at = now
            self._said_before = self.log.stat().st_size if self.log.exists() else 0
            self.process = self.start()
            self.starts += 1


@dataclass(slots=True)
class OnNodes(System):
    """A running system on nodes."""

    networks: netns.Networks
    paths: Paths
    plan: RayPlan
    environment: Mapping[str, str]
    nodes: dict[str, RayNode] = field(default_factory=dict)
    """Nodes by address, including the head."""
    named: int = 0

    @property
    def head(self) -> RayNode:
        """The node with Ray's head."""
        return self.nodes[HEAD]

    def add(self, address: str) -> RayNode:
        """Create a node and start its Ray without waiting for it."""
        name = chr(ord("a") + self.named)
        self.named += 1
        node = self.networks.add_node(name, address)
        is_head = address == self.plan.head
        plan = RayPlan(self.plan.head, cpus=0) if is_head else self.plan
        environment = {**self.environment, "RAY_gcs_rpc_server_reconnect_timeout_s": str(RECONNECT)}
        if is_head and REDIS.exists():
            environment["RAY_REDIS_ADDRESS"] = f"{ROUTER}:{_REDIS_PORT}"
        made = RayNode(
            node, lambda: spawn_ray(node, self.paths, environment, plan), self.paths.ray_log(node)
        )
        self.nodes[address] = made
        made.look(time.monotonic())
        return made

    def add_worker(self) -> RayNode:
        """Add a node for ranks, with an unused address."""
        return self.add(f"10.77.0.{_FIRST_WORKER - 1 + self.named}")

    def lose(self, address: str) -> None:
        """Remove a whole node at once, permanently."""
        self.networks.lose(self.nodes.pop(address).node)

    def wait_up(self, node: RayNode) -> None:
        """Wait until the node's Ray is up.

        Raises:
            EngineError: it is not after some starts.
        """
        deadline = time.monotonic() + _START
        while not node.up():
            node.look(now := time.monotonic())
            if now >= deadline:
                raise EngineError(f"Ray did not start on node {node.node.name}: {node.log}")
            time.sleep(_LOOK)

    async def keep(self) -> None:
        """Keep every node's Ray running, until cancelled."""
        while True:
            for node in self.nodes.values():
                node.look(time.monotonic())
            await asyncio.sleep(_LOOK)

    def process_of(self, rank: RankProcess) -> psutil.Process:
        """Return a rank's Serve replica."""
        return psutil.Process(self.nodes[rank.node].node.processes()[rank.pid])

    def head_process(self, name: str) -> psutil.Process:
        """Return the head's process ``name``, such as gcs_server.

        Raises:
            LookupError: it does not run.
        """
        for pid in self.head.node.processes().values():
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                if process.name() == name:
                    return process
        raise LookupError(f"the head has no process {name}")

    async def group_status(self) -> str:
        """Return the output of ``moe-serving group status`` on the head; empty if it fails."""
        process = await asyncio.create_subprocess_exec(
            *self.head.node.command(group_command(self.paths, "status", HEAD)),
            env=dict(self.environment),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            async with asyncio.timeout(_COMMAND_TIMEOUT):
                output, _ = await process.communicate()
        except TimeoutError:
            process.kill()
            await process.wait()
            return ""
        return output.decode() if process.returncode == 0 else ""


@contextlib.contextmanager
def on_nodes(
    groups: int, ranks: int, sets: tuple[str, ...] = (), *, spread: bool = False
) -> Iterator[OnNodes]:
    """Start a head, a node per group (spread: per rank), a router and the groups; end them all.

    This process moves into the router's network namespace permanently; it must have no threads.

    Raises:
        ServingError: it did not start; the message names the folder of the logs.
    """
    settings = settings_from(
        None,
        [
            "engine.dtype=float32",
            f"group.count={groups}",
            f"group.data_parallel={ranks}",
            f"group.placement={'strict_spread' if spread else 'pack'}",
            "router.host=127.0.0.1",
            f"router.join_host={ROUTER}",
            f"link.routers=[{ROUTER}:50052]",
            *sets,
        ],
    )
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="moe-fn-")))
        paths = Paths.under(folder)
        settings = with_local_secrets(settings, folder)
        write_settings(settings, paths.config)
        networks = netns.Networks(netns.find_iproute(), ROUTER)
        # Last in, first out: removing a node ends its processes; the others are stopped afterwards.
        stack.callback(_end_all)
        stack.callback(networks.close)
        system = OnNodes(
            groups,
            f"http://127.0.0.1:{settings.router.rest_port}",
            f"127.0.0.1:{settings.router.grpc_port}",
            settings.model.name,
            networks,
            paths,
            RayPlan(HEAD, cpus=_CPUS_PER_RANK * (1 if spread else ranks)),
            node_environment(secrets.token_hex(32)),
        )
        try:
            with make_progress() as progress:
                router = start_router(paths)
                progress.set("router", f"starting at {ROUTER}")
                if REDIS.exists():
                    _start_redis(folder, paths)
                workers = groups * (ranks if spread else 1)
                for number in range(1 + workers):
                    made = system.add_worker() if number else system.add(HEAD)
                    address = made.node.address
                    system.wait_up(made)
                    progress.set(f"node {made.node.name} ({address})", "Ray runs", done=True)
                progress.set("group", "deploying")
                deploy(system.head.node, paths, system.environment, progress)
                access = access_of(settings.security.model_dump())
                wait_ready(settings, system.rest, router, paths, access)
                progress.set("group", "ready", done=True)
            yield system
        except Exception:
            print(f"logs: {paths.keep_logs()}", flush=True)  # noqa: T201
            raise


def _start_redis(folder: Path, paths: Paths) -> None:
    """Start the Redis for the state of Ray's head; outside the head, because it must outlive it."""
    arguments = {"port": _REDIS_PORT, "bind": ROUTER, "save": "", "protected-mode": "no"}
    spawn(
        [
            str(REDIS), "--dir", str(folder),
            *(str(word) for key, value in arguments.items() for word in (f"--{key}", value)),
        ],
        log=paths.logs / "redis.log",
    )  # fmt: skip


def _end_all() -> None:
    left = end(descendants(os.getpid()), grace=3.0)
    if left:
        print(f"could not stop these processes: {left}", flush=True)  # noqa: T201
