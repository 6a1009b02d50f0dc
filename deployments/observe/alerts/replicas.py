"""When is a replica not there, or too full?"""

from __future__ import annotations

from deployments.observe.alerts.terms import END_REPLICA, READY, REPLICA_LOG, ROLL_BACK, WANTED
from deployments.observe.rule import Alert, Group

# Ready for a moment or never, and gone; one sample a minute, whatever the scrapes' interval is.
_SHORT_LIVED = """(
  count_over_time(llama31_replica_ready[30m:1m]) < 10 or max_over_time(llama31_replica_ready[30m]) == 0
)
unless llama31_replica_ready
unless llama31_replica_ready offset 30m"""

REPLICAS = Group(
    "llama31-replicas",
    alerts=(
        Alert(
            "Llama31NoReplicaReady",
            "page",
            "5m",
            f"{READY} == 0\nand on (release, model) (\n"
            "  max by (release, model) (max_over_time(llama31_replica_ready[1h])) == 1\n"
            "  or max by (release, model) (llama31_replicas_wanted offset 45m) > 0\n)\n"
            f"and on (release, model) {WANTED} > 0",
            "{{ $labels.model }}: no replica takes requests",
            "Every request is refused with `NO_READY_REPLICA`. The fleet was ready within the last hour and is gone, "
            "or it should have been there for 45 minutes: longer than any cold start.",
            (
                "`llama31 status`: the phase of every replica and its words.",
                "Fleet overview, *Placement pending* and *Cold start by phase*.",
                REPLICA_LOG,
            ),
            (
                "Placement pending: see [Llama31PlacementPending](#llama31placementpending).",
                "`CHECKPOINT_CORRUPT` or `CHECKPOINT_MISSING`: see [Llama31WeightsCorrupt](#llama31weightscorrupt).",
                f"Began with a deployment: {ROLL_BACK}.",
            ),
        ),
        Alert(
            "Llama31ReplicaNotReady",
            "ticket",
            "30m",
            "llama31_replica_ready == 0",
            "{{ $labels.replica }} of {{ $labels.model }} has not been ready for 30 minutes",
            "A replica starts or drains for longer than a cold start of the largest model should take.",
            (
                "`llama31 status`: its phase and how many ranks have reached it.",
                "One model, *Cold start by phase*: which phase takes longer than before?",
            ),
            (
                "Loading: is the node's weight cache filled (`llama31 weights check DIR`), is its disk slow?",
                "Draining: a stream does not end; after `ingress.drain_s` it is cut off.",
                f"It stands still? {END_REPLICA}",
            ),
        ),
        Alert(
            "Llama31ReplicaCrashLoop",
            "ticket",
            "5m",
            f"count by (release, model) (\n{_SHORT_LIVED}\n) >= 3",
            "{{ $labels.model }}: {{ $value }} replicas came and went within 30 minutes",
            "Replicas die before they are ready or within ten minutes, again and again. Each start costs the load of "
            "all weights.",
            (
                "The log of the last dead replicas: Ray dashboard, *Serve*; `kubectl logs --previous` of an engine "
                "pod, if its container was restarted.",
                "One model, *Interrupted streams* by cause.",
            ),
            (
                "Out of memory: lower `gpu_memory_share` or `max_batched_tokens`.",
                "NCCL or Xid errors on one node: cordon it.",
                f"After an upgrade: {ROLL_BACK}.",
            ),
        ),
        Alert(
            "Llama31KvPressure",
            "ticket",
            "10m",
            "llama31_replica_kv_used_tokens / llama31_replica_kv_total_tokens > 0.9",
            "{{ $labels.replica }}: {{ $value | humanizePercentage }} of the KV cache is in use",
            "Live sequences fill the KV cache. New ones wait, and the engine may compute sequences again that it "
            "had to push out.",
            (
                "One replica, *KV cache in use* and *Preemptions*.",
                "One model, *Prompt tokens*: do contexts get longer?",
            ),
            ("Add replicas, lower `max_running` or tenants' token limits, or use FP8 for the KV cache.",),
        ),
    ),
)
