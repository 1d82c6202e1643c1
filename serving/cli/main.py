"""Entry point of ``moe-serving``: imports only the selected command, and runs it.

``moe-serving --help`` imports no command, so it is fast although some commands need Ray and vLLM.
"""

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module, metadata
from typing import Annotated, Any

import typer

from serving.cli.errors import guarded
from serving.client.flags import renamed_flags


@dataclass(frozen=True, slots=True)
class Command:
    """Module and function of a command, and its summary in the overview."""

    name: str
    module: str
    function: str
    summary: str
    own_options: bool = False
    """Whether the command parses its arguments itself, including ``--help``."""
    renamed: Mapping[str, str] = field(default_factory=dict)
    """Current names of flags by their earlier names, which are still accepted."""


_ROUTERS = {"router": "grpc-address"}
_DRAINS = {"timeout": "drain-timeout"}

COMMANDS: tuple[Command, ...] = (
    Command("up", "serving.cli.local.up", "up_command", "Start everything on this machine."),
    Command("down", "serving.cli.local.down", "down_command", "Stop the local run."),
    Command(
        "status",
        "serving.cli.ops.status",
        "status_command",
        "Show groups, ranks, experts and load.",
        renamed={"url": "rest-url"},
    ),
    Command("chat", "serving.cli.chat", "chat_command", "Chat with the model."),
    Command(
        "verify",
        "serving.cli.verify.verify",
        "verify_command",
        "Check that all layouts generate the same tokens.",
        renamed={"server": "rest-url"},
    ),
    Command("doctor", "serving.cli.doctor.doctor", "doctor_command", "Check this machine."),
    Command(
        "plan",
        "serving.cli.plan.command",
        "plan_command",
        "Plan layouts, latencies and price of a deployment.",
    ),
    Command("router", "serving.cli.ops.router", "router_command", "Run one router process."),
    Command(
        "drain",
        "serving.cli.ops.operate",
        "drain_command",
        "Drain a group: stop new requests, let running ones finish.",
        renamed=_ROUTERS | _DRAINS,
    ),
    Command(
        "cordon",
        "serving.cli.ops.operate",
        "cordon_command",
        "Stop routing new requests to a group.",
        renamed=_ROUTERS,
    ),
    Command(
        "uncordon",
        "serving.cli.ops.operate",
        "uncordon_command",
        "Route new requests to a group again.",
        renamed=_ROUTERS,
    ),
    Command(
        "switch",
        "serving.cli.ops.switch",
        "switch_command",
        "Move traffic to another app's groups.",
        renamed=_ROUTERS | _DRAINS,
    ),
    Command(
        "leave",
        "serving.cli.ops.leave",
        "leave_command",
        "Drain the ranks of this machine.",
        renamed=_DRAINS,
    ),
    Command(
        "usage",
        "serving.cli.ops.usage",
        "usage_command",
        "Show requests, tokens, price and cost, or write a report.",
    ),
    Command(
        "batch",
        "serving.cli.ops.batch",
        "batch_command",
        "Run files of requests on idle capacity.",
    ),
    Command(
        "adapters",
        "serving.cli.ops.adapters",
        "adapters_command",
        "List, load and unload LoRA adapters.",
    ),
    Command("keys", "serving.cli.ops.keys", "keys_command", "Create and list API keys."),
    Command(
        "load", "serving.cli.load", "load_command", "Load-test a server and write a report.", True
    ),
    Command(
        "weights",
        "serving.cli.ops.weights",
        "weights_command",
        "Download a model's weights to a volume.",
    ),
    Command(
        "fabric-check",
        "serving.cli.ops.fabric_check",
        "fabric_check_command",
        "Test all-to-all communication between a group's pods.",
    ),
    Command("group", "serving.cli.ops.group", "group_command", "Deploy groups of ranks on Ray."),
    Command(
        "autoscaler",
        "serving.cli.ops.autoscaler",
        "autoscaler_command",
        "Scale the number of groups with the load.",
    ),
)

_HELP = """Serve mixture-of-experts models on expert-parallel vLLM ranks.

Ray Serve places the ranks; a router serves them over gRPC and OpenAI REST. Start with "moe-serving
doctor", then "moe-serving up" and, in a second terminal, "moe-serving chat".
"""
_PASS_ON = {
    "allow_extra_args": True,
    "ignore_unknown_options": True,
    "help_option_names": [],
}
_EPILOG = "--verbose, anywhere on the command line, prints the traceback of an error."


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line, ``sys.argv`` by default; return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    arguments, verbose = take_verbose(arguments)
    arguments = arguments or ["--help"]

    def run() -> object:
        selected = next((word for word in arguments if not word.startswith("-")), None)
        app = build_app(selected)
        return app(args=arguments, prog_name="moe-serving", standalone_mode=False)

    return guarded(run, verbose=verbose)


def take_verbose(arguments: list[str]) -> tuple[list[str], bool]:
    """Remove ``--verbose`` before any ``--``; return the rest, and whether it was present."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    kept = [word for word in arguments[:end] if word != "--verbose"]
    return kept + arguments[end:], len(kept) < end


def build_app(selected: str | None = None) -> typer.Typer:
    """Return the application with the selected command imported, and stubs for the others."""
    app = typer.Typer(
        help=reflowed(_HELP),
        epilog=_EPILOG,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        add_completion=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_global_options)
    for command in COMMANDS:
        function = _load(command) if command.name == selected else _stub
        text = inspect.getdoc(function) if command.name == selected else command.summary
        app.command(
            command.name,
            help=reflowed(text or ""),
            short_help=command.summary,
            context_settings=_PASS_ON if command.own_options else renamed_flags(**command.renamed),
        )(function)
    return app


def reflowed(text: str) -> str:
    """Return help text with paragraphs as single lines, for rich to wrap.

    Indented paragraphs, such as examples, are unchanged. Brackets, which are rich's markup, are
    escaped.
    """
    paragraphs = inspect.cleandoc(text).replace("[", "\\[").split("\n\n")
    return "\n\n".join(
        each if each.startswith(" ") else " ".join(each.split("\n")) for each in paragraphs
    )


def _load(command: Command) -> Callable[..., Any]:
    function: Callable[..., Any] = getattr(import_module(command.module), command.function)
    return function


def _stub() -> None:
    """Stand in for a command that is not selected."""


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
