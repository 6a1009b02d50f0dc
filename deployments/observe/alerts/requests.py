"""What of requests and queues must somebody look at?"""

from __future__ import annotations

from deployments.observe.alerts.terms import REPLICA_LOG, grown
from deployments.observe.objectives import COUNTED, FAULTY
from deployments.observe.rule import Alert, Group

_REASON_RATIO = (
    f"sum by (model, outcome) (rate(llama31_requests_total{{{FAULTY}}}[10m]))\n"
    f"/ on (model) group_left () sum by (model) (rate(llama31_requests_total{{{COUNTED}}}[10m]))"
)

REQUESTS = Group(
    "llama31-requests",
    alerts=(
        Alert(
            "Llama31ErrorsByReason",
            "ticket",
            "10m",
            f"{_REASON_RATIO} > 0.05",
            "{{ $labels.model }}: {{ $value | humanizePercentage }} of requests end with {{ $labels.outcome }}",
            "One reason alone makes more than one request in twenty fail.",
            ("The reason's row in docs/errors.md.", "Fleet overview, *Errors by reason*: since when?"),
            ("What the alert on the error budget says for that reason.",),
        ),
        Alert(
            "Llama31StreamsInterrupted",
            "ticket",
            "0m",
            f"sum by (model, cause) ({grown('llama31_interrupted_total', '15m')}) > 5",
            "{{ $labels.model }}: {{ $value | humanize }} streams lost their replica ({{ $labels.cause }})",
            "Streams that had begun ended with `STREAM_INTERRUPTED`, because their replica died or could not be "
            "reached. Clients have a part of their answer and must ask again.",
            (
                "One model, *Replicas ready*: did a replica go at that time?",
                f"{REPLICA_LOG} The cause stands in its last lines.",
                "`dmesg` of its node: Xid errors, out-of-memory kills.",
            ),
            (
                "Serve replaces the replica by itself; look whether it comes back (`llama31 status`).",
                "The same node again: cordon it (`kubectl cordon NODE`) and delete the pod.",
            ),
        ),
        Alert(
            "Llama31QueueGrows",
            "ticket",
            "5m",
            "min_over_time(llama31_replica_waiting[10m]) > 0 and deriv(llama31_replica_waiting[10m]) > 0",
            "{{ $labels.model }}: {{ $value }} requests or more wait at {{ $labels.replica }}, and more come",
            "A replica has had no room for ten minutes and its queue gets longer: more comes than it can take.",
            (
                "One model, *Waiting* for every replica: all of them, or one?",
                "One replica, *KV cache in use*: full, or are there too many running?",
                "Board Tenants: whose requests grew?",
            ),
            (
                "All replicas: add some (`replicas`), or lower a tenant's limits in the tenants file.",
                "One replica: it is slow; see [Llama31EngineStuck](#llama31enginestuck).",
            ),
        ),
        Alert(
            "Llama31QueueWaitLong",
            "ticket",
            "10m",
            "histogram_quantile(0.95, sum by (model, le) (rate(llama31_queue_wait_seconds_bucket[10m]))) > 10",
            "{{ $labels.model }}: one request in twenty waits over {{ $value | humanizeDuration }} for a replica",
            "Requests wait long before an engine takes them. Callers see it as a late first token.",
            ("One model, *Queue wait* beside *Running* and *Waiting*.",),
            ("As for [Llama31QueueGrows](#llama31queuegrows).",),
        ),
    ),
)
