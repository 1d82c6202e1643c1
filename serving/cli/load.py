"""``moe-serving load``: the load generator, on this machine's router unless told otherwise."""

import typer

from serving.cli.local.state import state_folder


def load_command(context: typer.Context) -> int:
    """Load a server and report: ``moe-serving load --help`` shows its own options."""
    from loadtest.command import main

    return main(context.args, prog="moe-serving load", local=state_folder())
