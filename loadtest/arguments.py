"""The command line of ``python -m loadtest``."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from loadtest.slo import FEWEST
from loadtest.workload import Range
from serving.cli.access import CA_VARIABLE, CERT_VARIABLE, KEY_VARIABLE

_EPILOG = """\
exit codes:
  0    done, and the objective (if one was given) was met
  1    it could not run, or ended early (a partial report is written); one line says why
  2    the command line is wrong
  3    the objective was missed
  130  interrupted; a partial report is written

examples:
  loadtest run --rate 2,4,8 --slo-ttft-ms 500 --slo-itl-ms 60
  loadtest run --grpc 127.0.0.1:50051 --concurrency 16 --turns 4
  loadtest run --url http://vllm:8000 --trace trace.jsonl --speed 2
  loadtest search --slo-ttft-ms 500 --slo-itl-ms 60
  loadtest compare before/ after/
"""


def parse(arguments: Sequence[str], prog: str) -> argparse.Namespace:
    """Read the command line; ends the process with 2 where it is wrong."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Load any OpenAI-compatible server, or our gRPC, and report.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="load at one or several rates, or with so many streams")
    search = commands.add_parser("search", help="find the highest rate that meets the objective")
    compare = commands.add_parser("compare", help="compare two runs, with intervals of confidence")
    report = commands.add_parser("report", help="make one report of the folders of several workers")
    for one in (run, search):
        _target(one)
        _workload(one)
        _objective(one)
    _load(run)
    _search(search)
    compare.add_argument("a", type=Path, metavar="A", help="folder of a run")
    compare.add_argument("b", type=Path, metavar="B", help="folder of another")
    report.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    report.add_argument("--out", type=Path, default=Path("load"), metavar="FOLDER")
    options = parser.parse_args(arguments)
    if options.command == "search" and not (
        options.slo_ttft_ms or options.slo_itl_ms or options.slo_latency_ms
    ):
        search.error("a search needs a limit: --slo-ttft-ms, --slo-itl-ms or --slo-latency-ms")
    if options.command == "run" and options.shard[0] and options.concurrency:
        run.error("--shard is for rates and traces; give each worker its own --concurrency")
    return options


def _target(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("server")
    where = group.add_mutually_exclusive_group()
    where.add_argument("--url", help="REST (default: port 8000 of this machine)")
    where.add_argument("--grpc", metavar="HOST:PORT", help="our gRPC instead")
    group.add_argument("--model", help="model id; default: the only one that is served")
    group.add_argument("--endpoint", choices=("chat", "completions"), default="chat")
    group.add_argument("--api-key", default=os.environ.get(KEY_VARIABLE), help=f"or {KEY_VARIABLE}")
    group.add_argument("--ca-file", default=os.environ.get(CA_VARIABLE), help=f"or {CA_VARIABLE}")
    group.add_argument(
        "--cert-file", default=os.environ.get(CERT_VARIABLE), help=f"or {CERT_VARIABLE}"
    )
    group.add_argument(
        "--fleet-url",
        metavar="URL",
        help="where /fleet is, for marks in the timeline (default --url)",
    )
    group.add_argument(
        "--timeout", type=_positive, default=120.0, help="seconds a request may take"
    )
    group.add_argument(
        "--stop-after-failures", type=int, default=24, metavar="N",
        help="end when N connections in a row fail; 0: never (default 20)",
    )  # fmt: skip


def _workload(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("requests")
    group.add_argument("--prompt-tokens", type=_range, default=Range(100, 100), metavar="N|A:B")
    group.add_argument("--output-tokens", type=_range, default=Range(32, 32), metavar="N|A:B")
    group.add_argument(
        "--shared-tokens", type=int, default=0, metavar="N", help="a beginning that all share"
    )
    group.add_argument("--turns", type=int, default=1, help="turns of a session (default 1)")
    group.add_argument("--think", type=float, default=0.0, metavar="SECONDS", help="between turns")
    group.add_argument(
        "--ignore-eos", action="store_true", help="answers of exactly --output-tokens (vLLM, ours)"
    )
    group.add_argument(
        "--tokens-per-word", type=_positive, help="default: asked of the server with two requests"
    )
    group.add_argument("--seed", type=int, default=0)
    group.add_argument("--warmup", type=float, default=2.0, metavar="SECONDS", help="not measured")
    group.add_argument(
        "--duration", type=_positive, default=30.0, metavar="SECONDS",
        help="of each stage or trial, warm-up included (default 30)",
    )  # fmt: skip
    group.add_argument("--arrivals", choices=("poisson", "constant", "gamma"), default="poisson")
    group.add_argument(
        "--burstiness", type=_positive, default=2.0, metavar="CV",
        help="of gamma: standard deviation of the gaps over their mean (default 2)",
    )  # fmt: skip
    group.add_argument("--out", type=Path, default=Path("load"), metavar="FOLDER")


def _objective(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("objective")
    group.add_argument("--slo-ttft-ms", type=_positive, metavar="MS", help="time to first token")
    group.add_argument(
        "--slo-itl-ms", type=_positive, metavar="MS", help="a request's mean from token to token"
    )
    group.add_argument("--slo-latency-ms", type=_positive, metavar="MS", help="whole request")
    group.add_argument(
        "--slo-share", type=float, default=0.99, help="of requests that must meet it"
    )


def _load(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("load")
    load = group.add_mutually_exclusive_group(required=True)
    load.add_argument("--rate", type=_rates, metavar="R[,R…]", help="requests/s, one stage each")
    load.add_argument("--ramp", type=_ramp, metavar="FROM:TO", help="requests/s, in one stage")
    load.add_argument(
        "--concurrency", type=_counts, metavar="N[,N…]", help="streams (closed loop), a stage each"
    )
    load.add_argument(
        "--trace", type=Path, metavar="FILE",
        help="Mooncake's JSON lines, or CSV with timestamp,prompt_tokens,output_tokens",
    )  # fmt: skip
    group.add_argument("--speed", type=_positive, default=1.0, help="of a trace (default 1)")
    group.add_argument(
        "--trace-block", type=int, default=512, metavar="TOKENS",
        help="tokens for each 512 of the trace: less shrinks prompts and answers",
    )  # fmt: skip
    group.add_argument(
        "--max-prompt-tokens", type=int, default=10**9, metavar="N", help="of a trace"
    )
    group.add_argument(
        "--max-output-tokens", type=int, default=10**9, metavar="N", help="of a trace"
    )
    group.add_argument(
        "--shard", type=_shard, default=(0, 1), metavar="I/N",
        help="send every N-th request from the I-th (counted from 0): one of N workers with "
        "the same seed; 'loadtest report' joins them",
    )  # fmt: skip


def _search(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("search")
    group.add_argument(
        "--start",
        type=_positive,
        metavar="R",
        help="first rate (by default half of what 32 streams get done in --duration)",
    )
    group.add_argument("--most", type=_positive, default=1000.0, metavar="R", help="highest rate")
    group.add_argument(
        "--trial-requests", type=int, default=400, metavar="N",
        help="a trial lasts until so many are due, at least --duration (default 400)",
    )  # fmt: skip
    group.add_argument(
        "--trials", type=_trials, default=24, metavar="N",
        help="near the answer, after about six to find it; more make it firmer (default 24)",
    )  # fmt: skip
    group.add_argument(
        "--searches", type=_count, default=1, metavar="N",
        help="so many at once, trial by trial in turn, each with arrivals of its own: how far the "
        "answer holds when searched again, whatever the machine's speed does (default 1)",
    )  # fmt: skip


def _count(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return int(text)


def _trials(text: str) -> int:
    if int(text) < FEWEST:
        raise argparse.ArgumentTypeError(f"{text} is below {FEWEST}")
    return int(text)


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _range(text: str) -> Range:
    low, _, high = text.partition(":")
    found = Range(int(low), int(high or low))
    if not 1 <= found.low <= found.high:
        raise argparse.ArgumentTypeError(f"{text}: at least 1, and A not above B")
    return found


def _rates(text: str) -> list[float]:
    return [_positive(part) for part in text.split(",")]


def _counts(text: str) -> list[int]:
    return [int(_positive(part)) for part in text.split(",")]


def _ramp(text: str) -> tuple[float, float]:
    low, _, high = text.partition(":")
    start, end = float(low), float(high)
    if start < 0 or end < 0 or start + end == 0:
        raise argparse.ArgumentTypeError(f"{text}: two rates, not both 0")
    return start, end


def _shard(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    found = int(index), int(count)
    if not 0 <= found[0] < found[1]:
        raise argparse.ArgumentTypeError(f"{text}: I below N")
    return found
