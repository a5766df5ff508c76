"""Shared by the two dashboards: the panels, their queries, and how they become JSON."""

from __future__ import annotations

import json
from typing import Literal, NamedTuple

from grafana_foundation_sdk.builders import bargauge, logs, loki, prometheus, stat, table, timeseries
from grafana_foundation_sdk.builders.common import (
    ReduceDataOptions,
    StackingConfig,
    TableFooterOptions,
    TableSortByFieldState,
    VizLegendOptions,
    VizTooltipOptions,
)
from grafana_foundation_sdk.builders.dashboard import Dashboard, DatasourceVariable, ThresholdsConfig
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.variants import Dataquery
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    DataTransformerConfig,
    Threshold,
    ThresholdsMode,
)

Kind = Literal["loki", "prometheus"]
HEIGHT = 8


class Query(NamedTuple):
    """An expression, the names of its series, and whether it is for one moment (`is_instant`) or a range."""

    expr: str
    legend: str = ""
    is_instant: bool = False


def source(kind: Kind) -> DataSourceRef:
    """The data source that is chosen at the top of the dashboard."""
    return DataSourceRef(type_val=kind, uid="${datasource}")


def source_variable(kind: Kind) -> DatasourceVariable:
    return DatasourceVariable("datasource").label("Data source").type(kind)


def board(uid: str, title: str, description: str, kind: Kind) -> Dashboard:
    """An empty dashboard of the last six hours, with a choice of the data source."""
    return (
        Dashboard(title)
        .uid(uid)
        .description(description)
        .tags(["ionos-poller"])
        .time("now-6h", "now")
        .timezone("browser")
        .refresh("1m")
        .readonly()
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(source_variable(kind))
    )


def targets(kind: Kind, queries: tuple[Query, ...]) -> list[Builder[Dataquery]]:
    built: list[Builder[Dataquery]] = []
    for ref_id, query in zip("ABCDEFGH", queries, strict=False):
        if kind == "loki":
            one = loki.Dataquery().expr(query.expr).query_type("instant" if query.is_instant else "range")
            built.append(one.legend_format(query.legend).ref_id(ref_id))
        else:
            two = prometheus.Dataquery().expr(query.expr).legend_format(query.legend).ref_id(ref_id)
            built.append(two.instant() if query.is_instant else two.range())
    return built


def steps(warning: float | None, critical: float | None) -> ThresholdsConfig:
    """Green, from `warning` on orange, from `critical` on red. If `warning` is larger than `critical`, small values are bad."""
    if warning is not None and critical is not None and warning > critical:
        colours = [("red", None), ("orange", critical), ("green", warning)]
    else:
        colours = [("green", None)]
        colours += [("orange", warning)] if warning is not None else []
        colours += [("red", critical)] if critical is not None else []
    return (
        ThresholdsConfig()
        .mode(ThresholdsMode.ABSOLUTE)
        .steps([Threshold(color=colour, value=value) for colour, value in colours])
    )


def number(
    kind: Kind,
    title: str,
    query: Query,
    *,
    unit: str = "short",
    warning: float | None = None,
    critical: float | None = None,
    description: str = "",
    width: int = 4,
) -> stat.Panel:
    """The current number, or one for each series."""
    return (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(source(kind))
        .targets(targets(kind, (query._replace(is_instant=True),)))
        .unit(unit)
        .no_value("0" if kind == "loki" else "none")
        .thresholds(steps(warning, critical))
        .color_mode(common.BigValueColorMode.VALUE)
        .graph_mode(common.BigValueGraphMode.NONE)
        .reduce_options(ReduceDataOptions().calcs(["lastNotNull"]))
        .height(4)
        .span(width)
    )


def curves(
    kind: Kind,
    title: str,
    *queries: Query,
    unit: str = "short",
    is_stacked: bool = False,
    is_signed: bool = False,
    description: str = "",
    width: int = 8,
) -> timeseries.Panel:
    """Values over time. The axis begins at 0, unless values may be negative. Stacked bars for counts that add up."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(source(kind))
        .targets(targets(kind, queries))
        .unit(unit)
        .legend(
            VizLegendOptions()
            .display_mode(common.LegendDisplayMode.LIST)
            .placement(common.LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI).sort(common.SortOrder.DESCENDING))
        .height(HEIGHT)
        .span(width)
    )
    if not is_signed:
        panel = panel.min(0)
    if not is_stacked:
        return panel.fill_opacity(10).show_points(common.VisibilityMode.NEVER)
    return (
        panel.draw_style(common.GraphDrawStyle.BARS)
        .fill_opacity(80)
        .line_width(0)
        .stacking(StackingConfig().mode(common.StackingMode.NORMAL).group("A"))
    )


def ranking(title: str, query: Query, *, width: int = 8, description: str = "") -> bargauge.Panel:
    """A bar for each series, the longest first."""
    return (
        bargauge.Panel()
        .title(title)
        .description(description)
        .datasource(source("loki"))
        .targets(targets("loki", (query._replace(is_instant=True),)))
        .unit("short")
        .min(0)
        .thresholds(steps(None, None))
        .orientation(common.VizOrientation.HORIZONTAL)
        .display_mode(common.BarGaugeDisplayMode.BASIC)
        .reduce_options(ReduceDataOptions().calcs(["lastNotNull"]))
        .with_transformation(
            DataTransformerConfig(id_val="sortBy", options={"sort": [{"field": "Value #A", "desc": True}]})
        )
        .height(HEIGHT)
        .span(width)
    )


def rows(title: str, expr: str, columns: dict[str, str], *, description: str = "", height: int = 10) -> table.Panel:
    """A row for each entry. `columns`: name of an extracted label -> heading, in order; newest first."""
    order = {name: place for place, name in enumerate(columns)}
    hidden = (
        "Line",
        "Time",
        "body",
        "id",
        "labels",
        "labelTypes",
        "timestamp",
        "tsNs",
        "tag_name",
        "contract",
        "late",
        "service_name",
    )
    hidden += () if "contract_number" in columns else ("contract_number",)
    return (
        table.Panel()
        .title(title)
        .description(description)
        .datasource(source("loki"))
        .with_target(loki.Dataquery().expr(expr).query_type("range").max_lines(200).ref_id("A"))
        .with_transformation(
            DataTransformerConfig(
                id_val="extractFields", options={"source": "labels", "format": "json", "replace": False}
            )
        )
        .with_transformation(
            DataTransformerConfig(
                id_val="organize",
                options={
                    "excludeByName": dict.fromkeys(hidden, True),
                    "indexByName": order,
                    "renameByName": columns,
                },
            )
        )
        .sort_by([TableSortByFieldState().display_name(columns["at"]).desc(True)])
        .footer(TableFooterOptions().show(False))
        .height(height)
        .span(24)
    )


def lines(title: str, expr: str) -> logs.Panel:
    """The raw entries, newest first."""
    return (
        logs.Panel()
        .title(title)
        .datasource(source("loki"))
        .with_target(loki.Dataquery().expr(expr).query_type("range").max_lines(100).ref_id("A"))
        .show_time(True)
        .wrap_log_message(False)
        .enable_log_details(True)
        .sort_order(common.LogsSortOrder.DESCENDING)
        .height(12)
        .span(24)
    )


def as_json(dashboard: Dashboard) -> str:
    """The text of the file that Grafana imports. The same source always gives the same text."""
    built = dashboard.build()
    for number_of, panel in enumerate(built.panels or [], start=1):
        panel.id_val = number_of
    return json.dumps(built, cls=JSONEncoder, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
