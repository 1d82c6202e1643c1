"""``moe-serving load``: the load generator, by default for the router of the local run."""

import typer

from serving.cli.local.state import state_folder


def load_command(context: typer.Context) -> int:
    """Load a server and write a report; the load generator has its own commands and help."""
    from loadtest.command import run_command

    return run_command(context.args, "moe-serving load", state_folder())
