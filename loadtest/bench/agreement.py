"""``python -m loadtest.bench.agreement``: compares our load client with two other clients.

Our client, vLLM's bench client and guidellm send the same load one after another, in several
rounds, to one running server: fake ranks at a fixed pace, or the router at --rest-url. Lengths,
streams and requests are equal, with ignore_eos; texts differ, so that no prefix cache contains
them. Writes deploy/docs/performance/agreement.json and agreement.md unless --quick. The exit code
is 1 if our tokens/s are not within 3 % of the others'.
"""

import argparse
import contextlib
import json
import os
import re
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from loadtest.bench.agreement_clients import CLIENTS, OURS, Load, turn
from loadtest.bench.agreement_tables import agrees, markdown
from loadtest.bench.machine import describe
from loadtest.bench.peer_processes import NotRun
from loadtest.bench.processes import router
from serving.flags.parser import FlagParser
from serving.flags.paths import ReadableDirectory
from serving.flags.values import COUNT, ORDINAL, Choice, CommaSeparated, HttpUrl, seconds
from serving.settings import BUNDLED_MODEL

_FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "docs" / "performance"
_APART = 10**6
"""Seed offset of the warm-up, whose texts must differ from those of the measurement."""
_COUNTER = re.compile(r"^moe_generated_tokens_total(?:\{[^}]*\})? (\S+)$", re.MULTILINE)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = FlagParser(prog="python -m loadtest.bench.agreement", description=__doc__)
    add = parser.add_argument
    add("--rest-url", type=HttpUrl(), help="running router (default: starts one with fake ranks)")
    add("--url", dest="rest_url", type=HttpUrl(), default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    add(
        "--pace",
        type=seconds("a pace"),
        default=0.05,
        help="seconds per token of fake ranks (default: 0.05)",
    )
    add("--model", default="pocket-r1", help="model id (default: pocket-r1)")
    add(
        "--tokenizer", type=ReadableDirectory("tokenizer.json"), default=Path(BUNDLED_MODEL),
        metavar="FOLDER", help="tokenizer for the other clients (default: that of pocket-r1)",
    )  # fmt: skip
    add(
        "--endpoints", type=CommaSeparated(Choice(("chat", "completions"))), default=["chat"],
        metavar="NAMES", help="chat, completions or both (default: chat)",
    )  # fmt: skip
    add("--rounds", type=COUNT, default=3, help="turns of each client (default: 3)")
    add("--streams", type=COUNT, default=16, help="concurrent streams (default: 16)")
    add("--requests", type=COUNT, default=160, help="measured requests per turn (default: 160)")
    add("--prompt-words", type=COUNT, default=50, help="words per prompt (default: 50)")
    add("--output-tokens", type=COUNT, default=64, help="tokens per answer (default: 64)")
    add("--seed", type=ORDINAL, default=1, help="seed of lengths and texts (default: 1)")
    add(
        "--patience",
        type=seconds("a time"),
        default=600.0,
        help="timeout of a turn, seconds (default: 600)",
    )
    add("--remark", default="", help="note to print with the results")
    add("--quick", action="store_true", help="run one short round; write nothing")
    options = parser.parse_args(arguments)
    if options.quick:
        options.rounds, options.requests = 1, 2 * options.streams
    with _server(options.rest_url, options.pace) as url:
        data: dict[str, Any] = {
            "when": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "remark": options.remark,
            "server": "a running router" if options.rest_url else _fake(options.pace),
            "machine": describe(),
            "rounds": options.rounds,
            "streams": options.streams,
            "requests": options.requests,
            "prompt_words": options.prompt_words,
            "output_tokens": options.output_tokens,
            "rows": [],
        }
        load = Load(
            url=url,
            model=options.model,
            tokenizer=options.tokenizer,
            endpoint="chat",
            streams=options.streams,
            requests=options.requests,
            warmup=options.streams,
            prompt_words=options.prompt_words,
            output_tokens=options.output_tokens,
            seed=options.seed,
            patience=options.patience,
        )
        with contextlib.suppress(KeyboardInterrupt):
            measure(load, options.endpoints, options.rounds, data["rows"])
    data["load_average_after"] = [round(value, 2) for value in os.getloadavg()]
    print(markdown(data))
    if not options.quick and any("seen" in row for row in data["rows"]):
        _FOLDER.mkdir(exist_ok=True)
        text = json.dumps(data, indent=1, allow_nan=False)
        (_FOLDER / "agreement.json").write_text(text + "\n", "utf-8")
        (_FOLDER / "agreement.md").write_text(markdown(data), "utf-8")
    return 0 if agrees(data["rows"]) else 1


def measure(load: Load, endpoints: Sequence[str], rounds: int, rows: list[dict[str, Any]]) -> None:
    """Run all clients in turn; append the result of each turn to ``rows``."""
    number = 0
    with contextlib.suppress(NotRun), tempfile.TemporaryDirectory() as folder:
        # Warm up: otherwise the first client would measure a slower server.
        few = replace(load, requests=load.streams, seed=load.seed + _APART)
        CLIENTS[OURS](few, Path(folder))
    for endpoint in endpoints:
        for index in range(rounds):
            names = list(CLIENTS) if index % 2 == 0 else list(reversed(CLIENTS))
            for name in names:
                number += 1
                row: dict[str, Any] = {"endpoint": endpoint, "round": index, "client": name}
                one = turn(load, number, endpoint)
                before = generated(load.url)
                try:
                    with tempfile.TemporaryDirectory(prefix="moe-agreement-") as folder:
                        seen = CLIENTS[name](one, Path(folder))
                    row["seen"] = asdict(seen)
                    if not seen.consistent:
                        print(
                            f"{name}: the reported tokens/s differ from tokens divided by seconds"
                        )
                except NotRun as error:
                    row["not_run"] = str(error)
                row["router_tokens"] = generated(load.url) - before
                row["load_average"] = round(os.getloadavg()[0], 2)
                rows.append(row)
                _say(row)


def generated(url: str) -> int:
    """Return the number of tokens that the router has received from its ranks (/metrics)."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=60) as answer:  # noqa: S310
        found = _COUNTER.findall(answer.read().decode())
    return round(sum(map(float, found)))


@contextlib.contextmanager
def _server(url: str | None, pace: float) -> Iterator[str]:
    if url is not None:
        yield url.rstrip("/")
        return
    with (
        tempfile.TemporaryDirectory(prefix="moe-agreement-") as folder,
        router(Path(folder)) as process,
        process.ranks(2, token_delay=pace, stepped=True),
    ):
        yield process.rest


def _fake(pace: float) -> str:
    return f"router with two fake ranks, a token of each request every {pace * 1000:g} ms"


def _say(row: dict[str, Any]) -> None:
    seen = row.get("seen")
    result = f"{seen['tokens_per_second']:.1f} tokens/s" if seen else f"not run: {row['not_run']}"
    where = f"{row['endpoint']}, round {row['round'] + 1}, {row['client']}"
    print(f"{datetime.now(UTC):%H:%M:%S} {where}: {result}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
