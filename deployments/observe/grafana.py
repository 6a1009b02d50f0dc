"""What does Grafana get? Each board as the JSON that the chart ships and Grafana imports.

`python -m deployments.observe.grafana DIRECTORY`, or `make docs`; needs the `dev` extra.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from grafana_foundation_sdk.builders import bargauge, common, dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    LegendDisplayMode,
    LegendPlacement,
    StackingMode,
    TooltipDisplayMode,
    VizOrientation,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    VariableOption,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from deployments.observe.board import Board, Choice, Entry, Kind, Panel
from deployments.observe.boards import BOARDS

AnyPanel = stat.Panel | table.Panel | bargauge.Panel | timeseries.Panel

TAG = "llama31"
DATASOURCE = DataSourceRef("prometheus", "${datasource}")
PANEL_HEIGHT, STAT_HEIGHT = 8, 4


def grafana_json(board: Board) -> str:
    """The dashboard model of Grafana 10 and later."""
    built = (
        dashboard.Dashboard(board.title)
        .uid(board.uid)
        .description(board.meaning)
        .tags([TAG])
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .refresh("30s")
        .time("now-1h", "now")
        .link(dashboard.DashboardLink("Boards").type(DashboardLinkType.DASHBOARDS).tags([TAG]).keep_time(True))
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    )
    for choice in board.choices:
        built.with_variable(_choice(choice))
    for entry in board.entries:
        built.with_variable(_entry(entry))
    ids = itertools.count(1)
    for row in board.rows:
        built.with_row(dashboard.Row(row.title).id(next(ids)))
        for panel in row.panels:
            built.with_panel(_panel(panel).id(next(ids)))
    return str(JSONEncoder(sort_keys=True, indent=1).encode(built.build()))


def _choice(choice: Choice) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(choice.name)
        .label(choice.name.capitalize())
        .datasource(DATASOURCE)
        .query(f"label_values({choice.series}, {choice.name})")
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(choice.everything)
        .current(VariableOption(True, ["All"], ["$__all"]))
    )


def _entry(entry: Entry) -> dashboard.TextBoxVariable:
    value = VariableOption(True, entry.default, entry.default)
    return dashboard.TextBoxVariable(entry.name).label(entry.label).default_value(entry.default).current(value)


def _panel(panel: Panel) -> AnyPanel:
    built = _BUILDERS[panel.kind]().title(panel.title).description(panel.meaning).unit(panel.unit)
    built.datasource(DATASOURCE).span(panel.width).height(STAT_HEIGHT if panel.kind == "stat" else PANEL_HEIGHT)
    for index, query in enumerate(panel.queries):
        target = prometheus.Dataquery().expr(query.expr).legend_format(query.legend).ref_id(chr(ord("A") + index))
        if panel.kind in ("bars", "table"):
            target.instant().format(PromQueryFormat.TABLE if panel.kind == "table" else PromQueryFormat.TIME_SERIES)
        built.with_target(target)
    return built


def _lines() -> timeseries.Panel:
    legend = common.VizLegendOptions().display_mode(LegendDisplayMode.LIST).placement(LegendPlacement.BOTTOM)
    tooltip = common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI)
    return timeseries.Panel().legend(legend.show_legend(True)).tooltip(tooltip).min(0)


def _areas() -> timeseries.Panel:
    return _lines().fill_opacity(30).stacking(common.StackingConfig().mode(StackingMode.NORMAL).group("A"))


def _stat() -> stat.Panel:
    return stat.Panel().reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))


def _bars() -> bargauge.Panel:
    calcs = common.ReduceDataOptions().calcs(["lastNotNull"])
    return bargauge.Panel().reduce_options(calcs).orientation(VizOrientation.HORIZONTAL).min(0)


_BUILDERS: Mapping[Kind, Callable[[], AnyPanel]] = MappingProxyType(
    {"lines": _lines, "areas": _areas, "stat": _stat, "bars": _bars, "table": table.Panel}
)


def main() -> None:
    """Writes every board into the directory."""
    directory = Path(sys.argv[1])
    for board in BOARDS:
        (directory / f"{board.uid}.json").write_text(grafana_json(board) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
