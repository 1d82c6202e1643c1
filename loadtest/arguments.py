"""The command line of ``moe-serving load``: commands, their flags, what each flag accepts."""

import argparse
import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from loadtest.run import RECORDS, RUN
from loadtest.slo import FEWEST
from loadtest.workload import Range
from serving.client.credentials import CA_VARIABLE, CERT_VARIABLE, KEY_VARIABLE
from serving.flag_values import (
    Choice,
    FlagError,
    HostPort,
    Number,
    OutputFolder,
    Pair,
    ReadableFile,
    ReadableFolder,
    Several,
    Text,
    WebAddress,
    Whole,
    refusal,
    seconds,
)

MOST_TOKENS = 1_000_000
"""Of a text that is made up here."""
RATE = Number("a rate", "requests/s", above=0, at_most=1_000_000)
_END = Number("a rate", "requests/s", at_least=0, at_most=1_000_000)
_LIMIT = Number("a limit", "milliseconds", above=0, at_most=10**9)
_TOKENS = Whole("a length", of="tokens", at_most=MOST_TOKENS)
_LENGTHS = Pair(
    _TOKENS,
    f"a length is a whole number of tokens from 1 to {MOST_TOKENS}, or a range A:B of such "
    "with A not above B",
    single=True,
    holds=lambda low, high: low <= high,
)
_RUN = ReadableFolder(RUN, RECORDS, of="'load run' or 'load search' wrote")

_HELP = """Load any OpenAI-compatible server, or our gRPC, and report.

tokens/s is all output tokens of the measured requests divided by the time from the first one sent
to the last one ended, as vLLM's bench client counts them.
"""
_EPILOG = """\
Exit codes: 0 done, and the objective (if one was given) was met. 1 it could not run, or ended
early (a partial report is written); one line says why. 2 the command line is wrong.
3 the objective was missed. 130 interrupted; a partial report is written.
"""
_EXAMPLES = """\
Examples:

moe-serving load run --rate 2,4,8 --slo-ttft-ms 500 --slo-itl-ms 60

moe-serving load run --concurrency 16 --requests 200 --ignore-eos

moe-serving load run --grpc 127.0.0.1:50051 --concurrency 16 --turns 4

moe-serving load run --url http://vllm:8000 --trace trace.jsonl --speed 2
"""


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag of a command."""

    name: str
    reads: Callable[[str], Any] | None
    """None: a switch without a value."""
    help: str
    metavar: str = ""
    default: str | None = None
    """As it would be typed."""
    variable: str | None = None
    """Environment variable that is read where the flag is not given."""

    @property
    def key(self) -> str:
        """Name of the option in the code."""
        return self.name.removeprefix("--").replace("-", "_")


Panel = tuple[str, tuple[Flag, ...]]

SERVER: Panel = (
    "Server",
    (
        Flag("--url", WebAddress(), "REST address; default: port 8000 of this machine.", "URL"),
        Flag("--grpc", HostPort(), "Address of a router's gRPC, instead of REST.", "HOST:PORT"),
        Flag("--model", Text("a model id"), "Model id; default: the only one served.", "ID"),
        Flag(
            "--endpoint",
            Choice(("chat", "completions")),
            "What is asked: chat or completions.",
            "NAME",
            "chat",
        ),
        Flag("--api-key", Text("a key"), "API key.", "KEY", variable=KEY_VARIABLE),
        Flag(
            "--ca-file",
            ReadableFile(),
            "PEM file with the authority of the server's certificate.",
            "FILE",
            variable=CA_VARIABLE,
        ),
        Flag(
            "--cert-file",
            ReadableFile(),
            "PEM file with a client certificate and its key.",
            "FILE",
            variable=CERT_VARIABLE,
        ),
        Flag(
            "--fleet-url",
            WebAddress(),
            "Where /fleet is, for marks in the timeline; default: --url.",
            "URL",
        ),
        Flag("--timeout", seconds("a timeout"), "Time a request may take.", "SECONDS", "120"),
        Flag(
            "--stop-after-failures",
            Whole("a number of failures", at_least=0),
            "End when so many connections in a row fail; 0: never.",
            "N",
            "24",
        ),
    ),
)
REQUESTS: Panel = (
    "Requests",
    (
        Flag("--prompt-tokens", _LENGTHS, "Length of a prompt.", "N|A:B", "100"),
        Flag("--output-tokens", _LENGTHS, "Length of an answer, at most.", "N|A:B", "32"),
        Flag(
            "--shared-tokens",
            Whole("a length", at_least=0, at_most=MOST_TOKENS, of="tokens"),
            "Length of a beginning that all prompts share.",
            "N",
            "0",
        ),
        Flag(
            "--turns",
            Whole("a number of turns", at_most=10_000),
            "Turns of a session.",
            "N",
            "1",
        ),
        Flag(
            "--think",
            seconds("a pause", zero=True),
            "Pause between the turns of a session.",
            "SECONDS",
            "0",
        ),
        Flag(
            "--ignore-eos",
            None,
            "Answers of exactly --output-tokens (vLLM and this router).",
        ),
        Flag(
            "--tokens-per-word",
            Number("a ratio", "tokens/word", above=0, at_most=1000),
            "Tokens that the server counts for a word; default: asked of it with two requests.",
            "X",
        ),
        Flag(
            "--seed",
            Whole("a seed", at_least=0, at_most=2**63),
            "Equal seeds send equal texts at equal times.",
            "N",
            "0",
        ),
        Flag(
            "--warmup",
            seconds("a warm-up", zero=True),
            "Beginning of each stage or trial that is not measured, at most half of it.",
            "SECONDS",
            "2",
        ),
        Flag(
            "--duration",
            seconds("a duration"),
            "Time in which requests are sent in a stage or trial, warm-up included.",
            "SECONDS",
            "30",
        ),
        Flag(
            "--arrivals",
            Choice(("poisson", "constant", "gamma")),
            "Gaps between requests: poisson, constant or gamma.",
            "NAME",
            "poisson",
        ),
        Flag(
            "--burstiness",
            Number("a burstiness", above=0, at_most=1000),
            "Of gamma: standard deviation of the gaps over their mean.",
            "CV",
            "2",
        ),
        Flag("--out", OutputFolder(), "Directory for records and report.", "FOLDER", "load"),
    ),
)
OBJECTIVE: Panel = (
    "Objective",
    (
        Flag("--slo-ttft-ms", _LIMIT, "Limit on the time to the first token.", "MS"),
        Flag(
            "--slo-itl-ms",
            _LIMIT,
            "Limit on a request's mean time from token to token (TPOT).",
            "MS",
        ),
        Flag("--slo-latency-ms", _LIMIT, "Limit on the time of a whole request.", "MS"),
        Flag(
            "--slo-share",
            Number("a share", above=0, at_most=1),
            "Share of requests that must be within the limits.",
            "X",
            "0.99",
        ),
    ),
)
LOAD: Panel = (
    "Load (one of --rate, --ramp, --concurrency, --trace)",
    (
        Flag("--rate", Several(RATE), "Requests/s, one stage each.", "R[,R…]"),
        Flag(
            "--ramp",
            Pair(
                _END,
                "a ramp is FROM:TO, two numbers of requests/s from 0 to 1000000, not both 0",
                holds=lambda start, end: start + end > 0,
            ),
            "Requests/s at the beginning and the end of one stage.",
            "FROM:TO",
        ),
        Flag(
            "--concurrency",
            Several(Whole("a concurrency", at_most=100_000, of="streams")),
            "Streams that each send their next request after their answer, one stage each.",
            "N[,N…]",
        ),
        Flag(
            "--trace",
            ReadableFile(),
            "Mooncake's JSON lines, or CSV with timestamp,prompt_tokens,output_tokens.",
            "FILE",
        ),
        Flag(
            "--requests",
            Whole("a number of requests"),
            "Requests of each stage that are measured; default: those of --duration.",
            "N",
        ),
        Flag(
            "--speed",
            Number("a speed", above=0, at_most=1_000_000),
            "How many times as fast as the trace.",
            "X",
            "1",
        ),
        Flag(
            "--trace-block",
            Whole("a block", at_most=1_000_000, of="tokens"),
            "Tokens for each 512 of the trace: fewer shrink prompts and answers.",
            "TOKENS",
            "512",
        ),
        Flag(
            "--max-prompt-tokens",
            Whole("a length", of="tokens"),
            "Longest prompt of a trace.",
            "N",
            "1000000000",
        ),
        Flag(
            "--max-output-tokens",
            Whole("a length", of="tokens"),
            "Longest answer of a trace.",
            "N",
            "1000000000",
        ),
        Flag(
            "--shard",
            Pair(
                Whole("a number", at_least=0),
                "a shard is I/N, two whole numbers with I from 0 to N-1",
                sign="/",
                holds=lambda index, count: index < count,
            ),
            "Send every N-th request from the I-th (counted from 0): one of N workers with the "
            "same seed; 'load report' joins them.",
            "I/N",
            "0/1",
        ),
    ),
)
SEARCH: Panel = (
    "Search",
    (
        Flag(
            "--start",
            RATE,
            "First rate, requests/s; default: half of what 32 streams do in --duration.",
            "R",
        ),
        Flag("--most", RATE, "Highest rate, requests/s.", "R", "1000"),
        Flag(
            "--trial-requests",
            Whole("a number of requests"),
            "A trial lasts until so many are due, at least --duration.",
            "N",
            "400",
        ),
        Flag(
            "--trials",
            Whole("a number of trials", at_least=FEWEST, at_most=100_000),
            "Trials near the answer, after about six to find it; more make it firmer.",
            "N",
            "24",
        ),
        Flag(
            "--searches",
            Whole("a number of searches", at_most=1000),
            "Searches at once, trial by trial in turn, each with its own arrivals: how far the "
            "answer holds when searched again, whatever the machine's speed does.",
            "N",
            "1",
        ),
    ),
)
RUN_PANELS = (SERVER, REQUESTS, OBJECTIVE, LOAD)
SEARCH_PANELS = (SERVER, REQUESTS, OBJECTIVE, SEARCH)
_LOADS = ("rate", "ramp", "concurrency", "trace")


def parse(arguments: Sequence[str], prog: str) -> argparse.Namespace:
    """Read the command line and return its options; ``command`` is the command's name.

    Raises:
        FlagError: flags do not fit together.
        UsageError: typer's own, for all else that is wrong; ``serving.cli.errors`` words it.
        Exit: help was asked for, and is shown.
    """
    result = _command()(args=list(arguments), prog_name=prog, standalone_mode=False)
    if not isinstance(result, argparse.Namespace):
        raise typer.Exit(int(result or 0))
    return result


@functools.cache
def _command() -> Callable[..., Any]:
    return typer.main.get_command(application())


def application() -> typer.Typer:
    """Build the commands; each returns its options."""
    app = typer.Typer(
        help=_HELP,
        epilog=_EPILOG,
        subcommand_metavar="COMMAND ...",
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        add_completion=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    _add(app, "run", "Load at one or several rates, or with so many streams.", RUN_PANELS, _run)
    _add(app, "search", "Find the highest rate that meets the objective.", SEARCH_PANELS, _search)
    app.command("compare", help="Compare two runs, with intervals of confidence.")(_compare)
    app.command("report", help="Make one report of the folders of several workers.")(_report)
    return app


def _add(
    app: typer.Typer,
    name: str,
    summary: str,
    panels: Sequence[Panel],
    check: Callable[[argparse.Namespace], None],
) -> None:
    """Add a command whose parameters are a table of flags."""

    def command(**values: Any) -> argparse.Namespace:
        options = argparse.Namespace(command=name, **values)
        for flag in ("prompt_tokens", "output_tokens"):
            setattr(options, flag, Range(*getattr(options, flag)))
        check(options)
        return options

    parameters = [_parameter(flag, title) for title, flags in panels for flag in flags]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in parameters}
    app.command(name, help=summary, epilog=_EXAMPLES if name == "run" else None)(command)


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
    if options.url and options.grpc:
        raise FlagError("--url and --grpc exclude each other: one server is loaded")


def _run(options: argparse.Namespace) -> None:
    _target(options)
    given = [name for name in _LOADS if getattr(options, name) is not None]
    if len(given) != 1:
        what = " and ".join(f"--{name}" for name in given) + " exclude each other" if given else ""
        raise FlagError(
            f"{what or 'no load is given'}: a run needs exactly one of --rate, --ramp, "
            "--concurrency, --trace"
        )
    if options.shard[0] and options.concurrency:
        raise FlagError("--shard is for rates and traces; give each worker its own --concurrency")
    if options.requests and options.trace:
        raise FlagError("--requests and --trace exclude each other: a trace says what is sent")


def _search(options: argparse.Namespace) -> None:
    _target(options)
    if not (options.slo_ttft_ms or options.slo_itl_ms or options.slo_latency_ms):
        raise FlagError("a search needs a limit: --slo-ttft-ms, --slo-itl-ms or --slo-latency-ms")
    if options.start and options.start > options.most:
        raise FlagError(
            refusal("--start", f"{options.start:g}", f"it is above --most {options.most:g}")
        )


def _compare(
    a: Annotated[Any, typer.Argument(parser=_RUN, metavar="A", help="Folder of a run.")],
    b: Annotated[Any, typer.Argument(parser=_RUN, metavar="B", help="Folder of another.")],
) -> argparse.Namespace:
    return argparse.Namespace(command="compare", a=a, b=b)


def _report(
    folders: Annotated[
        list[Any], typer.Argument(parser=_RUN, metavar="FOLDER...", help="Folders of workers.")
    ],
    out: Annotated[
        Any,
        typer.Option(
            "--out", parser=OutputFolder(), metavar="FOLDER", help="Directory for the report."
        ),
    ] = "load",
) -> argparse.Namespace:
    return argparse.Namespace(command="report", folders=folders, out=out)
