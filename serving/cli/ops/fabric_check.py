"""``moe-serving fabric-check``: do the pods of a group exchange data, before weights are loaded?"""

import os
import sys
import time
from typing import Annotated

import typer

from serving.engine.fabric import facts as local
from serving.engine.fabric.plan import Backend, Plan, parse_leader, parse_size
from serving.engine.fabric.report import table
from serving.engine.fabric.run import run_until_stopped
from serving.engine.fabric.workers import Workers
from serving.errors import SettingsError

INDEX_VARIABLE = "JOB_COMPLETION_INDEX"
"""Kubernetes sets it in the pods of an Indexed Job."""


def fabric_check_command(
    peers: Annotated[int, typer.Option("--peers", help="Number of pods of the group.")],
    leader: Annotated[
        str,
        typer.Option(
            "--leader",
            metavar="HOST:PORT",
            help="Where peer 0 listens, the same at every peer; its name may not resolve yet.",
        ),
    ],
    index: Annotated[
        int | None,
        typer.Option("--index", help=f"This peer, from 0; by default {INDEX_VARIABLE}."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers-per-peer", help="Workers of each peer; by default one a GPU, without GPUs 1."
        ),
    ] = None,
    backend: Annotated[
        Backend, typer.Option("--backend", help="auto: nccl with GPUs, else gloo.")
    ] = Backend.AUTO,
    size: Annotated[
        str, typer.Option("--bytes", help="What each worker sends in a round, e.g. 64MiB.")
    ] = "64MiB",
    rounds: Annotated[int, typer.Option("--rounds", help="Rounds of the all-to-all.")] = 5,
    timeout: Annotated[
        float,
        typer.Option(
            "--timeout",
            help="Seconds until this ends in any case; half of it may pass waiting for peers.",
        ),
    ] = 60.0,
) -> None:
    """Prove all-to-all between the pods of one expert-parallel group.

    Run it at every peer at the same time. Peers meet at the leader, connect each with each over
    TCP, exchange known contents pair by pair and all to all (torch.distributed over NCCL or gloo),
    and compare every byte. Peer 0 prints what it found. If anything fails, each peer ends with 1
    and the reason: who never came, who stopped answering, or which two exchange no data.
    """
    host, port = parse_leader(leader)
    plan = Plan(
        peers=peers,
        index=_index(index),
        leader_host=host,
        leader_port=port,
        workers=workers,
        backend=backend,
        size=parse_size(size),
        rounds=rounds,
        timeout=timeout,
    )
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - began:5.1f}s] {text}", file=sys.stderr, flush=True)

    facts = local.gather(plan)
    say(f"peer {plan.index} of {plan.peers}: {facts.name}")
    say(f"RDMA ports usable here: {', '.join(facts.devices) or 'none'}; memlock {facts.memlock}")
    for key, value in facts.variables.items():
        say(f"{key}={value}")
    for warning in facts.warnings:
        say(f"warning: {warning}")
    findings = run_until_stopped(plan, facts, Workers(plan), say)
    if findings is not None:
        print(table(findings), flush=True)
    say("passed")


def _index(given: int | None) -> int:
    """Return this peer's index.

    Raises:
        SettingsError: neither the flag nor the variable gives it.
    """
    if given is not None:
        return given
    text = os.environ.get(INDEX_VARIABLE, "")
    if not text.isdecimal():
        raise SettingsError(
            f"--index is missing, and {INDEX_VARIABLE} is {text or 'not set'}: give this peer's "
            "number, from 0"
        )
    return int(text)
