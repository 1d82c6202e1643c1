"""``python -m loadtest.simulation``: compare ways of scaling a fleet on a simulated load.

By default, it simulates an hour of generated conversations on up to 1,000 groups, with a load that
rises from 1 to 1,000 copies and falls again, scaled by our policy, by fixed sizes and by simple
queue rules.
``--against-real`` starts a real fleet on this machine, calibrates the model with it, sends the same
schedule to both and prints the model's error. See deploy/docs/simulation.md.
"""

import argparse
import asyncio
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml
from pydantic import ValidationError

from loadtest.record import Record
from loadtest.run import Run, Stage
from loadtest.simulation.calibration import Calibration, load_calibration, save_calibration
from loadtest.simulation.comparison import as_table, compare, simulate
from loadtest.simulation.outcome import Objective, Outcome, Row, heading, plain
from loadtest.simulation.scalers import FixedSize, OurPolicy, QueueRule, Scaler
from loadtest.simulation.simulator import Simulator
from loadtest.simulation.trace_arrivals import Load, arrivals
from loadtest.trace import TRACE_BLOCK, generated_requests, load_trace
from serving.autoscaler.signals import Signal
from serving.cli.errors import guarded
from serving.errors import SettingsError
from serving.flags.parser import FlagParser
from serving.flags.paths import OutputDirectory, ReadableFile
from serving.flags.values import AMOUNT, COUNT, ORDINAL, Pair
from serving.settings import Settings

_MODELLED = 25
"""Number of groups simulated without --sample; enough for a table within a few minutes."""
_GENERATED = 12_000
"""Requests of the generated hour; ``generated_requests`` generates 4 arrivals per second."""
_LOAD = Pair(
    AMOUNT,
    "a load must be LOW[:HIGH], numbers above 0 with LOW <= HIGH",
    single=True,
    holds=lambda low, high: low <= high,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    options = _parsed(arguments)
    return guarded(lambda: _run(options), verbose=False)


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = FlagParser(prog="python -m loadtest.simulation", description=__doc__)
    parser.add_argument(
        "--calibration",
        default="deepseek-r1-16gpu",
        help="name of a bundled calibration, or a file",
    )
    parser.add_argument(
        "--trace",
        type=ReadableFile(),
        help="trace in Mooncake's format or CSV (default: generated)",
    )
    parser.add_argument(
        "--load", type=_LOAD, default=(1.0, 1000.0), metavar="LOW[:HIGH]",
        help="concurrent copies of the trace; rises and falls once (default 1:1000)",
    )  # fmt: skip
    parser.add_argument(
        "--minutes", type=AMOUNT, default=60.0, help="simulated minutes (default 60)"
    )
    parser.add_argument("--max-groups", type=COUNT, default=1000)
    parser.add_argument(
        "--sample", type=COUNT,
        help="simulate every N-th group and conversation; 1: all (default: chosen so that "
        f"{_MODELLED} groups are simulated)",
    )  # fmt: skip
    parser.add_argument(
        "--scalers",
        default="policy,fixed,queue",
        help="any of policy, fixed and queue (default all)",
    )
    parser.add_argument(
        "--ttft", type=AMOUNT, default=5.0, help="TTFT objective, seconds (default 5)"
    )
    parser.add_argument(
        "--itl", type=AMOUNT, default=0.2, help="ITL objective, seconds (default 0.2)"
    )
    parser.add_argument(
        "--ongoing",
        type=AMOUNT,
        default=64.0,
        help="requests per group of the queue rule (default 64)",
    )
    parser.add_argument(
        "--set", dest="scaling", action="append", default=[], metavar="NAME=VALUE",
        help="a setting of our policy, such as pressure_clamp=5 or down_window=120; repeatable",
    )  # fmt: skip
    parser.add_argument("--seed", type=ORDINAL, default=1)
    parser.add_argument("--reasons", action="store_true", help="print the decisions of our policy")
    parser.add_argument(
        "--against-real", action="store_true", help="measure the model's error against a real fleet"
    )
    parser.add_argument(
        "--seconds", type=AMOUNT, default=40.0, help="duration of each real stage (default 40)"
    )
    parser.add_argument(
        "--keep", type=OutputDirectory(), metavar="FOLDER", help="save the records of the real runs"
    )
    parser.add_argument("--write", type=Path, metavar="FILE", help="save the new calibration")
    return parser.parse_args(arguments)


def _run(options: argparse.Namespace) -> int:
    if options.against_real:
        return _against_real(options)
    calibration = load_calibration(options.calibration)
    objective = Objective(options.ttft, options.itl)
    sample = options.sample or math.ceil(options.max_groups / _MODELLED)
    low, high = options.load
    load = Load(low, high, options.minutes * 60)
    trace = (
        load_trace(options.trace)
        if options.trace
        else generated_requests(_GENERATED, seed=options.seed)
    )
    source = str(options.trace.name) if options.trace else "generated conversations"
    settings = _settings(options, calibration)
    print(f"load: {source}, {low:g} to {high:g} copies at a time, {options.minutes:g} minutes")
    print(heading(calibration, objective, sample), flush=True)
    rows = []
    for scaler, groups in _scalers(options, settings, calibration):
        world = Simulator(
            calibration, scaler, settings, objective,
            seconds=load.seconds, sample=sample, groups=groups, seed=options.seed,
        )  # fmt: skip
        begun = time.process_time()
        due = arrivals(
            trace, load, block=TRACE_BLOCK, longest=calibration.max_model_len,
            sample=sample, seed=options.seed,
        )  # fmt: skip
        outcome = world.run(due)
        rows.append(Row(scaler.name, outcome, time.process_time() - begun))
        print(f"{scaler.name}: {outcome.requests} requests simulated", file=sys.stderr, flush=True)
        if options.reasons and isinstance(scaler, OurPolicy):
            for at, target, reason in scaler.reasons:
                print(f"{at:8.0f} s  {target:>5}  {reason}")
    print(plain(rows, calibration))
    return 0


def _settings(options: argparse.Namespace, calibration: Calibration) -> Settings:
    # Steps large enough to follow the load; all other settings have their defaults.
    scaling = {
        "min_groups": 1,
        "max_groups": options.max_groups,
        "ttft_slo": options.ttft,
        "itl_slo": options.itl,
        "max_step_up": max(4, options.max_groups // 20),
        "max_step_down": max(1, options.max_groups // 50),
        "gpus_per_group": calibration.gpus,
    }
    for item in options.scaling:
        name, _, value = item.partition("=")
        scaling[name] = yaml.safe_load(value)
    try:
        return Settings.model_validate({"autoscaler": scaling})
    except ValidationError as error:
        raise SettingsError(f"--set: {error}") from error


def _scalers(
    options: argparse.Namespace, settings: Settings, calibration: Calibration
) -> list[tuple[Scaler, int]]:
    """Return the selected scalers, each with its initial number of groups."""
    most = options.max_groups
    first = max(1, math.ceil(most * options.load[0] / options.load[1]))
    found: list[tuple[Scaler, int]] = []
    kinds = options.scalers.split(",")
    if "policy" in kinds:
        found.append((OurPolicy(settings.autoscaler, calibration.gpus), first))
    if "fixed" in kinds:
        sizes = sorted({max(1, round(most * share)) for share in (0.25, 0.5, 0.75, 1.0)})
        found += [(FixedSize(size), size) for size in sizes]
    if "queue" in kinds:
        waiting = QueueRule(5.0, Signal.QUEUE_REQUESTS, 1, most, "queue 5 waiting")
        ongoing = QueueRule(
            options.ongoing, Signal.INFLIGHT, 1, most, f"queue {options.ongoing:g} ongoing"
        )
        found += [(waiting, first), (ongoing, first)]
    return found


def _against_real(options: argparse.Namespace) -> int:
    from loadtest.simulation.real_fleet import calibrated, driven, saturated, started

    settings = Settings()
    with started(settings) as fleet:
        before = asyncio.run(saturated(fleet, options.seconds, seed=1))
        best = max(before.summary(stage).output_tokens for stage in before.stages)
        real = asyncio.run(driven(fleet, best, 2 * options.seconds))
        after = asyncio.run(saturated(fleet, options.seconds, seed=2))
    calibration = calibrated(fleet, settings, (before, after))
    step = calibration.step
    print(calibration.source)
    print(
        f"step = {step.base * 1e3:.2f} ms + {step.per_sequence * 1e3:.3f} ms per sequence + "
        f"{step.per_prompt_token * 1e3:.4f} ms per prompt token, residual "
        f"{calibration.residual:.1%}; start {calibration.startup:g} s; client and router add "
        f"{calibration.overhead * 1e3:.1f} ms and {calibration.overhead_per_request * 1e3:.2f} ms "
        f"for each other request; best {best:.0f} tokens/s"
    )
    for run in (before, after):
        for stage, records, outcome in _simulated(run, calibration, settings):
            lines = {line.name: line for line in compare(records, outcome)}
            words = ", ".join(
                f"{name} {lines[name].real:.1f} / {lines[name].simulated:.1f}"
                for name in ("TTFT p50, ms", "ITL p50, ms", "output tokens/s")
            )
            print(f"calibrated with {stage.label}: {words} (real / simulated)")
    for stage, records, outcome in _simulated(real, calibration, settings):
        failed = sum(not record.ok for record in records)
        print(f"\n{stage.label}: {len(records)} requests, {failed} failed\n")
        print(as_table("", compare(records, outcome)))
    if options.keep is not None:
        for name, run in (("before", before), ("schedule", real), ("after", after)):
            run.save(options.keep / name)
    if options.write is not None:
        save_calibration(calibration, options.write)
    return 0


def _simulated(
    run: Run, calibration: Calibration, settings: Settings
) -> Iterator[tuple[Stage, list[Record], Outcome]]:
    """Yield each stage of a real run with its records and the simulated outcome."""
    for stage in run.stages:
        records = [record for record in run.records if record.stage == stage.index]
        outcome, _ = simulate(records, calibration, settings, settings.group.count)
        yield stage, records, outcome


if __name__ == "__main__":
    sys.exit(main())
