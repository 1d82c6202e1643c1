"""``python -m loadtest.bench``: measures the router process alone, with fake ranks.

Writes deploy/docs/performance/router.json and the tables of deploy/docs/performance.md. With
--quick it measures briefly, prints the tables and writes nothing.
"""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from loadtest.bench.clients import Case, Protocol
from loadtest.bench.machine import describe
from loadtest.bench.processes import RouterProcess, router
from loadtest.bench.tables import markdown, write_page
from serving.flags.parser import FlagParser

_DOCS = Path(__file__).resolve().parents[2] / "deploy" / "docs"
_PROTOCOLS: tuple[Protocol, ...] = ("rest", "grpc")
_TOKENS_PER_SECOND = 1000
"""Output tokens/s of all open streams together."""
_LONG = 12_000
"""Output tokens of each stream that stays open."""

Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = FlagParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="measure for less than a minute; write nothing"
    )
    parser.add_argument("--remark", default="", help="note to print with the results")
    options = parser.parse_args(arguments)
    data: dict[str, Any] = {
        "when": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "remark": options.remark,
        "machine": describe(),
    }
    with (
        tempfile.TemporaryDirectory(prefix="moe-serving-bench-") as folder,
        router(Path(folder)) as process,
    ):
        data |= _measured(process, quick=options.quick)
    print(markdown(data))
    if not options.quick:
        folder_of_data = _DOCS / "performance"
        folder_of_data.mkdir(exist_ok=True)
        (folder_of_data / "router.json").write_text(
            json.dumps(data, indent=1, allow_nan=False) + "\n", "utf-8"
        )
        write_page(_DOCS / "performance.md", data)


def _measured(process: RouterProcess, *, quick: bool) -> dict[str, list[Row]]:
    seconds = 2.0 if quick else 8.0
    found: dict[str, list[Row]] = {
        name: []
        for name in ("requests", "latency", "stepped", "streaming", "ranks", "open_streams")
    }

    def add(part: str, case: Case, **more: object) -> None:
        row: Row = {"case": asdict(case) | more}
        try:
            row["measured"] = asdict(process.measure(case))
        except RuntimeError as error:  # keep the other cases
            row["failed"] = str(error).strip().splitlines()[-1]
            print(f"FAILED {error}", flush=True)
        found[part].append(row)
        print(f"{part}: {case.protocol} {case.streams} streams, done", flush=True)

    with process.ranks(2):
        for protocol in _PROTOCOLS:
            for prompt in (100,) if quick else (100, 1000, 10_000):
                add("requests", Case(protocol, 16, prompt, 1, stream=False, seconds=seconds))
            add("latency", Case(protocol, 1, 100, 1, stream=False, seconds=seconds))
    for part in ("stepped", "streaming"):
        with process.ranks(2, token_delay=0.02, stepped=part == "stepped"):
            for protocol in _PROTOCOLS:
                add(part, Case(protocol, 64, 100, 500, stream=True, seconds=seconds))
    for ranks in (2, 64) if quick else (2, 16, 128, 512):
        with process.ranks(ranks):
            idle = process.idle_share(1.0 if quick else 4.0)
            case = Case("rest", 16, 100, 1, stream=False, seconds=seconds)
            add("ranks", case, ranks=ranks, idle_share=idle)
    for streams in (10, 100) if quick else (10, 100, 1000, 10_000):
        with process.ranks(2, token_delay=streams / _TOKENS_PER_SECOND):
            for protocol in ("rest",) if quick else _PROTOCOLS:
                add(
                    "open_streams", Case(protocol, streams, 20, _LONG, stream=True, seconds=seconds)
                )
    return found


if __name__ == "__main__":
    main()
