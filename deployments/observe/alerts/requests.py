"""What of requests and queues must somebody look at?"""

from __future__ import annotations

from deployments.observe.alerts.terms import REPLICA_LOG, grown
from deployments.observe.objectives import COUNTED, FAULTY
from deployments.observe.rule import Alert, Group

_REASON_RATIO = (
    f"sum by (release, model, outcome) (rate(llama31_requests_total{{{FAULTY}}}[10m]))\n"
    f"/ on (release, model) group_left () sum by (release, model) (rate(llama31_requests_total{{{COUNTED}}}[10m]))"
)
_UNPLANNED = 'llama31_interrupted_total{cause!="draining"}'

_WAITING = "sum by (release, model) (llama31_admission_waiting)"

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
            f"sum by (release, model, cause) ({grown(_UNPLANNED, '15m')}) > 5",
            "{{ $labels.model }}: {{ $value | humanize }} streams lost their replica ({{ $labels.cause }})",
            "A replica died or could not be reached. Its streams go on elsewhere, with a pause; clients get "
            "`STREAM_INTERRUPTED` only where no replica of equal weights was ready within `ingress.continue_within_s`.",
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
            f"min_over_time({_WAITING}[10m:1m]) > 0\nand deriv({_WAITING}[10m:1m]) > 0",
            "{{ $labels.model }}: {{ $value }} requests or more wait for room, and more come",
            "For ten minutes requests have waited at the ingresses, and there are more and more of them: more comes "
            "than the fleet can take. Tenants that ask for little are still served first (docs/admission.md).",
            (
                "Fleet overview, *Admission*: of which priority, and are requests refused (`queue_full`)?",
                "*KV cache in use*: full in all replicas? If not: *Room leased*, which should be 1.",
                "Board Tenants: whose requests grew?",
            ),
            (
                "Add replicas, or lower that tenant's limits in the tenants file.",
                "One replica holds all up: it is slow; see [Llama31EngineStuck](#llama31enginestuck).",
            ),
        ),
        Alert(
            "Llama31QueueWaitLong",
            "ticket",
            "10m",
            "histogram_quantile(0.95, sum by (release, model, le) (rate(llama31_queue_wait_seconds_bucket[10m]))) > 10",
            "{{ $labels.model }}: one request in twenty waits over {{ $value | humanizeDuration }} for a replica",
            "Requests wait long before an engine takes them. Callers see it as a late first token.",
            ("One model, *Queue wait* beside *Running* and *Waiting*.",),
            ("As for [Llama31QueueGrows](#llama31queuegrows).",),
        ),
    ),
)
