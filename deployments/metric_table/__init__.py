"""Which numbers do we export, in which unit, and what should an operator do about them? One table.

The exports, docs/metrics.md and the dashboards come from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from deployments.metric_table import admission, control, door, machines, replicas, requests, routing
from deployments.metric_table.row import Metric

_SUBJECTS = (requests, admission, routing, door, control, replicas, machines)
METRICS: Mapping[str, Metric] = MappingProxyType(
    {metric.name: metric for subject in _SUBJECTS for metric in subject.ROWS}
)

__all__ = ["METRICS", "Metric"]
