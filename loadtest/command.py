"""``moe-serving load``: runs a command line, prints its table, and returns the exit code."""

import argparse
import asyncio
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from loadtest.arguments import parse
from loadtest.report import html, milliseconds
from loadtest.run import REPORT, Run
from loadtest.runner import INTERRUPTED, run_load
from loadtest.statistics import compare
from serving.client.errors import InvalidRequest

EXIT_ERROR = 1
EXIT_MISSED = 3
EXIT_INTERRUPTED = 130


def run_command(arguments: Sequence[str], prog: str, local: Path | None = None) -> int:
    """Run a command line and return its exit code; see ``--help``.

    Args:
        arguments: The words after ``prog``.
        prog: Name of the program in help, errors and reports.
        local: State folder of the local run, whose credentials are used if no address is given.

    Raises:
        ServingError: The command failed; the caller prints it.
        UsageError: The command line is invalid (Typer's exception); the caller formats it.
    """
    words = list(arguments) or ["--help"]
    options = parse(words, prog)
    if options.command == "compare":
        return _compare(options)
    if options.command == "report":
        return _finish(Run.joined([Run.load(folder) for folder in options.folders]), options)
    import uvloop

    command = f"{prog} {shlex.join(_without_key(words))}"
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        run = runner.run(run_load(options, command, local))
    return _finish(run, options)


def _without_key(words: Sequence[str]) -> list[str]:
    """Return a command line with its API key masked, for reports."""
    shown: list[str] = []
    for word in words:
        after_flag = bool(shown) and shown[-1] == "--api-key"
        given = word.startswith("--api-key=")
        shown.append("…" if after_flag else "--api-key=…" if given else word)
    return shown


def _finish(run: Run, options: argparse.Namespace) -> int:
    """Save the run, print it, and return the exit code."""
    files = run.save(options.out)
    report = options.out / REPORT
    try:
        report.write_text(html(run), "utf-8")
    except OSError as error:
        raise InvalidRequest(f"cannot write {report}: {error.strerror}") from error
    _print(run)
    print(f"report: {report}   records: {files[0]}")
    if run.stopped == INTERRUPTED:
        print("interrupted: the report is partial", file=sys.stderr)
        return EXIT_INTERRUPTED
    if run.stopped:
        print(f"error: {run.stopped}; the report is partial", file=sys.stderr)
        return EXIT_ERROR
    measured = [record for record in run.records if record.phase == "measure"]
    if not measured:
        print("error: no request was due after the warm-up", file=sys.stderr)
        return EXIT_ERROR
    if not any(record.ok for record in measured):
        print(f"error: no request succeeded: {measured[0].message}", file=sys.stderr)
        return EXIT_ERROR
    return 0 if _met(run) else EXIT_MISSED


def _met(run: Run) -> bool:
    if not run.slo.limits:
        return True
    if run.trials:
        return run.answer is not None
    shares = [run.summary(stage).attained for stage in run.stages]
    return all(share is None or share >= run.slo.share for share in shares)


def _print(run: Run) -> None:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("load")
    for name in ("requests", "failed", "req/s", "good/s", "tok/s", "TTFT p50", "p99", "ITL p50",
                 "p99", "late p99", "met"):  # fmt: skip
        table.add_column(name, justify="right")
    for stage in run.stages:
        s = run.summary(stage)
        table.add_row(
            stage.label, str(s.requests), str(s.failed), f"{s.completed:.2f}",
            f"{s.goodput:.2f}", f"{s.output_tokens:.0f}",
            *(milliseconds(value) for value in (
                s.ttft.p50, s.ttft.p99, s.itl.p50, s.itl.p99, s.lateness.p99)),
            "–" if s.attained is None or not run.slo.limits else f"{s.attained:.1%}",
        )  # fmt: skip
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    console.print(table)
    if run.found:
        print(run.found)
    for note in run.notes:
        print(f"note: {note}")
    kinds: dict[str, str] = {}
    for record in run.records:
        if record.error and record.error != "cancelled":
            kinds.setdefault(record.error, record.message)
    for kind, message in kinds.items():
        print(f"failed ({kind}): {message}")


def _compare(options: argparse.Namespace) -> int:
    a, b = Run.load(options.a), Run.load(options.b)
    differences = compare(a.records, b.records)
    if not differences:
        raise InvalidRequest("nothing to compare: a run has no successful request")
    print(f"A: {options.a} ({a.command})\nB: {options.b} ({b.command})")
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("")
    for name in ("A", "B", "B/A", "95 % interval", ""):
        table.add_column(name, justify="right")
    for one in differences:
        share = one.name.endswith("share")
        a_text, b_text = (
            f"{value:.2%}" if share else f"{milliseconds(value)} ms" for value in (one.a, one.b)
        )
        table.add_row(
            one.name, a_text, b_text, f"{one.ratio:.3f}", f"{one.low:.3f} to {one.high:.3f}",
            "differs" if one.clear else "",
        )  # fmt: skip
    Console(width=100).print(table)
    loads = ["; ".join(stage.label for stage in run.stages) for run in (a, b)]
    if loads[0] != loads[1]:
        print(f"note: the loads differ: A {loads[0]}, B {loads[1]}")
    print(
        "Bootstrap confidence intervals over requests. With one run each, differences include "
        "the variation between runs."
    )
    return 0
