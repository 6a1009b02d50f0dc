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
)
