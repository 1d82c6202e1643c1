"""The commands of ``moe-serving load``: parsing and validation of their command lines."""

import argparse
import functools
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from loadtest.flags import RUN_PANELS, SEARCH_PANELS, Flag, Panel
from loadtest.run import RECORDS, RUN
from loadtest.workload import Range
from serving.client.flags import (
    FlagError,
    OutputDirectory,
    ReadableDirectory,
    refusal,
    renamed_flags,
)

_RUN = ReadableDirectory(RUN, RECORDS, of="'load run' or 'load search'")
_RENAMED = renamed_flags(url="rest-url", grpc="grpc-address")
_HELP = (
    "Load-test an OpenAI-compatible server over REST, or a router over gRPC, and write a "
    "report.\n\n"
    "tokens/s is the number of output tokens of all measured requests divided by the time from "
    "the first request to the end of the last answer, as in vLLM's bench client."
)
_EPILOG = (
    "Exit codes: 0: finished, and the objective, if any, was met. 1: the run could not start or "
    "ended early (with a partial report); the error line contains the reason. 2: invalid command "
    "line. 3: the objective was missed. 130: interrupted (with a partial report)."
)
_EXAMPLES = """\
Examples:

moe-serving load run --rate 2,4,8 --slo-ttft-ms 500 --slo-itl-ms 60

moe-serving load run --concurrency 16 --requests 200 --ignore-eos

moe-serving load run --grpc-address 127.0.0.1:50051 --concurrency 16 --turns 4

moe-serving load run --rest-url http://vllm:8000 --trace trace.jsonl --speed 2
"""
_LOADS = ("rate", "ramp", "concurrency", "trace")


def parse(arguments: Sequence[str], prog: str) -> argparse.Namespace:
    """Return the options of a command line; ``command`` is the command's name.

    Args:
        arguments: The words after ``prog``.
        prog: Name of the program in help and errors.

    Raises:
        FlagError: Flags contradict each other.
        UsageError: Any other error of the command line (Typer's exception); the caller formats it.
        Exit: Help was requested and printed.
    """
    result = _command()(args=list(arguments), prog_name=prog, standalone_mode=False)
    if not isinstance(result, argparse.Namespace):
        raise typer.Exit(int(result or 0))
    return result


@functools.cache
def _command() -> Callable[..., Any]:
    return typer.main.get_command(application())


def application() -> typer.Typer:
    """Return the application with all commands; each command returns its options."""
    app = typer.Typer(
        help=_HELP,
        epilog=_EPILOG,
        subcommand_metavar="COMMAND ...",
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        add_completion=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    _add(
        app,
        "run",
        "Load a server at fixed rates, with concurrent streams, or from a trace.",
        RUN_PANELS,
        _run,
    )
    _add(
        app,
        "search",
        "Search for the highest rate that meets the objective.",
        SEARCH_PANELS,
        _search,
    )
    app.command("compare", help="Compare two runs, with confidence intervals.")(_compare)
    app.command("report", help="Merge the runs of several workers into one report.")(_report)
    return app


def _add(
    app: typer.Typer,
    name: str,
    summary: str,
    panels: Sequence[Panel],
    check: Callable[[argparse.Namespace], None],
) -> None:
    """Add a command whose parameters are the flags of the panels."""

    def command(**values: Any) -> argparse.Namespace:
        options = argparse.Namespace(command=name, **values)
        for flag in ("prompt_tokens", "output_tokens"):
            setattr(options, flag, Range(*getattr(options, flag)))
        check(options)
        return options

    parameters = [_parameter(flag, title) for title, flags in panels for flag in flags]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in parameters}
    app.command(
        name,
        help=summary,
        epilog=_EXAMPLES if name == "run" else None,
        context_settings=_RENAMED,
    )(command)


def _parameter(flag: Flag, panel: str) -> inspect.Parameter:
    kind: Any
    default: Any
    if flag.reads is None:
        option = typer.Option(flag.name, help=flag.help, rich_help_panel=panel)
        kind, default = bool, False
    else:
        option = typer.Option(
            flag.name,
            parser=flag.reads,
            help=flag.help,
            metavar=flag.metavar,
            envvar=flag.variable,
            rich_help_panel=panel,
        )
        kind, default = Any, flag.default
    return inspect.Parameter(
        flag.key,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[kind, option],
    )


def _target(options: argparse.Namespace) -> None:
    if options.rest_url and options.grpc_address:
        raise FlagError("--rest-url and --grpc-address are mutually exclusive")


def _run(options: argparse.Namespace) -> None:
    _target(options)
    given = [name for name in _LOADS if getattr(options, name) is not None]
    if len(given) != 1:
        what = (
            " and ".join(f"--{name}" for name in given) + " are mutually exclusive" if given else ""
        )
        raise FlagError(
            f"{what or 'no load specified'}: set exactly one of --rate, --ramp, --concurrency, "
            "--trace"
        )
    if options.shard[0] and options.concurrency:
        raise FlagError(
            "--shard cannot be used with --concurrency: set it separately for each worker"
        )
    if options.requests and options.trace:
        raise FlagError(
            "--requests and --trace are mutually exclusive: a trace defines its requests"
        )


def _search(options: argparse.Namespace) -> None:
    _target(options)
    if not (options.slo_ttft_ms or options.slo_itl_ms or options.slo_latency_ms):
        raise FlagError(
            "a search requires a limit: --slo-ttft-ms, --slo-itl-ms or --slo-latency-ms"
        )
    if options.start and options.start > options.most:
        raise FlagError(
            refusal("--start", f"{options.start:g}", f"must not be above --most {options.most:g}")
        )


def _compare(
    a: Annotated[Path, typer.Argument(parser=_RUN, metavar="A", help="Directory of a run.")],
    b: Annotated[
        Path,
        typer.Argument(parser=_RUN, metavar="B", help="Directory of the run to compare it with."),
    ],
) -> argparse.Namespace:
    return argparse.Namespace(command="compare", a=a, b=b)


def _report(
    folders: Annotated[
        list[Path],
        typer.Argument(parser=_RUN, metavar="FOLDER...", help="Directories of the workers' runs."),
    ],
    out: Annotated[
        Any,
        typer.Option(
            "--out",
            parser=OutputDirectory(),
            metavar="FOLDER",
            help="Directory for the report; created if missing.",
        ),
    ] = "load",
) -> argparse.Namespace:
    return argparse.Namespace(command="report", folders=folders, out=out)
