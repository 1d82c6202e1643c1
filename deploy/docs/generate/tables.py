"""Generated tables in hand-written pages: errors.md and metrics.md."""

import re
from dataclasses import dataclass

from deploy.docs.generate.markdown import block_of, prose, replace_block, table
from serving.errors import ERROR_TABLE
from serving.telemetry import autoscaler_metrics, fleet_metrics, metrics

ADVICE = re.compile(r"^\| `(moe_\w+)[^|]*\|.*\|([^|]*)\|$", re.MULTILINE)
"""Metric and last column of a row of metrics.md."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One declared metric."""

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str


def errors_page(page: str) -> str:
    """Return errors.md with its table generated from ERROR_TABLE."""
    rows = [
        (
            f"`{cls.__name__}`",
            (cls.__doc__ or "").splitlines()[0],
            status.grpc,
            str(status.http),
            status.reason,
            "yes" if status.retryable else "no",
        )
        for cls, status in ERROR_TABLE.items()
    ]
    header = ("class", "meaning", "gRPC status", "HTTP", "reason", "retryable")
    return replace_block(page, "errors", table(header, rows))


def declared() -> dict[str, Metric]:
    """Return all declared metrics by the name under which they are exported."""
    found = {}
    for registry in (metrics.REGISTRY, autoscaler_metrics.AUTOSCALER_REGISTRY):
        for each in registry._collector_to_names:  # noqa: SLF001  the labels are not public
            suffix = "_total" if each._type == "counter" else ""  # type: ignore[attr-defined]  # noqa: SLF001
            name = each._name + suffix  # type: ignore[attr-defined]  # noqa: SLF001
            found[name] = Metric(name, each._type, each._labelnames, each._documentation)  # type: ignore[attr-defined]  # noqa: SLF001
    for family in fleet_metrics.FAMILIES:
        name = family.name + ("_total" if family.counter else "")
        kind = "counter" if family.counter else "histogram" if family.buckets else "gauge"
        found[name] = Metric(name, kind, family.labels, family.help)
    return found


def metrics_page(page: str) -> str:
    """Return metrics.md with names, labels, types and meanings from the declarations.

    The selection and order of metrics in a block, and the last column (what to do), are written
    manually in the page.

    Raises:
        LookupError: A metric has no row, or a row has no metric.
    """
    known = declared()
    shown: set[str] = set()
    for name in re.findall(r"begin (metrics of [\w ]+) -->", page):
        advice = ADVICE.findall(block_of(page, name))
        unknown = [metric for metric, _ in advice if metric not in known]
        if unknown:
            raise LookupError(f"metrics.md: {', '.join(unknown)} is not declared")
        shown |= {metric for metric, _ in advice}
        rows = [
            (_name(known[metric]), known[metric].kind, prose(known[metric].help), text.strip())
            for metric, text in advice
        ]
        page = replace_block(page, name, table(("metric", "type", "meaning", "what to do"), rows))
    if missing := sorted(set(known) - shown):
        raise LookupError(f"metrics.md: no row for {', '.join(missing)}")
    return page


def _name(metric: Metric) -> str:
    labels = f"{{{','.join(metric.labels)}}}" if metric.labels else ""
    return f"`{metric.name}{labels}`"
