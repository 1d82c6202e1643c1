"""The outcome of a simulated run, counted per request, and its table."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from loadtest.simulation.calibration import Calibration
from loadtest.simulation.simulated_request import SimulatedRequest

_HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class Objective:
    """Latency objectives of a good request, seconds."""

    ttft: float
    itl: float
    """Maximum mean inter-token latency of a request."""


@dataclass(slots=True)
class Outcome:
    """Totals of a run. Each counted item is simulated and stands for ``sample`` real ones."""

    sample: int
    seconds: float
    """Duration of the arrivals, seconds."""
    requests: int = 0
    refused: int = 0
    resumed: int = 0
    good: int = 0
    ttft_met: int = 0
    itl_met: int = 0
    ttft: "array[float]" = field(default_factory=lambda: array("d"))
    itl: "array[float]" = field(default_factory=lambda: array("d"))
    latency: "array[float]" = field(default_factory=lambda: array("d"))
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    group_seconds: float = 0.0
    """Group-seconds of the whole fleet, from requesting a group to its end."""
    busy_seconds: float = 0.0
    """Seconds that simulated groups spent in steps during the arrivals."""
    least: int = 0
    most: int = 0
    """Maximum number of groups requested, of the whole fleet."""
    changes: int = 0
    ended_at: float = 0.0
    decisions: int = 0

    def count(self, sequence: SimulatedRequest, now: float, objective: Objective) -> None:
        """Count a completed request.

        Args:
            sequence: The request.
            now: Time of its end, seconds.
            objective: Objectives of a good request.
        """
        assert sequence.first_at is not None
        ttft = sequence.first_at - sequence.at + sequence.overhead
        self.ttft.append(ttft)
        self.latency.append(now - sequence.at + sequence.overhead)
        itl = sequence.itl
        if itl is not None:
            self.itl.append(itl)
        fast = ttft <= objective.ttft
        smooth = itl is None or itl <= objective.itl
        self.ttft_met += fast
        self.itl_met += smooth
        self.good += fast and smooth
        self.prompt_tokens += sequence.asked_tokens
        self.cached_tokens += sequence.cached
        self.output_tokens += sequence.output_tokens


# -- as a table -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Row:
    """A scaler and its outcome."""

    name: str
    outcome: Outcome
    cpu: float
    """CPU seconds of the simulation."""


HEADS = (
    "groups", "least-most", "changes", "GPU-hours", "refused", "TTFT p50", "p90", "p99",
    "ITL p50", "p90", "TTFT met", "ITL met", "both met", "good req/s", "good/GPU-h", "busy",
    "cached", "CPU",
)  # fmt: skip


def cells(row: Row, calibration: Calibration) -> tuple[str, ...]:
    """Return the cells of a row, the name first."""
    found = row.outcome
    hours = found.group_seconds * calibration.gpus / _HOUR
    good = found.good * found.sample
    served = max(found.requests, 1)
    return (
        row.name,
        f"{found.group_seconds / found.seconds:.0f}",
        f"{found.least}-{found.most}",
        str(found.changes),
        f"{hours:.1f}" if hours < 100 else f"{hours:.0f}",  # noqa: PLR2004  significant digits
        f"{found.refused / served:.1%}",
        *(_seconds(found.ttft, share) for share in (0.5, 0.9, 0.99)),
        *(_seconds(found.itl, share) for share in (0.5, 0.9)),
        f"{found.ttft_met / served:.1%}",
        f"{found.itl_met / served:.1%}",
        f"{found.good / served:.1%}",
        f"{good / found.seconds:.4g}",
        f"{good / hours:.0f}" if hours else "–",
        f"{found.busy_seconds * found.sample / max(found.group_seconds, 1e-9):.0%}",
        f"{found.cached_tokens / max(found.prompt_tokens, 1):.0%}",
        f"{row.cpu:.0f} s",
    )


def plain(rows: Sequence[Row], calibration: Calibration) -> str:
    """Format rows as a Markdown table with aligned columns."""
    lines = [("", *HEADS), *(cells(row, calibration) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    texts = [
        "| " + " | ".join(
            text.ljust(width) if not column else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ) + " |"
        for line in lines
    ]  # fmt: skip
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([texts[0], rule, *texts[1:]])


def heading(calibration: Calibration, objective: Objective, sample: int) -> str:
    """Return the lines above the table: calibration, objective and sampling."""
    kind = "measured" if calibration.measured else "ASSUMED, not measured on such machines"
    lines = [
        f"groups: {calibration.name} ({kind}): {calibration.source}",
        f"objective: TTFT <= {objective.ttft:g} s and a request's mean ITL <= {objective.itl:g} s",
    ]
    if sample > 1:
        lines.append(
            f"SUBSAMPLED: every {sample}th group and every {sample}th conversation is simulated; "
            f"counts are multiplied by {sample}"
        )
    return "\n".join(lines)


def _seconds(values: "array[float]", share: float) -> str:
    return f"{float(np.quantile(np.asarray(values), share)):.3g}" if len(values) else "–"
