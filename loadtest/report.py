"""The report of a run: one self-contained HTML file."""

import math
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from html import escape

from loadtest import search_report as search
from loadtest.charts import COLOURS, Chart, Kind, Mark, Series, cdf, rates
from loadtest.record import Record
from loadtest.report_style import STYLE
from loadtest.run import Run, Stage
from loadtest.statistics import Summary

_EVENT_COLOURS = {"fault": "bad", "scaling": "note", "ready": "good"}
_MOST_DOTS = 4000


def html(run: Run) -> str:
    """Return the report of a run."""
    summaries = [(stage, run.summary(stage)) for stage in run.stages]
    when = datetime.fromtimestamp(run.began_unix_seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    body = [
        f"<h1>Load test of {escape(run.model)}</h1>",
        (
            f"<p class=sub>{escape(run.server)} · {when} · {len(run.records)} requests<br>"
            f"<code>{escape(run.command)}</code></p>"
        ),
        *_banners(run, summaries),
        "<h2>Stages</h2>",
        _stages(summaries),
        (
            "<small>Latencies are measured from when a request was due, not from when it was "
            "sent. ITL is each request's mean time between tokens. The warm-up is excluded.</small>"
        ),
        "<h2>Charts</h2><div class=charts>",
        *(chart.svg() for chart in (*search.charts(run), *_charts(run, summaries))),
        "</div>",
        search.table(run.trials),
        _failures(run.records),
        _events(run),
    ]
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width,initial-scale=1">'
        f"<title>Load test of {escape(run.model)}</title><style>{STYLE}</style></head><body>"
        + "\n".join(part for part in body if part)
        + "</body></html>\n"
    )


def _banners(run: Run, summaries: Sequence[tuple[Stage, Summary]]) -> Iterable[str]:
    if run.stopped:
        yield f"<div class=banner><b>Partial:</b> {escape(run.stopped)}.</div>"
    if run.trials:
        found = run.found[0].upper() + run.found[1:]
        yield f"<div class='banner {'good' if run.answer else ''}'>{escape(found)}.</div>"
    elif run.slo.limits:
        for stage, summary in summaries:
            if summary.attained is not None:
                fine = summary.attained >= run.slo.share
                yield (
                    f"<div class='banner {'good' if fine else ''}'>{escape(stage.label)}: "
                    f"<b>{'met' if fine else 'missed'}</b>, {summary.attained:.2%} "
                    f"(objective: {escape(str(run.slo))}).</div>"
                )
    for note in run.notes:
        yield f"<div class='banner note'>{escape(note)}</div>"


def _stages(summaries: Sequence[tuple[Stage, Summary]]) -> str:
    heads = [
        "load",
        "requests",
        "failed",
        "offered/s",
        "completed/s",
        "goodput/s",
        "tokens/s",
        "cached",
        "TTFT&nbsp;p50",
        "p90",
        "p99",
        "ITL&nbsp;p50",
        "p99",
        "latency&nbsp;p50",
        "p99",
        "late&nbsp;p99",
    ]
    rows = []
    for stage, s in summaries:
        cells = [
            escape(stage.label), str(s.requests), str(s.failed), f"{s.offered:.2f}",
            f"{s.completed:.2f}", f"{s.goodput:.2f}", f"{s.output_tokens:.0f}",
            f"{s.cached:.0%}", *(milliseconds(v) for v in (
                s.ttft.p50, s.ttft.p90, s.ttft.p99, s.itl.p50, s.itl.p99, s.latency.p50,
                s.latency.p99, s.lateness.p99)),
        ]  # fmt: skip
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return (
        "<div class=scroll><table><tr>"
        + "".join(f"<th>{head}</th>" for head in heads)
        + f"</tr>{''.join(rows)}</table></div><small>Times in milliseconds.</small> "
    )


def milliseconds(seconds: float) -> str:
    """Return seconds as milliseconds with three digits; a dash for NaN."""
    if not math.isfinite(seconds):
        return "–"
    value = seconds * 1000
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"  # noqa: PLR2004


def _charts(run: Run, summaries: Sequence[tuple[Stage, Summary]]) -> Iterable[Chart]:
    limit, itl_limit = _limit(run.slo.ttft), _limit(run.slo.itl)
    marks = [
        Mark(event.at, event.label, _EVENT_COLOURS[event.kind], str(number))
        for number, event in enumerate(run.events, 1)
    ]
    done = [record for record in run.records if record.ok]
    failed = [record for record in run.records if record.error and record.error != "cancelled"]
    yield Chart(
        "Timeline: time to first token of each request",
        "due time of the request, seconds since the run began",
        "TTFT, ms",
        [
            Series("answered", _dots(done, lambda record: record.ttft), "dots", "c0"),
            Series("failed (at its end)", _dots(failed, lambda r: r.latency), "dots", "bad"),
        ],
        marks,
        limit,
        log_y=True,
        note="Marks show events from the router's /fleet: faults in red, scaling in yellow, ready "
        "groups in green. The numbers refer to the last table."
        if marks
        else "",
    )
    yield Chart(
        "Timeline: throughput and goodput",
        "seconds since the run began",
        "requests/s",
        [
            Series("due", rates(r.intended for r in run.records), "step", "c1"),
            Series("answered", rates(r.end for r in done), "step", "c0"),
            Series(
                "within the limits",
                rates(r.end for r in done if run.slo.met_by(r)),
                "step",
                "c2",
                dashed=True,
            ),
        ],
        marks,
    )
    ordered = sorted(summaries, key=lambda pair: pair[0].load)
    if len(ordered) > 1:
        # A search repeats loads: a line through its stages would zigzag.
        again = len({stage.load for stage, _ in ordered}) < len(ordered)
        kind: Kind = "dots" if again else "line"
        unit = ordered[0][0].unit
        for title, quantiles, lines in (
            ("TTFT against load", [s.ttft for _, s in ordered], limit),
            ("ITL against load", [s.itl for _, s in ordered], itl_limit),
        ):
            loads = [stage.load for stage, _ in ordered]
            columns = {
                "p50": [q.p50 * 1000 for q in quantiles],
                "p90": [q.p90 * 1000 for q in quantiles],
                "p99": [q.p99 * 1000 for q in quantiles],
            }
            yield Chart(
                title, unit, "ms",
                [
                    Series(name, list(zip(loads, values, strict=True)), kind, colour)
                    for (name, values), colour in zip(columns.items(), COLOURS, strict=False)
                ],
                limits=lines, log_y=True,
            )  # fmt: skip
        yield Chart(
            "Completed requests and goodput against load", unit, "requests/s",
            [
                Series("answered", [(stage.load, s.completed) for stage, s in ordered], kind),
                Series(
                    "within the limits", [(stage.load, s.goodput) for stage, s in ordered],
                    kind, "c2", dashed=True,
                ),
            ],
        )  # fmt: skip
        yield Chart(
            "Output tokens against load", unit, "tokens/s",
            [
                Series(
                    "output tokens", [(stage.load, s.output_tokens) for stage, s in ordered], kind
                )
            ],
        )  # fmt: skip
    for title, value in (
        ("TTFT", lambda record: record.ttft),
        ("ITL", lambda record: record.itl),
        ("Latency", lambda record: record.latency),
    ):
        yield _cdf(title, run, value)


def _limit(seconds: float | None) -> list[tuple[float, str]]:
    return [(seconds * 1000, f"limit: {seconds * 1000:g} ms")] if seconds else []


def _cdf(title: str, run: Run, value: Callable[[Record], float | None]) -> Chart:
    series = []
    last = run.stages[-len(COLOURS) :]
    again = len({stage.label for stage in last}) < len(last)
    for stage, colour in zip(last, COLOURS, strict=False):
        values = [
            number * 1000
            for record in run.records
            if record.stage == stage.index
            and record.ok
            and record.phase == "measure"
            and (number := value(record)) is not None
        ]
        label = f"{stage.label}, stage {stage.index + 1}" if again else stage.label
        series.append(Series(label, cdf(values), "line", colour))
    left_out = len(run.stages) - len(series)
    return Chart(
        f"{title}: share of requests up to a value",
        f"{title}, ms",
        "share",
        series,
        note=f"The last {len(series)} stages." if left_out else "",
    )


def _dots(
    records: Sequence[Record], value: Callable[[Record], float | None]
) -> list[tuple[float, float]]:
    points = [
        (record.intended, number * 1000)
        for record in records
        if (number := value(record)) is not None
    ]
    # Always draw the slowest requests: they matter most.
    if len(points) > _MOST_DOTS:
        slow = sorted(points, key=lambda point: point[1])[-_MOST_DOTS // 4 :]
        points = [*points[:: len(points) // (_MOST_DOTS * 3 // 4) + 1], *slow]
    return points


def _failures(records: Sequence[Record]) -> str:
    failed: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        if record.error:
            failed.setdefault((record.error, record.message), []).append(record)
    if not failed:
        return ""
    rows = "".join(
        f"<tr><td>{escape(kind)}</td><td>{len(found)}</td><td>{found[0].end:.1f}</td>"
        f"<td>{found[-1].end:.1f}</td><td class=text>{escape(message)}</td></tr>"
        for (kind, message), found in sorted(failed.items(), key=lambda item: -len(item[1]))[:30]
    )
    return (
        "<h2>Failures</h2><div class=scroll><table><tr><th>kind<th>requests<th>first, s<th>last, s"
        f"<th class=text>message</tr>{rows}</table></div>"
    )


def _events(run: Run) -> str:
    if not run.events:
        return ""
    rows = "".join(
        f"<tr><td>{number}</td><td>{event.at:.1f}</td><td class=text>{event.kind}</td>"
        f"<td class=text>{escape(event.label)}</td></tr>"
        for number, event in enumerate(run.events, 1)
    )
    return (
        "<h2>The fleet</h2><div class=scroll><table><tr><th>mark<th>at, s<th class=text>kind"
        f"<th class=text>event</tr>{rows}</table></div>"
    )
