"""``moe-serving fabric-check``: tests the network between the pods of a group."""

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
"""Environment variable that Kubernetes sets in the pods of an Indexed Job."""


def fabric_check_command(
    peers: Annotated[int, typer.Option("--peers", help="Number of pods of the group.")],
    leader: Annotated[
        str,
        typer.Option(
            "--leader",
            metavar="HOST:PORT",
            help="Address of peer 0, the same for every peer. Its name need not resolve at first.",
        ),
    ],
    index: Annotated[
        int | None,
        typer.Option("--index", help="Index of this peer, from 0.", show_default=INDEX_VARIABLE),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers-per-peer",
            help="Number of workers of each peer.",
            show_default="one for each GPU, or 1",
        ),
    ] = None,
    backend: Annotated[
        Backend,
        typer.Option(
            "--backend", help="Communication backend; auto: nccl with GPUs, otherwise gloo."
        ),
    ] = Backend.AUTO,
    size: Annotated[
        str, typer.Option("--bytes", help="Bytes that each worker sends per round.")
    ] = "64MiB",
    rounds: Annotated[int, typer.Option("--rounds", help="Number of all-to-all rounds.")] = 5,
    timeout: Annotated[
        float,
        typer.Option(
            "--timeout",
            help="Time limit of the test, seconds; at most half of it is spent waiting for peers.",
        ),
    ] = 60.0,
) -> None:
    """Test all-to-all communication between the pods of an expert-parallel group.

    Run it in every pod at the same time, before weights are loaded. The peers register with the
    leader, connect to each other over TCP, exchange known data in pairs and all-to-all
    (torch.distributed over NCCL or gloo), and compare every byte. Peer 0 prints a table of the
    results. If the test fails, each peer prints the reason (a peer that never connected, a peer
    that stopped responding, or two peers that cannot exchange data) and exits with code 1.
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
    say(f"usable RDMA ports: {', '.join(facts.devices) or 'none'}; memlock {facts.memlock}")
    for key, value in facts.variables.items():
        say(f"{key}={value}")
    for warning in facts.warnings:
        say(f"warning: {warning}")
    findings = run_until_stopped(plan, facts, Workers(plan), say)
    if findings is not None:
        print(table(findings), flush=True)
    say("passed")


def _index(given: int | None) -> int:
    """Return the index of this peer.

    Raises:
        SettingsError: The flag is missing, and the variable is not a number.
    """
    if given is not None:
        return given
    text = os.environ.get(INDEX_VARIABLE, "")
    if not text.isdecimal():
        raise SettingsError(
            f"--index is missing, and {INDEX_VARIABLE} is {text or 'not set'}: set the index of "
            "this peer, from 0"
        )
    return int(text)
