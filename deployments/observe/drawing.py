"""What does Prometheus say to a panel now, and how does that look?"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass

from markupsafe import Markup

from deployments.observe.board import Board, Panel, Query
from deployments.observe.charts import COLOURS, Line, Span, area_chart, bar_chart, format_value, line_chart
from deployments.observe.prometheus import SCRAPE_EVERY_S, Prometheus, Series

POINTS = 120
# Grafana's own rule: four scrapes.
RATE_INTERVAL_S = 4 * SCRAPE_EVERY_S
# A stat shows the last value that there was, as in Grafana.
OVER_TIME = ("lines", "areas", "stat")

_VARIABLE = re.compile(r"\$(\w+)")
_LABEL = re.compile(r"{{\s*(\w+)\s*}}")


@dataclass(frozen=True, slots=True)
class View:
    """What the reader chose: how much time, and the values of the board's variables."""

    span_s: float
    variables: Mapping[str, str]

    def fill(self, expr: str) -> str:
        """PromQL without Grafana's variables."""
        known = {"__rate_interval": f"{RATE_INTERVAL_S}s", "__range": f"{self.span_s:.0f}s", **self.variables}
        return _VARIABLE.sub(lambda found: known[found[1]], expr)


@dataclass(frozen=True, slots=True)
class Drawn:
    """A panel as the page shows it. `legend`: colour, name, last value. Empty lists and `picture`: no data."""

    panel: Panel
    picture: Markup
    legend: tuple[tuple[int, str, str], ...]
    error: str = ""

    @property
    def is_empty(self) -> bool:
        """Whether Prometheus has nothing for it."""
        return not self.legend and not self.error


def default_view(board: Board, span_s: float) -> View:
    """Everything, at the default prices."""
    entries = {entry.name: entry.default for entry in board.entries}
    return View(span_s, {choice.name: choice.everything for choice in board.choices} | entries)


async def draw(prometheus: Prometheus, panel: Panel, view: View) -> Drawn:
    """Asks for the panel's queries and draws the answers; an error of a query is shown in its place."""
    now_s = time.time()
    span = Span(now_s - view.span_s, now_s, max(1.0, view.span_s / POINTS))
    ask = [
        prometheus.over(view.fill(query.expr), span.start_s, span.end_s, span.step_s)
        if panel.kind in OVER_TIME
        else prometheus.now(view.fill(query.expr))
        for query in panel.queries
    ]
    try:
        answers = await asyncio.gather(*ask)
    except ValueError as error:
        return Drawn(panel, Markup(""), (), str(error))
    lines = [
        Line(series_name(query, series), series.points)
        for query, answer in zip(panel.queries, answers, strict=True)
        for series in answer
        if series.points
    ]
    lines.sort(key=lambda line: line.name)
    legend = tuple(
        (index % COLOURS, line.name, format_value(line.points[-1][1], panel.unit)) for index, line in enumerate(lines)
    )
    return Drawn(panel, _picture(panel, lines, span), legend)


def series_name(query: Query, series: Series) -> str:
    """The query's legend with the series' labels, as Grafana writes it."""
    name = _LABEL.sub(lambda found: series.labels.get(found[1], ""), query.legend).strip()
    return name or "none"


def _picture(panel: Panel, lines: list[Line], span: Span) -> Markup:
    if lines:
        match panel.kind:
            case "lines":
                return line_chart(lines, span, panel.unit, panel.width)
            case "areas":
                return area_chart(lines, span, panel.unit, panel.width)
            case "bars":
                return bar_chart([(line.name, line.points[-1][1]) for line in lines], panel.unit, panel.width)
    return Markup("")
