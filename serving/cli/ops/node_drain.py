"""``moe-serving leave``: this machine goes, its ranks drain. A pod's preStop hook runs it."""

import time
from typing import Annotated

import typer

from serving.engine.router_link.node_drain import ask_to_leave, serving_ranks

_POLL_SECONDS = 0.2
_SLACK = 5.0
"""Seconds beyond the time-out until a rank that does not answer is given up."""


def leave_command(
    timeout: Annotated[
        float,
        typer.Option("--timeout", min=0.1, metavar="SECONDS", help="For running requests."),
    ] = 30.0,
) -> int:
    """Drain the ranks of this machine, which is about to go, at all their routers.

    They get no new work; their groups neither. What is not finished in time goes on in other
    groups when the ranks are gone. Ends with 0 if all ranks have drained, 1 if not.
    """
    ranks = serving_ranks()
    if not ranks:
        print("no rank runs here")
        return 0
    ask_to_leave(timeout)
    print(f"ranks asked to leave: {len(ranks)}", flush=True)
    deadline = time.monotonic() + timeout + _SLACK
    while left := serving_ranks():
        if time.monotonic() >= deadline:
            print(f"ranks that have not left in time: {len(left)}")
            return 1
        time.sleep(_POLL_SECONDS)
    print("all have left")
    return 0
