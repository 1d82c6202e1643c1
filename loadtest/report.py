"""A run as one HTML file that needs nothing else."""

import math
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from html import escape

from loadtest.charts import COLOURS, Chart, Mark, Series, cdf
from loadtest.record import Record
from loadtest.run import Run, Stage
from loadtest.statistics import Summary

_EVENT_COLOURS = {"fault": "bad", "scaling": "note", "ready": "good"}
_MOST_DOTS = 4000

_STYLE = """
:root{color-scheme:light dark;--fg:#1c2024;--dim:#60666d;--bg:#fff;--line:#e3e6ea;--card:#f7f8fa;
--c0:#2f6fde;--c1:#d9772b;--c2:#2a9d6a;--c3:#b34ab0;--c4:#8a6d3b;--c5:#4b8ea8;--bad:#d13438;
--good:#2a9d6a;--note:#8a6d00}
@media(prefers-color-scheme:dark){:root{--fg:#e8eaed;--dim:#9aa1a9;--bg:#16181b;--line:#30343a;
--card:#1e2125;--c0:#7aa7ff;--c1:#f2a368;--c2:#5fd3a0;--c3:#e08ade;--c4:#c9a86a;--c5:#86c5dd;
--bad:#ff7b7e;--good:#5fd3a0;--note:#e0c040}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--fg);background:var(--bg);max-width:1320px;
margin:24px auto;padding:0 20px}
h1{font-size:22px;margin:0}h2{font-size:17px;margin:30px 0 8px}
p.sub,small,.empty{color:var(--dim)}code{font-size:13px;overflow-wrap:anywhere}
.banner{padding:10px 14px;border-left:4px solid var(--bad);background:var(--card);margin:14px 0}
.banner.good{border-color:var(--good)}.banner.note{border-color:var(--note)}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:4px 7px;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
th{color:var(--dim);font-weight:600}th:first-child,td:first-child,td.text,th.text{text-align:left}
td.text{white-space:normal}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(520px,100%),1fr));gap:18px}
figure{margin:0;padding:12px;background:var(--card);border-radius:8px}
figure.wide{grid-column:1/-1}
figcaption{font-weight:600;margin-bottom:4px}svg{width:100%;height:auto;display:block}
svg text{font-size:11px;fill:var(--dim)}svg text.name{font-size:12px}
svg path{fill:none;stroke-width:2}.grid{stroke:var(--line)}.axis{stroke:var(--dim)}
line.limit{stroke:var(--bad);stroke-dasharray:5 4}text.limit{fill:var(--bad)!important}
line.mark{stroke-width:2;stroke-dasharray:2 3}
.keys{font-size:13px;color:var(--dim)}.keys span{margin-right:16px;white-space:nowrap}
.keys i{display:inline-block;width:10px;height:10px;border-radius:3px;margin-right:5px}
""" + "".join(
    f"path.{name}{{stroke:var(--{name})}}circle.{name}{{fill:var(--{name});fill-opacity:.6}}"
    f"i.{name}{{background:var(--{name})}}line.{name}{{stroke:var(--{name})}}"
    for name in (*COLOURS, "bad", "good", "note")
)


def html(run: Run) -> str:
    """Return the report."""
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
            "<small>Latencies count from when a request was due, not from when it was sent. "
            "ITL is each request's mean from token to token. Warm-up is left out.</small>"
        ),
        "<h2>Charts</h2><div class=charts>",
        *(chart.svg() for chart in _charts(run, summaries)),
        "</div>",
        _search(run),
        _failures(run.records),
        _events(run),
    ]
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width,initial-scale=1">'
        f"<title>Load test of {escape(run.model)}</title><style>{_STYLE}</style></head><body>"
        + "\n".join(part for part in body if part)
        + "</body></html>\n"
    )


def _banners(run: Run, summaries: Sequence[tuple[Stage, Summary]]) -> Iterable[str]:
    if run.stopped:
        yield f"<div class=banner><b>Partial:</b> {escape(run.stopped)}.</div>"
    if run.trials:
        if run.answer is None:
            yield f"<div class=banner>No rate that was tried held: {escape(str(run.slo))}.</div>"
        else:
            yield (
                f"<div class='banner good'><b>{run.answer:.3g} requests/s</b> is the highest rate "
                f"that held: {escape(str(run.slo))}.</div>"
            )
    elif run.slo.limits:
        for stage, summary in summaries:
            if summary.attained is not None:
                fine = summary.attained >= run.slo.share
                yield (
                    f"<div class='banner {'good' if fine else ''}'>{escape(stage.label)}: "
                    f"<b>{'met' if fine else 'missed'}</b>, {summary.attained:.2%} "
                    f"(asked: {escape(str(run.slo))}).</div>"
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
            escape(stage.label), str(s.requests), str(s.requests - s.ok), f"{s.offered:.2f}",
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
    """Return seconds as milliseconds in three digits; a dash for none."""
    if not math.isfinite(seconds):
        return "–"
    value = seconds * 1000
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"  # noqa: PLR2004


def _charts(run: Run, summaries: Sequence[tuple[Stage, Summary]]) -> Iterable[Chart]:
    limit = [(run.slo.ttft * 1000, "limit")] if run.slo.ttft else []
    itl_limit = [(run.slo.itl * 1000, "limit")] if run.slo.itl else []
    marks = [Mark(event.at, event.label, _EVENT_COLOURS[event.kind]) for event in run.events]
    done = [record for record in run.records if record.ok]
    failed = [record for record in run.records if record.error and record.error != "cancelled"]
    yield Chart(
        "Timeline: time to first token of each request",
        "seconds since the run began, when the request was due",
        "TTFT, ms",
        [
            Series("answered", _dots(done, lambda record: record.ttft), "dots", "c0"),
            Series("failed (when it ended)", _dots(failed, lambda r: r.latency), "dots", "bad"),
        ],
        marks,
        limit,
        note="Marks, from the router's /fleet: red faults, yellow scaling, green ready again. "
        "Hover for what happened."
        if marks
        else "",
    )
    yield Chart(
        "Timeline: throughput and goodput",
        "seconds since the run began",
        "requests/s",
        [
            Series("due", _rates(r.intended for r in run.records), "step", "c1"),
            Series("answered", _rates(r.end for r in done), "step", "c0"),
            Series(
                "within the limits", _rates(r.end for r in done if run.slo.met_by(r)), "step", "c2"
            ),
        ],
        marks,
    )
    ordered = sorted(summaries, key=lambda pair: pair[0].load)
    if len(ordered) > 1:
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
                    Series(name, list(zip(loads, values, strict=True)), "line", colour)
                    for (name, values), colour in zip(columns.items(), COLOURS, strict=False)
                ],
                limits=lines, log_y=True,
            )  # fmt: skip
        yield Chart(
            "Answered and good against load", unit, "requests/s",
            [
                Series("answered", [(stage.load, s.completed) for stage, s in ordered]),
                Series(
                    "within the limits", [(stage.load, s.goodput) for stage, s in ordered],
                    "line", "c2",
                ),
            ],
        )  # fmt: skip
        yield Chart(
            "Output tokens against load", unit, "tokens/s",
            [Series("output tokens", [(stage.load, s.output_tokens) for stage, s in ordered])],
        )  # fmt: skip
    for title, value in (
        ("TTFT", lambda record: record.ttft),
        ("ITL", lambda record: record.itl),
        ("Latency", lambda record: record.latency),
    ):
        yield _cdf(title, run, value)


def _cdf(title: str, run: Run, value: Callable[[Record], float | None]) -> Chart:
    series = []
    for stage, colour in zip(run.stages[-len(COLOURS) :], COLOURS, strict=False):
        values = [
            number * 1000
            for record in run.records
            if record.stage == stage.index
            and record.ok
            and record.phase == "measure"
            and (number := value(record)) is not None
        ]
        series.append(Series(stage.label, cdf(values), "line", colour))
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
    # The slowest are always drawn: they are what one looks for.
    if len(points) > _MOST_DOTS:
        slow = sorted(points, key=lambda point: point[1])[-_MOST_DOTS // 4 :]
        points = [*points[:: len(points) // (_MOST_DOTS * 3 // 4) + 1], *slow]
    return points


def _rates(times: Iterable[float]) -> list[tuple[float, float]]:
    """Count per second, or per more where the run is long, as steps."""
    values = sorted(times)
    if not values:
        return []
    width = max(1.0, values[-1] / 150)
    counts = [0] * (int(values[-1] / width) + 1)
    for value in values:
        counts[max(int(value / width), 0)] += 1
    return [
        (0.0, counts[0] / width),
        *(((index + 1) * width, count / width) for index, count in enumerate(counts)),
    ]


def _search(run: Run) -> str:
    if not run.trials:
        return ""
    rows = "".join(
        f"<tr><td>{number}</td><td>{trial.purpose}</td><td>{trial.rate:.3g}</td>"
        f"<td>{trial.attained:.2%}</td><td>{'held' if trial.held else 'did not hold'}</td></tr>"
        for number, trial in enumerate(run.trials, 1)
    )
    return (
        "<h2>Search</h2><div class=scroll><table><tr><th>trial<th>purpose<th>requests/s"
        f"<th>met<th></tr>{rows}</table></div>"
    )


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
        f"<th class=text>in the server's words</tr>{rows}</table></div>"
    )


def _events(run: Run) -> str:
    if not run.events:
        return ""
    rows = "".join(
        f"<tr><td>{event.at:.1f} s</td><td class=text>{event.kind}</td>"
        f"<td class=text>{escape(event.label)}</td></tr>"
        for event in run.events
    )
    return f"<h2>The fleet</h2><div class=scroll><table>{rows}</table></div>"
