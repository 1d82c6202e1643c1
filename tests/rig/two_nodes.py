"""``make two-nodes``: compare one expert-parallel group over two Ray nodes with a single process.

Three networks on this machine: one for the router, one for each node. One node runs a Ray head, the
other a Ray worker, with token authentication; one group has one rank on each node. The same
prompts then go to a single process, and every token is compared.

    router 10.77.0.1 ── bridge ──┬── node a 10.77.0.2: Ray head, rank
                                 └── node b 10.77.0.3: Ray worker, rank
"""

import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from serving.cli.errors import guarded
from serving.cli.local.handover import write_settings
from serving.cli.local.local_secrets import with_local_secrets
from serving.cli.local.progress import make_progress
from serving.cli.main import take_verbose
from serving.cli.ops.status import experts_text
from serving.cli.options import ConfigOption, SetOption, settings_from
from serving.cli.verify import reference
from serving.cli.verify.comparison import make_prompts, table
from serving.cli.verify.layouts import running
from serving.cli.verify.verify import ask, judge
from serving.client.credentials import access_of
from serving.engine.processes import descendants, end
from serving.errors import ServingError, Unsupported
from serving.settings import Settings
from serving.temporary import temporary_folder
from tests.rig import netns
from tests.rig.ray_nodes import (
    Paths,
    RayPlan,
    deploy,
    node_environment,
    start_ray,
    start_router,
    wait_ready,
)

ROUTER, NODE_A, NODE_B = "10.77.0.1", "10.77.0.2", "10.77.0.3"
_CPUS = 2
"""Number of CPUs of each node, enough for one rank."""


def two_nodes(
    config: ConfigOption = None,
    sets: SetOption = None,
    prompts: Annotated[int, typer.Option(min=1, help="Number of prompts to compare.")] = 12,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens per answer.")] = 48,
    placement: Annotated[
        str, typer.Option(help="strict_spread, spread or pack.")
    ] = "strict_spread",
    nodes: Annotated[
        int,
        typer.Option(min=1, max=2, help="1 shows the error for a missing node."),
    ] = 2,
    against: reference.AgainstOption = None,
) -> int:
    """Run one group over two nodes and compare its tokens with those of a single process.

    Needs root and Linux network namespaces; leaves nothing running. Exits with 0 if all tokens
    are the same, 1 if not.
    """
    reason = netns.why_not()
    if reason is not None:
        raise Unsupported(f"two nodes are not possible on this machine: {reason}")
    settings = settings_from(
        config,
        [
            "engine.dtype=float32",
            "group.count=1",
            "group.data_parallel=2",
            f"group.placement={placement}",
            # Only ranks connect from other networks; the clients run in the router's.
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
        folder = stack.enter_context(temporary_folder("moe-2n-"))
        paths = Paths.under(folder)
        settings = with_local_secrets(settings, folder)
        write_settings(settings, paths.config)
        networks = netns.Networks(netns.find_iproute(), ROUTER)
        stack.callback(networks.close)
        # Last in, first out: processes end before their networks.
        stack.callback(_end_all)
        try:
            answers = _serve_and_ask(settings, networks, paths, nodes, texts, max_tokens)
        except ServingError:
            print(f"logs: {paths.keep_logs()}", file=sys.stderr)
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
    environment = node_environment(secrets.token_hex(32))
    url = f"http://127.0.0.1:{settings.router.rest_port}"
    access = access_of(settings.security.model_dump())
    with make_progress() as progress:
        router = start_router(paths)
        progress.set("router", f"starting at {ROUTER}")
        plan = RayPlan(head=NODE_A, cpus=_CPUS)
        head = networks.add_node("a", NODE_A)
        start_ray(head, paths, environment, plan, progress)
        if nodes > 1:
            worker = networks.add_node("b", NODE_B)
            start_ray(worker, paths, environment, plan, progress)
        progress.set("group", f"deploying ({settings.group.placement})")
        deploy(head, paths, environment, progress)
        fleet = wait_ready(settings, url, router, paths, access)
        progress.set("router", f"up at {url}", done=True)
        progress.set("group", "ready", done=True)
    print(where_table(fleet))
    print(f"two nodes: {len(texts)} prompts of {max_tokens} tokens", flush=True)
    return ask(url, settings, texts, max_tokens, access)


def where_table(fleet: Mapping[str, Any]) -> str:
    """Return a table of ranks and nodes, one line per rank."""
    lines = [f"\n{'group':10}{'rank':6}{'node':14}{'pid':9}experts"]
    for group in fleet["groups"]:
        for rank in group["ranks"]:
            experts = experts_text(rank["local_expert_ids"], group["total_experts"])
            lines.append(
                f"{group['group_id']:10}{rank['rank']:<6}{rank['node']:14}{rank['pid']:<9}{experts}"
            )
    return "\n".join(lines) + "\n"


def _local_flags(config: Path | None, sets: Sequence[str] | None) -> list[str]:
    """Return the flags of the single process: the user's settings, on loopback."""
    flags = [] if config is None else ["--config", str(config.resolve())]
    for item in ("engine.dtype=float32", "router.host=127.0.0.1", *(sets or ())):
        flags += ["--set", item]
    return flags


def _end_all() -> None:
    left = end(descendants(os.getpid()), grace=3.0)
    if left:
        print(f"could not stop these processes: {left}", file=sys.stderr)


def main() -> int:
    """Run as ``python -m tests.rig.two_nodes``."""
    arguments, verbose = take_verbose(sys.argv[1:])
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(two_nodes)
    return guarded(lambda: app(args=arguments, standalone_mode=False), verbose=verbose)


if __name__ == "__main__":
    sys.exit(main())
