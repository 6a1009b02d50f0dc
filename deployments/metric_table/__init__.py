"""Which numbers do we export, in which unit, and what should an operator do about them? One table.

The exports, docs/metrics.md and the dashboards come from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from deployments.metric_table import control, door, machines, replicas, requests
from deployments.metric_table.row import Metric

METRICS: Mapping[str, Metric] = MappingProxyType(
    {metric.name: metric for metric in (*requests.ROWS, *door.ROWS, *control.ROWS, *replicas.ROWS, *machines.ROWS)}
)

__all__ = ["METRICS", "Metric"]
