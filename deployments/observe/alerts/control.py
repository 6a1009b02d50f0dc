"""When does the service not get what it was told to have?"""

from __future__ import annotations

from deployments.observe.alerts.terms import READY, WANTED
from deployments.observe.rule import Alert, Group

CONTROL = Group(
    "llama31-control",
    alerts=(
        Alert(
            "Llama31ReplicasMissing",
            "ticket",
            "30m",
            f"{WANTED}\n- {READY} > 0",
            "{{ $labels.model }}: {{ $value }} replicas fewer than wanted take requests",
            "The service answers, but with less than it was given: the next loss or a peak will be felt.",
            (
                "`llama31 status`: which replicas are there, and in which phase?",
                "Fleet overview, *Placement pending*: do they wait for GPUs?",
            ),
            (
                "None is there: see [Llama31PlacementPending](#llama31placementpending).",
                "They come and go: see [Llama31ReplicaCrashLoop](#llama31replicacrashloop).",
            ),
        ),
        Alert(
            "Llama31PlacementPending",
            "ticket",
            "10m",
            "max by (release, model, reason) (llama31_placement_pending) > 0",
            "{{ $labels.model }}: a replica waits for GPUs ({{ $labels.reason }})",
            "The cluster has no room for a replica that should run. `resources`: too few GPUs or CPUs are free. "
            "`layout`: no node has a tensor-parallel group free. `launching`: there is room, but no process yet.",
            (
                "`llama31 serve --config ... --check --address ...`: says what is missing, node by node.",
                "Fleet overview, *GPUs*: used and free.",
                "`kubectl get pods`: does a worker pod wait for a node or for its weights?",
            ),
            ("Bring the missing nodes back, or lower `replicas` to what fits.",),
        ),
        Alert(
            "Llama31KvBelowPlan",
            "ticket",
            "15m",
            "min by (release, model) (llama31_replica_kv_total_tokens)\n"
            "/ max by (release, model) (llama31_planned_kv_tokens) < 0.97",
            "{{ $labels.model }}: a replica has {{ $value | humanizePercentage }} of the KV cache that was planned",
            "The plan's number of running requests and its longest context need KV cache that is not there: requests "
            "will wait or be computed again before the load is what it was planned for.",
            (
                "`llama31 verify`: which replicas, and what else differs from the plan?",
                "`nvidia-smi` on its node: does something else hold GPU memory? Is it the planned kind of GPU?",
            ),
            (
                "Free the memory, or bring back `gpu_memory_share` and `kv_cache_dtype` of the plan.",
                "Otherwise plan anew (`llama31 plan`) with the GPUs that are there.",
            ),
        ),
        Alert(
            "Llama31AutoscalerAtItsBound",
            "ticket",
            "15m",
            "max by (release, model) (llama31_autoscaler_wanted) > max by (release, model) (llama31_autoscaler_target)",
            "{{ $labels.model }}: the autoscaler wants {{ $value }} replicas and may not have them",
            "The demand needs more replicas than `autoscaling.max_replicas` or the cluster's room allow: first tokens "
            "come late, and with more demand requests are refused.",
            (
                "Fleet overview, *Autoscaler*: wanted, target and backlog.",
                "`sum by (reason) (rate(llama31_autoscaler_decisions_total[15m]))`: `at_max` is the configuration, "
                "`no_room` the cluster.",
                "`llama31 replay FILE --policy max_replicas=N`: what it would have asked for.",
            ),
            ("Raise `autoscaling.max_replicas`, or add nodes.", "Too much for good: lower tenants' limits."),
        ),
    ),
)
