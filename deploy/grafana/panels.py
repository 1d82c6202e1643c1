"""Building blocks of the dashboards: panels of equal style, and common queries."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

from grafana_foundation_sdk.builders.common import VizLegendOptions, VizTooltipOptions
from grafana_foundation_sdk.builders.dashboard import (
    Dashboard,
    DatasourceVariable,
    QueryVariable,
    Row,
)
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.builders.stat import Panel as Stat
from grafana_foundation_sdk.builders.timeseries import Panel as TimeSeries
from grafana_foundation_sdk.models.common import (
    LegendDisplayMode,
    LegendPlacement,
    SortOrder,
    TooltipDisplayMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    VariableRefresh,
    VariableSort,
)

DATASOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
RATE = "$__rate_interval"
GROUP = 'group=~"$group"'
HEIGHT, WIDTH, STAT_WIDTH = 8, 8, 4
"""Panel sizes in Grafana's grid units; a row is 24 wide."""


@dataclass(frozen=True)
class Query:
    """A PromQL expression and the legend of its lines."""

    expr: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """A graph, or a single number if ``stat``."""

    title: str
    unit: str
    """Grafana's name of the unit: s, reqps, short, percentunit, bytes, …"""
    queries: Sequence[Query]
    description: str
    stat: bool = False


def quantiles(metric: str, *shares: float, by: str = "") -> list[Query]:
    """Return quantiles of a histogram over all routers, one line each (per value of ``by``)."""
    labels = f"le, {by}" if by else "le"
    return [
        Query(
            f"histogram_quantile({share:g}, sum by ({labels}) (rate({metric}_bucket[{RATE}])))",
            f"p{share * 100:g}" + (f" {{{{{by}}}}}" if by else ""),
        )
        for share in shares
    ]


def rate(metric: str, by: str = "", legend: str = "", where: str = "") -> Query:
    """Return the sum of a counter's rate over all routers."""
    grouping = f" by ({by})" if by else ""
    names = " ".join(f"{{{{{name.strip()}}}}}" for name in by.split(",") if name)
    selector = f"{{{where}}}" if where else ""
    return Query(f"sum{grouping} (rate({metric}{selector}[{RATE}]))", legend or names)


def of_rank(metric: str) -> Query:
    """Return a rank's metric: the maximum over the routers, which all report the same value."""
    return Query(f"max by (group, rank) ({metric}{{{GROUP}}})", "{{group}} {{rank}}")


def rate_of_rank(metric: str) -> str:
    """Return the rate of a rank's counter."""
    return f"max by (group, rank) (rate({metric}{{{GROUP}}}[{RATE}]))"


def dashboard(uid: str, title: str, description: str, rows: dict[str, list[Panel]]) -> Dashboard:
    """Return a dashboard with rows of panels."""
    made = (
        Dashboard(title)
        .uid(uid)
        .description(description)
        .tags(["moe-serving"])
        .refresh("10s")
        .time("now-1h", "now")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        .with_variable(
            QueryVariable("group")
            .label("Group")
            .datasource(DATASOURCE)
            .query("label_values(moe_ranks_expected, group)")
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(VariableSort.ALPHABETICAL_ASC)
            .multi(True)
            .include_all(True)
            .all_value(".*")
        )
    )
    numbers = count(1)
    for name, panels in rows.items():
        made = made.with_row(Row(name).id(next(numbers)))
        for panel in panels:
            built = _stat(panel) if panel.stat else _series(panel)
            made = made.with_panel(built.id(next(numbers)))
    return made


def _series(panel: Panel) -> TimeSeries:
    legend = (
        VizLegendOptions()
        .display_mode(LegendDisplayMode.LIST)
        .placement(LegendPlacement.BOTTOM)
        .show_legend(True)
    )
    tooltip = VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING)
    made = (
        TimeSeries()
        .title(panel.title)
        .description(panel.description)
        .datasource(DATASOURCE)
        .unit(panel.unit)
        .min(0)
        .height(HEIGHT)
        .span(WIDTH)
        .fill_opacity(5)
        .legend(legend)
        .tooltip(tooltip)
    )
    return made.targets(_targets(panel))


def _stat(panel: Panel) -> Stat:
    made = (
        Stat()
        .title(panel.title)
        .description(panel.description)
        .datasource(DATASOURCE)
        .unit(panel.unit)
        .height(4)
        .span(STAT_WIDTH)
    )
    return made.targets(_targets(panel))


def _targets(panel: Panel) -> list[Dataquery]:
    return [
        Dataquery().expr(query.expr).legend_format(query.legend).ref_id(chr(ord("A") + index))
        for index, query in enumerate(panel.queries)
    ]
