"""What is a board: which panels in which rows, what does each show, and with which queries?

Grafana's JSON (`grafana.py`) and the pages of `llama31 observe` (`pages.py`) are both made from these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# stat: one number now. lines, areas (stacked): over time. bars: one bar for each series now. table: label sets.
Kind = Literal["stat", "lines", "areas", "bars", "table"]
# What a panel cannot be drawn without. Everything else shows data on any service under load.
Need = Literal["", "gpu", "vllm"]

# A quarter of the width.
NARROW, MEDIUM, WIDE = 6, 8, 12

# Each ingress tells of its whole cluster; on Kubernetes a release has two during an upgrade.
GPUS_USED = 'sum(max by (release, ray_io_cluster) (llama31_gpus{state="used"}))'


@dataclass(frozen=True, slots=True)
class Query:
    """PromQL with Grafana's variables, and the name of each series it gives."""

    expr: str
    legend: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture. `unit` is one of Grafana's unit names."""

    title: str
    meaning: str
    unit: str
    queries: tuple[Query, ...]
    kind: Kind = "lines"
    width: int = MEDIUM
    needs: Need = ""


@dataclass(frozen=True, slots=True)
class Row:
    """Panels under one heading."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """A variable of a board, with the values of one label. `everything` matches them all, as a regular expression."""

    name: str
    series: str
    everything: str = ".+"


@dataclass(frozen=True, slots=True)
class Entry:
    """A variable of a board that the reader types, such as a price."""

    name: str
    label: str
    default: str


@dataclass(frozen=True, slots=True)
class Board:
    """One dashboard."""

    uid: str
    title: str
    meaning: str
    rows: tuple[Row, ...]
    choices: tuple[Choice, ...] = ()
    entries: tuple[Entry, ...] = ()

    @property
    def panels(self) -> tuple[Panel, ...]:
        """All of them, in order."""
        return tuple(panel for row in self.rows for panel in row.panels)


def rate(series: str, by: str, matching: str = "") -> str:
    """Per second, summed over everything but the labels in `by`."""
    return f"sum by ({by}) (rate({series}{{{matching}}}[$__rate_interval]))"


def quantile(share: float, histogram: str, matching: str = "", by: str = "") -> str:
    """A quantile of a histogram, over the labels in `by`."""
    labels = f"{by}, le" if by else "le"
    return f"histogram_quantile({share}, {rate(f'{histogram}_bucket', labels, matching)})"


def quantiles(histogram: str, matching: str = "") -> tuple[Query, ...]:
    """Median, p95 and p99."""
    shares = ((0.5, "median"), (0.95, "p95"), (0.99, "p99"))
    return tuple(Query(quantile(share, histogram, matching), name) for share, name in shares)
