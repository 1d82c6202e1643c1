"""Entry point of ``moe-serving``: finds the command, imports only that one, runs it guarded.

``moe-serving --help`` imports no command, so it answers at once although some commands bring
Ray and vLLM.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module, metadata
from typing import Annotated, Any

import typer

from serving.cli.errors import guarded


@dataclass(frozen=True, slots=True)
class Command:
    """Where a command is implemented and the one line that the overview shows."""

    name: str
    module: str
    function: str
    summary: str
    own_options: bool = False
    """Its arguments are read by itself, ``--help`` too."""


COMMANDS: tuple[Command, ...] = (
    Command("up", "serving.cli.local.up", "up_command", "Start everything on this machine."),
    Command("down", "serving.cli.local.down", "down_command", "Stop what up --detach started."),
    Command("status", "serving.cli.ops.status", "status_command", "Show groups, ranks and load."),
    Command("chat", "serving.cli.chat", "chat_command", "Talk to the model."),
    Command(
        "verify", "serving.cli.verify.verify", "verify_command", "Compare layouts token by token."
    ),
    Command("doctor", "serving.cli.doctor.doctor", "doctor_command", "Check this machine."),
    Command("router", "serving.cli.ops.router", "router_command", "Run one router process."),
    Command("drain", "serving.cli.ops.operate", "drain_command", "Empty a group, work going on."),
    Command("cordon", "serving.cli.ops.operate", "cordon_command", "Give a group no new work."),
    Command("uncordon", "serving.cli.ops.operate", "uncordon_command", "Give a group work again."),
    Command("switch", "serving.cli.ops.switch", "switch_command", "Hand traffic to another app."),
    Command(
        "leave", "serving.cli.ops.node_drain", "leave_command", "Drain the ranks of this machine."
    ),
    Command("keys", "serving.cli.ops.keys", "keys_command", "Make and list API keys."),
    Command("load", "serving.cli.load", "load_command", "Load a server and report.", True),
    Command(
        "weights", "serving.cli.ops.weights", "weights_command", "Fetch weights onto a volume."
    ),
    Command(
        "fabric-check",
        "serving.cli.ops.fabric_check",
        "fabric_check_command",
        "Prove all-to-all between the pods of a group.",
    ),
    Command("group", "serving.cli.ops.group", "group_command", "Deploy groups of ranks on Ray."),
    Command(
        "autoscaler",
        "serving.cli.ops.autoscaler",
        "autoscaler_command",
        "Fit the number of groups to the load.",
    ),
)

_HELP = """Serve mixture-of-experts models over expert-parallel vLLM ranks.

Ray Serve places the ranks, one router speaks gRPC and OpenAI REST. Begin with
"moe-serving doctor", then "moe-serving up" and, in a second terminal, "moe-serving chat".
"""
_PASS_ON = {
    "allow_extra_args": True,
    "ignore_unknown_options": True,
    "help_option_names": [],
}
_EPILOG = "--verbose, anywhere on the line, shows the traceback of an error."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (the process's own by default); return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    arguments, verbose = take_verbose(arguments)
    arguments = arguments or ["--help"]

    def run() -> object:
        selected = next((word for word in arguments if not word.startswith("-")), None)
        app = build_app(selected)
        return app(args=arguments, prog_name="moe-serving", standalone_mode=False)

    return guarded(run, verbose=verbose)


def take_verbose(arguments: list[str]) -> tuple[list[str], bool]:
    """Remove ``--verbose`` wherever it stands before a ``--``; return the rest and if it was."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    kept = [word for word in arguments[:end] if word != "--verbose"]
    return kept + arguments[end:], len(kept) < end


def build_app(selected: str | None = None) -> typer.Typer:
    """Build the application with ``selected`` imported and the other commands as stubs."""
    app = typer.Typer(
        help=_HELP,
        epilog=_EPILOG,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        add_completion=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_global_options)
    for command in COMMANDS:
        function = _load(command) if command.name == selected else _stub
        summary = None if command.name == selected else command.summary
        app.command(
            command.name,
            help=summary,
            short_help=command.summary,
            context_settings=_PASS_ON if command.own_options else None,
        )(function)
    return app


def _load(command: Command) -> Callable[..., Any]:
    function: Callable[..., Any] = getattr(import_module(command.module), command.function)
    return function


def _stub() -> None:
    """Stand in for a command that was not asked for."""


def _show_version(wanted: bool) -> None:  # noqa: FBT001  typer calls it with the flag
    if wanted:
        print(f"moe-serving {metadata.version('moe-serving')}")
        raise typer.Exit


def _global_options(
    *,
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    del version


if __name__ == "__main__":
    sys.exit(main())
