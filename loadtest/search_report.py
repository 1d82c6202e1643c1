"""The search section of a report: the rates tried, as a chart and a table."""

import itertools
from collections.abc import Iterable, Sequence

from loadtest.charts import COLOURS, Chart, Series
from loadtest.run import Run
from loadtest.slo import Trial


def charts(run: Run) -> Iterable[Chart]:
    """Yield a chart with the rates of each search; nothing without trials."""
    if not run.trials:
        return
    searches: dict[int, list[tuple[float, Trial]]] = {}
    for trial in run.trials:
        way = searches.setdefault(trial.search, [])
        way.append((len(way) + 1.0, trial))
    tried = [one for way in searches.values() for one in way]
    yield Chart(
        "Search: rates tried",
        "trial",
        "requests/s",
        [
            *(
                Series(
                    f"search {number}" if len(searches) > 1 else "tried",
                    [(at, trial.rate) for at, trial in way],
                    "line",
                    colour,
                )
                for (number, way), colour in zip(
                    searches.items(), itertools.cycle(COLOURS), strict=False
                )
            ),
            Series("held", [(at, t.rate) for at, t in tried if t.held], "dots", "good"),
            Series("missed", [(at, t.rate) for at, t in tried if not t.held], "dots", "bad"),
        ],
        limits=[(run.answer, f"result: {run.answer:.3g}")] if run.answer else [],
    )


def table(trials: Sequence[Trial]) -> str:
    """Return a table of all trials; empty without trials."""
    if not trials:
        return ""
    several = len({trial.search for trial in trials}) > 1
    rows = "".join(
        f"<tr><td>{number}</td>{f'<td>{trial.search}</td>' if several else ''}"
        f"<td>{trial.purpose}</td><td>{trial.rate:.3g}</td>"
        f"<td>{trial.attained:.2%}</td><td>{'met' if trial.held else 'missed'}</td></tr>"
        for number, trial in enumerate(trials, 1)
    )
    return (
        f"<h2>Search</h2><div class=scroll><table><tr><th>trial{'<th>search' if several else ''}"
        f"<th>purpose<th>requests/s<th>share met<th>result</tr>{rows}</table></div>"
    )
