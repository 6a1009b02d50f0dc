"""When should somebody look, and what do they need to know then?

One file for each subject; what the service owes its callers is in `objectives.py`.
"""

from __future__ import annotations

from deployments.observe.alerts.admission import ADMISSION
from deployments.observe.alerts.control import CONTROL
from deployments.observe.alerts.doors import DOORS
from deployments.observe.alerts.ranks import RANKS
from deployments.observe.alerts.replicas import REPLICAS
from deployments.observe.alerts.requests import REQUESTS
from deployments.observe.alerts.routing import ROUTING
from deployments.observe.alerts.weights import WEIGHTS
from deployments.observe.objectives import OBJECTIVES
from deployments.observe.rule import Alert, Group

GROUPS: tuple[Group, ...] = (OBJECTIVES, REQUESTS, ADMISSION, ROUTING, CONTROL, REPLICAS, RANKS, DOORS, WEIGHTS)
ALERTS: tuple[Alert, ...] = tuple(alert for group in GROUPS for alert in group.alerts)
