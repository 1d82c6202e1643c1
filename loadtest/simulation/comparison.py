"""The model against records of a real run: the same schedule through both. Pure."""

from collections.abc import Sequence as Items
from dataclasses import dataclass

from loadtest.record import Record
from loadtest.simulation.calibration import Calibration
from loadtest.simulation.outcome import Objective, Outcome
from loadtest.simulation.scalers import FixedSize
from loadtest.simulation.sequence import Sequence
from loadtest.simulation.world import World
from loadtest.statistics import Quantiles
from serving.settings import Settings

_ANY = Objective(float("inf"), float("inf"))


@dataclass(frozen=True, slots=True)
class Line:
    """One figure of both."""

    name: str
    real: float
    simulated: float

    @property
    def error(self) -> float:
        """Of the simulated one, relative to the real one."""
        return self.simulated / self.real - 1 if self.real else float("nan")


def simulate(
    records: Items[Record], calibration: Calibration, settings: Settings, groups: int
) -> tuple[Outcome, list[Sequence]]:
    """Send what was really sent and answered, when it was due, to the model of as many groups.

    Returns:
        What it came to, and the requests in the order in which they were due.
    """
    done = sorted((r for r in records if r.ok), key=lambda r: r.intended)
    begin = done[0].intended
    arrivals = [
        Sequence(r.index, r.intended - begin, r.prompt_tokens, max(r.output_tokens, 1))
        for r in done
    ]
    seconds = max(r.end for r in done) - begin
    world = World(calibration, FixedSize(groups), settings, _ANY, seconds=seconds, groups=groups)
    return world.run(arrivals), arrivals


def unexplained(
    records: Items[Record], calibration: Calibration, settings: Settings, groups: int
) -> tuple[list[float], list[int]]:
    """Return, for each request, how much later than in the model its first token came.

    Returns:
        Seconds, and how many others were in flight when the request was due.
    """
    done = sorted((r for r in records if r.ok), key=lambda r: r.intended)
    _, modelled = simulate(records, calibration, settings, groups)
    extra, others = [], []
    for record, sequence in zip(done, modelled, strict=True):
        if record.ttft is not None and sequence.first_at is not None:
            extra.append(record.ttft - (sequence.first_at - sequence.at))
            others.append(sum(r.intended < record.intended < r.end for r in done))
    return extra, others


def compare(records: Items[Record], outcome: Outcome) -> list[Line]:
    """Return TTFT, ITL, latency and throughput of both."""
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


def as_table(title: str, lines: Items[Line]) -> str:
    """Return them as Markdown."""
    rows = [
        f"| {line.name:<16} | {line.real:>10.1f} | {line.simulated:>10.1f} | {line.error:>+8.1%} |"
        for line in lines
    ]
    head = f"| {title:<16} | {'real':>10} | {'simulated':>10} | {'error':>8} |"
    rule = f"|{'-' * 18}|{'-' * 11}:|{'-' * 11}:|{'-' * 9}:|"
    return "\n".join([head, rule, *rows])
