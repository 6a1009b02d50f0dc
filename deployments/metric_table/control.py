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
        "llama31_planned_kv_tokens",
        "gauge",
        ("model",),
        "tokens",
        "KV cache of each replica by the plan of `llama31 plan --emit`. Not there without a plan.",
        "llama31_replica_kv_total_tokens below it: other GPUs, a larger overhead, or another plan; 'llama31 verify'.",
        across="max",
    ),
    Metric(
        "llama31_planned_requests_per_second",
        "gauge",
        ("model",),
        "requests/s",
        "The rate that the plan is for, of the whole service.",
        "More comes in: plan again with the present rate.",
        across="max",
    ),
    Metric(
        "llama31_planned_ttft_seconds",
        "gauge",
        ("model",),
        "seconds",
        "The plan's 99th percentile of the time to the first token.",
        "Compare with llama31_ttft_seconds: 'llama31 verify'.",
        across="max",
    ),
    Metric(
        "llama31_planned_inter_token_seconds",
        "gauge",
        ("model",),
        "seconds",
        "The plan's 99th percentile of the time between tokens.",
        "Compare with llama31_inter_token_seconds: 'llama31 verify'.",
        across="max",
    ),
    Metric(
        "llama31_planned_output_tokens_per_second",
        "gauge",
        ("model",),
        "tokens/s",
        "What the plan gives at its rate, the whole service together.",
        "Compare with llama31_replica_tokens_total, phase decode.",
        across="max",
    ),
)
