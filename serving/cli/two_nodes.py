"""``make two-nodes``: one expert-parallel group over two Ray nodes, and is it right?

Three networks on this machine, each with its own address: the router's, and one for each
node. A Ray head in one, a Ray worker in the other, both with the addresses of their networks
and with token authentication; one group of two ranks, one rank a node. Then the same prompts
go to a single process, and every token is compared.

    router 10.77.0.1 ── bridge ──┬── node a 10.77.0.2: Ray head, rank
                                 └── node b 10.77.0.3: Ray worker, rank
"""

import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from serving.cli import netns, reference, supervisor
from serving.cli.access import Access, access_of
from serving.cli.comparison import make_prompts, table
from serving.cli.errors import guarded
from serving.cli.handover import environment_without_settings, write_settings
from serving.cli.layouts import running
from serving.cli.local_secrets import with_local_secrets
from serving.cli.main import take_verbose
from serving.cli.options import ConfigOption, SetOption, settings_from
from serving.cli.progress import Progress, make_progress
from serving.cli.router_client import get_json
from serving.cli.stack import last_error
from serving.cli.status import experts_text
from serving.cli.verify import ask, judge
from serving.errors import EngineError, NotReady, ServingError, Unsupported
from serving.settings import Settings

ROUTER, NODE_A, NODE_B = "10.77.0.1", "10.77.0.2", "10.77.0.3"
GCS_PORT = 6379
RAY_START_TIMEOUT = 90.0
OBJECT_STORE_BYTES = 80 * 2**20
_HTTP_OK = 200
_POLL_SECONDS = 0.5
_PROGRESS_LINE = re.compile(r"\[ *\d+\.\ds\] (?P<part>group[^:]*): (?P<text>.*)")
"""As ``progress.LineProgress`` writes them."""


@dataclass(frozen=True, slots=True)
class Paths:
    """Where this run keeps its files."""

    folder: Path
    config: Path
    logs: Path


def two_nodes(
    config: ConfigOption = None,
    sets: SetOption = None,
    prompts: Annotated[int, typer.Option(min=1, help="Number of prompts to compare.")] = 12,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of each answer.")] = 48,
    placement: Annotated[
        str, typer.Option(help="strict_spread, spread or pack.")
    ] = "strict_spread",
    nodes: Annotated[
        int, typer.Option(min=1, max=2, help="1 shows what a missing node looks like.")
    ] = 2,
    against: reference.AgainstOption = None,
) -> int:
    """Run one group over two nodes and compare its tokens with a single process's.

    Needs root and Linux network namespaces. Everything is gone afterwards. Ends with 0 if
    all tokens are the same, 1 if not.
    """
    reason = netns.why_not()
    if reason is not None:
        raise Unsupported(f"two nodes cannot be had here: {reason}")
    settings = settings_from(
        config,
        [
            "engine.dtype=float32",
            "group.count=1",
            "group.data_parallel=2",
            f"group.placement={placement}",
            # Only ranks come from other machines; clients are in the router's network, too.
            "router.host=127.0.0.1",
            f"router.join_host={ROUTER}",
            f"link.routers=[{ROUTER}:50052]",
            *(sets or ()),
        ],
    )
    texts = make_prompts(prompts, 0)
    kept = None if against is None else reference.load(against, settings.model.name)
    if kept is not None:
        texts, max_tokens = kept.prompts, kept.max_tokens
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="moe-2n-")))
        paths = Paths(folder, folder / "settings.yaml", folder / "logs")
        paths.logs.mkdir()
        settings = with_local_secrets(settings, folder)
        write_settings(settings, paths.config)
        networks = netns.Networks(netns.find_iproute(), ROUTER)
        stack.callback(networks.close)
        # Last in, first out: the processes go before their networks.
        stack.callback(_end_all)
        try:
            answers = _serve_and_ask(settings, networks, paths, nodes, texts, max_tokens)
        except ServingError:
            _keep_logs(paths)
            raise
        _end_all()
        networks.close()
        if kept is not None:
            expected = kept.answers
        else:
            print("one process: starting", flush=True)
            with running(1, settings, _local_flags(config, sets)) as url:
                expected = ask(url, settings, texts, max_tokens)
    comparisons = judge([("one process", expected), ("two nodes", answers)])
    print("\n" + table(comparisons, texts))
    if not all(item.equal for item in comparisons):
        return 1
    print(f"\nall {len(texts)} answers are the same")
    return 0


def _serve_and_ask(
    settings: Settings,
    networks: netns.Networks,
    paths: Paths,
    nodes: int,
    texts: Sequence[str],
    max_tokens: int,
) -> list[list[int]]:
    """Start the cluster, the router and the group; return the answers."""
    environment = ray_environment(secrets.token_hex(32))
    url = f"http://127.0.0.1:{settings.router.rest_port}"
    access = access_of(settings.security.model_dump())
    with make_progress() as progress:
        router = supervisor.spawn(
            [sys.executable, "-m", "serving", "router", "--config", str(paths.config)],
            log=paths.logs / "router.log",
            environment=environment_without_settings(),
        )
        progress.set("router", f"starting at {ROUTER}")
        head = networks.add_node("a", NODE_A)
        _start_ray(head, paths, environment, ["--head", f"--port={GCS_PORT}"], progress)
        if nodes > 1:
            worker = networks.add_node("b", NODE_B)
            join = [f"--address={NODE_A}:{GCS_PORT}"]
            _start_ray(worker, paths, environment, join, progress)
        progress.set("group", f"deploying ({settings.group.placement})")
        _deploy(head, paths, environment, progress)
        fleet = _wait_ready(settings, url, router, paths, access)
        progress.set("router", f"up at {url}", done=True)
        progress.set("group", "ready", done=True)
    print(where_table(fleet))
    print(f"two nodes: {len(texts)} prompts of {max_tokens} tokens", flush=True)
    return ask(url, settings, texts, max_tokens, access)


def ray_environment(token: str) -> dict[str, str]:
    """Return what the Ray processes and the deployer need beside our own environment."""
    return {
        **environment_without_settings(),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_enable_worker_prestart": "0",
        "RAY_prestart_worker_first_driver": "0",
        "RAY_process_group_cleanup_enabled": "1",
        "RAY_worker_niceness": "0",
        "PYTHONUNBUFFERED": "1",
    }


def _start_ray(
    node: netns.Node,
    paths: Paths,
    environment: Mapping[str, str],
    arguments: Sequence[str],
    progress: Progress,
) -> None:
    """Start Ray on ``node`` and return when it is part of the cluster."""
    part = f"node {node.name} ({node.address})"
    progress.set(part, "starting Ray")
    log = paths.logs / f"ray-{node.name}.log"
    # Ray's sockets lie there: a path of their own for each node, and a short one.
    temp = paths.folder / node.name
    process = node.spawn(
        [
            sys.executable, "-m", "ray.scripts.scripts", "start", *arguments,
            f"--node-ip-address={node.address}", "--num-cpus=2", "--block",
            f"--temp-dir={temp}", f"--object-store-memory={OBJECT_STORE_BYTES}",
            "--disable-usage-stats",
            *(["--include-dashboard=false"] if "--head" in arguments else []),
        ],
        log,
        environment,
    )  # fmt: skip
    deadline = time.monotonic() + RAY_START_TIMEOUT
    while "Ray runtime started" not in log.read_text("utf-8", "replace"):
        if process.poll() is not None:
            raise EngineError(f"Ray on node {node.name} ended: {last_error(log)}")
        if time.monotonic() >= deadline:
            raise EngineError(f"Ray on node {node.name} did not start: {last_error(log)}")
        time.sleep(_POLL_SECONDS)
    progress.set(part, "Ray runs", done=True)


def _deploy(
    head: netns.Node, paths: Paths, environment: Mapping[str, str], progress: Progress
) -> None:
    """Deploy the group from the head's network, as an operator would."""
    log = paths.logs / "deploy.log"
    process = head.spawn(
        [
            sys.executable, "-m", "serving", "group", "deploy", "--config", str(paths.config),
            "--address", f"{NODE_A}:{GCS_PORT}",
        ],
        log,
        environment,
    )  # fmt: skip
    shown = 0
    while True:
        code = process.poll()
        lines = log.read_text("utf-8", "replace").splitlines()
        for line in lines[shown:]:
            said = _PROGRESS_LINE.match(line)
            if said is not None:
                progress.set(said["part"], said["text"])
        shown = len(lines)
        if code == 0:
            return
        if code is not None:
            raise ServingError(last_error(log))
        time.sleep(_POLL_SECONDS)


def _wait_ready(
    settings: Settings,
    url: str,
    router: "subprocess.Popen[bytes]",
    paths: Paths,
    access: Access,
) -> Mapping[str, Any]:
    """Return /fleet once the group is ready."""
    deadline = time.monotonic() + settings.group.start_timeout
    while True:
        if router.poll() is not None:
            raise EngineError(f"the router ended: {last_error(paths.logs / 'router.log')}")
        try:
            status, _ = get_json(f"{url}/readyz", 5.0, access)
        except NotReady:
            status = 0
        if status == _HTTP_OK:
            _, fleet = get_json(f"{url}/fleet", 5.0, access)
            ready: Mapping[str, Any] = fleet
            return ready
        if time.monotonic() >= deadline:
            raise EngineError("the ranks run, but the router does not call the group ready")
        time.sleep(_POLL_SECONDS)


def where_table(fleet: Mapping[str, Any]) -> str:
    """Return which rank runs where, one line a rank."""
    lines = [f"\n{'group':10}{'rank':6}{'node':14}{'pid':9}experts"]
    for group in fleet["groups"]:
        for rank in group["ranks"]:
            experts = experts_text(rank["local_expert_ids"], group["total_experts"])
            lines.append(
                f"{group['group_id']:10}{rank['rank']:<6}{rank['node']:14}{rank['pid']:<9}{experts}"
            )
    return "\n".join(lines) + "\n"


def _local_flags(config: Path | None, sets: Sequence[str] | None) -> list[str]:
    """Return the flags of the single process: the user's own, on loopback."""
    flags = [] if config is None else ["--config", str(config.resolve())]
    for item in ("engine.dtype=float32", "router.host=127.0.0.1", *(sets or ())):
        flags += ["--set", item]
    return flags


def _end_all() -> None:
    left = supervisor.end(supervisor.descendants(os.getpid()), grace=3.0)
    if left:
        print(f"could not end these processes: {left}", file=sys.stderr)


def _keep_logs(paths: Paths) -> None:
    kept = Path(tempfile.mkdtemp(prefix="moe-2n-logs-"))
    shutil.copytree(paths.logs, kept, dirs_exist_ok=True)
    print(f"logs: {kept}", file=sys.stderr)


def main() -> int:
    """Run as ``python -m serving.cli.two_nodes``."""
    arguments, verbose = take_verbose(sys.argv[1:])
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(two_nodes)
    return guarded(lambda: app(args=arguments, standalone_mode=False), verbose=verbose)


if __name__ == "__main__":
    sys.exit(main())
