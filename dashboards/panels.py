# SPDX-License-Identifier: Apache-2.0
"""The kinds of panel that the dashboards are made of, with the choices that they share."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from grafana_foundation_sdk.builders import bargauge, common, dashboard, prometheus, stat, statetimeline, timeseries
from grafana_foundation_sdk.models import common as choices
from grafana_foundation_sdk.models import dashboard as models

from tandem_api.metrics import ACTIVITIES

SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
_COLORS = (
    "text",
    "blue",
    "purple",
    "green",
    "orange",
    "light-green",
    "yellow",
    "red",
    "gray",
    "dark-green",
    "dark-red",
)


class View(StrEnum):
    """How a panel shows its series."""

    LINES = "lines"
    STACK = "stack"
    NUMBER = "number"
    BARS = "bars"
    STATES = "states"


@dataclass(frozen=True, slots=True)
class Query:
    """An expression and what its series are called. ``now`` asks for the newest value alone."""

    expression: str
    legend: str = "__auto"


@dataclass(frozen=True, slots=True)
class Panel:
    """What a panel shows; ``width`` of 24 columns, ``height`` in rows. ``link`` leads from a series elsewhere."""

    title: str
    description: str
    unit: str
    queries: tuple[Query, ...]
    view: View = View.LINES
    width: int = 8
    height: int = 8
    link: str | None = None

    def build(self) -> Any:
        made = _BUILDERS[self.view]().title(self.title).description(self.description).unit(self.unit)
        made = made.datasource(SOURCE).span(self.width).height(self.height)
        for place, query in enumerate(self.queries):
            made = made.with_target(_target(query, chr(ord("A") + place), now=self.view in (View.NUMBER, View.BARS)))
        if self.link is not None:
            made = made.data_links([dashboard.DashboardLink("Run").url(self.link)])
        return made


def panel(title: str, description: str, unit: str, *queries: tuple[str, str], **layout: Any) -> Panel:
    """``queries`` are (expression, legend)."""
    return Panel(title, description, unit, tuple(Query(*query) for query in queries), **layout)


def number(title: str, description: str, unit: str, expression: str, width: int = 4) -> Panel:
    """One number, named as its panel."""
    return panel(title, description, unit, (expression, title), view=View.NUMBER, width=width, height=4)


@dataclass(frozen=True, slots=True)
class Row:
    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Page:
    """A dashboard."""

    uid: str
    title: str
    description: str
    rows: tuple[Row, ...]
    variables: tuple[tuple[str, str, str], ...] = ()
    """(name, label, query of its values)."""

    def build(self, others: Iterable["Page"]) -> models.Dashboard:
        made = dashboard.Dashboard(self.title).uid(self.uid).description(self.description).tags(["tandem"])
        made = made.readonly().time("now-6h", "now").refresh("30s").timezone("browser")
        made = made.with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        for name, label, query in self.variables:
            made = made.with_variable(_variable(name, label, query))
        for other in others:
            link = dashboard.DashboardLink(other.title).url(f"/d/{other.uid}").type(models.DashboardLinkType.LINK)
            made = made.link(link.keep_time(True).include_vars(True))
        for row in self.rows:
            made = made.with_row(dashboard.Row(row.title))
            for shown in row.panels:
                made = made.with_panel(shown.build())
        return made.build()


def _target(query: Query, reference: str, *, now: bool) -> Any:
    made = prometheus.Dataquery().expr(query.expression).legend_format(query.legend).ref_id(reference)
    return made.instant() if now else made.range()


def _variable(name: str, label: str, query: str) -> Any:
    made = dashboard.QueryVariable(name).label(label).datasource(SOURCE).query(query)
    made = made.refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(models.VariableSort.ALPHABETICAL_ASC)
    return made.include_all(True).all_value(".*").multi(True) if name == "namespaces" else made


def _lines() -> Any:
    legend = common.VizLegendOptions().display_mode(choices.LegendDisplayMode.LIST)
    legend = legend.placement(choices.LegendPlacement.BOTTOM).show_legend(True)
    tooltip = common.VizTooltipOptions().mode(choices.TooltipDisplayMode.MULTI)
    return timeseries.Panel().legend(legend).tooltip(tooltip).fill_opacity(8).line_width(1).span_nulls(False)


def _stack() -> Any:
    stacking = common.StackingConfig().mode(choices.StackingMode.PERCENT)
    return _lines().stacking(stacking).fill_opacity(70).line_width(0)


def _number() -> Any:
    newest = common.ReduceDataOptions().calcs(["lastNotNull"])
    return stat.Panel().reduce_options(newest).graph_mode(choices.BigValueGraphMode.NONE)


def _bars() -> Any:
    newest = common.ReduceDataOptions().calcs(["lastNotNull"])
    return (
        bargauge.Panel()
        .reduce_options(newest)
        .orientation(choices.VizOrientation.HORIZONTAL)
        .display_mode(choices.BarGaugeDisplayMode.BASIC)
        .min(0)
    )


def _states() -> Any:
    values = {
        str(number): models.ValueMappingResult(text=name, color=color, index=number)
        for number, (name, color) in enumerate(zip(ACTIVITIES, _COLORS, strict=True))
    }
    return (
        statetimeline.Panel()
        .mappings([models.ValueMap(options=values)])
        .show_value(choices.VisibilityMode.NEVER)
        .merge_values(True)
        .row_height(0.8)
    )


_BUILDERS = {
    View.LINES: _lines,
    View.STACK: _stack,
    View.NUMBER: _number,
    View.BARS: _bars,
    View.STATES: _states,
}
