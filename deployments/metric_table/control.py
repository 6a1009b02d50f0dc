"""What do we export of decisions: what should run, and what keeps it from running?"""

from __future__ import annotations

from deployments.metric_table.row import Metric

ROWS = (
    Metric(
        "llama31_replicas_wanted",
        "gauge",
        ("model",),
        "replicas",
        "Replicas that should run, as Serve says. Every ingress says the same: take the maximum.",
        "More than the sum of llama31_replica_ready: some are missing; see placement_pending and 'llama31 status'.",
        across="max",
    ),
    Metric(
        "llama31_placement_pending",
        "gauge",
        ("model", "reason"),
        "replicas",
        "Wanted replicas without a process: resources (GPUs or CPUs are short), layout (no node holds a "
        "tensor-parallel group), launching (there is room). Every ingress says the same: take the maximum.",
        "resources: add nodes. layout: free whole nodes, or a plan with smaller groups. launching: see Serve's log.",
        across="max",
    ),
    Metric(
        "llama31_autoscaler_decisions_total",
        "counter",
        ("model", "reason"),
        "decisions",
        "Decisions of the autoscaler by reason (docs/autoscaling.md).",
        "no_room or at_max: it wants more than it may have. wake: replicas start from none, callers wait.",
    ),
    Metric(
        "llama31_autoscaler_target",
        "gauge",
        ("model",),
        "replicas",
        "What the autoscaler asked Serve for last.",
        "Compare with llama31_autoscaler_wanted, and with the sum of llama31_replica_ready.",
        across="max",
    ),
    Metric(
        "llama31_autoscaler_wanted",
        "gauge",
        ("model",),
        "replicas",
        "What it would have asked for without max_replicas and with room for all.",
        "Above the target for long: raise max_replicas, or add nodes.",
        across="max",
    ),
    Metric(
        "llama31_autoscaler_load",
        "gauge",
        ("model",),
        "replicas",
        "The arriving work, in replicas that do nothing else.",
        "Near the ready replicas: the next jump is late. Far below for long: the configured rates are too low.",
        across="max",
    ),
    Metric(
        "llama31_autoscaler_backlog_seconds",
        "gauge",
        ("model",),
        "s",
        "Predicted time to first token of a request that comes now.",
        "Above slo_ttft_s: requests are late until more replicas are ready.",
        across="max",
    ),
)
