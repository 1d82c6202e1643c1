"""Compares the model with the records of a real run of the same schedule. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from loadtest.record import Record
from loadtest.simulation.calibration import Calibration
from loadtest.simulation.outcome import Objective, Outcome
from loadtest.simulation.scalers import FixedSize
from loadtest.simulation.simulated_request import SimulatedRequest
from loadtest.simulation.simulator import Simulator
from loadtest.statistics import Quantiles
from serving.settings import Settings

_ANY = Objective(float("inf"), float("inf"))


@dataclass(frozen=True, slots=True)
class Line:
    """One figure, real and simulated."""

    name: str
    real: float
    simulated: float

    @property
    def error(self) -> float:
        """Relative error of the simulated figure."""
        return self.simulated / self.real - 1 if self.real else float("nan")


def simulate(
    records: Sequence[Record], calibration: Calibration, settings: Settings, groups: int
) -> tuple[Outcome, list[SimulatedRequest]]:
    """Replay the successful requests of a real run, at their due times, on ``groups`` groups.

    Returns:
        The outcome, and the simulated requests in order of their due times.
    """
    done = sorted((r for r in records if r.ok), key=lambda r: r.intended)
    begin = done[0].intended
    arrivals = [
        SimulatedRequest(r.index, r.intended - begin, r.prompt_tokens, max(r.output_tokens, 1))
        for r in done
    ]
    seconds = max(r.end for r in done) - begin
    world = Simulator(
        calibration, FixedSize(groups), settings, _ANY, seconds=seconds, groups=groups
    )
    return world.run(arrivals), arrivals


def unexplained(
    records: Sequence[Record], calibration: Calibration, settings: Settings, groups: int
) -> tuple[list[float], list[int]]:
    """Compare the real time to first token of each request with the simulated one.

    Returns:
        The differences in seconds, and the number of other requests in flight at each due time.
    """
    done = sorted((r for r in records if r.ok), key=lambda r: r.intended)
    _, modelled = simulate(records, calibration, settings, groups)
    extra, others = [], []
    for record, sequence in zip(done, modelled, strict=True):
        if record.ttft is not None and sequence.first_at is not None:
            extra.append(record.ttft - (sequence.first_at - sequence.at))
            others.append(sum(r.intended < record.intended < r.end for r in done))
    return extra, others


def compare(records: Sequence[Record], outcome: Outcome) -> list[Line]:
    """Return real and simulated TTFT, ITL, latency and throughput."""
    done = [record for record in records if record.ok]
    begin = min(record.intended for record in done)
    real_seconds = max(record.end for record in done) - begin
    lines = []
    for name, real, simulated in (
        ("TTFT", [r.ttft for r in done if r.ttft is not None], outcome.ttft),
        ("ITL", [r.itl for r in done if r.itl is not None], outcome.itl),
        ("latency", [r.latency for r in done], outcome.latency),
    ):
        a, b = Quantiles.of(real), Quantiles.of(list(simulated))
        lines += [
            Line(f"{name} mean, ms", a.mean * 1000, b.mean * 1000),
            Line(f"{name} p50, ms", a.p50 * 1000, b.p50 * 1000),
            Line(f"{name} p90, ms", a.p90 * 1000, b.p90 * 1000),
            Line(f"{name} p99, ms", a.p99 * 1000, b.p99 * 1000),
        ]
    tokens = sum(record.output_tokens for record in done)
    lines.append(
        Line("output tokens/s", tokens / real_seconds, outcome.output_tokens / outcome.ended_at)
    )
    return lines


def as_table(title: str, lines: Sequence[Line]) -> str:
    """Format lines as a Markdown table."""
    rows = [
        f"| {line.name:<16} | {line.real:>10.1f} | {line.simulated:>10.1f} | {line.error:>+8.1%} |"
        for line in lines
    ]
    head = f"| {title:<16} | {'real':>10} | {'simulated':>10} | {'error':>8} |"
    rule = f"|{'-' * 18}|{'-' * 11}:|{'-' * 11}:|{'-' * 9}:|"
    return "\n".join([head, rule, *rows])
