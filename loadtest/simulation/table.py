"""Outcomes as a plain table."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from loadtest.simulation.calibration import Calibration
from loadtest.simulation.outcome import Objective, Outcome

_HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class Row:
    """One way of scaling and what came of it."""

    name: str
    outcome: Outcome
    cpu: float
    """Seconds of one core that simulating it took."""


HEADS = (
    "groups", "least-most", "changes", "GPU-hours", "refused", "TTFT p50", "p90", "p99",
    "ITL p50", "p90", "TTFT met", "ITL met", "both met", "good req/s", "good/GPU-h", "busy",
    "cached", "CPU",
)  # fmt: skip


def cells(row: Row, calibration: Calibration) -> tuple[str, ...]:
    """Return a row's texts, the name first."""
    found = row.outcome
    hours = found.group_seconds * calibration.gpus / _HOUR
    good = found.good * found.sample
    served = max(found.requests, 1)
    return (
        row.name,
        f"{found.group_seconds / found.seconds:.0f}",
        f"{found.least}-{found.most}",
        str(found.changes),
        f"{hours:.1f}" if hours < 100 else f"{hours:.0f}",  # noqa: PLR2004  digits that matter
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
    """Return the table as Markdown, which also reads well as it is."""
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
    """Return what has to be known to read the table."""
    kind = "measured" if calibration.measured else "ASSUMED, not run on such machines here"
    lines = [
        f"groups: {calibration.name} ({kind}): {calibration.source}",
        f"objective: TTFT <= {objective.ttft:g} s and a request's mean ITL <= {objective.itl:g} s",
    ]
    if sample > 1:
        lines.append(
            f"SUBSAMPLED: every {sample}th group and every {sample}th conversation is simulated; "
            f"counts are given times {sample}"
        )
    return "\n".join(lines)


def _seconds(values: "array[float]", share: float) -> str:
    return f"{float(np.quantile(np.asarray(values), share)):.3g}" if len(values) else "–"
