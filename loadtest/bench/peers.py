"""``python -m loadtest.bench.peers``: compares moe-serving and its alternatives, with real engines.

vLLM's own server is the baseline: each other deployment runs at the same time as a fresh vLLM
server, and both are measured alternately, in several rounds, because the speed of a shared machine
changes from minute to minute. Results are written after every round, so that a peer that does not
start, or Ctrl-C, only loses the results that are still missing. Writes
deploy/docs/performance/peers.json, the charts in README.md, and the tables of the pages that have
markers for them. With --quick, the figures are printed but not written.
"""

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from loadtest.bench.deployments import (
    RANKS,
    Deployment,
    Endpoint,
    ours,
    ray_serve_llm,
    vllm_server,
)
from loadtest.bench.machine import describe
from loadtest.bench.peer_chart import charts
from loadtest.bench.peer_client import Trial
from loadtest.bench.peer_processes import NotRun
from loadtest.bench.peer_tables import BASE, PEERS, markdown, stale, with_tables
from serving.engine.worker_extension import InProcessExecutor
from serving.flags.parser import FlagParser
from serving.flags.values import AMOUNT, COUNT, CommaSeparated

_ROOT = Path(__file__).resolve().parents[2]
DATA = _ROOT / "deploy" / "docs" / "performance" / "peers.json"
PAGES = (_ROOT / "deploy" / "docs" / "performance.md",)
_SLACK = 240.0
"""Maximum time that a trial takes in addition to its measured time, seconds."""

Start = Callable[[], contextlib.AbstractContextManager[Deployment]]
Peers = tuple[str, ...]
"""Keys of ``PEERS``: the peers of one deployment."""
_IN_PROCESS = f"{InProcessExecutor.__module__}.{InProcessExecutor.__qualname__}"
_BASE: tuple[Peers, Start] = ((BASE,), vllm_server)
DEPLOYMENT_SETS: tuple[tuple[tuple[Peers, Start], ...], ...] = (
    (
        ((BASE, "vllm-router"), partial(vllm_server, router=True)),
        (("ours-rest", "ours-grpc"), ours),
    ),
    (_BASE, (("ray-serve-llm",), ray_serve_llm)),
    (_BASE, (("ray-serve-llm-direct",), partial(ray_serve_llm, direct=True))),
    (
        _BASE,
        (
            ("vllm-in-process",),
            partial(vllm_server, "vllm-in-process", distributed_executor_backend=_IN_PROCESS),
        ),
    ),
)
"""Deployments that run at the same time, the baseline first."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = FlagParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="run one short round; write nothing")
    parser.add_argument(
        "--check",
        action="store_true",
        help="only check that the pages are up to date with the data",
    )
    parser.add_argument("--rounds", type=COUNT, default=3, help="rounds (default: 3)")
    parser.add_argument(
        "--seconds", type=AMOUNT, default=15.0, help="measured seconds per trial (default: 15)"
    )
    parser.add_argument(
        "--streams",
        type=CommaSeparated(COUNT),
        default="1,16,64,256",
        help="numbers of concurrent streams (default: 1,16,64,256)",
    )
    parser.add_argument(
        "--output-tokens", type=COUNT, default=64, help="tokens per answer (default: 64)"
    )
    parser.add_argument("--remark", default="", help="note to print with the results")
    options = parser.parse_args(arguments)
    if options.check:
        old = outdated(json.loads(DATA.read_text("utf-8")))
        for page in old:
            print(f"{page} is not up to date with {DATA.name}: run python -m loadtest.bench.peers")
        return bool(old)
    if options.quick:
        options.rounds, options.seconds, options.streams = 1, 6.0, [1, 16, 64]
    data: dict[str, Any] = {
        "when": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "remark": options.remark,
        "machine": describe(),
        "ranks": RANKS,
        "rounds": options.rounds,
        "seconds": options.seconds,
        "output_tokens": options.output_tokens,
        "streams": options.streams,
        "trials": [],
        "not_run": {},
    }
    try:
        for number, members in enumerate(DEPLOYMENT_SETS):
            _measure_set(number, members, data, keep=not options.quick)
    except KeyboardInterrupt:
        print("stopped; the results so far are saved", file=sys.stderr, flush=True)
    print(markdown(data))
    return 0 if data["trials"] else 1


def _measure_set(
    set_number: int, members: Sequence[tuple[Peers, Start]], data: dict[str, Any], *, keep: bool
) -> None:
    """Start a set of deployments and measure them alternately, for all rounds."""
    with contextlib.ExitStack() as stack:
        turns: list[tuple[Deployment, Endpoint]] = []
        for peers, start in members:
            _say(f"starting {' and '.join(PEERS[peer] for peer in peers)}")
            try:
                deployment = stack.enter_context(start())
            except NotRun as error:
                for peer in peers:
                    data["not_run"].setdefault(peer, str(error))
                _say(f"not run: {error}")
                continue
            data["not_run"] |= deployment.missing
            turns += [(deployment, endpoint) for endpoint in deployment.endpoints]
        if {endpoint.peer for _, endpoint in turns} <= {BASE}:
            return  # there is nothing to compare
        for number in range(data["rounds"]):
            turn = {"sitting": set_number, "round": number}
            for streams in data["streams"]:
                for deployment, endpoint in turns if number % 2 == 0 else turns[::-1]:
                    _trial(deployment, endpoint, streams, turn, data)
            if keep and data["trials"]:
                write(data)


def _trial(
    deployment: Deployment,
    endpoint: Endpoint,
    streams: int,
    turn: dict[str, int],
    data: dict[str, Any],
) -> None:
    trial = Trial(
        endpoint.protocol,
        endpoint.address,
        streams,
        data["seconds"],
        warmup=min(data["seconds"] / 2, 5.0),
        output_tokens=data["output_tokens"],
        mark=deployment.mark,
        fronts=endpoint.fronts,
    )
    try:
        shown = run_trial(trial)
    except NotRun as error:
        _say(f"{endpoint.peer}, {streams} streams: {error}")
        data.setdefault("failed", []).append(
            {"peer": endpoint.peer, "streams": streams, **turn, "why": str(error)}
        )
        return
    data["trials"].append({"peer": endpoint.peer, "streams": streams, **turn, "shown": shown})
    _say(f"{endpoint.peer}, {streams} streams: {shown['tokens_per_second']:.0f} tokens/s")


def run_trial(trial: Trial) -> dict[str, Any]:
    """Run a trial in a separate process, after a short trial that warms up the server.

    Raises:
        NotRun: The trial failed.
    """
    found: dict[str, Any] = {}
    for one in (replace(trial, seconds=1.0, warmup=0.5 + 0.02 * trial.streams), trial):
        words = [sys.executable, "-m", "loadtest.bench.peer_client", json.dumps(asdict(one))]
        try:
            done = subprocess.run(
                words, capture_output=True, text=True, check=False, timeout=trial.seconds + _SLACK
            )
        except subprocess.TimeoutExpired as error:
            raise NotRun("the trial timed out") from error
        if done.returncode != 0 and one is trial:
            raise NotRun(done.stderr.strip().splitlines()[-1][:300])
        if done.returncode == 0:
            found = json.loads(done.stdout.splitlines()[-1])
    return found


def outdated(data: dict[str, Any]) -> list[Path]:
    """Return the pages and charts that are not up to date with ``data``."""
    made = charts(data, DATA.parent)
    old = [file for file, text in made.items() if not file.is_file() or file.read_text() != text]
    return [*stale(PAGES, data), *old]


def write(data: dict[str, Any]) -> None:
    """Write the data, the pages that show it, and the charts."""
    DATA.parent.mkdir(exist_ok=True)
    DATA.write_text(json.dumps(data, indent=1) + "\n", "utf-8")
    for page in PAGES:
        page.write_text(with_tables(page.read_text("utf-8"), data), "utf-8")
    for file, text in charts(data, DATA.parent).items():
        file.write_text(text, "utf-8")


def _say(text: str) -> None:
    print(f"{datetime.now(UTC):%H:%M:%S} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
