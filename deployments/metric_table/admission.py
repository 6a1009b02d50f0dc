"""What do we count of requests that wait to be let in, and of the leases by which ingresses decide?"""

from __future__ import annotations

from deployments.metric_table.row import Metric

_WAIT_BUCKETS_S = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 600.0)

ROWS = (
    Metric(
        "llama31_admission_wait_seconds",
        "histogram",
        ("model", "priority"),
        "seconds",
        "How long requests waited at the ingress until they might go to a replica; of those that were let in.",
        "High for every priority: add replicas. High for one tenant's (its callers complain): see docs/admission.md.",
        _WAIT_BUCKETS_S,
    ),
    Metric(
        "llama31_admission_waiting",
        "gauge",
        ("model", "priority"),
        "requests",
        "Requests that wait at this ingress for room in the engines.",
        "Grows: more comes than the fleet takes; add replicas, or lower a tenant's limits.",
    ),
    Metric(
        "llama31_admission_refused_total",
        "counter",
        ("model", "reason"),
        "requests",
        "Requests that were refused before an engine had them: too_large, no_replica, deadline_unmeetable, queue_full.",
        "queue_full: add replicas. deadline_unmeetable: clients ask for more than can be done in their time. "
        "no_replica: a cold start takes longer than requests wait (ingress.hold_s).",
    ),
    Metric(
        "llama31_room_share",
        "gauge",
        ("model",),
        "share",
        "Of the fleet's room for requests, what this ingress may fill: its lease of the ledger, or its fixed share.",
        "At most 1 over all ingresses while the ledger answers. Far below 1 with requests waiting: an ingress died and "
        "its lease has not come back (3 s), or the ledger is away.",
    ),
    Metric(
        "llama31_ledger_answers",
        "gauge",
        ("model",),
        "1 or 0",
        "Whether the ledger of leases answered this ingress the last time.",
        "0: each ingress goes on with a fixed share of the room and of tenants' limits. Look for the actor "
        "admission-ledger on Ray's dashboard; it comes back with the cluster's head.",
        across="min",
    ),
)
